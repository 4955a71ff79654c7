"""The scripts that people run by hand still run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True
    )


def test_the_profile_of_grouped_convolutions(tmp_path):
    out = tmp_path / "a.json"
    done = run(
        "benchmarks/grouped_convs.py", "--device", "cpu", "--models", "regnety_016",
        "--batch-size", "1", "--precisions", "fp32", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert (
        sum(row["count"] for row in rows if row["layout"] == "contiguous" and row["padded"]) == 27
    )
    assert {row["group_width"] for row in rows} == {24}
    assert all(row["ms"] > 0 for row in rows)


@pytest.mark.long
def test_the_peers_of_gpus_on_a_cpu(tmp_path):
    out = tmp_path / "a.json"
    done = run(
        "benchmarks/gpu_peers.py", "--device", "cpu", "--models", "regnetx_002", "--batch-size",
        "1", "--precision", "bf16", "--seconds", "0.5", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [row] = json.loads(out.read_text())["rows"]
    assert row["against"]["compiled"]["ratio"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is there")
def test_the_check_of_gpus_says_what_is_missing(tmp_path):
    done = subprocess.run(
        [ROOT / "scripts/gpu_check.sh", tmp_path], capture_output=True, text=True,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("gpu_check: torch sees no CUDA GPU")
    assert not list(tmp_path.iterdir())
