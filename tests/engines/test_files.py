"""Tests that exported files are opened by their own metadata and run as they are."""

import json
import os
import pickle
import zipfile
from types import SimpleNamespace

import pytest
import torch

import regnet
from regnet.engines.files import _OPENERS, KEY, FileNetwork, open_model
from regnet.errors import ConfigError, NotFoundError
from regnet.nn.views import digest_of
from regnet.zoo.resolver import EXPORTED_SUFFIXES, is_exported
from tests.command import refused
from tests.command import regnet as command
from tests.pictures import write_folder

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return regnet.create("regnety_cifar", pretrained=True).eval()


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "free.onnx"
    regnet.export(model, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photos"), 12, names=("cat", "dog", "frog"))


def test_a_file_gives_the_models_answers_and_describes_itself(model, onnx_file):
    file = open_model(str(onnx_file))
    assert isinstance(file, FileNetwork)
    with torch.inference_mode():
        torch.testing.assert_close(file(X), model(X), rtol=1e-4, atol=1e-4)
        assert file(torch.randn(1, 3, 64, 48)).shape == (1, 10)
    assert file.config == model.config
    assert file.card.labels == model.card.labels
    assert regnet.preprocess(file) == regnet.preprocess(model)
    assert (file.runtime, file.precision, file.shape) == ("onnx", "fp32", (None, 3, None, None))
    assert file.num_classes == 10


def test_commands_open_a_file(model, onnx_file, photos):
    lines = command("info", onnx_file, code=0).stdout
    assert "onnx, fp32; it takes images of any batch, channels 3, any height, any width" in lines
    document = json.loads(command("info", onnx_file, "--json", code=0).stdout)
    assert document["file"]["shape"] == [None, 3, None, None]
    ours = command("predict", photos / "cat", "--model", "regnety_cifar", "--json", code=0).stdout
    theirs = command("predict", photos / "cat", "--model", onnx_file, "--json", code=0).stdout
    assert [row.split(":")[0] for row in ours.splitlines()] == [
        row.split(":")[0] for row in theirs.splitlines()
    ]
    done = command("evaluate", photos, "--model", onnx_file, "--workers", 0, code=0)
    assert "onnx fp32" in done.stdout
    expected = regnet.evaluate(model, photos).top1
    assert regnet.evaluate(str(onnx_file), photos).top1 == expected
    done = command(
        "bench", "--models", f"regnety_cifar,{onnx_file}", "--engine", "eager,folded",
        "--seconds", 0.05, code=0,
    )  # fmt: skip
    assert done.stderr.count("onnx fp32") == 1, "a file has only one engine"


def test_two_files_have_different_digests(model, onnx_file, tmp_path):
    other = tmp_path / "other.onnx"
    regnet.export(regnet.create("regnety_cifar"), other)
    digests = {digest_of(open_model(str(path))) for path in (onnx_file, onnx_file, other)}
    assert len(digests) == 2


def test_an_error_names_the_fixed_image_size(model, tmp_path):
    path = tmp_path / "fixed.onnx"
    regnet.export(model, path, example=torch.zeros(2, 3, 32, 32), dynamic=False)
    file = open_model(str(path))
    assert file.shape == (2, 3, 32, 32)
    assert file(X).shape == (3, 10), "other batches are padded or divided"
    with pytest.raises(ConfigError, match="takes images of height 32, got 64"):
        file(torch.zeros(1, 3, 64, 64))


def test_a_file_that_cannot_be_opened_says_why(onnx_file, tmp_path):
    import onnx

    with pytest.raises(NotFoundError, match="there is no file"):
        open_model(str(tmp_path / "none.onnx"))
    whole = onnx_file.read_bytes()
    cut = tmp_path / "cut.onnx"
    for count in (0, 10, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:count])
        with pytest.raises(ConfigError, match=r"cut\.onnx"):
            open_model(str(cut))
    foreign = tmp_path / "foreign.onnx"
    model = onnx.load(onnx_file)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    with pytest.raises(ConfigError, match="does not say which images it takes"):
        open_model(str(foreign))
    refused(command("predict", onnx_file.parent, "--model", foreign), 2, "foreign.onnx")
    model = onnx.load(onnx_file)
    [facts] = [entry for entry in model.metadata_props if entry.key == KEY]
    description = json.loads(facts.value)
    del description["config"]["kind"]
    facts.value = json.dumps(description)
    onnx.save(model, foreign)
    with pytest.raises(ConfigError, match=r"foreign\.onnx: its description .* needs a kind"):
        open_model(str(foreign))
    refused(
        command("train", "shapes", "--model", onnx_file, "--out", tmp_path / "x"),
        2, "is an exported file, which has no modules to train",
    )  # fmt: skip


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/hostname", "sub/weights.bin", "link.bin"])
def test_weights_outside_its_folder_are_refused(onnx_file, tmp_path, place):
    import onnx

    (tmp_path / "secret.bin").write_bytes(bytes(10**6))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = onnx.load(onnx_file)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", place
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="outside its folder"):
        open_model(str(path))


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_file_that_can_run_code_is_not_opened_unless_trusted(tmp_path):
    marker = tmp_path / "it ran"
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Hostile(marker)))
    for arguments in (["predict", tmp_path], ["evaluate", "shapes"]):
        refused(
            command(*arguments, "--model", path), 2, "can run code when it is opened", "--trust"
        )
    refused(command("info", path), 2, "--trust")
    refused(command("bench", "--models", path, "--seconds", 0.05), 1, "no case could be measured")
    assert not marker.exists()


@pytest.mark.slow
def test_trusted_files_are_opened(model, tmp_path):
    path = tmp_path / "model.pt2"
    regnet.export(model, path)
    with pytest.raises(ConfigError, match="--trust"):
        open_model(str(path))
    file = open_model(str(path), trust=True)
    torch.testing.assert_close(file(X), model(X), rtol=1e-4, atol=1e-4)
    assert "torch, fp32" in command("info", path, "--trust", code=0).stdout


@pytest.mark.slow
def test_openvino_files_are_opened(model, tmp_path, photos):
    path = tmp_path / "model.xml"
    regnet.export(model, path)
    file = open_model(str(path))
    torch.testing.assert_close(file(X), model(X), rtol=1e-3, atol=1e-3)
    assert (file.runtime, file.shape) == ("openvino", (None, 3, None, None))
    assert "openvino fp32" in command("evaluate", photos, "--model", path, code=0).stdout
    path.with_suffix(".bin").unlink()
    with pytest.raises(NotFoundError, match=r"its weights, model\.bin, are not beside it"):
        open_model(str(path))


def test_exported_files_are_recognized_by_their_suffixes():
    assert is_exported("a/b.onnx")
    assert is_exported("C:\\b.XML")
    assert not is_exported("hf-hub:owner/name.onnx")
    assert not is_exported("regnety_016.tv2_in1k")
    assert tuple(_OPENERS) == EXPORTED_SUFFIXES


@pytest.mark.long
def test_a_compiled_file_of_one_size_takes_any_batch_and_no_other_size(model, tmp_path):
    """The compiled program itself would read beyond smaller images and ignore other batches."""
    path = tmp_path / "fixed.pt2"
    regnet.export(
        model, path, format="aot_inductor", dynamic=False, example=torch.zeros(2, 3, 32, 32)
    )
    file = open_model(str(path), trust=True)
    assert file.shape == (2, 3, 32, 32)
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 32, 32)
        torch.testing.assert_close(file(x), model(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="takes images of height 32, got 16"):
        file(torch.randn(2, 3, 16, 16))


def test_a_compiled_file_that_does_not_record_its_size_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/aotinductor/model.so", b"")
    package = SimpleNamespace(get_metadata=lambda: {KEY: '{"runtime": "aot_inductor"}'})
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *_: package, raising=False)
    with pytest.raises(ConfigError, match="did not record the size of its images; export the net"):
        open_model(str(path), trust=True)
