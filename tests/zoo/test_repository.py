"""Tests of repositories in timm's layout: they are written, uploaded and read back."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save
from torch import nn

import regnet
from regnet import documents
from regnet.design.config import AnyNetConfig, RegNetConfig, StageConfig
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError, LicenseWarning, WeightsError
from regnet.nn.model import AnyNet
from regnet.weights.card import Card
from regnet.weights.formats import FORMATS, from_native
from regnet.zoo.publish import save_pretrained
from regnet.zoo.repository import read_repository
from regnet.zoo.resolver import find_source
from tests import golden

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> AnyNet:
    return regnet.create("regnety_cifar", pretrained=True).eval()


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_saved_model_is_read_back(tmp_path, model):
    model.save_pretrained(tmp_path / "a")
    for name in (str(tmp_path / "a"), f"local-dir:{tmp_path / 'a'}"):
        again = AnyNet.from_pretrained(name)
        assert not again.training
        equal(again(IMAGES), model(IMAGES))
        assert again.config == model.config
        for key in ("license", "label_names", "crop_pct", "mean", "architecture", "tag"):
            assert again.pretrained_cfg[key] == model.pretrained_cfg[key], key
        assert again.pretrained_cfg["metrics"][0]["dataset"] == "cifar-10-jpeg"
    shape_only = regnet.create(f"local-dir:{tmp_path / 'a'}", device="meta", num_classes=3)
    assert shape_only.num_classes == 3


def test_the_card_states_license_source_and_figures(tmp_path, model):
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    front = card.split("---\n")[1]
    for line in ('library_name: "regnet"', 'license: "apache-2.0"'):
        assert line in front
    assert "model-index" not in front, "the accuracies are those of the weights before fine-tuning"
    assert "- License: Apache-2.0 (https://spdx.org/licenses/Apache-2.0.html)" in card
    assert "- Top-1 on cifar-10-jpeg at 32 pixels: " in card
    assert "(of the published weights cifar10, before any later training)" in card


def test_files_have_the_layout_of_timm(tmp_path):
    for name in ("regnetx_002", "regnetz_b16"):
        model = regnet.create(name, num_classes=7)
        model.save_pretrained(tmp_path / name, license="mit")
        values = json.loads((tmp_path / name / "config.json").read_text())
        assert values["architecture"] == name
        assert values["num_classes"] == 7
        assert values["num_features"] == model.num_features
        assert values["global_pool"] == "avg"
        cfg = values["pretrained_cfg"]
        assert cfg["input_size"] == [3, *regnet.preprocess(model).size]
        assert cfg["first_conv"] == "stem.conv"
        names = [k for k, _ in golden.load("state_dicts_timm.json.gz")[name]]
        assert sorted(load_file(tmp_path / name / "model.safetensors")) == sorted(names)


def test_networks_that_timm_does_not_have_are_saved(tmp_path):
    config = RegNetConfig(depth=3, w0=16, wa=8.0, wm=2.0, num_classes=4, activation="silu")
    torch.manual_seed(0)
    model = regnet.create(config).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "regnet"
    again = AnyNet.from_pretrained(str(tmp_path))
    assert again.config == config
    equal(again(IMAGES), model(IMAGES))


def write_config(path, **values):
    (path / "config.json").write_text(json.dumps(values))
    return path / "config.json"


def test_configs_of_timm_are_read(tmp_path):
    path = write_config(
        tmp_path,
        architecture="regnety_004",
        num_classes=37,
        model_args={"act_layer": "silu", "output_stride": 8, "drop_rate": 0.1},
        pretrained_cfg={
            "tag": "ft", "license": "mit", "input_size": [3, 192, 192], "crop_pct": 0.9,
            "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear",
        },
        label_names=[f"bird {n}" for n in range(37)],
    )  # fmt: skip
    found = read_repository(path)
    assert found.config == replace(
        VARIANTS["regnety_004"].config, num_classes=37, activation="silu", output_stride=8
    )
    assert found.checkpoint.label_names[36] == "bird 36"
    assert found.checkpoint.preprocess.size == (192, 192)
    assert found.checkpoint.license == "mit"


def test_configs_of_transformers_are_read(tmp_path):
    path = write_config(
        tmp_path, model_type="regnet", architectures=["RegNetForImageClassification"],
        depths=[1, 3, 6, 6], hidden_sizes=[48, 104, 208, 440], groups_width=8, layer_type="y",
        id2label={str(n): f"label {n}" for n in range(12)},
    )  # fmt: skip
    found = read_repository(path)
    assert found.architecture == "regnety_004"
    assert found.config.num_classes == 12
    assert found.checkpoint.label_names[11] == "label 11"
    path = write_config(
        tmp_path, model_type="regnet", architectures=["RegNetModel"],
        depths=[1, 2], hidden_sizes=[16, 32], groups_width=8, layer_type="x",
    )  # fmt: skip
    found = read_repository(path)
    stages = (
        StageConfig(depth=1, width=16, group_width=8),
        StageConfig(depth=2, width=32, group_width=8),
    )
    assert found.config == AnyNetConfig(stages=stages, num_classes=0)
    assert found.architecture == "regnet"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"architecture": "vit_base"},
        {"architecture": "regnety_004", "model_args": {"attn": "x"}},
        {"architecture": "regnety_004", "num_classes": -1},
        {"model_type": "regnet", "depths": [1], "hidden_sizes": [1, 2], "groups_width": 1},
        {"architecture": "regnety_004", "pretrained_cfg": {"crop_pct": 7}},
        {"architecture": "regnet", "regnet_config": {"kind": "x"}},
    ],
)
def test_configs_that_describe_no_network_are_refused(tmp_path, values):
    with pytest.raises(WeightsError, match="no network can be built from it"):
        read_repository(write_config(tmp_path, **values))


def test_missing_folders_and_repositories_are_refused(tmp_path, hub):
    with pytest.raises(WeightsError, match="there is no folder"):
        regnet.create(f"local-dir:{tmp_path / 'none'}")
    with pytest.raises(WeightsError, match=r"contains no config.json"):
        regnet.create(f"local-dir:{tmp_path}")
    with pytest.raises(WeightsError, match="a repository of the Hub is named owner/name, got 'x'"):
        regnet.create("hf-hub:x")
    with pytest.raises(WeightsError, match=r"o/none: .*o/none does not exist, or is private"):
        AnyNet.from_pretrained("o/none")


def test_a_restricted_license_is_inherited(tmp_path, model):
    model.card = replace(model.card, license="cc-by-nc-4.0", tag="swag_ft_in1k")
    model.reset_classifier(5)
    model.save_pretrained(tmp_path)
    assert 'license: "cc-by-nc-4.0"' in (tmp_path / "README.md").read_text()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    assert "metrics" not in config["pretrained_cfg"], "the metrics belong to another classifier"
    with pytest.raises(
        ConfigError, match=r"which is under CC BY-NC 4.0 .* cannot be published und"
    ):
        model.save_pretrained(tmp_path, license="mit")
    with pytest.warns(LicenseWarning, match="CC BY-NC 4.0"):
        again = AnyNet.from_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be published"):
        again.save_pretrained(tmp_path, license="apache-2.0")


def test_a_card_can_have_the_users_own_metrics_and_text(tmp_path, model):
    save_pretrained(model, tmp_path, metrics={"flowers": 98.5}, readme="# Mine")
    card = (tmp_path / "README.md").read_text()
    assert '"value": 98.5' in card
    assert card.endswith("---\n# Mine\n")


def test_a_pushed_model_arrives_and_can_be_opened(hub, cache, model):
    url = model.push_to_hub("me/mine", token="hf_x", commit_message="First")
    assert url.startswith(hub.endpoint)
    assert set(hub.uploads) == {"config.json", "model.safetensors", "README.md"}
    again = AnyNet.from_pretrained("me/mine", cache_dir=cache)
    equal(again(IMAGES), model(IMAGES))
    named = regnet.create("hf-hub:me/mine@main", pretrained=True, cache_dir=cache).eval()
    equal(named(IMAGES), model(IMAGES))
    offline = regnet.create(
        "hf-hub:me/mine", pretrained=True, cache_dir=cache, local_files_only=True
    )
    assert offline.pretrained_cfg["license"] == "apache-2.0"


def test_a_refused_push_is_one_clear_error(hub, model):
    hub.server.RequestHandlerClass.do_POST, keep = (
        lambda handler: handler.fail(403),
        hub.server.RequestHandlerClass.do_POST,
    )
    try:
        with pytest.raises(WeightsError, match=r"cannot write to me/mine: .*403"):
            model.push_to_hub("me/mine", token="hf_x")
    finally:
        hub.server.RequestHandlerClass.do_POST = keep


def test_methods_of_the_hubs_mixin_work(tmp_path, hub, cache, model, monkeypatch):
    """The methods take the arguments of `PyTorchModelHubMixin` and of transformers."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model.save_pretrained(save_directory="~/mine", push_to_hub=True, repo_id="me/mine", token="x")
    assert set(hub.uploads) == {"config.json", "model.safetensors", "README.md"}
    for name in ("~/mine", tmp_path / "mine", "local-dir:~/mine", str(tmp_path / "mine")):
        equal(AnyNet.from_pretrained(name)(IMAGES), model(IMAGES))
    url = model.push_to_hub(repo_id="me/mine", commit_message="Second", private=False, token="x")
    assert url.startswith(hub.endpoint)
    again = AnyNet.from_pretrained(
        "me/mine", force_download=True, revision="main", cache_dir=cache, token=None,
        local_files_only=False, torch_dtype="bfloat16",
    )  # fmt: skip
    assert again.head.fc.weight.dtype == torch.bfloat16
    for dtype in (torch.float16, "float16", "torch.float16"):
        half = AnyNet.from_pretrained("~/mine", dtype=dtype)
        assert half.head.fc.weight.dtype == torch.float16


@pytest.mark.parametrize("dtype", ["auto", "int8", torch.int8, 16])
def test_dtypes_that_weights_cannot_have_are_refused(model, tmp_path, dtype):
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="dtype must be a floating-point type of torch"):
        AnyNet.from_pretrained(tmp_path, torch_dtype=dtype)


def test_options_of_an_upload_are_refused_without_one(tmp_path, model):
    with pytest.raises(ConfigError, match="repo_id, private: only for uploads; add push_to_hub"):
        model.save_pretrained(tmp_path / "x", repo_id="me/mine", private=True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("layers", [[], [nn.Dropout(0.5)], [nn.Identity(), nn.Dropout()]])
def test_a_replaced_classifier_is_saved_and_read_back(tmp_path, layers):
    model = regnet.create("regnety_cifar", pretrained=True).eval()
    model.head.fc = nn.Sequential(*layers, nn.Linear(320, 3)) if layers else nn.Linear(320, 3)
    model.save_pretrained(tmp_path)
    again = AnyNet.from_pretrained(tmp_path)
    equal(again(IMAGES), model.eval()(IMAGES))
    assert again.num_classes == 3
    assert again.card.labels == ()


def _mlp(model):
    model.head.fc = nn.Sequential(nn.Linear(320, 8), nn.ReLU(), nn.Linear(8, 3))


def _activated(model):
    model.head.fc = nn.Sequential(nn.ReLU(), nn.Linear(320, 3))


def _head(model):
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(320, 3))


def _activation(model):
    model.s2.b1.act = nn.SiLU()


def _kernel(model):
    model.stem.conv = nn.Conv2d(3, 32, 5, 1, 2, bias=False)


def _pruned(model):
    model.prune_intermediate_layers([1])


@pytest.mark.parametrize("change", [_mlp, _activated, _head, _activation, _kernel, _pruned])
def test_a_network_that_no_config_describes_is_not_saved(tmp_path, change):
    """The saved folder would load as another network, or not at all."""
    model = regnet.create("regnety_cifar", pretrained=True)
    change(model)
    with pytest.raises(ConfigError, match="was changed in a way that no config describes"):
        model.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_settings_that_only_affect_training_may_differ(tmp_path, model):
    model = regnet.create("regnety_cifar", pretrained=True, drop_rate=0.1, drop_path_rate=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    model.save_pretrained(tmp_path)
    equal(AnyNet.from_pretrained(tmp_path)(IMAGES), model(IMAGES))


def test_a_replaced_stem_for_other_channels_is_saved_and_read_back(tmp_path):
    model = regnet.create("regnety_cifar").eval()
    model.stem.conv = nn.Conv2d(5, 32, 3, 1, 1, bias=False)
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 5, 32, 32)
    equal(AnyNet.from_pretrained(tmp_path)(images), model(images))


def test_repositories_of_timm_are_read(hub, cache):
    torch.manual_seed(0)
    config = VARIANTS["regnetx_002"].config
    original = AnyNet(config)
    hub.repos["timm/regnetx_002.pycls_in1k"] = {
        "config.json": json.dumps({"architecture": "regnetx_002", "num_classes": 1000}).encode(),
        "model.safetensors": save(from_native(original.state_dict(), FORMATS["timm"])),
    }
    model = regnet.create("hf-hub:timm/regnetx_002.pycls_in1k", pretrained=True, cache_dir=cache)
    assert model.pretrained_cfg["license"] == "mit", "the license comes from our table"
    assert torch.equal(model.head.fc.weight, original.head.fc.weight)


def test_unexpected_tensors_are_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["regnet_config"]["se_ratio"] = 0.0
    (tmp_path / "config.json").write_text(json.dumps(documents.sealed(values)))
    with pytest.raises(WeightsError, match=r"unexpected s1\.b1\.se"):
        AnyNet.from_pretrained(str(tmp_path))


def test_the_pooling_is_saved_and_read_back(tmp_path):
    model = regnet.create("regnety_cifar", pretrained=True, global_pool="max").eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"] == {
        "global_pool": "max"
    }
    equal(AnyNet.from_pretrained(str(tmp_path))(IMAGES), model(IMAGES))


def test_feature_networks_are_read_back_and_a_classifier_needs_pooling(tmp_path):
    model = regnet.create("regnety_cifar", num_classes=0, global_pool="").eval()
    model.save_pretrained(tmp_path)
    equal(AnyNet.from_pretrained(str(tmp_path))(IMAGES), model(IMAGES))
    tuned = regnet.create(f"local-dir:{tmp_path}", pretrained=True, num_classes=5)
    assert tuned(IMAGES).shape == (len(IMAGES), 5)


def test_a_config_with_other_activations_is_not_taken_for_a_known_variant(tmp_path):
    path = write_config(
        tmp_path, model_type="regnet", architectures=["RegNetModel"], hidden_act="silu",
        depths=[1, 3, 6, 6], hidden_sizes=[48, 104, 208, 440], groups_width=8, layer_type="y",
        downsample_in_first_stage=False,
    )  # fmt: skip
    found = read_repository(path)
    assert found.architecture == "regnet"
    assert found.config.activation == "silu"
    assert found.config.stages[0].stride == 1


FOREIGN = {
    "timm": {
        "architecture": "regnetx_002", "num_classes": 4, "num_features": 368, "global_pool": "avg",
        "model_args": {"zero_init_last": True, "drop_path_rate": 0.1},
        "pretrained_cfg": {"tag": "x", "input_size": [3, 96, 96], "crop_mode": "center"},
    },
    "transformers": {
        "model_type": "regnet", "architectures": ["RegNetForImageClassification"],
        "depths": [1, 1, 4, 7], "hidden_sizes": [24, 56, 152, 368], "groups_width": 8,
        "layer_type": "x", "torch_dtype": "float32", "transformers_version": "5.0",
        "initializer_range": 0.02, "id2label": {"0": "a", "1": "b"},
    },
}  # fmt: skip


@pytest.mark.parametrize("library", FOREIGN)
def test_each_field_of_a_foreign_config_is_used_or_named(tmp_path, caplog, library):
    caplog.set_level("INFO")
    read_repository(write_config(tmp_path, **FOREIGN[library]))
    assert not [row for row in caplog.records if row.levelname == "WARNING"]
    for name in ("zero_init_last", "drop_path_rate", "num_features") * (library == "timm"):
        assert f"{name} is not used: " in caplog.text
    caplog.clear()
    read_repository(write_config(tmp_path, **FOREIGN[library], new_thing=7, nothing=None))
    [row] = [row for row in caplog.records if row.levelname == "WARNING"]
    assert "new_thing=7 is unknown and has no effect" in row.getMessage()


@pytest.mark.parametrize(
    ("library", "change"),
    [
        ("timm", {"model_args": {"new_thing": 7}}),
        ("timm", {"model_args": {"norm_layer": "layernorm"}}),
        ("timm", {"pretrained_cfg": {"crop_mode": "border"}}),
        ("timm", {"pretrained_cfg": {"fixed_input_size": True}}),
        ("timm", {"global_pool": "catavgmax"}),
        ("transformers", {"problem_type": "multi_label_classification"}),
        ("transformers", {"quantization_config": {"load_in_8bit": True}}),
    ],
)
def test_fields_that_change_something_and_have_no_counterpart_are_refused(
    tmp_path, library, change
):
    with pytest.raises(WeightsError, match="has no counterpart here"):
        read_repository(write_config(tmp_path, **{**FOREIGN[library], **change}))


def test_options_of_timms_generator_are_used(tmp_path):
    options = {"depth": 6, "w0": 32, "wa": 20.0, "wm": 2.2, "group_size": 16}
    found = read_repository(
        write_config(tmp_path, **{**FOREIGN["timm"], "model_args": options})
    ).config
    assert (found.depth, found.w0, found.wa, found.wm) == (6, 32, 20.0, 2.2)
    assert found.group_width == 16


@pytest.mark.parametrize(
    "step", [{"do_rescale": False}, {"do_flip_channel_order": True}, {"do_pad": True}]
)
def test_unsupported_steps_of_a_processor_are_refused(tmp_path, step):
    path = write_config(tmp_path, **FOREIGN["transformers"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(step))
    with pytest.raises(WeightsError, match="has no counterpart here"):
        read_repository(path)


def test_a_license_can_be_set_for_the_users_own_weights(tmp_path):
    regnet.create("regnetx_002", num_classes=3).save_pretrained(tmp_path / "a")
    model = AnyNet.from_pretrained(str(tmp_path / "a"))
    model.save_pretrained(tmp_path / "b", license="MIT")
    assert 'license: "mit"' in (tmp_path / "b/README.md").read_text()


def test_a_repository_of_restricted_weights_cannot_claim_a_free_license(hub, cache):
    config = {"architecture": "regnety_1280", "pretrained_cfg": {"license": "mit"}}
    hub.repos["timm/regnety_1280.seer"] = {"config.json": json.dumps(config).encode()}
    for name in ("timm/regnety_1280.seer", "Timm/regnety_1280.seer"):
        hub.repos[name] = hub.repos["timm/regnety_1280.seer"]
        path = cache / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(hub.repos[name]["config.json"])
        assert read_repository(path, repo=name).checkpoint.license == "seer"


@pytest.mark.parametrize(
    "values",
    [
        {"architecture": "regnety_004", "model_args": [1]},
        {"architecture": "regnety_004", "model_args": {"bottle_ratio": 0}},
        {"model_type": "regnet", "depths": [1], "hidden_sizes": [8], "groups_width": 8,
         "id2label": [1], "architectures": ["RegNetForImageClassification"]},
    ],
)  # fmt: skip
def test_nonsensical_configs_are_refused(tmp_path, values):
    with pytest.raises(WeightsError, match="no network can be built from it"):
        read_repository(write_config(tmp_path, **values))


@pytest.mark.parametrize("pool", ["avgmax", "catavgmax", "fastavgmax", "lse", 3])
def test_unsupported_poolings_are_refused(tmp_path, pool):
    path = write_config(tmp_path, architecture="regnety_002", global_pool=pool)
    with pytest.raises(WeightsError, match=r"global_pool=.* has no counterpart"):
        read_repository(path)


@pytest.mark.parametrize(
    ("pool", "ours"), [("fast", "avg"), ("fastavg", "avg"), ("fastmax", "max")]
)
def test_timms_fast_poolings_are_the_same(tmp_path, pool, ours):
    path = write_config(tmp_path, architecture="regnety_002", model_args={"global_pool": pool})
    assert read_repository(path).global_pool == ours


TRANSFORMERS_Y = {
    "model_type": "regnet", "depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64],
    "groups_width": 8, "layer_type": "y", "architectures": ["RegNetForImageClassification"],
}  # fmt: skip


def test_transformers_squeeze_with_relu_whatever_the_other_layers_have(tmp_path):
    plain = read_repository(write_config(tmp_path, **TRANSFORMERS_Y)).config
    assert plain.se_activation is None
    found = read_repository(write_config(tmp_path, **TRANSFORMERS_Y, hidden_act="silu")).config
    assert (found.activation, found.se_activation) == ("silu", "relu")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": 224}, ((224, 224), 0.875, "short_side")),
        ({"size": {"shortest_edge": 288}, "crop_pct": 0.95}, ((288, 288), 0.95, "short_side")),
        ({"size": {"shortest_edge": 384}}, ((384, 384), 1.0, "squash")),
        ({"size": {"height": 96, "width": 128}}, ((96, 128), 1.0, "squash")),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 192, "width": 192}},
            ((192, 192), 0.75, "short_side"),
        ),
        (
            {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}},
            ((224, 224), 0.875, "squash"),
        ),
        (
            {"size": {"height": 256, "width": 256}, "crop_size": 224, "do_center_crop": False},
            ((256, 256), 1.0, "squash"),
        ),
    ],
)
def test_the_preprocessing_of_transformers_is_read(tmp_path, values, expected):
    path = write_config(tmp_path, **TRANSFORMERS_Y)
    more = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values | more))
    look = read_repository(path).checkpoint.preprocess
    assert (look.size, look.crop_pct, look.resize) == expected
    assert (look.mean, look.std, look.interpolation) == ((0.5,) * 3, (0.25,) * 3, "bilinear")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"do_resize": False}, "do_resize=False has no counterpart"),
        ({"rescale_factor": 1.0}, "rescale_factor=1.0 has no counterpart"),
        ({"resample": 9}, "9"),
        ([], "config of an image processor"),
        ({"size": {"longest_edge": 256}}, "size={'longest_edge': 256} has no counterpart"),
        (
            {"size": {"height": 256, "width": 512}, "crop_size": 224},
            "keeps another share of the height than of the width",
        ),
    ],
)
def test_unsupported_settings_of_a_processor_are_refused(tmp_path, values, words):
    path = write_config(tmp_path, **TRANSFORMERS_Y)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=f"no network can be built from it.*{re.escape(words)}"):
        read_repository(path)


def test_the_processor_of_a_repository_is_fetched_too(hub, cache):
    hub.repos["someone/mine"] = {
        "config.json": json.dumps(TRANSFORMERS_Y).encode(),
        "preprocessor_config.json": b'{"size": 288, "crop_pct": 1.0}',
    }
    source = find_source("hf-hub:someone/mine", pretrained=True)
    assert source.checkpoint.preprocess.size == (288, 288)


def test_a_processor_that_cannot_be_fetched_is_not_replaced_by_a_guess(hub):
    hub.repos["someone/mine"] = {
        "config.json": json.dumps(TRANSFORMERS_Y).encode(),
        "preprocessor_config.json": b'{"size": 288, "crop_pct": 1.0}',
    }
    find_source("hf-hub:someone/mine", pretrained=True)
    [processor] = Path(constants.HF_HUB_CACHE).rglob("preprocessor_config.json")
    processor.unlink()
    hub.head_faults = [(403, {}), (403, {})]  # the config is in the cache
    with pytest.raises(WeightsError, match=r"someone/mine: .* answers 403"):
        find_source("hf-hub:someone/mine", pretrained=True)
    del hub.repos["someone/mine"]["preprocessor_config.json"]
    assert find_source("hf-hub:someone/mine", pretrained=True)  # it need not have one


def _nan(model):
    with torch.no_grad():
        model.head.fc.weight[0, 0] = float("nan")


def _no_head(model):
    model.head = nn.Identity()


def _no_shortcut(model):
    model.s1.b2.downsample = None


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (_nan, {}, "head.fc.weight has values that are not finite"),
        (_no_head, {}, "head was changed in a way that no config describes"),
        (_no_shortcut, {}, "downsample was changed in a way that no config describes"),
        (None, {"metrics": {"mine": float("nan")}}, "must be numbers in percent, got nan for mine"),
        (None, {"metrics": {"mine": "93.1"}}, "got '93.1' for mine"),
        (None, {"metrics": {"mine": None}}, "got None for mine"),
        (None, {"metrics": {"mine": torch.ones(2)}}, "for mine"),
    ],
)
def test_a_model_that_cannot_be_saved_leaves_the_folder_as_it_is(tmp_path, change, options, words):
    config = RegNetConfig(depth=6, w0=16, wa=4.0, wm=2.0, group_width=8, num_classes=3)
    save_pretrained(AnyNet(config), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = AnyNet(config)
    if change:
        change(other)
    with pytest.raises(ConfigError, match=words):
        save_pretrained(other, tmp_path, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_may_be_what_evaluation_loops_compute(tmp_path, model):
    metrics = {"a": np.float32(93.5), "b": torch.tensor(92.25), "c": 91}
    save_pretrained(model, tmp_path, metrics=metrics)
    card = regnet.create(f"local-dir:{tmp_path}", pretrained=True).card
    assert [metric.top1 for metric in card.metrics] == [93.5, 92.25, 91.0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"2": "horse", "1": "dog", "0": "cat"}, ("cat", "dog", "horse")),
        ({0: "cat", 1: "dog", 2: "horse"}, ("cat", "dog", "horse")),
        ({"0": "cat", "2": "horse"}, ()),
        ({"n01440764": "tench"}, ()),
        (["cat", "dog", "horse"], ("cat", "dog", "horse")),
    ],
)
def test_names_of_classes_may_be_numbered(names, expected):
    assert Card.from_timm({"architecture": "regnetx_002", "label_names": names}).labels == expected


def test_flat_configs_of_early_timm_are_read(tmp_path, caplog):
    write_config(
        tmp_path, architecture="regnetx_002", num_classes=3, labels=["cat", "dog", "horse"],
        input_size=[3, 288, 288], crop_pct=0.95, interpolation="bilinear", mean=[0.5, 0.5, 0.5],
        std=[0.4, 0.4, 0.4], pool_size=[7, 7], first_conv="stem.conv", classifier="head.fc",
    )  # fmt: skip
    source = read_repository(tmp_path / "config.json")
    look = source.card(loaded=True).preprocess
    assert (look.size, look.crop_pct, look.interpolation) == ((288, 288), 0.95, "bilinear")
    assert (look.mean, look.std) == ((0.5, 0.5, 0.5), (0.4, 0.4, 0.4))
    assert source.card(loaded=True).labels == ("cat", "dog", "horse")
    assert source.config.num_classes == 3
    assert not caplog.text


def test_a_config_in_the_cache_does_not_wait_for_a_server_that_is_down(hub, monkeypatch):
    hub.repos["someone/mine"] = {"config.json": json.dumps(TRANSFORMERS_Y).encode()}
    find_source("hf-hub:someone/mine", pretrained=True)
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits"))
    hub.head_faults = [(503, {})]
    assert find_source("hf-hub:someone/mine", pretrained=True)
    assert not hub.head_faults
