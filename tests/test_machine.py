"""What is told about the machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regnet.machine import GPU_FACTS, environment, gpu_state, what_decides_speed
from tests.marks import posix

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def test_the_environment_of_a_cpu():
    facts = environment(CPU)
    assert facts["threads"] == torch.get_num_threads()
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["cpu"]["count"] >= 1
    assert facts["gpu"] is None
    assert what_decides_speed(CPU).items() <= facts.items()


def test_paths_of_this_machine_stay_here(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/b", "--out=/c/d=1/e.json", "/e=1/f", "--set", "lr=0.1"])
    assert environment(CPU)["command"] == ["b", "--out=e.json", "f", "--set", "lr=0.1"]


def test_the_commit_is_that_of_the_repository():
    told = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    commit = environment(CPU)["commit"]
    assert commit is None if not told else told.startswith(commit.removesuffix("-dirty"))


@posix
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo '570.1, 1980 MHz, 2619 MHz, 41, 112.3 W, 0x0000000000000000, 3 %'", "1980 MHz"),
        ("echo 'Field \"clocks_event_reasons.active\" is not a valid field to query.'", None),
        ("exit 9", None),
    ],
)
def test_the_state_of_a_gpu(tmp_path, monkeypatch, script, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("regnet.machine._gpu_id", lambda device: "GPU-1")
    found = gpu_state(torch.device("cuda", 0))
    assert (found["clocks.sm"] if expected else found) == expected
    assert found is None or tuple(found) == GPU_FACTS
