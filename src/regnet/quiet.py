"""Silence other libraries while this one calls them, and switch off their usage reports."""

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
"""A regular expression that matches every message, with a comment by which the filter is found."""

_lock = threading.Lock()
_inside: Counter[str] = Counter()
_levels: dict[str, int] = {}


def imported(name: str) -> Any:
    """Import OpenVINO or NNCF with their usage reports switched off.

    Both packages report each import and each conversion to a server. Each report starts a process,
    and in a worker of a pool that process first imports torch. Both packages send nothing if
    `openvino_telemetry` is not installed, so this function makes it look absent. A package that the
    program has already imported keeps its own setting.

    Raises:
        ImportError: the package is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: absent
    return import_module(name)


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Suppress warnings, and all messages of a logger below the level of errors.

    Filters and levels apply to all threads of the process. The first thread that enters therefore
    sets them, and the last one that leaves undoes exactly that, and no changes by others.
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
    assert isinstance(filters, list)  # typeshed declares only a sequence
    filters[:] = [f for f in filters if getattr(f[1], "pattern", None) != _EVERYTHING]
