"""Tests of each claim in docs/migration about what is the same as in other libraries."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import regnet
from regnet.errors import ConfigError
from regnet.nn.model import AnyNet

ROOT = Path(__file__).parents[1]


def signature(method):
    return list(inspect.signature(method).parameters)[1:]


TIMM = {
    "forward_features": ["x"],
    "forward_head": ["x", "pre_logits"],
    "forward_intermediates": [
        "x", "indices", "norm", "stop_early", "output_fmt", "intermediates_only",
    ],
    "prune_intermediate_layers": ["indices", "prune_norm", "prune_head"],
    "get_classifier": [],
    "reset_classifier": ["num_classes", "global_pool"],
    "set_grad_checkpointing": ["enable"],
    "group_matcher": ["coarse"],
    "no_weight_decay": [],
}  # fmt: skip
"""Methods of timm's RegNet, and their parameters (timm 1.0.31)."""


@pytest.mark.parametrize("name", TIMM)
def test_methods_of_timm_have_the_same_parameters_in_the_same_order(name):
    assert signature(getattr(AnyNet, name)) == TIMM[name]


def test_the_page_names_each_method():
    page = (ROOT / "docs/migration/timm.md").read_text(encoding="utf-8")
    for name in TIMM:
        assert f"`{name}`" in page or f"`model.{name}`" in page


def test_patterns_of_timm_select_the_same_models():
    found = regnet.list_models(
        ["regnetx_00*", "regnety_00*"], exclude_filters="*_tv", pretrained=True, include_tags=False
    )
    assert found[0] == "regnetx_002"
    assert not [name for name in found if name.endswith("_tv") or "." in name]
    assert regnet.list_models(exclude_filters=["regnet*", "res*", "*halo*", "nf*"]) == [
        "vanilla56_cifar"
    ]
    assert regnet.list_models("") == regnet.list_models()
    with_tags = regnet.list_models("regnetx_002*", include_tags=True)
    assert "regnetx_002.pycls_in1k" in with_tags
    assert "regnety_cifar" in {
        name.partition(".")[0] for name in regnet.list_models(include_tags=True)
    }


def test_default_cfg_belongs_to_the_weights():
    model = regnet.create("regnety_cifar", pretrained=True)
    assert dict(model.default_cfg) == dict(model.pretrained_cfg)
    with pytest.raises(TypeError):
        model.default_cfg["mean"] = 1


@pytest.mark.parametrize("option", ["feature_cls", "feature_cfg", "scriptable", "exportable"])
def test_unsupported_options_are_refused_unless_they_are_none(option):
    regnet.create("regnetx_002", device="meta", **{option: None})
    with pytest.raises(TypeError, match=f"unexpected option {option}='x'"):
        regnet.create("regnetx_002", device="meta", **{option: "x"})


def test_all_networks_but_halo_attention_can_be_scripted():
    page = (ROOT / "docs/migration/timm.md").read_text(encoding="utf-8")
    assert "`torch.jit.script` fails for halo attention" in page
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.script"):
        scripted = torch.jit.script(regnet.create("regnetz_005").eval())
    assert scripted(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


HUB = {
    AnyNet.save_pretrained: ["save_directory"],
    AnyNet.push_to_hub: ["repo_id"],
}


@pytest.mark.parametrize("method", HUB)
def test_methods_of_the_hub_have_the_same_parameters(method):
    assert signature(method)[: len(HUB[method])] == HUB[method]


def test_options_of_the_hub_are_accepted():
    from regnet.zoo import publish

    known = set(inspect.signature(publish.push_to_hub).parameters)
    assert {"repo_id", "commit_message", "private", "token", "revision", "create_pr"} <= known
    known = set(inspect.signature(regnet.create).parameters)
    assert {
        "revision",
        "force_download",
        "cache_dir",
        "local_files_only",
        "token",
        "dtype",
    } <= known


@pytest.mark.parametrize("name", ["regnety_016.tv2_in1k", "facebook/regnet-y-016"])
def test_preprocess_takes_names_of_other_libraries(name):
    assert regnet.preprocess(name).size == (224, 224)


@pytest.mark.parametrize("name", [Path("x"), None, 7])
def test_preprocess_names_what_it_was_given(name):
    with pytest.raises(ConfigError, match="takes a model or the name of one, got ") as refusal:
        regnet.preprocess(name)
    assert type(name).__name__ in str(refusal.value)
    with pytest.raises(
        ConfigError, match="this model has no card that specifies its preprocessing"
    ):
        regnet.preprocess(nn.Linear(3, 3))


def test_torchvisions_checkpoints_are_named_on_its_page():
    """How these checkpoints load is tested in tests/weights/test_unwrap.py."""
    page = (ROOT / "docs/migration/torchvision.md").read_text(encoding="utf-8")
    assert re.search(r"`model_ema`.*`checkpoint_key=\"model\"`", page.replace("(", ""))
