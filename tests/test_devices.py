"""Tests of what the environment variables say about this process."""

import os
from pathlib import Path

import pytest

from regnet.devices import Launched, core_count, launched
from regnet.engines.choices import cache_folder, remember
from regnet.errors import ConfigError
from regnet.paths import expanded
from tests.command import refused, regnet_process
from tests.marks import posix

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def started(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def start(*values):
        for name, value in zip(NAMES, values, strict=False):
            if value is not None:
                monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), Launched()),
        (("", "", "", ""), Launched()),
        (("0", "1"), Launched()),
        (("3", "8", "1", "2"), Launched(rank=3, size=8, local_rank=1, local_size=2)),
        (("1", "2"), Launched(rank=1, size=2, local_rank=1, local_size=2)),
    ],
)
def test_processes_of_torchrun_are_recognized(started, values, expected):
    started(*values)
    assert launched() == expected
    assert core_count() >= 1


@pytest.mark.parametrize(
    "values",
    [(None, "2"), ("0", ""), ("", "2"), ("2", "2"), ("-1", "2"), ("one", "2"), ("0", "2", "3", "2"),
     ("0", "0"), ("0", "2", "0", "0"), ("0", "1", "0", "8")],
)  # fmt: skip
def test_half_an_environment_is_refused(started, values):
    started(*values)
    with pytest.raises(ConfigError, match="not as torchrun sets it: RANK="):
        launched()


def test_a_command_reports_half_an_environment_in_one_line(tmp_path):
    done = regnet_process(
        "train", "shapes:12", "--model", "regnety_cifar", "--out", tmp_path / "r",
        env={"WORLD_SIZE": "2"},
    )  # fmt: skip
    [line] = refused(done, 2, "not as torchrun sets it")
    assert line.startswith("error: ")


@posix
def test_a_user_without_a_home_is_supported(monkeypatch, caplog):
    def nobody(_):
        raise KeyError("no entry")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert cache_folder() == Path("~/.cache/regnet/choices")
    remember("key", [])
    assert "no home folder; set XDG_CACHE_HOME" in caplog.text
    assert not Path("~").exists()
    assert expanded("~nobody-at-all/x") == Path("~nobody-at-all/x")
    assert expanded(os.curdir) == Path(os.curdir)
