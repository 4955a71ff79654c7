"""Tests of the layouts of folders that people have on disk, and of the same in tar files."""

import tarfile
import unicodedata

import pytest
from PIL import Image

from regnet.data.layout import split_of
from regnet.data.sets import open_set, refuse_new_class
from regnet.errors import ConfigError, DataError, NoSplitError
from regnet.training.input import Images
from tests.marks import posix
from tests.pictures import write_folder


@pytest.fixture(params=["folder", "tar"])
def opened(request, tmp_path):
    """A function that opens a folder of images: as it is, or packed into a tar file."""

    def open_it(folder, split="val"):
        if request.param == "folder":
            return open_set(folder, split)
        archive = tmp_path / f"{folder.name}.tar"
        with tarfile.open(archive, "w", dereference=True) as file:
            file.add(folder, folder.name)
        return open_set(archive, split)

    return open_it


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"), ("Training", "Testing"), ("Train", "Val"), ("TRAIN", "TEST"),
        ("train", "Validation"), ("training", "dev"), ("train2017", "val2017"),
        ("seg_train", "seg_test"), ("train_set", "valid-set"), ("Train Images", "Test Images"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("around", ["", "archive", "a/b"])
def test_splits_are_recognized_by_their_names(tmp_path, opened, train, val, around):
    folder = tmp_path / "photos"
    write_folder(folder / around / train, 6)
    write_folder(folder / around / val, 3)
    for split, count in (("train", 6), ("val", 3)):
        images = opened(folder, split)
        assert images.classes == ("blue", "green", "red")
        assert len(images) == count


def test_the_usual_name_comes_first(tmp_path, opened):
    for number, name in enumerate(("val", "test", "train", "train_old"), 1):
        write_folder(tmp_path / "photos" / name, 3 * number)
    assert len(opened(tmp_path / "photos", "val")) == 3
    assert len(opened(tmp_path / "photos", "train")) == 9
    write_folder(tmp_path / "other/train_a", 3)
    write_folder(tmp_path / "other/train_b", 3)
    with pytest.raises(DataError, match="train_a and train_b could be 'train'"):
        opened(tmp_path / "other", "train")


def test_a_test_folder_without_class_folders_is_reported(tmp_path, opened):
    folder = tmp_path / "photos"
    write_folder(folder / "train", 6)
    (folder / "test").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "test/1.png")
    assert len(opened(folder, "train")) == 6
    with pytest.raises(NoSplitError, match="test holds images without class folders"):
        opened(folder, "val")


def test_classes_that_hold_the_splits_are_refused(tmp_path, opened):
    for name in ("cat", "dog"):
        write_folder(tmp_path / "photos" / name, 4, names=("train", "test"))
    with pytest.raises(DataError, match=r"every class \(cat, dog\) holds the folders test, train"):
        opened(tmp_path / "photos")


def test_classes_that_all_hold_the_same_folders_are_refused(tmp_path, opened):
    for name in ("part1", "part2"):
        write_folder(tmp_path / "photos" / name, 4, names=("cat", "dog"))
    with pytest.raises(DataError, match=r"part1, part2 all hold folders with the same names \(cat"):
        opened(tmp_path / "photos")


def test_folders_inside_classes_are_allowed(tmp_path, opened):
    write_folder(tmp_path / "photos/cat", 4, names=("indoors", "outdoors"))
    write_folder(tmp_path / "photos/dog", 3, names=("puppies",))
    images = opened(tmp_path / "photos")
    assert images.classes == ("cat", "dog")
    assert len(images) == 7


def test_files_of_operating_systems_are_skipped_and_counted(tmp_path, opened):
    folder = write_folder(tmp_path / "photos", 6)
    image = (folder / "red/0000.png").read_bytes()
    left = ("__MACOSX/red/._0.png", ".ipynb_checkpoints/a.png", "red/.ipynb_checkpoints/0.png",
            "red/.hidden.png", "red/@eaDir/0.png", "Thumbs.db", "red/Thumbs.db")  # fmt: skip
    for name in (*left, "red/new.avif", "red/new.jp2", "red/notes", "stray.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image)
    images = opened(folder)
    assert images.classes == ("blue", "green", "red")
    assert len(images) == 6
    told = images.summary
    for part in (
        "1 .avif",
        "1 .jp2",
        "1 without an extension",
        "1 outside class folders",
        "hidden",
    ):
        assert part in told


def test_classes_without_images_are_reported(tmp_path, opened):
    folder = write_folder(tmp_path / "photos", 6)
    (folder / "yellow").mkdir()
    images = opened(folder)
    assert images.classes == ("blue", "green", "red", "yellow")
    assert "6 images of 3 classes; 1 classes without images (yellow)" in images.summary


@posix
def test_links_to_folders_are_followed_and_cycles_end(tmp_path):
    write_folder(tmp_path / "elsewhere", 4, names=("more",))
    folder = write_folder(tmp_path / "photos", 6)
    (folder / "red/linked").symlink_to(tmp_path / "elsewhere/more")
    (folder / "red/circle").symlink_to(folder)
    (folder / "red/self").symlink_to(folder / "red")
    (tmp_path / "elsewhere/more/back").symlink_to(folder / "red")
    images = open_set(folder)
    assert len(images) == 10
    assert images.labels.tolist().count(images.classes.index("red")) == 6


@posix
def test_a_folder_that_two_classes_link_to_belongs_to_both(tmp_path):
    write_folder(tmp_path / "elsewhere", 4, names=("more",))
    folder = write_folder(tmp_path / "photos", 6)
    for name in ("red", "green"):
        (folder / name / "linked").symlink_to(tmp_path / "elsewhere/more")
    images = open_set(folder)
    labels = [images.classes[label] for label in images.labels]
    assert {name: labels.count(name) for name in images.classes} == {
        "blue": 2, "green": 6, "red": 6,
    }  # fmt: skip


def test_accents_in_either_unicode_form_are_the_same_name(tmp_path, opened):
    name = "café"
    write_folder(tmp_path / "photos/train", 4, names=(unicodedata.normalize("NFD", name), "bar"))
    write_folder(tmp_path / "photos/val", 4, names=(unicodedata.normalize("NFC", name), "bar"))
    train, val = (opened(tmp_path / "photos", split) for split in ("train", "val"))
    assert train.classes == val.classes == ("bar", unicodedata.normalize("NFC", name))


def test_a_split_may_lack_classes_but_not_have_new_ones(tmp_path):
    write_folder(tmp_path / "train", 9)
    write_folder(tmp_path / "val", 4, names=("blue", "red"))
    images = Images.open(str(tmp_path / "train"), str(tmp_path / "val"))
    assert images.val is not None
    assert images.val.classes == images.train.classes
    assert {images.val.classes[label] for label in images.val.labels} == {"blue", "red"}
    assert images.summary[-1] == "classes without test images: green"
    write_folder(tmp_path / "val", 2, names=("pink",))
    with pytest.raises(DataError, match="not among the trained classes: pink"):
        Images.open(str(tmp_path / "train"), str(tmp_path / "val"))


@pytest.mark.parametrize("name", ["cat", "trainer", "latest", "contest", "devil", "evaluation"])
def test_names_that_only_resemble_splits_are_not_splits(name):
    assert split_of(name) is None


@pytest.mark.parametrize("around", ["", "ds"])
@pytest.mark.parametrize("loose", [["train"], ["train", "val"]])
def test_images_beside_the_classes_of_a_split_are_skipped(tmp_path, opened, around, loose):
    folder = tmp_path / "photos"
    for split in ("train", "val"):
        write_folder(folder / around / split, 6)
    for split in loose:
        Image.new("RGB", (8, 8)).save(folder / around / split / "preview.png")
    for split in ("train", "val"):
        found = opened(folder, split)
        assert found.classes == ("blue", "green", "red")
        assert len(found) == 6
        assert sum(found.skipped.values()) == (split in loose)


def test_a_test_folder_of_loose_images_is_no_class(tmp_path, opened):
    write_folder(tmp_path / "photos/train", 6)
    (tmp_path / "photos/test").mkdir()
    for name in ("train/preview.png", "test/1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name)
    assert opened(tmp_path / "photos", "train").classes == ("blue", "green", "red")
    with pytest.raises(NoSplitError, match="test holds images without class folders"):
        opened(tmp_path / "photos", "val")


@pytest.mark.parametrize("inside", ["run", "runs/one"])
def test_a_new_folder_that_would_become_a_class_is_refused(tmp_path, inside):
    source = write_folder(tmp_path / "images", 6)
    for _ in range(2):  # before it exists, and after
        with pytest.raises(ConfigError, match="would become a class; name a folder elsewhere"):
            refuse_new_class(source / inside, source)
        (source / inside).mkdir(parents=True, exist_ok=True)
    assert len(open_set(source).classes) == 4


def test_other_new_folders_are_allowed(tmp_path):
    source = write_folder(tmp_path / "images", 6)
    for inside in ("red/run", ".kept", "../run"):
        refuse_new_class(source / inside, source)
    for split in ("train", "val"):
        write_folder(tmp_path / "splits" / split, 6)
        refuse_new_class(tmp_path / "splits/run", tmp_path / "splits")
    (tmp_path / "p/plain_text").mkdir(parents=True)
    (tmp_path / "p/plain_text/train.parquet").write_bytes(b"")
    (tmp_path / "p/assets").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "p/assets/logo.png")
    refuse_new_class(tmp_path / "p/run", tmp_path / "p")


def test_a_folder_that_is_a_class_of_the_other_split_is_refused(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / split, 6)
    with pytest.raises(ConfigError, match="would become a class"):
        refuse_new_class(tmp_path / "train/runs", tmp_path)


def test_a_split_without_readable_images_is_not_overlooked(tmp_path, opened):
    write_folder(tmp_path / "photos/train", 6)
    (tmp_path / "photos/val/red").mkdir(parents=True)
    (tmp_path / "photos/val/red/1.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"skipped: 1 \.heic"):
        opened(tmp_path / "photos", "val")
