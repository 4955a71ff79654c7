"""The `regnet` command, as tests call it."""

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
    """Run the command in this process; a process of its own takes seconds to import torch.

    Args:
        arguments: of the command.
        code: the exit code that is expected; None: any.
        stdin: its input.
        cwd: the folder to run it in.
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
    """Run the command in a process of its own; options are those of `subprocess.run`."""
    command = [sys.executable, "-m", "regnet", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "160", **options.pop("env", {})}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False,
        **options,
    )  # fmt: skip


def refused(result: Done, code: int, *words: str) -> list[str]:
    """Check that the command failed with lines on stderr that hold these words; return them."""
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
