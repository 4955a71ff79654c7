"""Tests of predicting a collection into a Parquet file: rows, resuming, and faults."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import regnet
from regnet.data.collection import chunks
from regnet.errors import ConfigError, DataError, EngineError, ExecutorError, NotFoundError
from regnet.executors import InProcess, ProcessPool
from regnet.prediction import collection
from regnet.prediction.collection import predict_collection
from regnet.prediction.images import predict_each
from tests.faults import file_sizes_restored, limit_file_size
from tests.marks import posix

HERE = InProcess()


def picture(number: int) -> Image.Image:
    """Return one of many different images."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8))


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with twelve images in subfolders, and files that are not images."""
    folder = tmp_path / "photos"
    for number in range(12):
        place = folder / f"class {number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:02d}.png").write_bytes(encoded(number))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(encoded(0))
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "PART", 5)


def unfinished(photos: Path, out: Path) -> None:
    """Predict all parts, and stop before they are joined."""

    def failing(*_: Any) -> int:
        raise EngineError("on purpose")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "_join", failing)
        with pytest.raises(EngineError):
            predict_collection(photos, out, executor=HERE)


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return found


def said(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(parquet.read_schema(path).metadata[b"regnet"])
    return found


@pytest.mark.usefixtures("small_parts")
def test_rows_equal_the_predictions_of_single_images(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    found = predict_collection(photos, out, topk=3, executor=HERE)
    assert (found.images, found.unreadable, found.resumed) == (12, 0, 0)
    table = rows(out)
    paths = [row["path"] for row in table]
    assert paths == sorted(map(str, photos.rglob("*/*.png")))
    for row, alone in zip(table, predict_each(paths, topk=3), strict=True):
        assert row["labels"] == [score.label for score in alone.classes]
        assert row["indices"] == [score.index for score in alone.classes]
        expected = [score.probability for score in alone.classes]
        assert row["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert row["error"] is None
    facts = said(out)
    assert facts["model"] == "regnety_cifar"
    assert facts["preprocess"]["input_size"] == [3, 32, 32]
    assert facts["environment"]["packages"]["torch"] == torch.__version__
    assert not (tmp_path / "out.parquet.parts").exists()


@pytest.mark.parametrize("half", [False, True])
def test_features_are_the_vector_before_the_classifier(
    photos: Path, tmp_path: Path, half: bool
) -> None:
    out = tmp_path / "out.parquet"
    predict_collection(photos, out, features=True, half=half, executor=HERE)
    table = parquet.read_table(out)
    found = np.stack([np.asarray(row, dtype=np.float32) for row in table["features"].to_pylist()])
    network = regnet.create("regnety_cifar", pretrained=True).eval()
    look = regnet.preprocess(network)
    with torch.inference_mode():
        images = torch.stack([look(path) for path in table["path"].to_pylist()])
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
    assert str(table.schema.field("features").type).startswith("fixed_size_list")
    assert np.allclose(found, expected.numpy(), atol=1e-2 if half else 1e-4)


def test_folders_archives_and_parquet_files_give_the_same_rows(
    photos: Path, tmp_path: Path
) -> None:
    paths = sorted(photos.rglob("*/*.png"))
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for path in paths:
            archive.add(path, path.name)
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    parquet.write_table(
        pa.table({"image": images}), tmp_path / "more.parquet", row_group_size=5
    )  # fmt: skip
    parquet.write_table(
        pa.table({"img": [image["bytes"] for image in images]}), tmp_path / "plain.parquet"
    )
    found = []
    for number, source in enumerate([photos, tmp_path / "shard.tar", tmp_path / "more.parquet",
                                     tmp_path / "plain.parquet"]):  # fmt: skip
        out = tmp_path / f"{number}.parquet"
        assert predict_collection(source, out, executor=HERE).images == 12
        found.append([(row["indices"], row["probabilities"]) for row in rows(out)])
    assert found[0] == found[1] == found[2] == found[3]
    several = tmp_path / "all.parquet"
    sources = [tmp_path / "shard.tar", paths[0], paths[1], tmp_path / "more.parquet"]
    predict_collection(sources, several, executor=HERE)
    names = [row["path"] for row in rows(several)]
    assert len(set(names)) == 26
    assert names[0] == f"{tmp_path}/shard.tar/00.png"
    assert names[-1] == f"{tmp_path}/more.parquet row 11"


def test_images_that_cannot_be_read_are_rows_with_a_reason(photos: Path, tmp_path: Path) -> None:
    broken = photos / "class 1/broken.jpg"
    broken.write_text("no image")
    (photos / "class 1/empty.png").touch()
    (photos / "class 2/lost.png").symlink_to(tmp_path / "nowhere.png")
    out = tmp_path / "out.parquet"
    for features in (False, True):
        out.unlink(missing_ok=True)
        found = predict_collection(photos, out, features=features, executor=HERE)
        assert (found.images, found.unreadable) == (15, 3)
        failed = {Path(row["path"]).name: row for row in rows(out) if row["error"]}
        assert sorted(failed) == ["broken.jpg", "empty.png", "lost.png"]
        assert "not an image" in failed["broken.jpg"]["error"]
        column = "features" if features else "indices"
        assert all(row[column] is None for row in failed.values())
    assert said(out)["unreadable"] == 3


def test_a_file_is_written_even_if_no_image_is_readable(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_text("no image")
    for features in (False, True):
        out = tmp_path / f"{features}.parquet"
        found = predict_collection(tmp_path, out, features=features, executor=HERE)
        assert (found.images, found.unreadable) == (3, 3)


@pytest.mark.usefixtures("small_parts")
def test_finished_parts_are_not_repeated(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, worked = tmp_path / "out.parquet", []
    real = collection.predict_part

    def until(most: int) -> Any:
        def work(part: Any, device: str) -> Any:
            if len(worked) >= most:
                raise KeyboardInterrupt
            worked.append(part.number)
            return real(part, device)

        return work

    with monkeypatch.context() as patch:
        patch.setattr(collection, "predict_part", until(1))
        with pytest.raises(KeyboardInterrupt):
            predict_collection(photos, out, executor=HERE)
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(collection, "predict_part", until(100))
        found = predict_collection(photos, out, executor=HERE)
        assert (found.images, found.resumed) == (12, 5)
        assert worked == [0, 1, 2]
        again = predict_collection(photos, out, executor=HERE)
        assert (again.images, again.resumed) == (12, 12)
    assert worked == [0, 1, 2]


@pytest.mark.usefixtures("small_parts")
def test_changed_images_are_predicted_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    unfinished(photos, out)
    (photos / "class 0/00.png").write_bytes(encoded(99))
    found = predict_collection(photos, out, executor=HERE)
    assert (found.images, found.resumed) == (12, 7)
    [alone] = predict_each([photos / "class 0/00.png"])
    assert rows(out)[0]["indices"] == [score.index for score in alone.classes]


def test_other_predictions_are_neither_mixed_nor_overwritten(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    predict_collection(photos, out, executor=HERE)
    before = out.read_bytes()
    other = tmp_path / "other"
    regnet.create("regnety_cifar").save_pretrained(other)
    relabelled = regnet.create("regnety_cifar", pretrained=True)
    assert relabelled.card
    relabelled.card = replace(relabelled.card, labels=tuple("abcdefghij"))
    relabelled.save_pretrained(tmp_path / "relabelled")
    for options, what in (
        ({"topk": 2}, "rows"),
        ({"features": True}, "rows"),
        ({"model": str(other)}, "weights"),
        ({"model": str(tmp_path / "relabelled")}, "labels"),
        ({"engine": "eager"}, "engine_asked"),
    ):
        with pytest.raises(ConfigError, match=f"contains other predictions: {what} "):
            predict_collection(photos, out, executor=HERE, **options)  # type: ignore[arg-type]
    (photos / "class 0/one more.png").write_bytes(encoded(50))
    with pytest.raises(ConfigError, match="other predictions: images "):
        predict_collection(photos, out, executor=HERE)
    assert out.read_bytes() == before
    other_out = tmp_path / "unfinished.parquet"
    unfinished(photos, other_out)
    with pytest.raises(ConfigError, match=r"unfinished\.parquet\.parts contains other predictions"):
        predict_collection(photos, other_out, executor=HERE, topk=2)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text", None])
def test_a_file_without_predictions_is_not_overwritten(
    photos: Path, tmp_path: Path, content: bytes | None
) -> None:
    out = tmp_path / "out.parquet"
    if content is None:
        parquet.write_table(pa.table({"a": [1]}), out)
    else:
        out.write_bytes(content)
    before = out.read_bytes()
    with pytest.raises(
        ConfigError, match="contains no predictions; remove it, or name another file"
    ):
        predict_collection(photos, out, executor=HERE)
    assert out.read_bytes() == before


def test_impossible_requests_are_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    for options, error, words in (
        ({"out": tmp_path / "out.csv"}, ConfigError, r"name a file \*.parquet"),
        ({"half": True}, ConfigError, "float16 is for features"),
        ({"features": True, "topk": 3}, ConfigError, "topk is for classes"),
        ({"topk": 11}, ConfigError, "number of classes, 10; got 11"),
        ({"batch_size": 0}, ConfigError, "batch_size must be a whole number of at least 1; got 0"),
        ({"data": []}, ConfigError, "nothing to predict"),
        ({"model": torch.nn.Linear(1, 1)}, ConfigError, "can open; save yours .* got Linear"),
        ({"data": tmp_path / "nowhere"}, NotFoundError, "no such file or folder"),
        ({"data": tmp_path / "empty"}, DataError, "no images in this folder"),
        ({"engine": "warp"}, ConfigError, "no engine 'warp'"),
        ({"model": "regnety_cifr"}, ConfigError, "did you mean"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(error, match=words):
            predict_collection(**{"data": photos, "out": out, "executor": HERE} | options)  # type: ignore[arg-type]
        assert not out.exists()
        assert not (tmp_path / "out.parquet.parts").exists(), "a refused request leaves no files"


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none\.parquet: there are no images"):
        predict_collection(tmp_path / "none.parquet", tmp_path / "out.parquet", executor=HERE)


def test_an_exported_file_runs_only_on_its_own_engine(photos: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "model.onnx", tmp_path / "out.parquet"
    regnet.export(regnet.create("regnety_cifar", pretrained=True), file, input="uint8")
    for options in ({"engine": "folded"}, {"precision": "bf16"}):
        with pytest.raises(
            ConfigError, match="always runs on onnx on the CPU, in fp32; leave engine, prec"
        ):
            predict_collection(photos, out, str(file), executor=HERE, **options)  # type: ignore[arg-type]
    predict_collection(photos, out, str(file), executor=HERE)
    [alone] = predict_each([rows(out)[0]["path"]])
    assert rows(out)[0]["labels"] == [score.label for score in alone.classes]


def test_the_result_is_not_read_as_an_image(photos: Path) -> None:
    out = photos / "out.parquet"
    assert predict_collection(photos, out, executor=HERE).images == 12
    assert predict_collection(photos, photos / "again.parquet", executor=HERE).images == 12


def test_answers_that_are_nan_are_refused(photos: Path, tmp_path: Path) -> None:
    broken = regnet.create("regnety_cifar", pretrained=True)
    with torch.no_grad():
        broken.head.fc.weight.fill_(3e38)
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(EngineError, match="not finite"):
        predict_collection(
            photos, tmp_path / "out.parquet", str(tmp_path / "broken"), engine="eager",
            executor=HERE,
        )  # fmt: skip


def test_features_too_large_for_float16_are_refused(photos: Path, tmp_path: Path) -> None:
    large = regnet.create("regnety_cifar", pretrained=True)
    norms = [module for module in large.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        norms[-1].weight.mul_(1e6)
        norms[-1].bias.mul_(1e6)
    large.save_pretrained(tmp_path / "large")
    options: dict[str, Any] = {"features": True, "engine": "eager", "executor": HERE}
    out, model = tmp_path / "out.parquet", str(tmp_path / "large")
    with pytest.raises(EngineError, match=r"too large for float16; leave out --float16"):
        predict_collection(photos, out, model, half=True, **options)
    predict_collection(photos, tmp_path / "whole.parquet", model, **options)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_damaged_part_is_made_again(photos: Path, tmp_path: Path, damage: bytes | None) -> None:
    predict_collection(photos, tmp_path / "a.parquet", executor=HERE)
    out = tmp_path / "out.parquet"
    unfinished(photos, out)
    part, *others = sorted((tmp_path / "out.parquet.parts").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-9] if damage is None else damage)
    draft = part.with_name(f".{part.name}.abc")  # as a killed process leaves it
    draft.touch()
    intact = sum(len(rows(other)) for other in others)
    assert predict_collection(photos, out, executor=HERE).resumed == intact
    assert rows(out) == rows(tmp_path / "a.parquet")
    assert not part.parent.exists()


@posix
def test_a_full_disk_is_reported_and_loses_no_part(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with file_sizes_restored():
        limit_file_size(1000)
        with pytest.raises(OSError, match="too large"):
            predict_collection(photos, out, executor=HERE)
    assert not out.exists()
    assert not list(tmp_path.glob("out.parquet.parts/[0-9]*")), "no partial file is left"
    assert predict_collection(photos, out, executor=HERE).images == 12


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), size=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_chunks_contain_every_image_once(counts: list[int], size: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder, expected = Path(name), []
        for number, count in enumerate(counts):
            for image in range(count):
                if number % 2:
                    path = folder / f"{number}/{image}.png"
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(encoded(image))
                    expected.append(str(path))
                else:
                    expected.append(f"{folder}/{number}.tar/{image}.png")
            if not number % 2:
                with tarfile.open(folder / f"{number}.tar", "w") as archive:
                    for image in range(count):
                        member = tarfile.TarInfo(f"{image}.png")
                        member.size = len(encoded(image))
                        archive.addfile(member, io.BytesIO(encoded(image)))
        found = list(chunks([name], size))
        assert sorted(path for chunk in found for path in chunk.names) == sorted(expected)
        assert max(map(len, found)) <= size
        assert [c.digest for c in chunks([name], size)] == [c.digest for c in found]
        for chunk in found:
            for index, path in enumerate(chunk.names):
                image = int(Path(path).stem)
                assert np.array_equal(np.asarray(chunk.open(index)), np.asarray(picture(image)))


KILLED = """
import sys
from regnet.prediction import collection
from regnet.executors import ProcessPool
collection.PART = 100
if __name__ == "__main__":
    collection.predict_collection(sys.argv[1], sys.argv[2], executor=ProcessPool(2))
"""


@pytest.mark.parametrize(
    ("kills", "count"),
    [
        pytest.param(1, 600, marks=pytest.mark.slow),
        pytest.param(20, 5000, marks=pytest.mark.long),
    ],
)
@posix
def test_killed_processes_lose_and_repeat_nothing(tmp_path: Path, kills: int, count: int) -> None:
    images = [{"bytes": encoded(number), "path": f"{number}.png"} for number in range(count)]
    source, out = tmp_path / "images.parquet", tmp_path / "out.parquet"
    parquet.write_table(pa.table({"image": images}), source, row_group_size=200)
    script = tmp_path / "predict.py"
    script.write_text(KILLED)
    command, rng = [sys.executable, str(script), str(source), str(out)], random.Random(0)
    parts = tmp_path / "out.parquet.parts"

    def done() -> int:
        return len(list(parts.glob("[0-9]*.parquet")))

    for number in range(1, kills + 1):
        process = subprocess.Popen(command)
        while done() < number * count / 100 / (kills + 1):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.random() / 10)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
    subprocess.run(command, check=True)
    table = parquet.read_table(out)
    assert table["path"].to_pylist() == [f"{source} row {number}" for number in range(count)]
    assert table["error"].null_count == count
    whole = tmp_path / "whole.parquet"
    predict_collection(source, whole, executor=ProcessPool(2))
    assert parquet.read_table(whole).equals(table)
    assert not parts.exists()


@pytest.mark.slow
@posix
def test_a_part_whose_processes_die_is_reported_and_the_others_are_saved(
    photos: Path, tmp_path: Path
) -> None:
    script = tmp_path / "dying.py"
    script.write_text(
        "import os, sys\n"
        "from regnet.prediction import collection, part\n"
        "from regnet.executors import ProcessPool\n"
        "collection.PART = 5\n"
        "real = collection.predict_part\n"
        "def dying(part, device):\n"
        "    if part.number == 1: os._exit(9)\n"
        "    return real(part, device)\n"
        "collection.predict_part = dying\n"
        "if __name__ == '__main__':\n"
        "    collection.predict_collection(sys.argv[1], sys.argv[2], executor=ProcessPool(2))\n"
    )
    out = tmp_path / "out.parquet"
    ended = subprocess.run(
        [sys.executable, script, photos, out], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert f"{ExecutorError.__name__}: 1 parts failed (part 1: its process ended" in (ended.stderr)
    assert len(list(tmp_path.glob("out.parquet.parts/[0-9]*.parquet"))) == 2


@posix
def test_names_that_are_not_utf8_and_links_in_archives_are_rows(
    photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    [first, *_] = sorted(photos.rglob("*.png"))
    (folder / "good.png").write_bytes(first.read_bytes())
    odd = os.fsencode(folder) + b"/\xff\xe9.png"
    Path(os.fsdecode(odd)).write_bytes(first.read_bytes())
    (folder / "soft.png").symlink_to("good.png")
    (folder / "none.png").symlink_to("nothing.png")
    (folder / "again.png").symlink_to("soft.png")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(folder, ".")
    predict_collection([folder], tmp_path / "folder.parquet")
    predict_collection([tmp_path / "set.tar"], tmp_path / "tar.parquet")
    tables = [parquet.read_table(tmp_path / name) for name in ("folder.parquet", "tar.parquet")]
    for table in tables:
        rows = {Path(row["path"]).name: row for row in table.to_pylist()}
        assert set(rows) == {"good.png", "\\xff\\xe9.png", "soft.png", "none.png", "again.png"}
        assert [name for name, row in rows.items() if row["error"]] == ["none.png"]


def test_weights_that_changed_in_one_process_are_noticed(photos: Path, tmp_path: Path) -> None:
    model, first = regnet.create("regnety_cifar").eval(), {}
    for label in (3, 7):
        with torch.no_grad():
            model.head.fc.weight.zero_()
            model.head.fc.bias.copy_(9.0 * (torch.arange(10) == label))
        model.save_pretrained(tmp_path / "model")
        out = tmp_path / f"{label}.parquet"
        predict_collection(photos, out, str(tmp_path / "model"), executor=HERE)
        first[label] = next(row["indices"][0] for row in rows(out) if row["indices"])
    assert first == {3: 3, 7: 7}


@pytest.mark.parametrize("topk", [0, -1, 11])
def test_a_number_of_classes_out_of_range_is_refused(
    photos: Path, tmp_path: Path, topk: int
) -> None:
    with pytest.raises(ConfigError, match=f"between 1 and the number of classes, 10; got {topk}"):
        predict_collection(photos, tmp_path / "a.parquet", executor=HERE, topk=topk)


@pytest.mark.usefixtures("small_parts")
def test_parts_of_a_run_that_was_killed_after_joining_are_removed(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "_remove_parts", lambda parts: None)
        predict_collection(photos, out, executor=HERE)
    assert list(tmp_path.glob("*.parts"))
    predict_collection(photos, out, executor=HERE)
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.usefixtures("small_parts")
def test_a_collection_that_changes_while_it_is_predicted_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = [list(chunks([str(photos)], 5)), list(chunks([str(photos)], 4))]
    monkeypatch.setattr(collection, "chunks", lambda *_, **__: iter(lists.pop(0)))
    with pytest.raises(DataError, match="changed while they were predicted"):
        predict_collection(photos, tmp_path / "a.parquet", executor=HERE)
