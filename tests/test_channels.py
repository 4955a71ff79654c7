"""Tests of one channel in every command, and of other numbers with tensors instead of files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import regnet
from regnet.data import augment
from regnet.data.preprocess import Preprocess
from regnet.errors import ConfigError
from regnet.nn.model import AnyNet
from tests.command import refused
from tests.command import regnet as command
from tests.pictures import write_folder


@pytest.fixture(scope="module")
def gray():
    """The embedded network, adapted to one channel."""
    return regnet.create("regnety_cifar", pretrained=True, in_chans=1).eval()


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8))


def test_gray_images_equal_those_of_pillow(picture):
    look = Preprocess(size=(32, 32), mean=(0.4,), std=(0.2,))
    found = look(picture)
    assert found.shape == (1, 32, 32)
    wanted = Preprocess(size=(32, 32), mean=(0.4,) * 3, std=(0.2,) * 3)(
        picture.convert("L").convert("RGB")
    )
    torch.testing.assert_close(found[0], wanted[0], atol=0, rtol=0)


def test_batches_become_gray_as_single_images_do(picture):
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    wanted = np.array(picture.convert("L"), np.float32)
    assert np.abs(augment.gray(pixels)[0, 0].numpy() - wanted).max() <= 0.51
    normal = augment.normalize(pixels, (0.5,), (0.25,))
    assert normal.shape == (1, 1, 48, 40)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_the_mean_follows_the_channels(channels):
    look = Preprocess().for_channels(channels)
    assert look.channels == len(look.std) == channels
    if channels > 3:
        assert look.mean[3] == look.mean[0]
    if channels == 1:
        assert look.mean == (pytest.approx(sum(Preprocess().mean) / 3, abs=1e-6),)
        assert look.for_channels(3).mean == look.mean * 3


def test_a_gray_model_has_one_mean_saves_and_opens(gray, picture, tmp_path):
    look = regnet.preprocess(gray)
    assert look.channels == 1
    assert gray.pretrained_cfg["input_size"] == (1, 32, 32)
    assert len(gray.pretrained_cfg["mean"]) == 1
    gray.save_pretrained(tmp_path)
    again = AnyNet.from_pretrained(tmp_path)
    assert regnet.preprocess(again) == look
    assert regnet.predict(picture, again) == regnet.predict(picture, gray)


@pytest.mark.parametrize("mean", [[0.5], [0.4, 0.5, 0.6]])
def test_gray_models_of_timm_are_opened_and_saved(tmp_path, mean, picture):
    (tmp_path / "timm").mkdir()
    network = regnet.create("regnetx_002", num_classes=4, in_chans=1)
    network.save_pretrained(tmp_path / "timm")
    config = {
        "architecture": "regnetx_002",
        "num_classes": 4,
        "model_args": {"in_chans": 1},
        "pretrained_cfg": {"input_size": [1, 64, 64], "mean": mean, "std": [0.2] * len(mean)},
    }
    (tmp_path / "timm/config.json").write_text(json.dumps(config))
    model = AnyNet.from_pretrained(tmp_path / "timm")
    assert regnet.preprocess(model).mean == (0.5,)
    assert len(regnet.predict(picture, model)[0].classes) == 4
    model.save_pretrained(tmp_path / "ours")
    assert regnet.preprocess(AnyNet.from_pretrained(tmp_path / "ours")).mean == (0.5,)


def test_a_gray_photo_gets_almost_the_answer_of_the_color_photo(gray):
    """The stem's weights are summed over channels; only the mean differs slightly."""
    color = regnet.create("regnety_cifar", pretrained=True).eval()
    photo = Image.open("docs/photos/chelsea.png").convert("L").convert("RGB")
    [one], [other] = regnet.predict(photo, gray), regnet.predict(photo, color)
    assert one.classes[0].label == other.classes[0].label
    assert one.classes[0].probability == pytest.approx(other.classes[0].probability, abs=0.1)


def test_a_replaced_stem_takes_gray_images(picture):
    model = regnet.create("regnety_cifar", pretrained=True)
    model.stem.conv = torch.nn.Conv2d(1, 32, 3, 1, 1, bias=False)
    assert regnet.preprocess(model).channels == 1
    assert regnet.predict(picture, model)[0].classes


@pytest.mark.slow
def test_every_command_takes_gray_images(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    write_folder(data / "train", 64, names=("cat", "dog"))
    write_folder(data / "val", 16, names=("cat", "dog"))
    done = command(
        "train", data, "--out", run, "--model", "regnety_cifar", "--recipe", "cifar",
        "--set", "epochs=2", "--set", "batch_size=16", "--set", "warmup_epochs=0",
        "--in-chans", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "run.json").read_text())["run"]["in_chans"] == 1
    folder = f"local-dir:{run / 'model'}"
    model = regnet.create(folder, pretrained=True)
    assert model.config.in_chans == 1
    assert regnet.preprocess(model).channels == 1
    config = tmp_path / "gray.json"
    config.write_text(model.config.to_json())
    for words in (
        ("predict", next((data / "val").rglob("*.png")), "--model", folder),
        ("evaluate", data / "val", "--model", folder, "--workers", 0),
        ("evaluate", data / "val", "--model", folder, "--workers", 2, "--batch-size", 4),
        ("export", folder, tmp_path / "a.onnx"),
        (
            "export",
            folder,
            tmp_path / "a.xml",
            "--precision",
            "int8",
            "--images",
            data / "val",
            "--min-agreement",
            0,
        ),
        ("bench", "--models", config, "--seconds", "0.01", "--engine", "eager"),
    ):
        done = command(*words)
        assert done.returncode == 0, (words, done.stderr)
    done = command("train", "--resume", run)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("channels", [2, 5])
def test_other_numbers_of_channels_work_with_tensors_and_are_refused_for_files(
    tmp_path, picture, channels
):
    model = regnet.create("regnety_cifar", pretrained=True, in_chans=channels).eval()
    assert model(torch.randn(1, channels, 32, 32)).shape == (1, 10)
    write_folder(tmp_path / "data", 8, names=("cat", "dog"))
    small = replace(regnet.find_recipe("cifar"), batch_size=4)
    advice = f"takes images of {channels} channels.*in Python, pass it tensors"
    for use in (
        lambda: regnet.preprocess(model),
        lambda: regnet.predict(picture, model),
        lambda: regnet.evaluate(model, tmp_path / "data"),
        lambda: regnet.train(model.config, tmp_path / "data", None, recipe=small),
    ):
        with pytest.raises(ConfigError, match=advice):
            use()
    model.save_pretrained(tmp_path / "model")
    picture.save(tmp_path / "a.png")
    folder = f"local-dir:{tmp_path / 'model'}"
    refused(command("predict", tmp_path / "a.png", "--model", folder), 2, "in Python, pass it")
    fast = regnet.optimize(model, engines="folded", seconds=0.01)
    assert fast.report.shape == (1, channels, 32, 32)
