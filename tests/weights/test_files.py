import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import regnet
from regnet.design.config import RegNetConfig
from regnet.errors import WeightsError
from regnet.nn.model import AnyNet
from regnet.weights.catalog import checkpoints, data_dir, find_checkpoint
from regnet.weights.files import load_weights, verify

CONFIG = RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, num_classes=4)


@pytest.fixture
def saved(tmp_path):
    model = AnyNet(CONFIG)
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def test_weights_arrive_unchanged(saved):
    model, path = saved
    other = AnyNet(CONFIG)
    load_weights(other, path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def test_weights_take_the_models_dtype(saved):
    _, path = saved
    other = AnyNet(CONFIG).bfloat16()
    load_weights(other, path)
    assert other.head.fc.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CONFIG, num_classes=5), r"head.fc.weight has shape \(4, 16\), .* \(5, 16\)"),
        (replace(CONFIG, num_classes=0), "unexpected head.fc.weight"),
        (replace(CONFIG, se_ratio=0.25), "missing s1.b1.se.fc1.weight"),
        (replace(CONFIG, depth=4), "and 33 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, config, message):
    model = AnyNet(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(model, saved[1])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["cut", "text", "missing", "folder"])
def test_a_damaged_file_is_refused(saved, damage):
    model, path = saved
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("not a checkpoint")
    else:
        path.unlink()
    if damage == "folder":
        path.mkdir()
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_weights(model, path)


def test_verification_sees_a_single_flipped_bit(saved):
    _, path = saved
    data = bytearray(path.read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    verify(path, digest)
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="the file is damaged"):
        verify(path, digest)


def test_a_missing_file_cannot_be_verified(tmp_path):
    with pytest.raises(WeightsError, match="No such file"):
        verify(tmp_path / "none", "0")


@pytest.mark.parametrize("row", checkpoints().values(), ids=lambda r: r.id)
def test_embedded_files_are_those_of_the_table(row):
    path = data_dir() / row.file
    verify(path, row.sha256)
    assert path.stat().st_size <= 1.5e6
    assert len(row.labels) == row.num_classes
    model = regnet.create(row.id, pretrained=True)
    assert model.num_classes == row.num_classes


@pytest.mark.parametrize("row", checkpoints().values(), ids=lambda r: r.id)
def test_model_card_states_the_figures_of_the_table(row):
    card = (data_dir() / row.file).with_suffix(".md").read_text(encoding="utf-8")
    assert f"**{row.metrics['top1']:.2f} %**" in card
    assert row.command in card
    assert row.sha256 in card


@pytest.mark.xfail(reason="36 epochs gave 89.33 %; the goal needs a longer training")
def test_embedded_checkpoint_reaches_90_percent():
    assert find_checkpoint("regnety_cifar").metrics["top1"] >= 90


def test_weights_that_are_not_there():
    with pytest.raises(WeightsError, match="regnety_cifar has no weights tagged 'v2'; it has"):
        find_checkpoint("regnety_cifar", "v2")
    with pytest.raises(WeightsError, match="no weights for regnety_016 in this version"):
        find_checkpoint("regnety_016")
