"""Tests of checkpoints as training scripts write them, each made as by its own library."""

import argparse
import copy
import os
import re
import subprocess
import sys
from collections import OrderedDict, defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import regnet
from regnet.design.config import RegNetConfig
from regnet.errors import WeightsError
from regnet.nn.model import AnyNet
from regnet.weights.formats import FORMATS, from_native
from regnet.weights.unwrap import read_tensors
from tests.command import regnet as command

CONFIG = RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, se_ratio=0.25, num_classes=4)
OTHER = RegNetConfig(depth=3, w0=24, wa=0.0, wm=2.0, num_classes=4)


def net(seed, config=CONFIG):
    torch.manual_seed(seed)
    model = AnyNet(config)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


PLAIN, AVERAGE = net(1), net(2)
STATE = PLAIN.state_dict()
THEIRS = from_native(STATE, FORMATS["torchvision"])
AVERAGED = AveragedModel(AVERAGE).state_dict()


class Lit(nn.Module):
    """A stand-in for a LightningModule: a network under some name, and other tensors."""

    def __init__(self, name, network=PLAIN):
        super().__init__()
        self.add_module(name, network)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(4))


def lightning(name):
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": Lit(name).state_dict(),
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [torch.optim.AdamW(PLAIN.parameters()).state_dict()],
    }


def trained_optimizer():
    model = net(1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


SAVED = {
    "torchvision's reference, without average": {
        "model": THEIRS, "optimizer": trained_optimizer(), "lr_scheduler": {"last_epoch": 9},
        "epoch": 9, "args": argparse.Namespace(model="regnet_y_400mf", data_path=Path("/data")),
    },
    "lightning, model": lightning("model"),
    "lightning, net": lightning("net"),
    "lightning, backbone": lightning("backbone"),
    "lightning, encoder": lightning("encoder"),
    "lightning, a name nobody thought of": lightning("my_great_cnn"),
    "lightning, two deep": {"state_dict": Lit("task", Lit("inner")).state_dict()},
    "accelerate, DDP": {"module": nn.DataParallel(PLAIN).state_dict(), "step": torch.ones(1)},
    "a stage compiled": {
        re.sub(r"^s1\.", "s1._orig_mod.", name): value for name, value in STATE.items()
    },
    "FSDP": {f"_fsdp_wrapped_module.{name}": value for name, value in STATE.items()},
    "deep": {"a": {"b": {"c": {"model": STATE}}}},
    "in a list": {"models": [STATE]},
    "figures of NumPy": {"model": STATE, "top1": np.float64(77.5), "rng": np.arange(3)},
    "settings": {"state_dict": STATE, "args": SimpleNamespace(a=1), "log": defaultdict(list)},
    "figures beside the tensors": dict(STATE) | {"epoch": 3},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("saved", SAVED.values(), ids=SAVED)
def test_checkpoints_of_training_scripts_load(tmp_path, saved, zipped):
    path = tmp_path / "checkpoint.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    found = regnet.create(CONFIG, checkpoint_path=path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in STATE.items())


BOTH = {
    "torchvision's reference": ({"model": THEIRS, "model_ema": AVERAGED}, "model"),
    "timm": ({"state_dict": STATE, "state_dict_ema": AVERAGE.state_dict()}, "state_dict"),
    "ema of its own": ({"model": STATE, "ema": {"module": AVERAGE.state_dict()}}, "model"),
    "lightning": (
        {
            "state_dict": {f"model.{n}": v for n, v in STATE.items()}
            | {f"ema_model.module.{n}": v for n, v in AVERAGE.state_dict().items()}
        },
        "state_dict.model",
    ),
    "weight averaging callback": (
        {"state_dict": Lit("net", AveragedModel(AVERAGE)).state_dict()
        | {f"plain.{n}": v for n, v in STATE.items()}},
        "state_dict.plain",
    ),
    "EMA": ({"EMA": AVERAGE.state_dict(), "model": STATE}, "model"),
}  # fmt: skip


@pytest.mark.parametrize(("saved", "other"), BOTH.values(), ids=BOTH)
def test_of_several_networks_the_average_is_used_and_a_message_says_how_to_choose(
    tmp_path, caplog, saved, other
):
    path = tmp_path / "checkpoint.pth"
    torch.save(saved, path)
    taken = regnet.create(CONFIG, checkpoint_path=path)
    assert torch.equal(taken.head.fc.weight, AVERAGE.head.fc.weight)
    [word] = [r.getMessage() for r in caplog.records if "holds 2 networks" in r.getMessage()]
    [choice] = re.findall(r"selects another: '(.+)'", word)
    assert choice == other
    chosen = regnet.create(CONFIG, checkpoint_path=path, checkpoint_key=choice)
    assert torch.equal(chosen.head.fc.weight, PLAIN.head.fc.weight)
    with pytest.raises(WeightsError, match=f"no network at 'x'; available keys: .*'{choice}'"):
        regnet.create(CONFIG, checkpoint_path=path, checkpoint_key="x")


def test_the_network_that_fits_the_architecture_is_used(tmp_path):
    """The file may also contain a teacher, or the average of a teacher."""
    path = tmp_path / "checkpoint.pth"
    torch.save(
        {"teacher_ema": net(3, OTHER).state_dict(), "student": STATE, "x": {"y": torch.ones(9)}},
        path,
    )
    assert torch.equal(
        regnet.create(CONFIG, checkpoint_path=path).head.fc.weight, PLAIN.head.fc.weight
    )


@pytest.mark.slow
def test_the_choice_of_network_is_the_same_in_every_process(tmp_path):
    path = tmp_path / "checkpoint.pth"
    both = {f"encoder_q.{n}": v for n, v in STATE.items()}
    both |= {f"encoder_k.{n}": v for n, v in AVERAGE.state_dict().items()}
    torch.save({"state_dict": both}, path)
    code = (
        "from regnet.weights.unwrap import *; from pathlib import Path; from regnet.weights.files "
    )
    code += (
        f"import read_object; print([n.key for n in networks(read_object(Path({str(path)!r})))])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert told == {"['state_dict.encoder_q', 'state_dict.encoder_k']\n"}


def test_the_network_with_the_right_classes_comes_before_an_average(tmp_path):
    """A teacher in the same file may have the same architecture."""
    path = tmp_path / "checkpoint.pth"
    torch.save(
        {"teacher_ema": net(3, replace(CONFIG, num_classes=9)).state_dict(), "student": STATE}, path
    )
    found = regnet.create(CONFIG, checkpoint_path=path, num_classes=4)
    assert torch.equal(found.head.fc.weight, PLAIN.head.fc.weight)
    new = regnet.create(CONFIG, checkpoint_path=path, num_classes=7)
    assert new.num_classes == 7


PARAMETERS = dict(AVERAGE.named_parameters())
NOT_WEIGHTS = {
    "an average of parameters alone": {"model": STATE, "ema": {"shadow": PARAMETERS}},
    "momentum": {"optimizer_momentum": {n: v * 0 for n, v in STATE.items()}, "model": STATE},
    "the opposite of an average": {
        "non_ema_state_dict": AVERAGE.state_dict(), "ema_state_dict": STATE,
    },
    "without": {"model_without_ema": AVERAGE.state_dict(), "model_ema": STATE},
    "a trunk of something else": {"trunk": {"x": 1}, "model": STATE},
}  # fmt: skip


@pytest.mark.parametrize("saved", NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def test_entries_that_only_look_like_weights_are_the_last_choice(tmp_path, saved):
    path, out = tmp_path / "checkpoint.pth", tmp_path / "out.safetensors"
    torch.save(saved, path)
    assert command("weights", "convert", path, out).returncode == 0
    for file in (path, out):
        found = regnet.create(CONFIG, checkpoint_path=file).state_dict()
        assert all(torch.equal(found[name], value) for name, value in STATE.items())


def test_containers_that_contain_themselves_are_handled(tmp_path):
    path = tmp_path / "checkpoint.pth"
    loop: dict = {}
    loop["trunk"] = loop
    many: list = []
    many += [many] * 16
    for saved in (loop, {"model": many}, {"model": many, "state_dict": STATE}):
        torch.save(saved, path)
        if "state_dict" in saved:
            assert read_tensors(path).keys() == STATE.keys()
        else:
            with pytest.raises(WeightsError, match="no state dict"):
                read_tensors(path)


def test_types_of_torch_are_allowed_as_settings(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": STATE, "args": argparse.Namespace(dtype=torch.float16)}, path)
    assert regnet.create(CONFIG, checkpoint_path=path).num_classes == 4


def test_names_that_merely_contain_ema_are_not_averages(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": STATE, "schema": AVERAGE.state_dict()}, path)
    taken = regnet.create(CONFIG, checkpoint_path=path)
    assert torch.equal(taken.head.fc.weight, PLAIN.head.fc.weight)


def test_tensors_beside_the_network_are_named(tmp_path, caplog):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = copy.deepcopy(PLAIN)
            self.backbone.reset_classifier(0)
            self.own_head = nn.Linear(16, 4)

    path = tmp_path / "checkpoint.pth"
    torch.save(Wrapper().state_dict(), path)
    model = regnet.create(CONFIG, checkpoint_path=path, num_classes=0)
    assert torch.equal(model.stem.conv.weight, PLAIN.stem.conv.weight)
    assert "left out: own_head.weight, own_head.bias" in caplog.text


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_modules_beside_those_of_the_network_are_named(tmp_path, caplog, prefix, library):
    """A subclass of a network, with a head or buffers of its own, writes such a file."""
    state = from_native(STATE, FORMATS[library])
    own = {"proj.weight": torch.zeros(3, 3), "mean": torch.zeros(3), "neck.fc.bias": torch.zeros(2)}
    saved = {f"{prefix}{name}": value for name, value in (state | own).items()}
    torch.save(saved, tmp_path / "a.pth")
    found = regnet.create(CONFIG, checkpoint_path=tmp_path / "a.pth").state_dict()
    assert all(torch.equal(found[name], value) for name, value in STATE.items())
    assert "proj.weight" in caplog.text
    # Inside a module of the network, a tensor of another name may be what the network needs.
    stem = next(name for name in saved if name.startswith(f"{prefix}stem."))
    torch.save({f"{stem}.extra": torch.zeros(3), **saved}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="extra"):
        regnet.create(CONFIG, checkpoint_path=tmp_path / "b.pth")


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Dropout(0.2), nn.Linear(16, 4)],
        [nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 4)],
        [nn.Linear(16, 4)],
    ],
)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_classifier_after_dropout_is_found(tmp_path, layers, library):
    model = copy.deepcopy(PLAIN)
    model.head.fc = nn.Sequential(*layers)
    path = tmp_path / "checkpoint.pth"
    state = model.state_dict()
    if library == "torchvision":
        state = {
            n.replace("head.fc.", "fc."): v for n, v in state.items() if n[:8] == "head.fc."
        } | {n: v for n, v in from_native(STATE, FORMATS["torchvision"]).items() if n[:3] != "fc."}
    torch.save(state, path)
    found = regnet.create(CONFIG, checkpoint_path=path).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(found(x), model.eval()(x))


def test_a_classifier_of_two_layers_is_refused_with_advice(tmp_path):
    model = copy.deepcopy(PLAIN)
    model.head.fc = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    path = tmp_path / "checkpoint.pth"
    torch.save(model.state_dict(), path)
    with pytest.raises(WeightsError, match=r"its classifier is not one linear layer") as refusal:
        regnet.create(CONFIG, checkpoint_path=path)
    assert "pass num_classes=" in str(refusal.value)
    for classes in (0, 4, 9):
        again = regnet.create(CONFIG, checkpoint_path=path, num_classes=classes)
        assert again.num_classes == classes
        assert torch.equal(again.stem.conv.weight, PLAIN.stem.conv.weight)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickled_model_becomes_safetensors_as_the_error_advises(tmp_path, wrapped, zipped):
    path, out = tmp_path / "model.pt", tmp_path / "model.safetensors"
    saved = {"model": PLAIN, "epoch": 1} if wrapped else nn.DataParallel(PLAIN)
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="contains Python objects") as refusal:
        regnet.create(CONFIG, checkpoint_path=path)
    [hint] = re.findall(r"`regnet (.+?)`", str(refusal.value))
    done = command(*hint.replace("OUT.safetensors", str(out)).split())
    assert done.returncode == 0, done.stderr
    found = regnet.create(CONFIG, checkpoint_path=out).state_dict()
    assert all(torch.equal(found[name], value) for name, value in STATE.items())


def test_a_missing_file_says_how_to_get_it(tmp_path):
    pointer = tmp_path / "model.safetensors"
    pointer.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 44\n"
    )
    with pytest.raises(WeightsError, match=r"a pointer of Git LFS.*`git lfs pull`"):
        regnet.create(CONFIG, checkpoint_path=pointer)
    page = tmp_path / "model.pth"
    page.write_text("<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(WeightsError, match="a web page, not weights"):
        regnet.create(CONFIG, checkpoint_path=page)


def test_objects_other_than_settings_are_still_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": STATE, "args": argparse.Namespace(x=Fraction(1, 2))}, path)
    with pytest.raises(WeightsError, match=r"\(fractions\.Fraction\), which could run"):
        regnet.create(CONFIG, checkpoint_path=path)


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({}, net(0, RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, se_ratio=0.25, in_chans=1,
                                 num_classes=4)).state_dict()),
        ({}, net(0, RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, se_ratio=0.25,
                                 num_classes=7)).state_dict()),
        ({}, net(0, RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, se_ratio=0.25,
                                 num_classes=0)).state_dict()),
    ],
)  # fmt: skip
def test_passing_what_an_error_advises_helps(tmp_path, options, state):
    path = tmp_path / "model.pth"
    torch.save(OrderedDict(state), path)
    with pytest.raises(WeightsError) as refusal:
        regnet.create(CONFIG, checkpoint_path=path, **options)
    [(name, value)] = re.findall(r"pass (\w+)=(\d+)", str(refusal.value))
    model = regnet.create(CONFIG, checkpoint_path=path, **{name: int(value)})
    assert torch.equal(model.stem.conv.weight, state["stem.conv.weight"])
