"""Tests that folders and files are accepted wherever a name of a model is."""

import json

import pytest
import torch
from safetensors.torch import save_file

import regnet
from regnet.design.config import RegNetConfig
from regnet.errors import ConfigError, NotFoundError, WeightsError
from regnet.nn.model import AnyNet
from tests.command import refused
from tests.command import regnet as command
from tests.pictures import write_folder

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder written by `save_pretrained`, of a network of three classes at 48 pixels."""
    path = tmp_path_factory.mktemp("models") / "mine"
    model = regnet.create(
        "regnety_cifar", pretrained=True, classes=[3, 5, 6],
        pretrained_cfg_overlay={"input_size": (3, 48, 48)},
    )  # fmt: skip
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = regnet.create("regnetx_002", num_classes=7)
    path = tmp_path_factory.mktemp("weights") / "theirs.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_a_folder_can_be_given_as_a_name(folder, monkeypatch):
    expected = regnet.create(f"local-dir:{folder}", pretrained=True).eval()(X)
    monkeypatch.chdir(folder.parent)
    for name in (str(folder), "mine", "./mine", "mine/"):
        assert torch.equal(regnet.create(name, pretrained=True).eval()(X), expected)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert torch.equal(regnet.create("~/mine", pretrained=True).eval()(X), expected)
    assert regnet.preprocess("mine").size == (48, 48)
    assert regnet.info("mine").config.num_classes == 3


def test_names_of_the_zoo_come_before_folders(folder, monkeypatch, tmp_path):
    model = regnet.create(str(folder), pretrained=True)
    model.save_pretrained(tmp_path / "regnetx_002")
    monkeypatch.chdir(tmp_path)
    assert regnet.create("regnetx_002", device="meta").num_classes == 1000
    assert regnet.create("./regnetx_002", device="meta").num_classes == 3


def test_a_file_of_weights_can_be_given_as_a_name(weights, caplog):
    model = regnet.create(str(weights), pretrained=True)
    assert model.num_classes == 7
    assert model.card.architecture == "regnetx_002"
    assert (
        "no preprocessing, activations and strides; using those of regnetx_002.pycls_in1k"
        in caplog.text
    )
    x = torch.randn(1, 3, 64, 64)
    other = regnet.create("regnetx_002", checkpoint_path=weights, num_classes=7).eval()
    assert torch.equal(model.eval()(x), other(x))
    assert regnet.create(str(weights), pretrained=True, num_classes=3).num_classes == 3
    assert regnet.info(str(weights)).checkpoint.file == str(weights)


def test_files_with_other_wrappers_or_gray_stems_load(tmp_path):
    model = regnet.create("regnety_002", num_classes=2, in_chans=1)
    path = tmp_path / "run.pth"
    torch.save(
        {"epoch": 3, "model_ema": {f"module.{k}": v for k, v in model.state_dict().items()}}, path
    )
    found = regnet.create(str(path), pretrained=True)
    assert (found.num_classes, found.config.in_chans) == (2, 1)
    assert torch.equal(found.head.fc.weight, model.head.fc.weight)


def test_a_file_of_another_network_says_what_to_do(tmp_path):
    config = RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, num_classes=7)
    model = AnyNet(config)
    path, description = tmp_path / "own.safetensors", tmp_path / "own.json"
    save_file(model.state_dict(), path)
    with pytest.raises(WeightsError, match="fits no published network; create the network by its"):
        regnet.create(str(path), pretrained=True)
    description.write_text(config.to_json())
    opened = regnet.create(str(description), checkpoint_path=path)  # as the error advises
    assert torch.equal(opened.head.fc.weight, model.head.fc.weight)
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="regnet weights inspect"):
        regnet.create(str(path), pretrained=True)
    command("weights", "inspect", path, code=0)  # as the error advises


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("no/such", NotFoundError, "no folder or file no/such; on the Hub it is hf-hub:no/such"),
        ("no/such/folder", NotFoundError, "there is no folder or file no/such/folder$"),
        ("model.safetensors", NotFoundError, "there is no folder or file model.safetensors"),
        ("regnety_016.nope", WeightsError, "regnety_016"),
        ("regnet_zz", ConfigError, "there is no variant 'regnet_zz'"),
    ],
)  # fmt: skip
def test_missing_folders_and_files_are_refused(name, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        regnet.create(name, pretrained=True)


def test_a_folder_has_no_revisions(folder):
    with pytest.raises(ConfigError, match="has no revisions"):
        regnet.create(str(folder), pretrained=True, revision="main")


def test_what_has_no_weights_has_no_revisions(tmp_path):
    """A revision must never be ignored, and these names have no revisions."""
    config = regnet.RegNetConfig(depth=8, w0=16, wa=16.0, wm=2.5, group_width=8)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(config.to_dict()))
    for name, words in (
        (config, "a config has no revisions"),
        (str(path), "a config has no revisions"),
        ("regnetx_002", "stands for no weights here"),
    ):
        with pytest.raises(ConfigError, match=words):
            regnet.create(name, revision="main")


def test_a_pattern_that_names_a_variant_finds_its_weights():
    expected = regnet.list_models("regnety_016", pretrained=True)
    assert expected
    for alias in ("RegNetY-1.6GF", "regnet_y_1.6gf"):
        assert regnet.list_models(alias, pretrained=True) == expected


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"contains no config.json; name a folder"):
        regnet.create(str(tmp_path), pretrained=True)


def test_commands_accept_folders_and_files(folder, weights, tmp_path):
    photos = write_folder(tmp_path / "photos", 12, names=("cat", "dog", "frog"))
    assert "3 classes" in command("info", folder, code=0).stdout
    assert "7 classes" in command("info", weights, code=0).stdout
    command("predict", photos / "cat", "--model", folder, code=0)
    done = command("evaluate", photos, "--model", folder, "--workers", 0, code=0)
    assert "48 x 48 pixels" in done.stdout
    done = command(
        "bench", "--models", f"{folder},{weights}", "--engine", "folded", "--seconds", 0.05,
        "--image-size", 32, code=0,
    )  # fmt: skip
    assert done.stderr.count("folded fp32") == 2
    refused(command("predict", photos, "--model", "no/such"), 2, "there is no folder or file")


def test_preprocessing_can_be_looked_up_by_name():
    assert regnet.preprocess("regnety_016.tv2_in1k").size == (224, 224)
    assert regnet.preprocess("regnety_cifar").size == (32, 32)
    with pytest.raises(ConfigError, match="takes a model or the name of one, got int 3"):
        regnet.preprocess(3)


def test_from_pretrained_finds_files_by_any_path(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs/best.pth"
    path.write_bytes(weights.read_bytes())
    for name in ("runs/best.pth", "./runs/best.pth", str(path), path):
        assert AnyNet.from_pretrained(name).config.num_classes == 7


def test_from_pretrained_of_a_missing_path_does_not_ask_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((NotFoundError, WeightsError, ConfigError), match=r"\./none\.pth"):
        AnyNet.from_pretrained("./none.pth")
