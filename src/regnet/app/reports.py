"""Turn reports that our other commands wrote into pages to show."""

import json
from pathlib import Path
from typing import Final

from regnet import documents
from regnet.bench import document, report
from regnet.errors import ConfigError

GENERATOR: Final = '<meta name="generator" content="regnet">'
"""What reports carry, so that they are known again."""


def page(path: Path) -> str:
    """The HTML of a report of `regnet bench` or `regnet study`, or of a benchmark's document.

    Raises:
        ConfigError: it is none of these.
        OSError: it cannot be read.
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
    return report.render(document.read(path))
