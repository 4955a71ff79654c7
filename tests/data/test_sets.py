"""Tests of labelled images from every kind of source."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from huggingface_hub import constants
from PIL import Image

from regnet.data.sets import open_set
from regnet.errors import DataError, ImageError
from tests.pictures import pictures, write_folder


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    path, count, *, names=("red", "green", "blue"), labels=None, group=4, image="img"
):
    images, usual = pictures(count, classes=len(names) if names else 3)
    rows = [{"bytes": encoded(i), "path": None} for i in images]
    table = pyarrow.table({image: rows, "label": usual if labels is None else labels})
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    parquet.write_table(table, path, row_group_size=group)
    return path


def test_class_folders_are_a_set(tmp_path):
    folder = write_folder(tmp_path / "set", 7)
    (folder / ".cache").mkdir()
    (folder / "red/notes.txt").write_text("not an image")
    images = open_set(folder)
    assert images.classes == ("blue", "green", "red")
    assert len(images) == 7
    assert images.names[0] == "blue/0002.png"
    expected = pictures(7)[0]
    for index, name in enumerate(images.names):
        assert images.classes[images.labels[index]] == name.split("/")[0]
        number = int(name[-8:-4])
        assert np.array_equal(np.asarray(images.open(index)), expected[number])


def test_splits_are_opened_by_name(tmp_path):
    write_folder(tmp_path / "train", 6)
    write_folder(tmp_path / "validation", 3)
    assert len(open_set(tmp_path, "train")) == 6
    assert len(open_set(tmp_path)) == 3
    (tmp_path / "hub/data").mkdir(parents=True)
    write_parquet(tmp_path / "hub/data/train-00000-of-00002.parquet", 5)
    write_parquet(tmp_path / "hub/data/train-00001-of-00002.parquet", 4)
    write_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", 3)
    assert len(open_set(tmp_path / "hub", "train")) == 9
    assert len(open_set(tmp_path / "hub")) == 3


@pytest.mark.parametrize("place", [".cache/a.parquet", "__MACOSX/a.parquet", "red/.a.parquet"])
def test_hidden_parquet_files_are_no_data(tmp_path, place):
    write_folder(tmp_path, 6)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    write_parquet(tmp_path / place, 9)
    assert len(open_set(tmp_path)) == 6
    rows = tmp_path / "rows"
    rows.mkdir()
    write_parquet(rows / "test.parquet", 4)
    (rows / "._test.parquet").write_bytes(b"AppleDouble")
    assert len(open_set(rows)) == 4


def test_whole_numbers_may_be_floats(tmp_path):
    """As pandas leaves them where it joined tables."""
    whole = open_set(write_parquet(tmp_path / "a.parquet", 3, labels=[0.0, 2.0, 1.0]))
    assert whole.labels.tolist() == [0, 2, 1]
    assert whole.labels.dtype == np.int64
    with pytest.raises(DataError, match="must all be whole numbers"):
        open_set(write_parquet(tmp_path / "b.parquet", 3, labels=[0.5, 2.0, 1.0]))


def test_links_to_the_folder_around_them_are_not_followed(tmp_path):
    write_parquet(tmp_path / "a.parquet", 4)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/loop").symlink_to(tmp_path)
    assert len(open_set(tmp_path)) == 4
    with pytest.raises(DataError):
        open_set(tmp_path / "inner/loop/inner/none")


def test_parquet_files_without_images_do_not_hide_those_with_images(tmp_path):
    """As after `regnet predict photos/ --out photos/predictions.parquet`."""
    table = pyarrow.table({"path": ["a.jpg"], "labels": [["cat"]]})
    folder = write_folder(tmp_path / "photos", 6)
    parquet.write_table(table, folder / "predictions.parquet")
    assert len(open_set(folder)) == 6
    rows = tmp_path / "rows"
    rows.mkdir()
    parquet.write_table(table, rows / "predictions.parquet")
    with pytest.raises(DataError, match="needs columns 'image'"):
        open_set(rows)
    write_parquet(rows / "test.parquet", 4)
    assert len(open_set(rows)) == 4


def test_parquet_and_tar_hold_the_same_as_folders(tmp_path):
    folder = write_folder(tmp_path / "set", 11)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(folder, "set")
    rows = open_set(write_parquet(tmp_path / "set.parquet", 11))
    archived, expected = open_set(tmp_path / "set.tar"), open_set(folder)
    assert archived.classes == expected.classes
    assert archived.labels.tolist() == expected.labels.tolist()
    for index in range(11):
        assert archived.open(index).tobytes() == expected.open(index).tobytes()
    assert rows.classes == ("red", "green", "blue")
    images, labels = pictures(11)
    assert rows.labels.tolist() == labels
    for index in (10, 0, 5, 4, 3, 9):  # across row groups, in any order
        assert np.array_equal(np.asarray(rows.open(index)), images[index])


@pytest.mark.parametrize("kind", ["set", "set.tar", "set.parquet"])
def test_sets_can_be_sent_to_other_processes(tmp_path, kind):
    folder = write_folder(tmp_path / "set", 5)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(folder, "set")
    write_parquet(tmp_path / "set.parquet", 5)
    images = open_set(tmp_path / kind)
    images.open(3)
    again = pickle.loads(pickle.dumps(images))
    assert again.open(4).tobytes() == images.open(4).tobytes()
    assert again.fingerprint == images.fingerprint


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    write_folder(tmp_path / "a", 9, names=("bus", "train", "car"))
    for split in ("train", "val"):
        assert open_set(tmp_path / "a", split).classes == ("bus", "car", "train")
    write_folder(tmp_path / "b/train", 3)
    with pytest.raises(DataError, match="has no images for 'val', only train"):
        open_set(tmp_path / "b")


def test_a_tar_file_may_contain_splits(tmp_path):
    write_folder(tmp_path / "set/train", 6)
    write_folder(tmp_path / "set/test", 3)
    (tmp_path / "set/test/red/._0000.png").write_bytes(b"not an image")
    (tmp_path / "set/test/red/again.png").hardlink_to(tmp_path / "set/test/red/0000.png")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set", "set")
    held, trained = (open_set(tmp_path / "set.tar", split) for split in ("val", "train"))
    assert (len(held), len(trained)) == (4, 6)
    assert held.classes == ("blue", "green", "red")
    assert [held.open(n).size for n in range(4)] == [(16, 16)] * 4
    with tarfile.open(tmp_path / "flat.tar", "w") as archive:
        archive.add(tmp_path / "set/test/red/0000.png", "0000.png")
    with pytest.raises(DataError, match="there are no images in class folders"):
        open_set(tmp_path / "flat.tar")


def test_parquet_layouts_of_the_hub_are_understood(tmp_path):
    for path in ("default/train/0000.parquet", "default/validation/0000.parquet"):
        (tmp_path / "a" / path).parent.mkdir(parents=True)
        write_parquet(tmp_path / "a" / path, 4 if "train" in path else 3)
    assert len(open_set(tmp_path / "a")) == 3
    assert len(open_set(tmp_path / "a", "train")) == 4
    (tmp_path / "b/plain_text").mkdir(parents=True)
    write_parquet(tmp_path / "b/plain_text/train-00000-of-00001.parquet", 4)
    with pytest.raises(DataError, match="has no images for 'val', only train"):
        open_set(tmp_path / "b")
    (tmp_path / "b/other").mkdir()
    write_parquet(tmp_path / "b/other/train-00000-of-00001.parquet", 4)
    with pytest.raises(DataError, match=r"holds several data sets; .* other, plain_text"):
        open_set(tmp_path / "b", "train")


def test_labels_may_be_names(tmp_path):
    images = [{"bytes": encoded(i), "path": f"x/ILSVRC2012_val_{n:08d}.JPEG"} for n, i in
              enumerate(pictures(3)[0])]  # fmt: skip
    table = pyarrow.table({"image": images, "wnid": ["n02", "n01", "n02"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    held = open_set(tmp_path / "a.parquet")
    assert held.classes == ("n01", "n02")
    assert held.labels.tolist() == [1, 0, 1]
    assert held.names[2] == "x/ILSVRC2012_val_00000002.JPEG"


def test_fingerprints_depend_on_labels_and_names(tmp_path):
    a = open_set(write_parquet(tmp_path / "a.parquet", 6))
    b = open_set(write_parquet(tmp_path / "b.parquet", 6, labels=[0, 1, 2, 0, 1, 1]))
    c = open_set(write_parquet(tmp_path / "c.parquet", 6, names=("red", "green", "yellow")))
    assert len({images.fingerprint for images in (a, b, c)}) == 3


def test_images_keep_the_format_of_their_file(tmp_path):
    folder = write_folder(tmp_path / "set", 1, suffix=".jpg")
    assert open_set(folder).open(0).format == "JPEG"


def test_a_damaged_image_is_named(tmp_path):
    folder = write_folder(tmp_path / "set", 4)
    (folder / "red/0000.png").write_bytes(b"no image")
    images = open_set(folder)
    with pytest.raises(ImageError, match=r"red/0000.png: not an image"):
        images.open(images.names.index("red/0000.png"))
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(folder, "set")
    archived = open_set(tmp_path / "set.tar")
    with pytest.raises(ImageError, match=r"set.tar/set/red/0000.png: not an image"):
        archived.open(list(archived.names).index("set/red/0000.png"))
    rows = pyarrow.table({"image": [{"bytes": b"x"}, {"bytes": None}], "label": [0, 1]})
    parquet.write_table(rows, tmp_path / "bad.parquet")
    held = open_set(tmp_path / "bad.parquet")
    with pytest.raises(ImageError, match="row 0: not an image"):
        held.open(0)
    with pytest.raises(ImageError, match="row 1: the image is empty"):
        held.open(1)


def test_other_files_and_folders_are_refused(tmp_path, monkeypatch):
    def refused(source, message):
        with pytest.raises(DataError, match=message):
            open_set(source)

    refused(tmp_path / "none", "there is no such file or folder")
    refused(tmp_path, "is empty; it must contain one folder of images per class")
    (tmp_path / "a.png").write_bytes(b"")
    refused(tmp_path, "holds no folders; it must contain one folder of images per class")
    (tmp_path / "class").mkdir()
    refused(tmp_path, "there are no images in class folders .* skipped: 1 outside class folders")
    refused(tmp_path / "a.png", "not a folder, .tar or .parquet file")
    monkeypatch.chdir(tmp_path)
    Path("shapes").mkdir()
    refused(Path("shapes"), "is empty")  # the string "shapes" would mean the drawn shapes
    for suffix in ("tar.gz", "TGZ", "tar.bz2", "tar.xz", "Zip"):
        (tmp_path / f"a.{suffix}").write_bytes(b"")
        refused(tmp_path / f"a.{suffix}", "unpack it first")
    (tmp_path / "a.tar").write_bytes(b"nonsense" * 100)
    refused(tmp_path / "a.tar", "not a readable tar file")
    (tmp_path / "a.parquet").write_bytes(b"nonsense" * 100)
    refused(tmp_path / "a.parquet", "not a readable Parquet file")
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", r"needs columns 'image' \(or 'img'\) and 'label', has text")
    refused(write_parquet(tmp_path / "c.parquet", 3, labels=[0, 1, 3]), "run from 0 to 3, but")
    refused(write_parquet(tmp_path / "d.parquet", 3, labels=[-1, 1, 2]), "run from -1 to 2")
    refused(
        write_parquet(tmp_path / "e.parquet", 3, labels=[0, None, 2]), "must all be whole numbers"
    )
    refused(write_parquet(tmp_path / "f.parquet", 0, labels=[]), "has no rows")


def test_a_data_set_is_downloaded_from_the_hub(tmp_path, hub):
    held = write_parquet(tmp_path / "x.parquet", 5, image="image").read_bytes()
    hub.repos["datasets/owner/set"] = {"data/train-00000-of-00001.parquet": held,
                                       "data/test-00000-of-00001.parquet": held,
                                       "README.md": b"hello"}  # fmt: skip
    images = open_set("hf:owner/set")
    assert len(images) == 5
    assert images.source == "hf:owner/set"
    images.open(4)
    with pytest.raises(DataError, match="hf:owner/none: cannot be downloaded"):
        open_set("hf:owner/none")


def test_a_data_set_in_the_cache_is_opened_offline_if_it_is_complete(tmp_path, hub, monkeypatch):
    held = write_parquet(tmp_path / "x.parquet", 5, image="image").read_bytes()
    names = [f"data/train-0000{number}-of-00003.parquet" for number in range(3)]
    hub.repos["datasets/owner/set"] = dict.fromkeys(names, held)
    assert len(open_set("hf:owner/set", "train")) == 15
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(open_set("hf:owner/set", "train")) == 15
    [lost] = Path(constants.HF_HUB_CACHE).rglob("train-00001-of-00003.parquet")
    lost.unlink()
    with pytest.raises(DataError, match="is in the cache, without train-00001-of-00003"):
        open_set("hf:owner/set", "train")


def test_shapes_are_drawn_and_always_the_same():
    train, val = open_set("shapes", "train"), open_set("shapes")
    assert (len(train), len(val)) == (6000, 1200)
    assert np.bincount(train.labels).tolist() == [1000] * 6
    assert train.fingerprint != val.fingerprint
    images = [np.asarray(train.open(index)) for index in range(12)]
    assert {image.shape for image in images} == {(32, 32, 3)}
    again = open_set("shapes", "train")
    assert all((np.asarray(again.open(k)) == image).all() for k, image in enumerate(images))
    assert not any((np.asarray(val.open(k)) == image).all() for k, image in enumerate(images))


def test_a_shape_covers_what_its_class_should():
    """Areas in the bounding circle: circle > square > cross or ring > star or triangle."""
    shapes = open_set("shapes", "train")

    def covered(label):
        parts = []
        for index in range(label, 300, 6):
            image = np.asarray(shapes.open(index), dtype=float)
            corner = np.median(image.reshape(-1, 3), axis=0)  # most of an image is background
            parts.append((np.abs(image - corner).sum(-1) > 120).mean())
        return np.mean(parts)

    area = {name: covered(label) for label, name in enumerate(shapes.classes)}
    assert area["circle"] > area["square"] > area["triangle"]
    assert area["square"] > area["star"]
    assert area["circle"] > area["ring"]


@pytest.mark.parametrize("label", [2**62, 2**31, 200_000])
def test_a_label_beyond_the_rows_is_refused(tmp_path, label):
    path = write_parquet(tmp_path / "a.parquet", 4, names=(), labels=[0, 1, 2, label])
    with pytest.raises(DataError, match=f"a label is {label}, with 4 rows"):
        open_set(path)


@pytest.mark.parametrize(
    "described", ["[" * 100_000, '{"info": []}', '{"info": {"features": {"label": {"names": 3}}}}']
)
def test_invalid_descriptions_are_ignored(tmp_path, described):
    path = write_parquet(tmp_path / "a.parquet", 4, names=())
    table = parquet.read_table(path).replace_schema_metadata({"huggingface": described})
    parquet.write_table(table, path)
    assert open_set(path).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("cifar10-train.parquet", "cifar10-test.parquet"),
        ("mnist_train.parquet", "mnist_validation.parquet"),
        ("train2017.parquet", "val2017.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-test/0000.parquet"),
        ("data/train.parquet", "data/test.parquet"),
        ("test_of_time/train-0.parquet", "test_of_time/test-0.parquet"),
        ("train/en/0.parquet", "test/en/0.parquet"),
    ],
)
def test_splits_of_parquet_files_are_recognized_by_any_word(tmp_path, train, val):
    for name, count in ((train, 4), (val, 3)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_parquet(tmp_path / name, count)
    assert len(open_set(tmp_path, "train")) == 4
    assert len(open_set(tmp_path, "val")) == 3


def test_data_sets_side_by_side_are_not_joined(tmp_path):
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        write_parquet(tmp_path / "data" / name / "train.parquet", 4)
    with pytest.raises(DataError, match=r"holds several data sets; .* data/a, data/b"):
        open_set(tmp_path, "train")


def test_shards_in_folders_of_their_own_are_one_set(tmp_path):
    for number in range(3):
        (tmp_path / f"train/part-{number}").mkdir(parents=True)
        write_parquet(tmp_path / f"train/part-{number}/x.parquet", 4)
    assert len(open_set(tmp_path, "train")) == 12


def test_links_in_a_tar_file_are_followed(tmp_path):
    folder = write_folder(tmp_path / "set", 6)
    (folder / "red/hard.png").hardlink_to(folder / "red/0000.png")
    (folder / "red/soft.png").symlink_to("0003.png")
    (folder / "green/far.png").symlink_to("../red/soft.png")
    (folder / "green/none.png").symlink_to("nothing.png")
    (folder / "README").symlink_to("red/0000.png")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(folder, "set")
    with tarfile.open(tmp_path / "here.tar", "w") as archive:
        archive.add(folder, ".")  # its first member is the folder itself
    assert len(open_set(tmp_path / "here.tar")) == 9
    held = open_set(tmp_path / "set.tar")
    assert len(held) == 9
    assert held.skipped == {"links to nothing in the archive": 1}
    unpacked = open_set(folder)
    for number, name in enumerate(held.names):
        there = list(unpacked.names).index(name.removeprefix("set/"))
        assert held.open(number).tobytes() == unpacked.open(there).tobytes()
