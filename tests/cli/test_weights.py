"""Tests of `regnet weights` on real files, in separate processes."""

import hashlib
import json
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

from regnet.design.variants import VARIANTS
from regnet.nn.model import AnyNet
from regnet.weights.catalog import data_dir
from regnet.weights.formats import FORMATS, from_native
from tests.command import refused, regnet

FILE = data_dir() / "regnety_cifar.cifar10.safetensors"


def test_converted_weights_can_be_converted_back_and_verified(tmp_path):
    there, back = tmp_path / "pycls.safetensors", tmp_path / "back.safetensors"
    done = regnet("weights", "convert", FILE, there, "--to", "pycls")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "202 tensors, timm to pycls" in done.stderr
    assert not torch.equal(
        load_file(there)["stem.conv.weight"], load_file(FILE)["stem.conv.weight"]
    )
    found = json.loads(regnet("weights", "inspect", there, "--json").stdout)
    assert (found["format"], found["variants"], found["num_classes"]) == (
        "pycls", ["regnety_cifar"], 10,
    )  # fmt: skip
    assert regnet("weights", "convert", there, back).returncode == 0
    ours, theirs = load_file(FILE), load_file(back)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    digest = hashlib.sha256(back.read_bytes()).hexdigest()
    assert regnet("weights", "verify", back, "--sha256", digest).returncode == 0
    data = bytearray(back.read_bytes())
    data[-1] ^= 1
    back.write_bytes(data)
    damaged = regnet("weights", "verify", back, "--sha256", digest)
    refused(damaged, 1, "is damaged: its SHA-256 does not match the one given")
    assert "DAMAGED" in damaged.stdout


def test_a_training_checkpoint_with_objects_becomes_safetensors(tmp_path):
    state = AnyNet(VARIANTS["regnetx_002"].config).state_dict()
    source, out = tmp_path / "model.pyth", tmp_path / "model.safetensors"
    torch.save({"model_state": from_native(state, FORMATS["pycls"]), "cfg": Fraction(1, 3)}, source)
    result = regnet("weights", "convert", source, out)
    refused(result, 1, "contains Python objects besides its tensors (fractions.Fraction)")
    assert not out.exists()
    assert regnet("weights", "convert", source, out, "--ignore-objects").returncode == 0
    assert torch.equal(load_file(out)["stem.conv.weight"], state["stem.conv.weight"])
    text = regnet("weights", "inspect", out).stdout
    assert "variant     regnetx_002" in text
    assert "2.68 M parameters" in text


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["convert", "none.pth", "out.safetensors"], 2, ["none.pth: No such file"]),
        (["convert", FILE, "out.pth"], 1, ["the output must have the extension .safetensors"]),
        (
            ["convert", FILE, "out.safetensors", "--to", "keras"],
            2,
            ["no format 'keras'; there are"],
        ),
        (["convert", FILE, "none/out.safetensors"], 2, ["none"]),
        (["inspect", "none"], 2, ["none: No such file"]),
        (["verify", "regnety_017"], 2, ["there is no variant 'regnety_017'"]),
        (
            ["verify", "regnety_016"],
            1,
            ["is not on this machine; download it with `regnet weights fetch regnety_016"],
        ),
        (["verify", "--sha256", "00"], 2, ["needs the path of one file that exists"]),
        (["fetch", "regnety_1280"], 1, ["all weights of regnety_1280 have a restricted license"]),
    ],
)
def test_a_failure_is_explained(tmp_path, args, code, words):
    refused(regnet("weights", *args, cwd=tmp_path), code, *words)
    assert not list(tmp_path.iterdir())


def test_fetch_and_verify(hub, tmp_path):
    state = AnyNet(VARIANTS["regnetx_002"].config).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    hub.repos["timm/regnetx_002.pycls_in1k"] = {"model.safetensors": data}
    cache = ("--cache-dir", tmp_path / "cache")
    done = regnet("weights", "fetch", "regnetx_002", *cache)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    path = tmp_path / done.stdout.strip()
    assert path.read_bytes() == data
    rows = json.loads(regnet("weights", "verify", "--json", *cache).stdout)
    assert [(row["whole"], row["against"]) for row in rows] == [
        (True, "the table"), (True, "the server's"),
    ]  # fmt: skip
    blob = path.resolve()
    blob.write_bytes(data[:-1] + b"x")
    refused(regnet("weights", "verify", "regnetx_002", *cache), 1, "is damaged")


def test_info_and_lists_of_weights():
    text = regnet("info", "regnety_016.tv2_in1k").stdout
    for words in ("BSD-3-Clause", "https://huggingface.co/timm/regnety_016.tv2_in1k", "80.67"):
        assert words in text
    rows = regnet("list", "regnety_*", "--license", "apache-2.0", "--sort", "top1").stdout
    assert rows.splitlines()[1].startswith("regnety_160.lion_in12k_ft_in1k")
    values = json.loads(regnet("list", "--pretrained", "--json").stdout)
    assert len(values) == 185
    # The table has one row for a file that two publishers offer; in JSON each name has its own row.
    rows = [
        line.split() for line in regnet("list", "regnety_016*", "--pretrained").stdout.splitlines()
    ]
    [row] = [row for row in rows if "regnety_016.IMAGENET1K_V2" in row]
    assert (row[0], row[-2]) == ("regnety_016.tv2_in1k", "regnety_016.IMAGENET1K_V2")
    refused(regnet("list", "--license", "gpl"), 2, "there is no license 'gpl'")
