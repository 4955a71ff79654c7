"""Silence other libraries while we call them, and switch off their usage reports."""

import logging
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

_EVERYTHING: Final = "(?#regnet.quiet)"
"""A pattern that every message fits, and by which our filter is known among those of others."""

_lock = threading.Lock()
_inside: Counter[str] = Counter()
_levels: dict[str, int] = {}


def imported(name: str) -> Any:
    """Import OpenVINO or NNCF with their usage reports switched off.

    Both report each import and each conversion to a server. Every report starts a process, and in a
    worker of a pool that process imports torch first. Both packages send nothing where
    `openvino_telemetry` is not installed, which is what they find here. A package that the program
    imported by itself before keeps its own setting.

    Raises:
        ImportError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if not there
    return import_module(name)


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Let through errors only from a logger, and no warnings.

    Filters and levels belong to the whole process: the first thread that enters sets them, the last
    one that leaves takes back what was set, and nothing else.
    """
    other = logging.getLogger(logger)
    with _lock:
        if not _inside.total():
            warnings.filterwarnings("ignore", message=_EVERYTHING)
        if not _inside[logger]:
            _levels[logger] = other.level
            other.setLevel(logging.ERROR)
        _inside[logger] += 1
    try:
        yield
    finally:
        with _lock:
            _inside[logger] -= 1
            if not _inside[logger]:
                other.setLevel(_levels.pop(logger))
            if not _inside.total():
                _take_back_filter()


def _take_back_filter() -> None:
    filters = warnings.filters
    assert isinstance(filters, list)  # typeshed calls it a sequence
    filters[:] = [f for f in filters if getattr(f[1], "pattern", None) != _EVERYTHING]
