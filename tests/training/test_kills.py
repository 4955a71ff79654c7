"""Tests of runs that are killed repeatedly: nothing is lost, and the weights are bit-identical."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regnet.training import checkpoint
from regnet.training import run as runs
from regnet.training.loop import start
from regnet.training.run import Run
from tests.marks import linux
from tests.pictures import write_folder
from tests.training.test_recipe import TINY
from tests.training.test_train import (
    FACTS,
    SHORT,
    STREAMED,
    TORCHRUN,
    child,
    data,
    same,
    torchrun,
    torchrun_command,
)

pytestmark = [pytest.mark.long, linux]

__all__ = ["data"]


def test_two_killed_trainings_in_one_folder_give_the_same_bits(data, tmp_path):
    """Both are killed 20 times, at any moment; one of the two is refused each time."""
    recipe, rng = replace(SHORT, epochs=150), random.Random(0)
    run = Run(model=TINY, recipe=recipe, train=str(data), val=str(data), save_steps=1)
    torch.set_num_threads(1)
    start(run, tmp_path / "whole")
    out, kills = tmp_path / "out", 0
    while kills < 20:
        pair = [child(tmp_path / "whole", out) for _ in "ab"]
        time.sleep(rng.uniform(1.5, 4))
        rng.shuffle(pair)
        kills += any(process.poll() is None for process in pair)
        for process in pair:
            process.kill()
            process.communicate()
    finished(child(tmp_path / "whole", out))
    assert same(out, tmp_path / "whole")


def finished(process: subprocess.Popen[str]) -> None:
    """Wait for the last run, which is not killed."""
    process.communicate()
    assert process.returncode == 0


def next_step(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_two_killed_processes_of_torchrun_give_the_same_bits(data, tmp_path):
    """All processes are killed 10 times."""
    recipe, rng = replace(SHORT, epochs=20, micro_batch_size=6), random.Random(0)
    run = Run(model=TINY, recipe=recipe, train=str(data), val=str(data), save_steps=1)
    runs.write(tmp_path, run, FACTS)
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(TORCHRUN)
    torchrun(2, script, tmp_path, tmp_path / "whole", "ddp")
    kills = 0
    while kills < 10:
        process = subprocess.Popen(
            torchrun_command(2, script, tmp_path, out, "ddp"),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        for _ in range(rng.randrange(1, 6)):
            next_step(process)
        kills += process.poll() is None
        subprocess.run(["pkill", "-KILL", "-f", str(script)], check=False)
        process.communicate()
    torchrun(2, script, tmp_path, out, "ddp")
    assert same(out, tmp_path / "whole")


def test_a_killed_worker_ends_the_run_which_resumes_with_the_same_bits(tmp_path):
    """A worker is killed 5 times: each time the run reports it and ends, and is then resumed."""
    write_folder(tmp_path / "data/train", 96, size=(70, 70))
    recipe = replace(STREAMED, epochs=6)
    runs.write(
        tmp_path, Run(model=TINY, recipe=recipe, train=str(tmp_path / "data"), val=None), FACTS
    )
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)

    def begin(out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, script, tmp_path, out, "ddp"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    finished(begin(tmp_path / "whole"))
    rng, kills = random.Random(0), 0
    while kills < 5:
        process = begin(tmp_path / "out")
        for _ in range(rng.randrange(1, 5)):
            next_step(process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii")
        workers = [int(pid) for pid in children.split()]
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        _, told = process.communicate(timeout=120)
        if workers:
            kills += 1
            assert process.returncode == 1
            assert "a worker process that reads images was killed" in told
    finished(begin(tmp_path / "out"))
    assert same(tmp_path / "out", tmp_path / "whole")


def test_a_checkpoint_outlives_damaged_later_ones(tmp_path: Path) -> None:
    def saved(step: int, newest: int = 2) -> Path:
        return checkpoint.save({"epoch": 1, "step": step}, tmp_path, newest=newest)

    saved(0)
    later = saved(500)
    later.write_bytes(later.read_bytes()[:-9] + b"damaged!!")
    resumed = checkpoint.load_last(tmp_path)
    assert resumed is not None
    assert resumed["step"] == 0
    path = saved(100, newest=1)
    assert checkpoint.saved_paths(tmp_path) == [path]
    found = checkpoint.load_last(tmp_path)
    assert found is not None
    assert found["step"] == 100
