"""Tests of our kernels against float32, in Triton's interpreter and on GPUs, and in networks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regnet
from regnet.engines.base import Target, relative_error
from regnet.engines.fused import Fused
from regnet.engines.transforms import folded
from regnet.errors import EngineError
from regnet.kernels.launch import HAS_TRITON
from regnet.kernels.network import fused
from tests.kernels import cases

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def network(name, **options):
    torch.manual_seed(0)
    model = regnet.create(name, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.7, 1.3)
            module.bias.data.normal_(0, 0.1)
    return model


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernels_are_correct_in_tritons_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.cases"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    errors = dict(map(json.loads, done.stdout.splitlines()))
    assert len(errors) > 20
    bound = cases.BOUNDS[torch.float16]
    assert {name: error for name, error in errors.items() if not error < bound} == {}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", cases.BOUNDS)
@pytest.mark.parametrize("widths", [[], *([g] for g in cases.GROUP_WIDTHS)], ids=str)
def test_kernels_are_correct_on_a_gpu(dtype, widths):
    """Only the first way of each kind is run: compiling all ways one by one would take minutes."""
    checked = cases.check("cuda", dtype, thin=True, widths=widths or None, sides=cases.SIDES)
    errors = dict(checked)
    assert {name: e for name, e in errors.items() if not e < cases.BOUNDS[dtype]} == {}


@pytest.mark.parametrize(
    "name", ["regnetx_002", "regnety_002", "regnetx_006", "regnety_006", "regnety_cifar.cifar10"]
)
def test_a_network_of_kernels_computes_the_same_function(name):
    model = network(name)
    side = 32 if "cifar" in name else 75
    x = torch.randn(2, 3, side, side - 3)
    with torch.inference_mode():
        found = fused(folded(model), torch.float16)(x.half())
        assert found.dtype == torch.float32
        assert relative_error(found, model(x)) < 2e-3


def test_a_network_of_kernels_without_a_classifier_gives_features():
    model = network("regnety_002", num_classes=0)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found = fused(folded(model), torch.float16)(x.half())
        assert relative_error(found, model(x)) < 2e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("regnetz_b16", {}),
        ("regnetv_040", {}),
        ("nf_regnet_b0", {}),
        ("haloregnetz_b", {}),
        ("resnet50", {}),
        ("regnety_002", {"output_stride": 8}),
        ("regnety_002", {"global_pool": "max"}),
    ],
)
def test_other_networks_are_refused(name, options):
    with pytest.raises(EngineError, match="for RegNetX and RegNetY"):
        fused(folded(network(name, **options)), torch.float16)


def test_obstacles():
    engine, cpu, cuda = Fused(), torch.device("cpu"), torch.device("cuda")
    if HAS_TRITON:
        assert engine.obstacle(Target(device=cuda)) == "for half precision only"
        assert engine.obstacle(Target(device=cpu, precision="bf16")) == "for CUDA devices only"
        assert engine.obstacle(Target(device=cuda, precision="fp16")) is None
        contiguous = Target(device=cuda, precision="fp16", layout="contiguous")
        assert engine.obstacle(contiguous) == "it chooses its own layout"
    else:
        assert engine.obstacle(Target(device=cuda, precision="fp16")).startswith("needs Triton")
