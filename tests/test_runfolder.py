"""Tests that a folder has one owner at a time, until the owner's process ends."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from regnet import runfolder
from regnet.errors import ConfigError
from tests.marks import posix

HOLD = """
import os, sys, time
from pathlib import Path
from regnet.runfolder import owned
with owned(Path(sys.argv[1]), "testing"):
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    time.sleep(0.5)  # until a child has started
    print("owned", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A function that starts a process which owns a folder."""
    processes = []

    def begin(*options):
        command = [sys.executable, "-c", HOLD, tmp_path / "run", *options]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        processes.append(process)
        assert process.stdout.readline() == "owned\n"
        return process

    yield begin
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@posix
@pytest.mark.parametrize("options", [(), ("fork",)])
def test_a_second_process_learns_the_owner_and_gets_the_folder_after_a_kill(
    tmp_path, holder, options
):
    process, folder = holder(*options), tmp_path / "run"
    message = (
        rf"run is in use: process {process.pid} on .* has been testing there since .*; wait until"
    )
    with pytest.raises(ConfigError, match=message), runfolder.owned(folder, "training"):
        pass
    process.kill()
    process.wait()
    with runfolder.owned(folder, "training"):  # even though a forked child may still be alive
        assert folder.is_dir()


def test_an_owner_in_the_same_process_counts_too(tmp_path):
    with runfolder.owned(tmp_path, "training"):
        with pytest.raises(ConfigError, match="is in use"), runfolder.owned(tmp_path, "training"):
            pass
        (tmp_path / "result").touch()
    with runfolder.owned(tmp_path, "training"):
        assert runfolder.contents(tmp_path) == ["result"]


def test_a_run_that_fails_to_begin_leaves_no_files(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        runfolder.owned(tmp_path / "new" / "run", "training"),
    ):
        1 / 0  # noqa: B018 - raises an error
    assert not (tmp_path / "new" / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"), runfolder.owned(tmp_path / "file", "x"):
        pass


def test_a_begun_run_is_read_from_its_folder_or_document(tmp_path):
    runfolder.begin(tmp_path, "run.json", {"seed": 3})
    for path in (tmp_path, tmp_path / "run.json"):
        assert runfolder.begun(path, "run.json", "a run") == {"seed": 3}
    with pytest.raises(ConfigError, match=r"there is no study.json; name the folder of a study"):
        runfolder.begun(tmp_path, "study.json", "a study")
    with pytest.raises(ConfigError, match="there is no such file"):
        runfolder.begun(tmp_path / "none.json", "run.json", "a run")
    with pytest.raises(ConfigError, match=r"none: there is no run.json"):
        runfolder.begun(tmp_path / "none", "run.json", "a run")
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace("3", "4", 1))
    with pytest.raises(ConfigError, match="not as it was written"):
        runfolder.begun(tmp_path, "run.json", "a run")
