"""Write the tables of the documentation from the files that benchmarks wrote.

    python scripts/write_tables.py [--check]

A table stands between `<!-- table NAME -->` and `<!-- end -->`, and is made from
benchmarks/results/NAME.json. --check changes nothing, and fails if a table is not that of its file.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Document = Mapping[str, Any]


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


def cpu_peers(document: Document) -> Iterator[str]:
    """`optimize` against each runtime by hand."""
    labels = list(document["rows"][0]["against"])
    rows = []
    for row in document["rows"]:
        against = [row["against"].get(label) for label in labels]
        rows.append(
            [
                f"{row['model']}, batch {row['batch_size']}, {row['allowed']} allowed",
                row["winner"],
                *("" if found is None else f"{found['ratio']:.2f}" for found in against),
                f"{row['native']}: {1 / row['without_openvino']['ratio']:.2f}",
            ]
        )
    yield from table(["", "chosen", *labels, "without OpenVINO"], rows)
    yield ""
    yield (
        "Time of each runtime over that of `regnet.optimize`; last column: the best that needs "
        f"torch alone, its time over OpenVINO's. {origin(document)}."
    )


def int8(document: Document) -> Iterator[str]:
    """Agreement and speed of int8."""
    rows = []
    for row in document["rows"]:
        fp32, bf16 = (f"{found['ratio']:.2f}x" for found in row["against"].values())
        agreement = f"{row['agreement']:.1%}" if "agreement" in row else ""
        top1 = f"{row['top1_int8']:.1%}" if "top1_int8" in row else ""
        name = f"{row['engine']}, batch {row['batch_size']}"
        rows.append([name, fp32, bf16, agreement, top1])
    yield from table(
        ["int8", "over its fp32", "over its bf16", "same class as fp32", "top-1"], rows
    )
    yield ""
    yield (
        f"{document['variant']}, trained for some minutes on CIFAR-10 upscaled to 224 pixels; "
        f"{document['images']:,} test images, top-1 of fp32 {document['top1_fp32']:.1%}. "
        f"{origin(document)}."
    )


def verdicts(document: Document) -> Iterator[str]:
    """How often the benchmark's verdicts are right."""
    same, slower = document["same"], document["slower by 5 %"]
    yield (
        f"{document['model']} against itself: a difference was shown in "
        f"{same['differences_shown']} of {same['runs']} runs. Slowed by 5 %: in "
        f"{slower['differences_shown']} of {slower['runs']}, medians "
        f"{min(slower['medians']):.3f} to {max(slower['medians']):.3f}. {origin(document)}."
    )


TABLES: Mapping[str, Callable[[Document], Iterator[str]]] = {
    function.__name__: function for function in (cpu_peers, int8, verdicts)
}


def rendered(text: str) -> str:
    """The text with every table as its file has it."""

    def fill(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        document = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        return start + "\n".join(TABLES[name](document)) + "\n" + end

    return PLACE.sub(fill, text)


def main() -> None:
    """Write, or check."""
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            stale.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(after, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"not as the results say: {', '.join(stale)}; run scripts/write_tables.py")


if __name__ == "__main__":
    main()
