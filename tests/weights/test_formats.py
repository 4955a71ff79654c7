"""Tests of weights of other libraries: recognized, and converted exactly in both directions."""

import functools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regnet.design.complexity import complexity
from regnet.design.config import ArchitectureConfig
from regnet.design.variants import VARIANTS
from regnet.errors import WeightsError
from regnet.nn.model import AnyNet
from regnet.weights.formats import FORMATS, detect, find_format, from_native, to_native
from regnet.weights.identify import identify
from regnet.weights.keys import vissl_table
from regnet.zoo.loading import load_tensors
from tests import golden
from tests.marks import first_of_each, one_per_family

RECORDS = golden.load("golden_formats.json")
STATE_DICTS = golden.load("state_dicts_formats.json.gz")

LISTED = first_of_each(
    ((format, name) for format, rows in STATE_DICTS.items() for name in rows),
    lambda format, name: format,
)


def records() -> list[Any]:
    rows: list[Any] = []
    for format, part in RECORDS.items():
        first = True
        for name, cases in part["records"].items():
            for case in cases:
                size = "x".join(map(str, case["input"][2:]))
                parts = "-parts" if "stage_checkpoints" in case else ""
                giant = complexity(VARIANTS[case["variant"]].config, 224).flops > 1e9
                marks = [pytest.mark.long] if giant else [] if first else [pytest.mark.slow]
                first = first and giant
                rows.append(
                    pytest.param(
                        format, name, case, id=f"{format}-{name}-{size}{parts}", marks=marks
                    )
                )
    return rows


def entries(format: str, name: str, case: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """Return the names and shapes of the state dict to which a record belongs."""
    rows = STATE_DICTS[format]
    found = rows.get(name.removesuffix(" (pycls blocks)")) or next(
        row
        for row in rows.values()
        if row["variant"] == case["variant"]
        and ("pre_logits" in case) == any("clf" in key for key, _ in row["entries"])
    )
    pairs = [(key, shape) for key, shape in found["entries"]]
    if cuts := case.get("stage_checkpoints"):
        pairs = [(in_parts(key, cuts), shape) for key, shape in pairs]
    return pairs


def in_parts(key: str, cuts: list[list[int]]) -> str:
    """Return a name of VISSL with its stage divided into parts, as in files of the 10B model."""
    match = re.match(r"(_feature_blocks\.res\d\.)(block(\d)-(\d+)\..*)", key)
    if not match:
        return key
    stage, block = int(match[3]), int(match[4])
    last = VARIANTS["regnety_004"].config.depths[stage - 1]
    part = sum(block >= cut for cut in cuts[stage - 1] if cut < last)
    return f"{match[1]}block{stage}-part{part}.{match[2]}"


def filled(
    pairs: list[tuple[str, list[int]]], gain: float, dtype: torch.dtype
) -> dict[str, Tensor]:
    tensors = {}
    for key, shape in pairs:
        counter = key.endswith("num_batches_tracked")
        tensors[key] = torch.empty(shape, dtype=torch.int64 if counter else dtype)
        golden.fill(key, tensors[key], gain)
    return tensors


@pytest.mark.parametrize(("format", "name", "case"), records())
def test_outputs_equal_those_of_the_library(format, name, case):
    # Convolutions of the larger networks in float64 take minutes. Their architectures are compared
    # with timm's to 1e-9 in tests/nn/test_parity.py; here only names and values matter.
    large = complexity(VARIANTS[case["variant"]].config).flops > 2e9
    dtype = torch.float32 if large else torch.float64
    theirs = filled(entries(format, name, case), case["conv_gain"], dtype)
    tensors, found = to_native(theirs)
    assert found is find_format(format)

    trunk = "pre_logits" not in case
    config = VARIANTS[case["variant"]].config
    if trunk:
        config = replace(config, num_classes=0)
    if "final_conv.conv.weight" not in tensors:
        config = replace(config, head_width=0)
    with torch.device("meta"):
        model = AnyNet(config).eval()
    load_tensors(model, tensors, source=name, dtype=dtype)
    images = golden.images(*case["input"][2:]).to(dtype)
    if found.bgr:
        images = images.flip(1)
    with torch.inference_mode():
        features, maps = model.forward_intermediates(images)
        pooled = maps[-1].mean((2, 3)) if trunk else model.forward_head(features, pre_logits=True)
        logits = pooled if trunk else model.forward_head(features)
    expected = {f"s{n}": value for n, value in enumerate(maps[1:], 1)} | {"stem": maps[0]}
    worst = list(golden.differences(logits, case["logits"]))
    if not trunk:
        worst += golden.differences(pooled, case["pre_logits"])
    for part, value in expected.items():
        assert list(value.shape) == case["features"][part]["shape"]
        worst += golden.differences(value, case["features"][part])
    assert max(worst) < (1e-9 if dtype == torch.float64 else 1e-4)

    back = vissl_back(tensors, theirs) if format == "vissl" else from_native(tensors, found)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], value) for key, value in theirs.items())


def vissl_back(tensors: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    return vissl_table(theirs).state_dict_to_theirs(tensors)


def meta(pairs: list[Any]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in pairs}


@functools.cache
def state_dict(config: ArchitectureConfig) -> dict[str, Tensor]:
    """Return the tensors of a network on the meta device, which needs no memory."""
    with torch.device("meta"):
        return AnyNet(config).state_dict()


@pytest.mark.parametrize(("format", "name"), LISTED)
def test_every_state_dict_is_recognized_and_renamed_both_ways(format, name):
    row = STATE_DICTS[format][name]
    theirs = meta(row["entries"])
    found, table = detect(theirs)
    assert found is find_format(format)
    ours = table.state_dict_to_ours(theirs)
    assert table.state_dict_to_theirs(ours).keys() == theirs.keys()
    if row["variant"]:  # pycls's ResNets and CIFAR networks have no name here
        config = VARIANTS[row["variant"]].config
        changes = {"num_classes": 1000 if "head.fc.weight" in ours else 0}
        if "final_conv.conv.weight" not in ours:
            changes["head_width"] = 0
        expected = state_dict(replace(config, **changes))
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in expected.items()}
        if not changes.get("head_width", 1) and config.head_width:
            return
        shapes = {key: tuple(value.shape) for key, value in ours.items()}
        assert [v.name for v in identify(shapes)] == [row["variant"]]


# Only SEER 10B's own names contain the parts of its stages; see vissl_back.
@pytest.mark.parametrize(("format", "name"), [row for row in LISTED if "10b" not in row.values[1]])
def test_the_format_to_convert_back_to_is_found_from_our_names(format, name):
    theirs = meta(STATE_DICTS[format][name]["entries"])
    ours, found = to_native(theirs)
    assert from_native(ours, found).keys() == theirs.keys()


@pytest.mark.parametrize("variant", one_per_family(VARIANTS))
def test_conversion_to_timm_and_back_keeps_the_names_of_every_variant(variant):
    ours = state_dict(VARIANTS[variant].config)
    theirs = from_native(ours, FORMATS["timm"])
    assert any(key.startswith("stages.") for key in theirs) == (
        VARIANTS[variant].config.bottleneck_from == "input"
    )
    assert to_native(theirs)[0].keys() == ours.keys()


def test_stems_of_pycls_take_blue_first():
    name = next(iter(STATE_DICTS["pycls"]))
    weight = torch.arange(3.0).reshape(1, 3, 1, 1)
    theirs = meta(STATE_DICTS["pycls"][name]["entries"]) | {"stem.conv.weight": weight}
    ours, _ = to_native(theirs)
    assert ours["stem.conv.weight"].flatten().tolist() == [2, 1, 0]
    assert to_native(theirs, bgr=False)[0]["stem.conv.weight"].flatten().tolist() == [0, 1, 2]
    back = from_native(ours, FORMATS["pycls"])
    assert torch.equal(back["stem.conv.weight"], weight)


def test_heads_for_pretraining_are_left_out():
    theirs = meta(STATE_DICTS["vissl"]["seer_rg32gf"]["entries"])
    more = {"0.projection_head.0.weight": torch.empty(1), "0.prototypes0.weight": torch.empty(1)}
    assert to_native(theirs | more)[0].keys() == to_native(theirs)[0].keys()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "it contains no tensors"),
        (["layer1.0.conv1.weight"], "its tensor names match no known format"),
        (
            ["s1.b1.conv1.conv.weight", "x", "y", "z", "w"],
            "the closest, timm, does not have x, y",
        ),
    ],
)
def test_other_networks_are_refused(keys, message):
    with pytest.raises(WeightsError, match=message):
        detect(keys)


def test_a_format_that_cannot_hold_the_network_is_refused():
    with torch.device("meta"):
        ours = AnyNet(VARIANTS["regnetz_005"].config).state_dict()
    with pytest.raises(WeightsError, match="torchvision has no networks with final_conv"):
        from_native(ours, FORMATS["torchvision"])
    for variant in ("regnetv_040", "nf_regnet_b0", "haloregnetz_b"):
        with torch.device("meta"):
            ours = AnyNet(VARIANTS[variant].config).state_dict()
        with pytest.raises(WeightsError, match="pycls has no networks with"):
            from_native(ours, FORMATS["pycls"])
    with pytest.raises(WeightsError, match="there is no format 'keras'; there are timm"):
        find_format("keras")


@pytest.mark.parametrize("variant", one_per_family(VARIANTS))
def test_shapes_distinguish_every_variant(variant):
    state = state_dict(VARIANTS[variant].config)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert [row.name for row in identify(shapes)] == [variant]
