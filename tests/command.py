"""Functions that run the `regnet` command in tests."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regnet.cli.main import main

Done = subprocess.CompletedProcess[str]


def regnet(
    *arguments: Any, code: int | None = None, stdin: str = "", cwd: Path | None = None
) -> Done:
    """Run the command in this process, because a new process takes seconds to import torch.

    Args:
        arguments: the arguments of the command.
        code: the expected exit code, or None for any.
        stdin: the text of standard input.
        cwd: the folder in which the command runs.
    """
    out, err = io.StringIO(), io.StringIO()
    words = list(map(str, arguments))
    with (
        pytest.MonkeyPatch.context() as patch,
        _inside(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["regnet", *words])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
    found = ended.value.code or 0
    assert code is None or found == code, err.getvalue()
    return subprocess.CompletedProcess(words, int(found), out.getvalue(), err.getvalue())


def regnet_process(*arguments: Any, **options: Any) -> Done:
    """Run the command in a new process; options are those of `subprocess.run`."""
    command = [sys.executable, "-m", "regnet", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "160", **options.pop("env", {})}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False,
        **options,
    )  # fmt: skip


def refused(result: Done, code: int, *words: str) -> list[str]:
    """Check that the command failed and that stderr contains these words; return its lines."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    return result.stderr.strip().splitlines()


@contextlib.contextmanager
def _inside(folder: Path | None) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)
