import inspect
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import regnet
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError, WeightsError
from regnet.weights.catalog import checkpoints
from regnet.zoo import factories
from regnet.zoo.names import find_variant
from tests import golden
from tests.marks import one_per_family

ROOT = Path(__file__).parents[2]

ALIASES = [
    (alias, name)
    for name, row in golden.load("variants.json").items()
    for source, alias in row["aliases"].items()
    # In torchvision, the plain names stand for its own rounding; here they stand for the paper's.
    # The plain name of the 256GF network stands for the one that has weights.
    if not (source == "torchvision" and name.endswith("_tv"))
    and name != "regnety_2560_classy"
    and "(" not in alias
    and source != "vissl"
]


# The tests of parameters and feature maps build all variants.
@pytest.mark.parametrize("name", one_per_family(VARIANTS, rest=pytest.mark.long))
def test_every_variant_can_be_built(name):
    model = regnet.create(name, device="meta")
    size = VARIANTS[name].image_size
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, model.num_classes)


@pytest.mark.parametrize(("alias", "name"), ALIASES)
def test_names_of_other_libraries_are_aliases(alias, name):
    for spelling in (alias, alias.lower(), alias.upper(), alias.replace("-", "_")):
        assert find_variant(spelling)[0].name == name


@pytest.mark.parametrize(
    ("spelling", "name", "tag"),
    [
        ("regnety_016", "regnety_016", None),
        ("regnet_y_1_6gf", "regnety_016", None),
        ("RegNetY-1.6GF", "regnety_016", None),
        ("facebook/regnet-y-016", "regnety_016", None),
        ("regnety_016.tv2_in1k", "regnety_016", "tv2_in1k"),
        ("regnet_y_1.6gf.tv2_in1k", "regnety_016", "tv2_in1k"),
        ("regnet_y_16gf", "regnety_160", None),
        ("regnet_y_8_0gf", "regnety_080", None),
        ("regnet_x_400mf", "regnetx_004", None),
        ("regnet_x_400mf_tv", "regnetx_004_tv", None),
        ("regnet_y_8gf", "regnety_080", None),
        ("regnetz_040h", "regnetz_040_h", None),
        ("RG-256Gf", "regnety_2560", None),
        ("ResNet-50", "resnet50", None),
        ("X-101", "resnext101_32x4d", None),
    ],
)
def test_names_may_be_spelled_in_several_forms(spelling, name, tag):
    variant, found = find_variant(spelling)
    assert (variant.name, found) == (name, tag)
    assert regnet.is_model(spelling)
    assert not regnet.is_model(f"{spelling}x.tag")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("regnety_16", "did you mean 'regnety_160'"),
        ("regnet_y_1_6g", "'regnety_016'"),
        ("regnety_16.tv2_in1k", "did you mean 'regnety_160'"),
        ("regnety_017", "did you mean"),
        ("resnet51", "'resnet50'"),
        ("vit_base", "`regnet list` and list_models() list all"),
        ("", "`regnet list` and list_models() list all"),
    ],
)
def test_unknown_names_get_a_hint(name, hint):
    assert not regnet.is_model(name)
    with pytest.raises(ConfigError) as error:
        regnet.create(name)
    assert f"there is no variant {name!r}; " in str(error.value)
    assert hint in str(error.value)


def test_a_path_object_is_refused_as_a_name(tmp_path):
    with pytest.raises(ConfigError, match="use str"):
        regnet.create(tmp_path / "mine.json")  # type: ignore[call-overload]


def test_unknown_options_are_type_errors():
    with pytest.raises(TypeError, match="num_class"):
        regnet.create("regnetx_002", num_class=10)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="num_class"):
        regnet.regnet_x_200mf(num_class=10)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"torch\.jit\.script accepts networks as they are"):
        regnet.create("regnetx_002", scriptable=True)  # type: ignore[call-overload]


def test_options_that_are_none_count_as_absent():
    """Scripts for timm pass every option that they know, with "" or None for those not set."""
    model = regnet.create(
        "regnetx_002", pretrained=False, checkpoint_path="", num_classes=None, in_chans=None,
        drop_rate=None, drop_path_rate=None, global_pool=None, zero_init_last=None,
        features_only=None, bn_momentum=None, scriptable=None, drop_block_rate=None,
        pretrained_cfg=None, device="meta",
    )  # fmt: skip
    assert model.config == regnet.info("regnetx_002").config


def test_out_indices_need_features_only():
    with pytest.raises(ConfigError, match="it needs features_only=True"):
        regnet.create("regnetx_002", out_indices=(1,))  # type: ignore[call-overload]


def test_dtype_and_device_can_be_chosen():
    model = regnet.create("regnetx_002", dtype=torch.bfloat16, device="cpu", num_classes=3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.num_classes == 3


@pytest.mark.slow
def test_models_without_numbers_need_no_symbolic_algebra():
    code = "import sys, regnet; regnet.create('regnetx_002', device='meta'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "sympy" not in done.stdout.split()


def test_labels_come_only_with_the_weights():
    assert "label_names" not in regnet.create("regnety_cifar.cifar10").pretrained_cfg
    assert not regnet.create(VARIANTS["regnety_cifar"].config).pretrained_cfg


def test_a_config_can_stand_for_a_name():
    config = VARIANTS["regnety_cifar"].config
    assert regnet.create(config, device="meta").config == config
    model = regnet.create(config, device="meta", num_classes=3, in_chans=1, output_stride=4)
    assert (model.num_classes, model.config.in_chans, model.config.output_stride) == (3, 1, 4)


def test_pretrained_weights_load_without_internet_access():
    model = regnet.create("regnety_cifar", pretrained=True).eval()
    again = regnet.create("regnety_cifar.cifar10", pretrained=True).eval()
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model(x), again(x), rtol=0, atol=0)
    assert model.pretrained_cfg["label_names"][3] == "cat"
    assert model.pretrained_cfg["tag"] == "cifar10"


def test_a_pretrained_trunk_can_have_a_new_classifier():
    model = regnet.create("regnety_cifar", pretrained=True).eval()
    other = regnet.create("regnety_cifar", pretrained=True, num_classes=3).eval()
    backbone = regnet.create("regnety_cifar", pretrained=True, features_only=True).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other.forward_features(x), model.forward_features(x))
    torch.testing.assert_close(backbone(x)[-1], model.forward_features(x))
    assert other(x).shape == (2, 3)
    assert other.pretrained_cfg["num_classes"] == 3
    assert "label_names" not in other.pretrained_cfg
    model.reset_classifier(10)
    assert "label_names" not in model.pretrained_cfg


def test_missing_weights_are_not_replaced_by_random_ones(hub):
    with pytest.raises(
        WeightsError, match=r"timm/regnety_016\.tv2_in1k does not exist, or is priv"
    ):
        regnet.create("regnety_016", pretrained=True)
    with pytest.raises(WeightsError, match="regnety_016 has no weights tagged 'v3'; it has tv2_in"):
        regnet.create("regnety_016.v3")
    with pytest.raises(WeightsError, match="no weights of resnet50 are published"):
        regnet.create("resnet50", pretrained=True)
    with pytest.raises(ConfigError, match="cannot be loaded on the device 'meta'"):
        regnet.create("regnety_cifar", pretrained=True, device="meta")
    with pytest.raises(WeightsError, match="a config has no weights; train it first"):
        regnet.create(VARIANTS["regnety_cifar"].config, pretrained=True)


def test_models_are_listed_by_pattern_family_and_size():
    names = regnet.list_models("regnetx_*")
    assert names[0] == "regnetx_002"
    assert names[-1] == "regnetx_320"
    assert len(regnet.list_models()) == len(VARIANTS)
    y = regnet.list_models(family="regnety", max_flops=1e9, max_params=5e6)
    assert y == ["regnety_002", "regnety_004", "regnety_cifar"]
    assert regnet.list_models("nothing*") == []
    assert regnet.list_models("RegNet_Y_1*gf")[0] == "regnety_016"
    with pytest.raises(
        ConfigError, match="there is no family 'vit'; there are haloregnetz, nf_regnet, regnetv"
    ):
        regnet.list_models(family="vit")


def test_every_listed_checkpoint_has_a_known_name():
    names = regnet.list_pretrained()
    assert len(names) > 180
    for name in (*names, *map(str.upper, names)):
        assert regnet.info(name).checkpoint, name


def test_weights_are_listed_by_pattern_and_license():
    every = regnet.list_pretrained()
    assert len(every) == 185
    assert set(every) == set(regnet.list_models(pretrained=True))
    for row in map(find_checkpoint_by_id, regnet.list_models(license="commercial")):
        assert row.license in ("apache-2.0", "mit", "bsd-3-clause")
    best = regnet.list_models("regnety_*", license="apache-2.0", sort="top1", max_flops=8e9)
    assert best[0] == "regnety_080.ra3_in1k"
    accuracies = [find_checkpoint_by_id(name).top1 or 0 for name in best]
    assert accuracies == sorted(accuracies, reverse=True)
    assert regnet.list_models("*seer*", license="commercial") == []
    assert regnet.list_models("facebook/*", pretrained=True, max_params=5e6) == [
        "regnetx_002.transformers", "regnety_002.transformers", "regnety_004.transformers",
    ]  # fmt: skip
    small = regnet.list_models(min_top1=80, max_params=12e6, sort="params")
    assert small[0] == "regnety_016.IMAGENET1K_V2"
    assert all(find_checkpoint_by_id(name).top1 >= 80 for name in small)
    with pytest.raises(ConfigError, match=r"there is no license 'gpl'; there are apache-2\.0, mit"):
        regnet.list_models(license="gpl")
    with pytest.raises(ConfigError, match="no order to sort by 'x'; there are name, top1, flops"):
        regnet.list_models(sort="x")


def find_checkpoint_by_id(name):
    return checkpoints()[name]


def test_names_are_listed_in_natural_order():
    names = regnet.list_models("regnety_*")
    assert names.index("regnety_640") < names.index("regnety_1280") < names.index("regnety_2560")


def test_info_describes_variants_and_checkpoints():
    info = regnet.info("regnet_y_1_6gf")
    assert info.name == "regnety_016"
    assert info.complexity.flops == 1_612_087_326
    assert info.default == info.checkpoints[0] == "regnety_016.tv2_in1k"
    assert "regnety_016.pycls_in1k" in info.checkpoints
    assert info.checkpoint is None
    assert regnet.info("regnet_y_1_6gf.tv2_in1k").checkpoint.license == "bsd-3-clause"
    assert regnet.info("regnety_1280").default is None
    assert regnet.info("regnety_016", image_size=448).complexity.flops > 4 * 1.6e9
    assert regnet.info("regnety_cifar.cifar10").checkpoints == ("regnety_cifar.cifar10",)
    assert regnet.is_model("regnety_cifar.cifar10")
    assert not regnet.is_model(Path("regnety_cifar"))
    with pytest.raises(ConfigError, match="the name of a model must be"):
        regnet.info(Path("regnety_cifar"))
    with pytest.raises(WeightsError, match="no weights tagged 'v2'"):
        regnet.info("regnety_cifar.v2")


@pytest.mark.parametrize("name", one_per_family(VARIANTS))
def test_every_variant_has_a_factory(name):
    variant = VARIANTS[name]
    factory = getattr(regnet, variant.factory)
    assert factory.__name__ == variant.factory
    assert variant.name in factory.__doc__
    model = factory(device="meta", num_classes=7)
    assert model.config == replace(variant.config, num_classes=7)


def test_the_stubs_of_the_factories_match_the_table():
    script = runpy.run_path(str(ROOT / "scripts/write_factory_stubs.py"))
    stub = script["STUB"].read_text(encoding="utf-8")
    assert stub == script["render"](), "run python scripts/write_factory_stubs.py"
    assert sorted(factories.__all__) == sorted(v.factory for v in VARIANTS.values())


def test_factories_take_the_options_of_create():
    options = set(inspect.signature(regnet.create).parameters)
    stub = (ROOT / "src/regnet/zoo/factories.pyi").read_text(encoding="utf-8")
    for name in options - {"name", "features_only", "out_indices", "absent"}:
        assert f"    {name}: " in stub


def test_a_file_gets_no_class_names_of_the_table(tmp_path):
    model = regnet.create("regnety_cifar")
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    found = regnet.create(
        "regnety_cifar.cifar10", checkpoint_path=tmp_path / "mine.pth", classes=[1, 2]
    )
    assert found.num_classes == 2
    assert not found.card.labels


@pytest.mark.parametrize("out_indices", [(1, 2), (0,), None])
def test_a_feature_network_loads_its_own_checkpoint(tmp_path, out_indices):
    options = {"features_only": True, "out_indices": out_indices}
    model = regnet.create("regnety_cifar", **options).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    found = regnet.create("regnety_cifar", checkpoint_path=tmp_path / "mine.pth", **options).eval()
    x = torch.randn(1, 3, 32, 32)
    assert all(map(torch.equal, found(x), model(x)))
    if out_indices:
        with pytest.raises(WeightsError, match="missing s"):
            regnet.create("regnety_cifar", checkpoint_path=tmp_path / "mine.pth")


class Adapter(nn.Module):
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        self.up = nn.Linear(rank, base.out_features, bias=False)
        self.down = nn.Linear(base.in_features, rank, bias=False)  # the last layer

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Cosine(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return nn.functional.normalize(x) @ nn.functional.normalize(self.weight).T


def test_the_outputs_of_any_classifier_are_counted():
    model = regnet.create("regnety_cifar", pretrained=True).train()
    labels, fc = model.card.labels, model.head.fc
    model.head.fc = Adapter(fc)
    assert (model.num_classes, model.card.labels) == (10, labels)
    model.head.fc = nn.Sequential(nn.Dropout(), fc)
    assert (model.num_classes, model.card.labels) == (10, labels)
    model.head.fc = Cosine(model.num_features, 7)
    assert (model.num_classes, model.card.labels) == (7, ())
    model.head.fc = nn.Sequential(nn.Linear(model.num_features, 5), nn.BatchNorm1d(5))
    assert (model.num_classes, model.card.labels) == (5, ())
    model.head.fc = nn.Identity()
    assert (model.num_classes, model.card.labels) == (0, ())
    model.head.fc = fc
    assert (model.num_classes, model.card.labels) == (10, labels)
