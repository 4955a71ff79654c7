"""Tests of worker processes that are killed, hang, or have too little shared memory."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from regnet.data import loading
from regnet.data.loading import load
from regnet.data.preprocess import Preprocess
from regnet.data.sets import open_set
from regnet.errors import ConfigError, DataError
from tests.marks import linux
from tests.pictures import write_folder

LOOK = Preprocess(size=(64, 64))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return open_set(write_folder(tmp_path_factory.mktemp("pictures"), 24))


def read(images, workers):
    batches = load(images, range(len(images)), LOOK, batch_size=4, workers=workers)
    return torch.cat([batch.images for batch in batches])


@linux
def test_no_workers_are_used_if_shared_memory_is_too_small(images, monkeypatch, caplog):
    here = read(images, 0)
    batch = 4 * LOOK(images.open(0)).nbytes
    for free, count in ((0, 0), (3 * batch, 1), (7 * batch, 2), (100 * batch, 2)):
        monkeypatch.setattr(loading, "_free_shared_memory", lambda free=free: free)
        caplog.clear()
        assert loading._workers_that_fit(2, batch) == count
        assert ("--shm-size" in caplog.text) == (count < 2)
    monkeypatch.setattr(loading, "_free_shared_memory", lambda: 0)
    assert torch.equal(read(images, 2), here)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0, "workers": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"batch_size": -5, "workers": 0}, "batch_size must be .* at least 1; got -5"),
        ({"batch_size": 2.5, "workers": 0}, "batch_size must be a whole number"),
        ({"batch_size": 4, "workers": -1}, "workers must be .* at least 0; got -1"),
    ],
)
def test_impossible_numbers_of_images_and_workers_are_refused(images, options, message):
    with pytest.raises(ConfigError, match=message):
        next(load(images, range(len(images)), LOOK, **options))


SMALL_SHM = """
mount -t tmpfs -o size=1m tmpfs /dev/shm &&
exec "$@"
"""


@linux
@pytest.mark.slow
def test_evaluation_works_with_little_shared_memory(tmp_path):
    """A small /dev/shm is mounted for one process and its children, if the user is allowed to."""
    inside = ["unshare", "--mount", "sh", "-c", SMALL_SHM, "sh"]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode == 0:
            data = write_folder(tmp_path, 200, names=("cat", "dog", "frog"))
            command = ["-m", "regnet", "evaluate", data, "--workers", "2", "--batch-size", "64"]
            done = subprocess.run(
                [*inside, sys.executable, *command],
                capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "enough for 0 of 2 worker processes" in done.stderr
            assert "Traceback" not in done.stderr
            return
    pytest.skip("this user may not mount a small /dev/shm")


def children() -> set[int]:
    """Return the living processes that this process started."""
    pid = os.getpid()
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()))


def begun(images):
    """Return the remaining batches, the first two batches, and the workers that read them."""
    others = children()
    batches = load(images, list(range(len(images))) * 40, LOOK, batch_size=4, workers=2)
    first = [next(batches), next(batches)]  # now both workers are running
    workers = children() - others
    return batches, first, [pid for pid in workers if b"resource_tracker" not in command(pid)]


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@linux
def test_a_killed_worker_is_reported(images):
    batches, _, workers = begun(images)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    with pytest.raises(DataError, match=r"was killed \(out of memory\?\)"):
        list(batches)


@linux
def test_a_hung_worker_does_not_block(images, monkeypatch):
    monkeypatch.setattr(loading, "PATIENCE", 2.0)
    batches, _, workers = begun(images)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(DataError, match="has sent nothing for 2 s"):
        list(batches)
    assert time.monotonic() - began < 60
    assert not children() & set(workers)


HANGING = """
import os, signal, sys
from tests.data.test_loading import begun, open_set

batches, _, workers = begun(open_set(sys.argv[1]))
for worker in workers:
    os.kill(worker, signal.SIGSTOP)
raise SystemExit("memory is not enough")
"""


@linux
@pytest.mark.slow
def test_a_process_that_fails_does_not_wait_for_its_workers(images):
    done = subprocess.run(
        [sys.executable, "-c", HANGING, images.source],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip() == "memory is not enough"


@linux
@pytest.mark.slow
def test_workers_ignore_signals_to_the_process_group(images):
    """SLURM signals all processes of a job, and the main process needs its workers to finish."""
    batches, first, workers = begun(images)
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(worker, number)
    seen = [index for batch in [*first, *batches] for index in batch.indices]
    assert seen == list(range(len(images))) * 40
