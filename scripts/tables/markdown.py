"""What all tables share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"

Document = Mapping[str, Any]
Table = Callable[[Document], Iterator[str]]
Tables = Mapping[str | Path, tuple[Table, ...]]
"""The functions that make tables, by the file below `RESULTS` that they read. A table has the name
of its function."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Markdown; the first column left, numbers right."""
    yield f"| {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * (len(columns) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def origin(document: Document) -> str:
    """Date, hardware and versions, in one line."""
    facts = document["environment"]
    versions = ", ".join(
        f"{name} {facts['packages'][name].partition('+')[0]}"
        for name in ("torch", "onnxruntime", "openvino", "nncf", "torchao")
        if name in facts["packages"]
    )
    flags = " ".join(flag for flag in facts["cpu"].get("flags", ()) if flag != "avx2")
    return (
        f"{facts['date'][:10]}, {facts['device']}, {facts['threads']} threads ({flags}), {versions}"
    )
