"""Tests of files that take pixels, and of the script that serves such a file without torch."""

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import regnet
from regnet.data.images import open_image
from regnet.data.preprocess import Preprocess
from regnet.engines.files import open_model
from regnet.engines.served import EXAMPLE, Input, pixels_of
from regnet.errors import ConfigError
from tests.command import refused
from tests.command import regnet as command

PHOTO = Path(__file__).parents[2] / "docs/photos/chelsea.png"


@pytest.fixture(scope="module")
def model() -> regnet.AnyNet:
    return regnet.create("regnety_cifar", pretrained=True).eval()


@pytest.fixture(scope="module")
def file(model: regnet.AnyNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "model.onnx"
    regnet.export(model, path, input="uint8", dynamic="batch")
    return path


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_normalization_in_the_file_keeps_every_pixel(seed: int) -> None:
    look = regnet.Preprocess(size=(9, 7))
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    mean, std = np.array(look.mean, np.float32), np.array(look.std, np.float32)
    images = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.array_equal(pixels_of(torch.from_numpy(images), look).numpy(), pixels)


def test_a_file_of_pixels_gives_the_same_probabilities_as_predict(
    model: regnet.AnyNet, file: Path
) -> None:
    session = onnxruntime.InferenceSession(file)
    [images], [answers] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)",
                                                        ["batch", 32, 32, 3])  # fmt: skip
    assert answers.name == "probabilities"
    pixels = np.asarray(regnet.preprocess(model).crop(open_image(PHOTO)))
    found = session.run(None, {"images": np.stack([pixels, 255 - pixels])})[0]
    assert found.sum(1) == pytest.approx([1, 1])
    [expected] = regnet.predict(PHOTO, model, topk=10)
    for score in expected.classes:
        assert found[0][score.index] == pytest.approx(score.probability, abs=1e-3)
    about = json.loads(session.get_modelmeta().custom_metadata_map["regnet"])
    assert about["input"] == "uint8"
    assert about["label_names"][3] == "cat"
    assert (about["input_size"], about["crop_pct"]) == ([3, 32, 32], 1.0)


@pytest.mark.slow
def test_openvino_takes_pixels_too(model: regnet.AnyNet, tmp_path: Path) -> None:
    done = regnet.export(model, tmp_path / "model.xml", input="uint8", dynamic="batch")
    assert "pixels to probabilities" in str(done)
    [expected] = regnet.predict(PHOTO, model)
    [found] = regnet.predict(PHOTO, str(tmp_path / "model.xml"))
    for ours, theirs in zip(expected.classes, found.classes, strict=True):
        assert ours.label == theirs.label
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-3)


def test_a_file_of_pixels_is_a_model_for_every_command(model: regnet.AnyNet, file: Path) -> None:
    network = open_model(str(file))
    with torch.inference_mode():
        x = regnet.preprocess(model)(PHOTO)[None]
        expected = model(x).softmax(1)
    assert torch.allclose(network(x).softmax(1), expected, atol=1e-4)
    [ours], [theirs] = regnet.predict(PHOTO, model), regnet.predict(PHOTO, str(file))
    assert [c.label for c in ours.classes] == [c.label for c in theirs.classes]


@pytest.mark.parametrize(
    ("dynamic", "shape"),
    [
        (True, ["batch", "height", "width", 3]),
        pytest.param("batch", ["batch", 32, 32, 3], marks=pytest.mark.slow),
        pytest.param(False, [1, 32, 32, 3], marks=pytest.mark.slow),
    ],
)
def test_free_axes_have_readable_names(
    model: regnet.AnyNet, tmp_path: Path, dynamic: bool | str, shape: list[str | int]
) -> None:
    regnet.export(model, tmp_path / "model.onnx", input="uint8", dynamic=dynamic)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape == shape


@pytest.mark.parametrize("input", ["uint8", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_file_of_another_size_sets_the_size_of_preprocessing(
    model: regnet.AnyNet, tmp_path: Path, input: Input
) -> None:
    path = tmp_path / "model.onnx"
    regnet.export(model, path, input=input, dynamic="batch", example=torch.zeros(1, 3, 48, 48))
    assert regnet.preprocess(open_model(str(path))).size == (48, 48)
    assert regnet.predict(PHOTO, str(path))


def test_the_script_serves_without_torch(file: Path, tmp_path: Path) -> None:
    text = resources.files("regnet.engines").joinpath(EXAMPLE).read_text("utf-8")
    assert len([line for line in text.splitlines() if line.strip()]) <= 25
    script = tmp_path / "serve.py"
    script.write_text(text + "\nassert 'torch' not in sys.modules\n")
    ended = subprocess.run(
        [sys.executable, "-I", script, file, PHOTO], capture_output=True, text=True, check=True
    )
    first, *others = ended.stdout.splitlines()
    assert len(others) == 4
    [result] = regnet.predict(PHOTO)
    best = result.classes[0]
    assert first.endswith(best.label)
    shown = float(first.split()[-2].rstrip("%"))
    assert shown == pytest.approx(100 * best.probability, abs=0.2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "CMYK", "1"])
@pytest.mark.parametrize(
    "look",
    [
        Preprocess(size=(32, 48)),
        Preprocess(size=(48, 32), crop_pct=0.7),
        Preprocess(size=(32, 32), resize="squash"),
    ],
)
def test_the_script_sees_the_pixels_that_predict_sees(
    look: Preprocess, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    drawn = Image.effect_noise((90, 71), 80).convert("RGBA")
    drawn.putalpha(Image.linear_gradient("L").resize(drawn.size))
    (drawn if mode == "RGBA" else drawn.convert(mode)).save(path)
    seen = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda _: session)
    session = SimpleNamespace(
        get_modelmeta=lambda: SimpleNamespace(
            custom_metadata_map={"regnet": json.dumps(look.to_timm())}
        ),
        run=lambda _, given: seen.append(given["images"]) or [[np.zeros(10)]],
    )
    monkeypatch.setattr(sys, "argv", ["serve.py", "model.onnx", str(path)])
    exec(resources.files("regnet.engines").joinpath(EXAMPLE).read_text("utf-8"), {})
    expected = np.asarray(look.crop(open_image(path)))
    assert np.array_equal(seen[0][0], expected)


def test_the_script_refuses_images_of_16_bits(file: Path, tmp_path: Path) -> None:
    script, path = tmp_path / "serve.py", tmp_path / "deep.png"
    script.write_text(resources.files("regnet.engines").joinpath(EXAMPLE).read_text("utf-8"))
    Image.new("I;16", (40, 40), 30_000).save(path)
    ended = subprocess.run(
        [sys.executable, "-I", script, file, path], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == f"{path}: the image has more than 8 bits per color; convert it first\n"


@pytest.mark.slow
def test_the_command_writes_file_and_script(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    command("export", "regnety_cifar", path, "--input", "uint8", "--example", code=0)
    script = tmp_path / "m_serve.py"
    assert script.exists()
    again = command("export", "regnety_cifar", path, "--input", "uint8", "--example")
    refused(again, 2, "m_serve.py exists already; remove it")
    other = command("export", "regnety_cifar", tmp_path / "n.onnx", "--example")
    refused(other, 2, "add --input uint8")


def test_models_that_cannot_take_pixels_are_refused(model: regnet.AnyNet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch files take float32; onnx and openvino"):
        regnet.export(model, tmp_path / "m.pt2", input="uint8")
    maps = regnet.create("regnety_cifar", features_only=True)
    with pytest.raises(ConfigError, match="this network has no classes"):
        regnet.export(maps, tmp_path / "m.onnx", input="uint8")
    with pytest.raises(ConfigError, match="no input 'int8'"):
        regnet.export(model, tmp_path / "m.onnx", input="int8")  # type: ignore[arg-type]
