"""Tests of models with weights of any format, place, classes and channels."""

import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save, save_file

import regnet
from regnet.design.config import RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError, LicenseWarning, WeightsError
from regnet.nn.model import AnyNet
from regnet.weights.catalog import checkpoints, data_dir, find_checkpoint
from regnet.weights.formats import FORMATS, from_native
from regnet.weights.unwrap import read_tensors
from regnet.zoo.loading import adapt_stem, load_tensors
from regnet.zoo.resolver import find_source
from tests.hub_server import COMMIT
from tests.marks import linux, one_per_family

NAME = "regnety_cifar"
FILE = data_dir() / "regnety_cifar.cifar10.safetensors"
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def original() -> AnyNet:
    return regnet.create(NAME, pretrained=True).eval()


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("pth", marks=pytest.mark.slow)])
def test_files_of_any_format_give_the_same_model(tmp_path, original, format, suffix):
    theirs = from_native(original.state_dict(), FORMATS[format])
    path = tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save({"model": theirs}, path)
    else:
        save_file(theirs, path)
    model = regnet.create(NAME, checkpoint_path=path).eval()
    # Not bit for bit, because kernels choose other code for memory with another alignment.
    torch.testing.assert_close(model(IMAGES), original(IMAGES))
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in model.state_dict().items())
    assert "tag" not in model.pretrained_cfg, "a file does not say where it came from"


@linux
def test_tensors_are_not_copied_unless_users_may_write_to_their_file(tmp_path):
    config = RegNetConfig(depth=4, w0=256, wa=0.0, wm=2.0, group_width=256)
    save_file(AnyNet(config).state_dict(), tmp_path / "model.safetensors")
    model = AnyNet(config)
    load_tensors(model, read_tensors(tmp_path / "model.safetensors"), source="the cache")
    with open("/proc/self/maps") as maps:  # noqa: PTH123 - not a path of ours
        assert str(tmp_path) in maps.read()
    model.train()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    again = regnet.create(config, checkpoint_path=tmp_path / "model.safetensors")
    assert not torch.equal(model.head.fc.weight, again.head.fc.weight)
    assert all(parameter.requires_grad for parameter in again.parameters())
    del model
    with open("/proc/self/maps") as maps:  # noqa: PTH123 - not a path of ours
        assert str(tmp_path) not in maps.read()


OVERWRITING = """
import sys
import torch
import regnet

from safetensors.torch import save_file

kind, path = sys.argv[1:]
model = regnet.create("regnety_cifar", checkpoint_path=path).eval()
x = torch.randn(2, 3, 32, 32)
with torch.inference_mode():
    before = model(x)
    if kind == "saved":  # as every training loop does
        (torch.save if path.endswith("pth") else save_file)(model.state_dict(), path)
    else:
        open(path, "wb").write(b"short")
    assert torch.equal(model(x), before)
"""


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", ["saved", "cut short"])
def test_a_file_can_be_overwritten_while_a_model_from_it_is_used(kind, suffix, tmp_path, original):
    path = tmp_path / f"last.{suffix}"
    (torch.save if suffix == "pth" else save_file)(original.state_dict(), path)
    done = subprocess.run(
        [sys.executable, "-c", OVERWRITING, kind, path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if kind == "saved":
        equal(regnet.create(NAME, checkpoint_path=path).state_dict(), original.state_dict())


def test_parameters_that_share_memory_in_a_file_are_apart_in_the_model(tmp_path, original):
    tensors = dict(original.state_dict())
    names = ["s1.b1.conv1.bn.weight", "s1.b1.conv2.bn.weight"]
    assert tensors[names[0]].shape == tensors[names[1]].shape
    tensors[names[1]] = tensors[names[0]]
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "tied.pth", _use_new_zipfile_serialization=zipped)
        model = regnet.create(NAME, checkpoint_path=tmp_path / "tied.pth")
        first, second = (model.get_parameter(name) for name in names)
        with torch.no_grad():
            first.zero_()
        assert second.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_averaged_batch_counters_are_rounded(dtype, tmp_path, original):
    """timm's script for averages casts every tensor; 125,000 is infinite in float16."""
    counted = {
        name: torch.tensor(125_000.0) if name.endswith("num_batches_tracked") else value
        for name, value in original.state_dict().items()
    }
    torch.save({name: value.to(dtype) for name, value in counted.items()}, tmp_path / "mean.pth")
    model = regnet.create(NAME, checkpoint_path=tmp_path / "mean.pth")
    counters = {b.item() for n, b in model.named_buffers() if n.endswith("num_batches_tracked")}
    assert counters == {125_000 if dtype == torch.float32 else 0}


def test_values_too_large_for_the_chosen_dtype_are_refused(tmp_path, original):
    tensors = original.state_dict()
    name = "s1.b1.conv1.bn.running_var"
    tensors[name] = torch.full_like(tensors[name], 1e5)
    torch.save(tensors, tmp_path / "large.pth")
    with pytest.raises(
        WeightsError, match=r"running_var has values that are too large for torch\.f"
    ):
        regnet.create(NAME, checkpoint_path=tmp_path / "large.pth", dtype="float16")


def test_weights_of_eight_bits_load(tmp_path, original):
    small = {
        name: value.to(torch.float8_e4m3fn) if value.is_floating_point() else value
        for name, value in original.state_dict().items()
    }
    save_file(small, tmp_path / "small.safetensors")
    model = regnet.create(NAME, checkpoint_path=tmp_path / "small.safetensors")
    assert torch.equal(model.head.fc.weight, small["head.fc.weight"].float())


def test_weights_are_loaded_in_the_chosen_dtype():
    model = regnet.create(NAME, pretrained=True, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.bfloat16, torch.int64}
    assert {p.dtype for p in regnet.create(NAME, pretrained=True).parameters()} == {torch.float32}


def test_a_new_classifier_is_announced_in_one_line(original, caplog):
    with caplog.at_level(logging.INFO, "regnet"):
        torch.manual_seed(3)
        model = regnet.create(NAME, pretrained=True, num_classes=37, in_chans=1).eval()
    assert caplog.messages == [
        "regnety_cifar.cifar10: 200 tensors; classifier of 10 classes, replaced by a new one of "
        "37; stem of 3 channels adapted to 1"
    ]
    assert model(IMAGES[:, :1]).shape == (2, 37)
    assert model.head.fc.weight.std() < 0.02
    torch.manual_seed(3)
    again = regnet.create(NAME, pretrained=True, num_classes=37, in_chans=1)
    equal(model.head.fc.weight, again.head.fc.weight)
    assert "metrics" not in model.pretrained_cfg
    assert model.pretrained_cfg["input_size"] == (1, 32, 32)
    pooled = regnet.create(NAME, pretrained=True, num_classes=0).eval()
    equal(pooled(IMAGES), original.forward_head(original.forward_features(IMAGES), pre_logits=True))


def test_classes_can_be_chosen(original):
    model = regnet.create(NAME, pretrained=True, classes=[5, 3]).eval()
    torch.testing.assert_close(model(IMAGES), original(IMAGES)[:, [5, 3]])
    assert model.pretrained_cfg["label_names"] == ("dog", "cat")
    with pytest.raises(ConfigError, match=r"classes must lie between 0 and 9.*got \[3, 10\]"):
        regnet.create(NAME, pretrained=True, classes=[3, 10])
    for wrong in ([], [1.5], ["a"], [True]):
        with pytest.raises(ConfigError, match="classes must lie between 0 and 9"):
            regnet.create(NAME, pretrained=True, classes=wrong)
    with pytest.raises(ConfigError, match="classes selects classes of a checkpoint"):
        regnet.create(NAME, classes=[3])
    with pytest.raises(ConfigError, match="leave num_classes out"):
        regnet.create(NAME, pretrained=True, classes=[3], num_classes=2)


def test_gray_images_give_the_answer_of_their_rgb_copies(original):
    gray = regnet.create(NAME, pretrained=True, in_chans=1).eval()
    image = IMAGES[:, :1]
    torch.testing.assert_close(
        gray(image), original(image.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-4
    )


def test_more_channels_repeat_the_weights_of_the_three():
    weight = torch.arange(3.0).reshape(1, 3, 1, 1)
    assert adapt_stem(weight, 5).flatten().tolist() == pytest.approx(
        [0, 0.6, 1.2, 0, 0.6]
    )  # timm's adapt_input_conv
    assert adapt_stem(weight, 1).item() == 3
    assert adapt_stem(weight, 3).flatten().tolist() == [0, 1, 2]


def mismatch(config_of, file_of, tmp_path, **options):
    path = tmp_path / "model.safetensors"
    save_file(AnyNet(file_of).state_dict(), path)
    with pytest.raises(WeightsError) as error:
        regnet.create(config_of, checkpoint_path=path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_likely_cause_of_a_mismatch_is_reported(tmp_path):
    config = VARIANTS["regnetx_002"].config
    tv = VARIANTS["regnetx_004_tv"].config
    text = mismatch("regnetx_004", tv, tmp_path)
    assert "it holds regnetx_004_tv, with torchvision's rounding of widths; create that" in text
    text = mismatch("regnety_002", config, tmp_path)
    assert "it holds regnetx_002; create that" in text
    text = mismatch("regnetx_002", replace(config, num_classes=10), tmp_path)
    assert "its classifier has 10 classes; pass num_classes=10" in text
    text = mismatch("regnetx_002", replace(config, num_classes=0), tmp_path)
    assert "it has no classifier; pass num_classes=0" in text
    text = mismatch("regnetx_002", replace(config, in_chans=1), tmp_path)
    assert "its stem takes 1 channels; pass in_chans=1" in text
    text = mismatch(replace(config, depth=14), replace(config, depth=15, wa=30.0), tmp_path)
    assert "missing s4.b" in text or "has shape" in text
    assert " more" in text


def test_a_custom_number_of_classes_is_loaded_unchanged(tmp_path):
    config = replace(VARIANTS["regnetx_002"].config, num_classes=10)
    save_file(AnyNet(config).state_dict(), tmp_path / "model.safetensors")
    model = regnet.create(
        "regnetx_002", checkpoint_path=tmp_path / "model.safetensors", num_classes=10
    )
    assert model.num_classes == 10


def test_files_without_a_network_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"layer1.weight": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="its tensor names match no known format"):
        regnet.create(NAME, checkpoint_path=path)
    with pytest.raises(WeightsError, match="No such file"):
        regnet.create(NAME, checkpoint_path=tmp_path / "none")
    tensors = AnyNet(VARIANTS[NAME].config).state_dict()
    save_file(tensors | {"head.fc.bias": torch.ones(10, dtype=torch.int64)}, path)
    with pytest.raises(WeightsError, match=r"head.fc.bias is torch.int64"):
        regnet.create(NAME, checkpoint_path=path)


def test_missing_batch_counters_are_tolerated(tmp_path, original):
    path = tmp_path / "model.safetensors"
    state = {k: v for k, v in original.state_dict().items() if "num_batches" not in k}
    save_file(state, path)
    equal(regnet.create(NAME, checkpoint_path=path).eval()(IMAGES), original(IMAGES))


@pytest.mark.parametrize("row", checkpoints().values(), ids=checkpoints())
def test_every_checkpoint_can_be_created_by_name(row):
    for name in {row.id, row.upstream or row.id}:
        assert find_source(name, pretrained=True).checkpoint == row


# The tests of `create` build every variant.
BUILT = one_per_family(checkpoints(), lambda id: checkpoints()[id].variant, rest=pytest.mark.long)


@pytest.mark.parametrize("id", BUILT)
def test_a_checkpoint_can_be_built_without_its_weights(id):
    model = regnet.create(id, device="meta")
    assert model.num_classes == checkpoints()[id].num_classes
    assert "tag" not in model.pretrained_cfg, "the model has no weights yet"


@pytest.mark.parametrize(
    ("id", "format", "hub_file"),
    [
        ("regnetx_002.pycls_in1k", "timm", "model.safetensors"),
        ("regnetx_002.transformers", "transformers", "pytorch_model.bin"),
        ("regnetz_b16.ra3_in1k", "timm", "model.safetensors"),
    ],
)
def test_checkpoints_of_the_hub_in_their_own_formats(hub, cache, id, format, hub_file):
    row = checkpoints()[id]
    torch.manual_seed(0)
    state = AnyNet(VARIANTS[row.variant].config).state_dict()
    theirs = from_native(state, FORMATS[format])
    if hub_file.endswith("bin"):
        torch.save(theirs, cache.parent / "x")
        data = (cache.parent / "x").read_bytes()
    else:
        data = save(theirs)
    hub.repos[row.repo] = {hub_file: data}
    if row.license_terms.permissive:
        model = regnet.create(id, pretrained=True, cache_dir=cache)
    else:
        with pytest.warns(LicenseWarning, match="license not stated; read https://huggingface.co/"):
            model = regnet.create(id, pretrained=True, cache_dir=cache)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_weights_from_a_url_have_their_channel_order(hub, cache, tmp_path, monkeypatch):
    row = find_checkpoint("regnetx_002", "pycls")
    assert row.bgr
    torch.manual_seed(0)
    model = AnyNet(VARIANTS["regnetx_002"].config).eval()
    torch.save({"model_state": from_native(model.state_dict(), FORMATS["pycls"])}, tmp_path / "x")
    hub.files["w.pyth"] = (tmp_path / "x").read_bytes()
    served = replace(row, url=hub.url("w.pyth"))
    # The address in the table cannot be reached from the tests.
    monkeypatch.setattr("regnet.zoo.resolver.find_checkpoint", lambda *_: served)
    loaded = regnet.create("regnetx_002.pycls", pretrained=True, cache_dir=cache).eval()
    images = torch.randn(1, 3, 64, 64)
    equal(loaded(images), model(images))
    assert loaded.pretrained_cfg["tag"] == "pycls"


def test_a_file_given_in_place_of_the_checkpoints_own_is_used_as_it_is(tmp_path, monkeypatch):
    """The table's entry for pycls's file, blue first, does not apply to a converted file."""
    state = AnyNet(VARIANTS["regnetx_002"].config).state_dict()
    save_file(state, tmp_path / "x.safetensors")
    model = regnet.create("regnetx_002.pycls", checkpoint_path=tmp_path / "x.safetensors")
    assert torch.equal(model.stem.conv.weight, state["stem.conv.weight"])
    for key in ("tag", "license", "metrics", "url"):
        assert key not in model.pretrained_cfg
    monkeypatch.setattr("regnet.weights.licenses._warned", set())
    with pytest.warns(LicenseWarning, match="license not stated"):
        model = regnet.create(
            "facebook/regnet-x-002", checkpoint_path=tmp_path / "x.safetensors", pretrained=True
        )
    assert model.pretrained_cfg["license"] == "unknown"


def test_figures_are_not_claimed_for_another_network():
    assert "metrics" in regnet.create(NAME, pretrained=True).pretrained_cfg
    for options in ({"in_chans": 1}, {"output_stride": 2}, {"num_classes": 3}, {"classes": [1]}):
        assert "metrics" not in regnet.create(NAME, pretrained=True, **options).pretrained_cfg


def test_revisions_can_be_chosen(hub, cache):
    torch.manual_seed(0)
    state = AnyNet(VARIANTS["regnetx_002"].config).state_dict()
    hub.repos["timm/regnetx_002.pycls_in1k"] = {"model.safetensors": save(state)}
    options = {"pretrained": True, "cache_dir": cache}
    model = regnet.create("regnetx_002", revision=COMMIT, **options)
    assert torch.equal(model.head.fc.weight, state["head.fc.weight"])
    with pytest.raises(WeightsError, match="has no revision v9"):
        regnet.create("regnetx_002", revision="v9", **options)
    with pytest.raises(ConfigError, match="is in no repository of the Hub; leave revision out"):
        AnyNet.from_pretrained("regnetx_002.pycls", revision="v9")


@pytest.mark.slow
def test_an_overlay_changes_entries_of_pretrained_cfg():
    model = regnet.create(NAME, pretrained_cfg_overlay={"crop_pct": 0.5})
    assert regnet.preprocess(model).crop_pct == model.card.preprocess.crop_pct == 0.5
    assert model.pretrained_cfg["crop_pct"] == 0.5
    with pytest.raises(ConfigError, match="no entry of a pretrained_cfg_overlay 'mine'"):
        regnet.create(NAME, pretrained_cfg_overlay={"mine": 1})
    assert regnet.get_pretrained_cfg(NAME)["tag"] == "cifar10"
