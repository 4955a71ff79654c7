"""The checkpoint table: one row per published set of weights, read from the files in `weights/`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from regnet.data.preprocess import Preprocess
from regnet.errors import WeightsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One set of weights of one variant."""

    variant: str
    tag: str
    file: str
    """Name of the safetensors file beside the table."""
    sha256: str
    license: str
    dataset: str
    num_classes: int
    preprocess: Preprocess
    labels: tuple[str, ...]
    """Name of each class."""
    metrics: Mapping[str, float]
    """Published or measured figures, in percent."""
    command: str
    """What made it."""

    @property
    def id(self) -> str:
        """`variant.tag`, the name that `create` takes."""
        return f"{self.variant}.{self.tag}"


def data_dir() -> Path:
    """The folder of the tables and the embedded checkpoint: in the package, or in a checkout."""
    installed = Path(__file__).parent / "data"
    checkout = Path(__file__).parents[3] / "weights"
    for folder in (installed, checkout):
        if (folder / "embedded.json").is_file():
            return folder
    raise WeightsError(f"the package's data is missing from {installed}; install regnet again")


@cache
def checkpoints() -> Mapping[str, Checkpoint]:
    """All rows by id."""
    rows = json.loads((data_dir() / "embedded.json").read_text(encoding="utf-8"))
    return {row.id: row for row in (_row(values) for values in rows)}


def find_checkpoint(variant: str, tag: str | None = None) -> Checkpoint:
    """The checkpoint of this variant and tag; without a tag, the variant's first.

    Raises:
        WeightsError: there is none.
    """
    of_variant = [row for row in checkpoints().values() if row.variant == variant]
    for row in of_variant:
        if tag in (None, row.tag):
            return row
    if of_variant:
        tags = ", ".join(row.tag for row in of_variant)
        raise WeightsError(f"{variant} has no weights tagged {tag!r}; it has {tags}")
    known = ", ".join(checkpoints())
    raise WeightsError(f"there are no weights for {variant} in this version; there are {known}")


def _row(values: dict[str, Any]) -> Checkpoint:
    transform: dict[str, Any] = values["preprocess"]
    values |= {"preprocess": Preprocess(**transform), "labels": tuple(values["labels"])}
    return Checkpoint(**values)
