import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import regnet
from regnet.design.config import AnyNetConfig, RegNetConfig, StageConfig
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError
from regnet.nn.features import FeatureNet
from regnet.nn.init import init_weights
from regnet.nn.layers import DropPath, conv2d
from regnet.nn.model import AnyNet
from regnet.nn.views import evaluating, evaluation_view
from regnet.weights.card import Card, Metric
from tests import golden
from tests.marks import long, one_per_family

SMALL = RegNetConfig(depth=6, w0=16, wa=16.0, wm=2.0, group_width=8, se_ratio=0.25, num_classes=5)
TWO_STAGES = (StageConfig(depth=2, width=16), StageConfig(depth=1, width=32))
KINDS = {
    "y": SMALL,
    "z": replace(SMALL, block="linear_bottleneck", shortcut="none", head_width=64),
    "v": replace(SMALL, block="preact_bottleneck", shortcut="avg_pool", activation="silu"),
    "basic": AnyNetConfig(stages=TWO_STAGES, block="basic", stem="resnet", num_classes=5),
    "vanilla": AnyNetConfig(stages=TWO_STAGES, block="vanilla", stem="cifar", num_classes=5),
    "deep": AnyNetConfig(stages=TWO_STAGES, stem="deep", norm="evonorm_s0a", num_classes=5),
    "group": AnyNetConfig(stages=TWO_STAGES, norm="group", stem="simple", num_classes=5),
    "tiered": AnyNetConfig(stages=TWO_STAGES, stem="tiered", stem_width=64, num_classes=5),
}
EACH_KIND = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def images(*size):
    return torch.randn(2, 3, *(size or (64, 48)))


@EACH_KIND
def test_every_parameter_gets_a_gradient(config):
    model = AnyNet(config)
    model(images()).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("config", [KINDS["y"], KINDS["v"], *long(*KINDS.values())])
def test_compiles_without_graph_breaks(config):
    model = AnyNet(config).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images()
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("config", [KINDS["y"], KINDS["deep"], *long(*KINDS.values())])
def test_exports_with_dynamic_batch_height_and_width(config):
    model = AnyNet(config).eval()
    shapes = {0: Dim("batch"), 2: Dim("height", min=33), 3: Dim("width", min=33)}
    program = torch.export.export(model, (images(64, 96),), dynamic_shapes={"x": shapes})
    x = torch.randn(3, 3, 75, 41)
    torch.testing.assert_close(program.module()(x), model(x))


@EACH_KIND
def test_meta_device_allocates_nothing(config):
    with torch.device("meta"):
        model = AnyNet(config)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_the_largest_network_needs_no_memory_on_the_meta_device():
    model = regnet.create("regnety_2560", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 1_282_601_138


@EACH_KIND
def test_gradient_checkpointing_changes_no_gradient(config):
    model = AnyNet(config)
    x = images()
    model(x).sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, plain[name])


def test_gradient_checkpointing_recomputes_blocks():
    model = AnyNet(SMALL)
    calls = []
    model.s1.b1.register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    model(images()).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize(
    "name",
    [
        "regnetx_002",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("regnetv_064", "regnetz_d8")),
    ],
)
def test_output_stride_limits_the_reduction_and_keeps_the_parameters(name, stride):
    plain = regnet.create(name, device="meta").state_dict()
    model = regnet.create(name, device="meta", output_stride=stride)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in plain.items()}
    assert max(model.feature_info.reduction()) == stride
    features = model.forward_features(torch.empty(1, 3, 128, 128, device="meta"))
    assert features.shape[2:] == (128 // stride, 128 // stride)


@pytest.mark.parametrize(
    "name",
    one_per_family(
        name for name, row in golden.load("variants.json").items() if "feature_info" in row
    ),
)
def test_feature_info_equals_that_of_timm(name):
    model = regnet.create(name, device="meta")
    recorded = golden.load("variants.json")[name]["feature_info"]
    assert model.feature_info.channels() == [row["num_chs"] for row in recorded]
    assert model.feature_info.reduction() == [row["reduction"] for row in recorded]
    index = [row["index"] for row in model.feature_info]
    assert index == list(range(len(recorded)))


@EACH_KIND
def test_feature_maps_have_the_announced_shapes(config):
    model = AnyNet(config).eval()
    maps = FeatureNet(model)(images(64, 128))
    assert len(maps) == len(model.feature_info)
    for feature, info in zip(maps, model.feature_info, strict=True):
        reduced = (64 // info["reduction"], 128 // info["reduction"])
        assert feature.shape == (2, info["num_chs"], *reduced)


@EACH_KIND
def test_feature_maps_equal_those_of_the_complete_network(config):
    model = AnyNet(config).eval()
    x = images()
    last, maps = model.forward_intermediates(x)
    torch.testing.assert_close(last, model.forward_features(x))
    for alone, inside in zip(FeatureNet(model)(x), maps, strict=True):
        torch.testing.assert_close(alone, inside)


def test_feature_maps_can_be_chosen():
    model = regnet.create("regnety_cifar", features_only=True, out_indices=(1, -1)).eval()
    assert model.feature_info.module_name() == ["s1", "s3"]
    assert [tuple(m.shape) for m in model(images(32, 32))] == [(2, 64, 16, 16), (2, 320, 4, 4)]


def test_a_feature_network_ends_after_its_deepest_map():
    model = regnet.create("regnetx_002", features_only=True, out_indices=(2,))
    names = {name.partition(".")[0] for name, _ in model.named_parameters()}
    assert names == {"stem", "s1", "s2"}


def test_a_feature_network_loads_the_state_dict_of_the_complete_network():
    whole = AnyNet(SMALL)
    backbone = FeatureNet(AnyNet(SMALL))
    result = backbone.load_state_dict(whole.state_dict(), strict=False)
    assert result.missing_keys == []
    assert result.unexpected_keys == ["head.fc.weight", "head.fc.bias"]


def test_a_feature_map_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="there is no feature map 7; the network has 5"):
        regnet.create("regnetx_002", features_only=True, out_indices=(7,))
    for indices in ((1.5,), "12", 1.5):
        with pytest.raises(ConfigError, match="out_indices must be whole numbers, got"):
            regnet.create("regnetx_002", features_only=True, out_indices=indices)


@pytest.mark.parametrize("indices", [(), (4, -1), (0, 0)])
def test_feature_maps_must_differ(indices):
    with pytest.raises(ConfigError, match="at least one index of a feature map, and each once"):
        regnet.create("regnetx_002", features_only=True, out_indices=indices)


@pytest.mark.parametrize("indices", [np.array([1, 3]), torch.tensor([1, 3]), range(1, 4, 2)])
def test_indices_of_feature_maps_may_be_arrays(indices):
    model = FeatureNet(AnyNet(SMALL), indices)
    assert model.feature_info.out_indices == (1, 3)
    assert all(type(index) is int for index in model.feature_info.out_indices)
    assert FeatureNet(AnyNet(SMALL), np.int64(2)).feature_info.out_indices == (3, 4)


def test_attached_modules_do_not_change_the_output():
    model = AnyNet(SMALL).eval()
    x = images()
    before = model(x)
    model.loss = nn.Softmax(1)
    model.auxiliary = nn.Linear(3, 4)
    torch.testing.assert_close(model(x), before, atol=0, rtol=0)


def test_feature_info_behaves_as_timms():
    """As in timm's `FeatureInfo`, `idx` counts all maps, whichever of them are requested."""
    info = AnyNet(SMALL).feature_info.select((1, -1))
    widths = [row["num_chs"] for row in info]
    assert len(info) == len(info.info) == len(widths)
    assert info.out_indices == (1, len(info) - 1)
    assert info.channels() == info.get("num_chs") == [widths[1], widths[-1]]
    assert (info.channels(0), info.channels([2, 0])) == (widths[0], [widths[2], widths[0]])
    assert info.reduction(1) == 4
    assert info.module_name(idx=[0]) == ["stem"]
    assert info.get_dicts() == [info[1], info[-1]]
    assert info.get_dicts(keys=["num_chs"], idx=0) == {"num_chs": widths[0]}
    assert info.get_dicts(["module"], [1]) == [{"module": "s1"}]
    for row in info:
        assert "module" in row
        assert row.setdefault("index", -1) >= 0
    for copied in (copy.deepcopy(info), pickle.loads(pickle.dumps(info))):
        assert (copied, copied.out_indices) == (info, info.out_indices)


@pytest.mark.parametrize("number", [1, 4])
def test_a_number_of_feature_maps_means_the_last_ones(number):
    every = regnet.create("regnetx_002", features_only=True).feature_info.channels()
    last = regnet.create("regnetx_002", features_only=True, out_indices=number)
    assert last.feature_info.channels() == every[-number:]


@pytest.mark.parametrize("number", [0, -1, 6])
def test_more_feature_maps_than_there_are_is_refused(number):
    with pytest.raises(ConfigError, match="feature maps; the network has 5"):
        regnet.create("regnetx_002", features_only=True, out_indices=number)


@EACH_KIND
@pytest.mark.parametrize("indices", [1, [0], [0, 2], [-1, 1]])
def test_pruned_networks_give_the_same_intermediates(config, indices):
    model = AnyNet(config).eval()
    x = images()
    _, before = model.forward_intermediates(x, indices)
    pruned = copy.deepcopy(model)
    kept = pruned.prune_intermediate_layers(indices)
    assert kept == list(model.feature_info.select(indices).out_indices)
    _, after = pruned.forward_intermediates(x, kept)
    for was, now in zip(before, after, strict=True):
        torch.testing.assert_close(now, was, atol=0, rtol=0)
    assert pruned(x).ndim == 4  # pool and classifier are removed
    left = pruned.forward_intermediates(x, intermediates_only=True)
    assert len(left) == len(pruned.feature_info) == kept[-1] + 1
    count = sum(p.numel() for p in pruned.parameters())
    assert count < sum(p.numel() for p in model.parameters())


def test_intermediates_end_as_in_timm():
    """The end of the trunk is applied to the last map, even if the walk may stop early."""
    model = AnyNet(KINDS["z"]).eval()
    x = images()
    last, _ = model.forward_intermediates(x, [-1], False, True, "NCHW", False)
    torch.testing.assert_close(last, model.forward_features(x))
    with pytest.raises(ConfigError, match="output_fmt='NHWC' is not supported"):
        model.forward_intermediates(x, output_fmt="NHWC")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("name", "features_only"),
    [
        ("regnety_002", True),
        *(pytest.param(n, f, marks=pytest.mark.slow)
          for n, f in (("regnety_002", False), ("nf_regnet_b0", False), ("nf_regnet_b0", True))),
    ],
)  # fmt: skip
def test_scripted_networks_give_the_same_outputs(name, features_only):
    model = regnet.create(name, features_only=features_only, drop_path_rate=0.2).eval()
    scripted = torch.jit.script(model)
    assert list(scripted.state_dict()) == list(model.state_dict())
    x = images()
    torch.testing.assert_close(scripted(x), model(x), atol=0, rtol=0)
    if not features_only:
        features = scripted.forward_features(x)
        torch.testing.assert_close(scripted.forward_head(features), model(x), atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_script_that_cannot_give_every_map_says_so():
    """TorchScript cannot return maps from inside a stem of several convolutions."""
    stages = (StageConfig(depth=1, width=16, group_width=8),)
    config = AnyNetConfig(stages=stages, stem="deep", num_classes=5)
    backbone = FeatureNet(AnyNet(config).eval())
    scripted = torch.jit.script(backbone)
    with pytest.raises(torch.jit.Error, match="TorchScript cannot return the feature map"):
        scripted(images())


@pytest.mark.parametrize("name", one_per_family(VARIANTS, rest=pytest.mark.long))
def test_torch_fx_can_trace_a_network(name):
    model = regnet.create(name, device="meta").eval()
    traced = torch.fx.symbolic_trace(model)
    assert traced(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, model.num_classes)
    torch.fx.symbolic_trace(FeatureNet(model))


def test_config_and_card_follow_a_replaced_classifier(caplog):
    model = AnyNet(SMALL)
    model.card = Card(labels=tuple("abcde"), metrics=(Metric(dataset="x", top1=9.0),))
    assert model.card.labels == tuple("abcde")
    model.head.fc = nn.Linear(model.num_features, 3)
    assert model.num_classes == model.config.num_classes == 3
    assert model.pretrained_cfg["num_classes"] == 3
    assert "the classifier was replaced" in caplog.text
    assert model.card == Card()
    # The advice of the warning:
    model.card = model.card.other_classes(("x", "y", "z"))
    assert model.card.labels == ("x", "y", "z")


@pytest.mark.parametrize("outputs", [5, 7])
@pytest.mark.parametrize(
    "build",
    [
        lambda width, n: nn.Linear(width, n),
        lambda width, n: nn.Sequential(nn.Dropout(), nn.Linear(width, n)),
        lambda width, n: nn.Sequential(nn.Linear(width, 9), nn.ReLU(), nn.Linear(9, n)),
    ],
)
def test_labels_are_removed_with_their_classifier(build, outputs):
    model = AnyNet(SMALL)
    model.card = Card(labels=tuple("abcde"))
    model.head.fc = build(model.num_features, outputs)
    assert model.num_classes == outputs
    assert model.card.labels == ()


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), evaluation_view]
)
def test_copies_keep_labels(copied):
    model = AnyNet(SMALL)
    model.card = Card(labels=tuple("abcde"))
    model.load_state_dict(AnyNet(SMALL).state_dict(), assign=True)
    assert copied(model).card == model.card


def test_the_config_follows_a_replaced_stem():
    model = AnyNet(SMALL)
    model.stem.conv = conv2d(4, 32, 3, stride=2)
    assert model.config == replace(SMALL, in_chans=4)
    assert FeatureNet(model).config.in_chans == 4


@pytest.mark.parametrize("name", ["fc", "classifier"])
def test_a_classifier_in_the_wrong_place_is_refused(name):
    """Our networks would not use it; those of torchvision have `fc`, and others `classifier`."""
    model = AnyNet(SMALL)
    with pytest.raises(ConfigError, match=r"the classifier is model\.head\.fc"):
        setattr(model, name, nn.Linear(128, 3))
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 3))
    assert model(images()).shape == (2, 3)
    assert model.num_classes == 3
    assert isinstance(model.get_classifier(), nn.Module)
    model.reset_classifier(5)
    assert model(images()).shape == (2, 5)


def test_intermediates_can_be_chosen_by_number_and_returned_alone():
    model = AnyNet(SMALL).eval()
    x = images()
    maps = model.forward_intermediates(x, 2, intermediates_only=True)
    everything = model.forward_intermediates(x, intermediates_only=True)
    assert len(maps) == 2
    torch.testing.assert_close(maps, everything[-2:])
    last, _ = model.forward_intermediates(x, [0], stop_early=True)
    torch.testing.assert_close(last, everything[0])


def test_the_head_can_return_the_features_before_the_classifier():
    model = AnyNet(SMALL).eval()
    features = model.forward_features(images())
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model.get_classifier()(pooled), model.forward_head(features))


def test_no_classes_give_pooled_features():
    model = AnyNet(replace(SMALL, num_classes=0)).eval()
    assert model(images()).shape == (2, model.num_features)
    assert isinstance(model.get_classifier(), nn.Identity)


def test_global_pool_selects_the_pooling():
    config = replace(SMALL, num_classes=0)
    model = AnyNet(config, global_pool="max").eval()
    features = model.forward_features(images())
    torch.testing.assert_close(model.forward_head(features), features.amax((2, 3)))
    assert AnyNet(config, global_pool="")(images()).ndim == 4
    with pytest.raises(ConfigError, match="global_pool='' leaves feature maps"):
        AnyNet(SMALL, global_pool="")
    with pytest.raises(ConfigError, match="got 'mean'"):
        AnyNet(SMALL, global_pool="mean")  # type: ignore[arg-type]


def test_reset_classifier_changes_only_the_head():
    model = AnyNet(SMALL, drop_rate=0.25).double().eval()
    x = images().double()
    before = model.forward_features(x)
    model.reset_classifier(9, "max")
    assert model(x).shape == (2, 9)
    assert model.num_classes == model.config.num_classes == 9
    assert model.head.global_pool == "max"
    assert model.head.drop.p == 0.25
    assert not model.head.training
    model.reset_classifier(0)
    assert model.head.global_pool == "max"
    torch.testing.assert_close(model.forward_features(x), before, atol=0, rtol=0)
    assert model(x).shape == (2, model.num_features)


@pytest.mark.parametrize("change", [(-1, None), (7, ""), (7, "mean")])
def test_a_refused_classifier_changes_nothing(change):
    model = AnyNet(SMALL)
    with pytest.raises(ConfigError):
        model.reset_classifier(*change)
    assert model.config == SMALL
    assert model.get_classifier().out_features == 5


def test_drop_path_grows_linearly_and_keeps_the_mean():
    model = AnyNet(SMALL, drop_path_rate=0.5)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    drop = DropPath(0.5)
    ones = torch.ones(4000, 1, 1, 1)
    out = drop(ones)
    assert set(out.flatten().tolist()) == {0.0, 2.0}
    assert out.mean().item() == pytest.approx(1, abs=0.1)
    assert drop.eval()(ones) is ones


def test_rates_outside_their_range_are_refused():
    with pytest.raises(ConfigError, match=r"drop_path_rate must lie in \[0, 1\), got 1.5"):
        AnyNet(SMALL, drop_path_rate=1.5)


def test_initialization_equals_that_of_the_paper():
    model = AnyNet(replace(VARIANTS["regnetx_016"].config, num_classes=1000))
    conv = model.s3.b2.conv2.conv  # fan-out counts all outputs, whatever the number of groups
    expected = (2 / (9 * conv.out_channels)) ** 0.5
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.head.fc.bias.abs().max() == 0
    assert (model.s3.b2.conv3.bn.weight == 1).all()


def test_zero_initialized_residual_branches_start_as_identities():
    model = AnyNet(SMALL, zero_init_last=True).eval()
    block = model.s1.b1
    assert (block.conv3.bn.weight == 0).all()
    same_shape = next(b for b in model.s3 if isinstance(b.downsample, nn.Identity))
    x = torch.randn(1, same_shape.conv1.conv.in_channels, 8, 8).relu()
    torch.testing.assert_close(same_shape(x), x)


def test_zero_initialization_spares_blocks_without_a_shortcut():
    model = AnyNet(KINDS["z"], zero_init_last=True)
    first, second = model.s3.b1, model.s3.b2
    assert (first.conv3.bn.weight == 1).all()
    assert (second.conv3.bn.weight == 0).all()


@EACH_KIND
def test_initialization_sets_every_tensor(config):
    fresh, dirty = AnyNet(config), AnyNet(config)
    for tensor in dirty.state_dict().values():
        tensor.fill_(5)
    for model in (fresh, dirty):
        torch.manual_seed(1)
        init_weights(model)
    for name, tensor in dirty.state_dict().items():
        torch.testing.assert_close(tensor, fresh.state_dict()[name], atol=0, rtol=0)


def test_group_matcher_covers_every_parameter():
    import re

    model = AnyNet(KINDS["z"])
    matcher = model.group_matcher()
    patterns = [matcher["stem"], *(pattern for pattern, _ in matcher["blocks"]), r"^head"]
    for name, _ in model.named_parameters():
        assert sum(bool(re.match(pattern, name)) for pattern in patterns) == 1, name
    assert model.no_weight_decay() == set()


def test_strided_depthwise_convolutions_keep_float32_under_autocast_on_a_cpu():
    conv = conv2d(16, 16, 3, stride=2, groups=16)
    x = torch.randn(2, 16, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = conv(x.bfloat16())
        assert conv2d(16, 16, 3, groups=16)(x).dtype == torch.bfloat16
    assert torch.equal(inside, conv(x.bfloat16().float()))
    assert conv.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    torch.fx.symbolic_trace(conv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_evonorm_survives_half_precision(dtype):
    model = AnyNet(KINDS["deep"]).eval()
    x = 30 * images(128, 128)
    expected = model(x)
    found = model.to(dtype)(x.to(dtype)).float()
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * expected.std().item())


def test_evaluation_restores_the_mode_of_each_module():
    model = AnyNet(SMALL).train()
    model.stem.eval()  # frozen
    with evaluating(model):
        assert not model.head.training
    assert model.head.training
    assert not model.stem.bn.training


@pytest.mark.filterwarnings("ignore:var")  # torch's variance warns of empty batches
@EACH_KIND
def test_an_empty_batch_gives_empty_outputs(config):
    assert AnyNet(config).eval()(torch.empty(0, 3, 64, 64)).shape == (0, 5)


@pytest.mark.parametrize("channels", [1, 4])
def test_networks_can_have_other_numbers_of_channels(channels):
    model = regnet.create("regnetx_002", in_chans=channels).eval()
    assert model(torch.randn(1, channels, 32, 32)).shape == (1, 1000)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, group_width=1)])
def test_gradient_checkpointing_changes_no_statistics(config):
    plain = AnyNet(config, drop_path_rate=0.2).train()
    again = copy.deepcopy(plain)
    again.set_grad_checkpointing()
    for model in (plain, again):
        torch.manual_seed(0)
        for step in range(3):
            model(images(32, 32) + step).sum().backward()
    for (name, one), other in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_a_graph_with_recomputed_blocks_can_be_traversed_twice():
    model = AnyNet(SMALL).train()
    model.set_grad_checkpointing()
    loss = model(images(32, 32)).sum()
    loss.backward(retain_graph=True)
    once = model.stem.conv.weight.grad.clone()
    counters = {n: b.clone() for n, b in model.named_buffers()}
    loss.backward()
    torch.testing.assert_close(model.stem.conv.weight.grad, 2 * once)
    assert all(torch.equal(b, counters[n]) for n, b in model.named_buffers())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_depthwise_networks_can_be_scripted():
    model = AnyNet(replace(SMALL, group_width=1)).eval()
    x = images(32, 32)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize(
    "change",
    [
        {"padding_mode": "reflect", "_reversed_padding_repeated_twice": [1, 1, 1, 1]},
        {"dilation": (2, 2), "padding": (2, 2), "stride": (1, 1)},
    ],
)
def test_a_changed_depthwise_convolution_computes_what_torch_does(change):
    ours = conv2d(8, 8, 3, stride=2, groups=8)
    theirs = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False)
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours, theirs):
        for name, value in change.items():
            setattr(layer, name, value)
    x = torch.randn(2, 8, 16, 16)
    assert torch.equal(ours(x), theirs(x))
