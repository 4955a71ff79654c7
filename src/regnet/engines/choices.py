"""Save the results of races on disk, because a race takes long and its result rarely changes."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from regnet import digest, documents
from regnet.errors import RegNetError
from regnet.paths import expanded

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of the files: `regnet/choices` in XDG_CACHE_HOME, or in ~/.cache."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "regnet" / "choices"


def key_of(model: nn.Module, facts: Mapping[str, Any]) -> str:
    """Return a key for a network, whatever its weights, and the conditions of its race."""
    shapes = [(k, getattr(value, "shape", value)) for k, value in model.state_dict().items()]
    text = json.dumps([str(model), shapes, facts], sort_keys=True, default=str)
    return digest.of_bytes(text.encode())[:32]


def recall(key: str) -> list[dict[str, Any]] | None:
    """Return the rows that were saved under a key; None if there are none that can be used."""
    try:
        found = documents.read(cache_folder() / f"{key}.json", "the result of a race")
    except (OSError, RegNetError):
        return None
    rows = found.get("rows")
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None


def remember(key: str, rows: list[dict[str, Any]]) -> None:
    """Save rows under a key; if the cache cannot be written, only a warning is logged."""
    try:
        path = cache_folder() / f"{key}.json"
        if not path.is_absolute():
            raise FileNotFoundError("this user has no home folder; set XDG_CACHE_HOME")
        path.parent.mkdir(parents=True, exist_ok=True)
        documents.write(path, {"rows": rows})
    except OSError as error:
        _log.warning("the choice of engine is not saved: %s", error)
