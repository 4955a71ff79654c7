"""Turn reports and benchmark documents that other commands wrote into pages to show."""

import json
from pathlib import Path
from typing import Final

from regnet import documents
from regnet.bench import document, report
from regnet.errors import ConfigError

GENERATOR: Final = '<meta name="generator" content="regnet">'
"""An element that every report of this library contains, by which it is recognized."""


def page(path: Path) -> str:
    """Return the HTML of a report of `regnet bench` or `regnet study`, or of a benchmark document.

    Raises:
        ConfigError: the file is none of these.
        OSError: the file cannot be read.
    """
    try:
        text = documents.text_of(path, "a report")
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(path), path.name)) from error
    if GENERATOR in text[:1000]:
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path.name}: neither a report (.html) that `regnet bench --html` or "
            "`regnet study report` wrote, nor a document (.json) of `regnet bench --out`"
        ) from error
    try:
        return report.render(document.read(path))
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(path), path.name)) from error
