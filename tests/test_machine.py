"""Tests of the reported facts about the machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regnet import machine
from regnet.machine import GPU_FACTS, _Seconds, environment, gpu_state, what_decides_speed
from tests.marks import posix

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def test_the_environment_describes_the_cpu():
    facts = environment(CPU)
    assert facts["threads"] == torch.get_num_threads()
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["cpu"]["count"] >= 1
    assert facts["gpu"] is None
    assert what_decides_speed(CPU).items() <= facts.items()


def test_the_recorded_command_has_no_folders(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/b", "--out=/c/d=1/e.json", "/e=1/f", "--set", "lr=0.1"])
    assert environment(CPU)["command"] == ["b", "--out=e.json", "f", "--set", "lr=0.1"]


def test_the_commit_is_that_of_the_repository():
    told = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    commit = environment(CPU)["commit"]
    assert commit is None if not told else told.startswith(commit.removesuffix("-dirty"))


QUIET = _Seconds(all=100, used=50, own=40, stolen=0)
WAITED = {"1": (10**9, 0)}


@pytest.mark.parametrize(
    ("after", "waited", "throttled", "told"),
    [
        (_Seconds(all=110, used=58, own=48, stolen=0), 0, 0.0, None),
        # Others ran: this is a problem if this process waited, and none if there was room for both.
        (_Seconds(all=110, used=60, own=45, stolen=0), 10**9, 0.0, "others used 50%"),
        (_Seconds(all=110, used=60, own=45, stolen=0), 0, 0.0, None),
        # Its own threads waited for each other.
        (_Seconds(all=110, used=60, own=50, stolen=0), 10**9, 0.0, None),
        (_Seconds(all=110, used=55, own=45, stolen=3), 0, 0.0, "its host took 30%"),
        (_Seconds(all=110, used=55, own=45, stolen=0), 0, 1e9, "quota of processors was used up"),
        (None, 0, 0.0, None),
    ],
)
def test_time_that_a_process_had_to_wait_is_reported(monkeypatch, after, waited, throttled, told):
    monkeypatch.setattr(machine, "_processors", lambda: QUIET)
    monkeypatch.setattr(machine, "_waited", lambda: WAITED)
    monkeypatch.setattr(machine, "_throttled", lambda: 0.0)
    waiting = machine.Waiting()
    monkeypatch.setattr(machine, "_processors", lambda: after)
    monkeypatch.setattr(machine, "_waited", lambda: {"1": (2 * 10**9, waited)})
    monkeypatch.setattr(machine, "_throttled", lambda: throttled)
    assert (waiting.problem is None) == (told is None)
    assert (told or "") in (waiting.problem or "")


@posix
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo '570.1, 1980 MHz, 2619 MHz, 41, 112.3 W, 0x0000000000000000, 3 %'", "1980 MHz"),
        ("echo 'Field \"clocks_event_reasons.active\" is not a valid field to query.'", None),
        ("exit 9", None),
    ],
)
def test_the_state_of_a_gpu_is_reported(tmp_path, monkeypatch, script, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("regnet.machine._gpu_id", lambda device: "GPU-1")
    found = gpu_state(torch.device("cuda", 0))
    assert (found["clocks.sm"] if expected else found) == expected
    assert found is None or tuple(found) == GPU_FACTS
