"""Tests of what messages contain, and of input that is refused before it can do harm."""

import json
import warnings
from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import regnet
from regnet import documents
from regnet.data.preprocess import Preprocess
from regnet.errors import ConfigError, LicenseWarning, WeightsError, check_number, printable
from regnet.selection.limits import Limits
from regnet.training.recipe import Recipe
from regnet.weights.licenses import license_of, warn_if_restricted
from tests.command import refused
from tests.command import regnet as command

BELL = "\x1b]0;owned\x07\x9b31m"


@given(st.text())
def test_no_printed_text_moves_the_cursor(text):
    shown = printable(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert str(ConfigError(text)) == shown


def test_control_characters_in_text_from_outside_are_removed(tmp_path):
    error = refused(command("info", f"nothing{BELL}"), 2, "nothing")
    assert "\x1b" not in "".join(error)
    assert "\x07" not in "".join(error)
    with pytest.warns(LicenseWarning) as warned:
        warn_if_restricted(f"tests.{BELL}", license_of(BELL), source=f"https://{BELL}")
    assert "\x1b" not in str(warned[0].message)


@pytest.mark.parametrize("value", [nan, inf, -inf, "1", None, True, 1j])
def test_values_that_are_not_numbers_are_refused(value):
    with pytest.raises(ConfigError, match="x must be a number"):
        check_number("x", value)


@pytest.mark.parametrize("value", [nan, inf])
@pytest.mark.parametrize(
    "use",
    [
        lambda x: Preprocess(mean=(x, 0, 0)),
        lambda x: Preprocess(std=(1, 1, x)),
        lambda x: Preprocess(crop_pct=x),
        lambda x: Preprocess(size=(224, x)),
        lambda x: Preprocess.from_timm({"mean": [x, 0, 0]}),
        lambda x: regnet.list_models(min_top1=x),
        lambda x: Limits(latency_ms=x),
        lambda x: Recipe(lr=x),
        lambda x: Recipe(mixup=x),
        lambda x: Recipe(weight_decay=x),
        lambda x: Recipe(temperature=x),
        lambda x: regnet.create("regnetx_002", device="meta", drop_rate=x),
        lambda x: regnet.RegNetConfig(depth=8, w0=24, wa=x, wm=2.0),
        lambda x: regnet.RegNetConfig(depth=8, w0=24, wa=8.0, wm=2.0, se_ratio=x),
        lambda x: regnet.search(Limits(flops=4e8), seconds=x),
        lambda x: regnet.optimize(torch.nn.Identity(), torch.zeros(1, 3, 8, 8), seconds=x),
        lambda x: documents.build(Limits, {"flops": x}),
    ],
)
def test_options_must_be_finite(use, value):
    with pytest.raises(ConfigError):
        use(value)


def test_a_limit_that_is_not_a_number_is_refused():
    with pytest.raises(ConfigError, match="max_flops must be a number"):
        regnet.list_models(max_flops=nan)
    assert regnet.list_models("regnetx_002", max_flops=inf) == ["regnetx_002"]
    refused(command("list", "--min-top1", "nan"), 2, "min_top1 must be a number", "nan")


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_weights_must_be_finite(tmp_path, value):
    state = regnet.create("regnety_cifar").state_dict()
    name = next(iter(state))
    state[name].view(-1)[3] = value
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=f"{name} has values that are not finite"):
        regnet.create("regnety_cifar", checkpoint_path=tmp_path / "model.safetensors")


def test_a_config_that_is_not_finite_is_refused(tmp_path):
    regnet.create("regnety_cifar", pretrained=True).save_pretrained(tmp_path / "m")
    path = tmp_path / "m/config.json"
    values = json.loads(path.read_text())
    values["pretrained_cfg"]["mean"][0] = nan
    path.write_text(json.dumps(documents.sealed(values)))
    with warnings.catch_warnings(), pytest.raises(WeightsError, match="mean must be a number"):
        regnet.create(f"local-dir:{tmp_path / 'm'}", pretrained=True)
