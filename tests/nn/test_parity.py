"""Tests that outputs equal those of timm and pycls, in float64 and in float32."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from regnet.design.complexity import complexity
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.nn.model import AnyNet
from regnet.weights.keys import BYOBNET, NFNET, PYCLS, PYCLS_VANILLA, KeyTable
from tests import golden
from tests.marks import one_per_family

IDENTITY = KeyTable(())

FLOAT32 = {"haloregnetz_b": 5e-4}
"""Largest difference in float32, in units of an output's root mean square, where it is not 1e-4.

The attention of HaloRegNetZ magnifies rounding errors. Depending on the order in which a
processor's kernels add, the difference is 0.7e-4 to 1.7e-4 (AVX2 and AVX-512, one and two threads).
The comparison in float64 shows that the function is the same as timm's.
"""


def with_overrides(
    config: AnyNetConfig | RegNetConfig, overrides: dict[str, Any]
) -> AnyNetConfig | RegNetConfig:
    """Return a config with timm's options under our names."""
    ours = {
        "linear_out": lambda _: {"block": "linear_bottleneck"},
        "downsample": lambda _: {"shortcut": "avg_pool"},
        "act_layer": lambda value: {"activation": value},
        "bottle_ratio": lambda value: {"bottleneck_ratio": 1 / value},
        "num_features": lambda value: {"head_width": value},
    }
    changes: dict[str, Any] = {}
    for name, value in overrides.items():
        changes |= ours[name](value) if name in ours else {name: value}
    return replace(config, **changes)


def cases(file: str) -> list[Any]:
    rows, seen = [], set()
    for name, records in golden.load(file)["records"].items():
        for record in records:
            size = "x".join(map(str, record["input"][2:]))
            extra = "".join(f"-{k}={v}" for k, v in (record.get("overrides") or {}).items())
            # The largest network needs 10 GB in float64. Large networks test nothing that small
            # ones do not, unless an option is only tested with them.
            flops, family = complexity(VARIANTS[name].config, 224).flops, VARIANTS[name].family
            large = flops > 4e9 or (flops > 1e9 and family in seen and not extra)
            marks = [pytest.mark.long] if large else [pytest.mark.slow] if family in seen else []
            rows.append(pytest.param(name, record, id=f"{name}-{size}{extra}", marks=marks))
            seen.add(family)
    return rows


def keys_of(name: str) -> KeyTable:
    tables = {"byobnet.py": BYOBNET, "byoanet.py": BYOBNET, "nfnet.py": NFNET}
    return tables.get(golden.load("variants.json")[name]["defined_in"], IDENTITY)


def filled(config: AnyNetConfig | RegNetConfig, conv_gain: float, to_theirs: Any) -> AnyNet:
    with torch.device("meta"):
        model = AnyNet(config).double().eval()
    model.to_empty(device="cpu")
    for name, tensor in model.state_dict().items():
        golden.fill(to_theirs(name), tensor, conv_gain)
    return model


def worst_difference(model: AnyNet, record: dict[str, Any], names: dict[str, str]) -> float:
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(names.get(name, name)).register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.__setitem__(name, output.clone())
        )
        for name in record["features"]
    ]
    dtype = next(model.parameters()).dtype
    with torch.inference_mode():
        features = model.forward_features(golden.images(*record["input"][2:]).to(dtype))
        pre_logits = model.forward_head(features, pre_logits=True)
        logits = model.forward_head(features)
    for hook in hooks:
        hook.remove()
    worst = [0.0]
    for name, expected in record["features"].items():
        assert list(outputs[name].shape) == expected["shape"], name
        worst += golden.differences(outputs[name], expected)
    for output, expected in ((pre_logits, record.get("pre_logits")), (logits, record["logits"])):
        if expected:
            assert output.shape[1] == expected["num"]
            worst += golden.differences(output, expected)
    assert logits.argmax(1).tolist() == record["logits"]["argmax"]
    return max(worst)


@pytest.mark.parametrize(("name", "record"), cases("golden_timm.json"))
def test_outputs_equal_those_of_timm(name, record):
    config = with_overrides(VARIANTS[name].config, record.get("overrides") or {})
    model = filled(config, record["conv_gain"], keys_of(name).to_theirs)
    assert worst_difference(model, record, {}) < 1e-9
    assert worst_difference(model.float(), record, {}) < FLOAT32.get(name, 1e-4)


def pycls_keys(name: str) -> KeyTable:
    return PYCLS_VANILLA if name.startswith("vanilla") else PYCLS


@pytest.mark.parametrize(("name", "record"), cases("golden_pycls.json"))
def test_outputs_equal_those_of_pycls(name, record):
    config = VARIANTS[name].config
    model = filled(config, record["conv_gain"], pycls_keys(name).to_theirs)
    # In pycls, the max pool is part of the ResNet stem.
    names = {"stem": "stem_pool"} if config.stem == "resnet" else {}
    assert worst_difference(model, record, names) < 1e-9
    assert worst_difference(model.float(), record, names) < 1e-4


@pytest.mark.parametrize("name", one_per_family(golden.load("state_dicts_timm.json.gz")))
def test_the_state_dict_equals_that_of_timm(name):
    with torch.device("meta"):
        state_dict = AnyNet(VARIANTS[name].config).state_dict()
    ours = [[keys_of(name).to_theirs(key), list(value.shape)] for key, value in state_dict.items()]
    assert ours == golden.load("state_dicts_timm.json.gz")[name]


@pytest.mark.parametrize("name", one_per_family(golden.load("state_dicts_pycls.json.gz")))
def test_the_state_dict_has_the_tensors_of_pycls(name):
    with torch.device("meta"):
        state_dict = AnyNet(VARIANTS[name].config).state_dict()
    recorded = dict(golden.load("state_dicts_pycls.json.gz")[name])
    table = pycls_keys(name)
    theirs = table.state_dict_to_theirs(state_dict)
    assert {key: list(value.shape) for key, value in theirs.items()} == recorded
    assert table.state_dict_to_ours(recorded).keys() == state_dict.keys()
