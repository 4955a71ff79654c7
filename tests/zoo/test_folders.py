"""Tests that the files of a saved model belong together: changed files are refused."""

import shutil

import pytest
import torch

import regnet
from regnet.errors import RegNetError, WeightsError
from tests.faults import flipped_bits
from tests.marks import times


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "m"
    regnet.create("regnety_cifar", pretrained=True).save_pretrained(out)
    return out


def opened(folder):
    return regnet.create(f"local-dir:{folder}", pretrained=True)


@times(40, 500)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_every_flipped_bit_is_detected(folder, tmp_path, name, count):
    """A flip is harmless only in the white space between the values of a JSON file."""
    expected = opened(folder)
    copy = tmp_path / "m"
    shutil.copytree(folder, copy)
    noticed = 0
    for _ in flipped_bits(copy / name, count):
        try:
            found = opened(copy)
        except RegNetError:
            noticed += 1
        else:
            assert found.config == expected.config
            assert found.card == expected.card
            for ours, theirs in zip(
                found.state_dict().values(), expected.state_dict().values(), strict=True
            ):
                assert torch.equal(ours, theirs)
    assert noticed >= count // 2


def test_weights_of_another_model_are_refused(folder, tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(folder, copy)
    regnet.create("regnety_cifar").save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other/model.safetensors", copy)
    with pytest.raises(WeightsError, match="is damaged: its SHA-256 begins with"):
        opened(copy)


def test_an_edited_config_is_refused(folder, tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(folder, copy)
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"num_classes": 10', '"num_classes": 11'))
    with pytest.raises(WeightsError, match="not as it was written"):
        opened(copy)
