"""Update the tables of published weights in `weights/`.

    python scripts/update_catalog.py --pin
    python scripts/update_catalog.py --pin 'regnety_016.*' --keep
    python scripts/update_catalog.py --timm-results PATH/pytorch-image-models/results
    python scripts/update_catalog.py --check

--pin downloads each file of weights and writes its commit, name, size and SHA-256 into the tables.
The weights are loaded, and their logits on a photo are compared with those of the publisher's own
library (timm, torchvision or transformers) if it is installed. If the license differs, the weights
do not load, or the logits differ, the row is left unchanged and the problem is reported. Finished
rows are recorded in build/pin.jsonl, so that an interrupted run can be resumed with the same
command. A file is deleted after it was verified, unless it was in the cache before or --keep is
given; the largest file has 38 GB.

--timm-results reads accuracies from timm's result files. --check writes nothing and fails if the
tables are not formatted as this script writes them. To add weights, write a new row into a table
and run --pin.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from rich.progress import track

from regnet import create, documents
from regnet.errors import RegNetError
from regnet.weights.catalog import Checkpoint, from_row
from regnet.weights.download import Fetch, cached_files, fetch, fetch_file
from regnet.weights.files import USUAL_NAMES
from regnet.weights.integrity import sha256_of

WEIGHTS = Path(__file__).parents[1] / "weights"
PHOTO = WEIGHTS.parent / "docs/photos/chelsea.png"

SAME = 1e-4
"""Largest difference between two logits, as a fraction of the largest logit, that counts as equal;
both sides are computed in float32."""

COLLECTIONS = ("embedded", "timm", "torchvision", "pycls", "transformers", "vissl", "swag")

FIELDS = (
    "variant", "tag", "upstream", "repo", "revision", "file", "url", "sha256", "size", "format",
    "bgr", "license", "num_classes", "labels", "preprocess", "test", "metrics", "metrics_source",
    "origin", "note", "command",
)  # fmt: skip

RESULTS = {
    "results-imagenet.csv": "imagenet-1k",
    "results-imagenet-real.csv": "imagenet-real",
    "results-imagenetv2-matched-frequency.csv": "imagenet-v2-matched-frequency",
    "results-imagenet-a.csv": "imagenet-a",
    "results-imagenet-r.csv": "imagenet-r",
    "results-sketch.csv": "imagenet-sketch",
}
"""timm's result files, and our names for their data sets."""

Row = dict[str, Any]


def read(collection: str) -> list[Row]:
    """Read the rows of a table."""
    rows: list[Row] = json.loads((WEIGHTS / f"{collection}.json").read_text(encoding="utf-8"))
    return rows


def render(rows: list[Row]) -> str:
    """Format a table as JSON: one row per line, fields in the order of `FIELDS`, none empty."""
    lines = []
    for row in rows:
        if strangers := row.keys() - set(FIELDS):
            raise SystemExit(f"{row['variant']}.{row['tag']}: unknown fields {sorted(strangers)}")
        kept = {
            field: row[field]
            for field in FIELDS
            if field in row and (row[field] not in (None, False, []) or field == "num_classes")
        }
        lines.append(json.dumps(kept, ensure_ascii=False))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def pinned(row: Row, api: Any) -> Row:
    """Return the row with the commit, file, SHA-256 and size that the Hub reports.

    Raises:
        LookupError: the repository has no weights, or states another license than the row.
    """
    found = api.model_info(row["repo"], files_metadata=True)
    files = {file.rfilename: file for file in found.siblings}
    name = row.get("file") or next((name for name in USUAL_NAMES if name in files), None)
    if name not in files:
        raise LookupError(f"{row['repo']}: it has none of the files {', '.join(USUAL_NAMES)}")
    card: Mapping[str, Any] = found.card_data or {}
    stated = card.get("license_name") or card.get("license")
    if stated and row["license"] == "unknown":
        row = row | {"license": stated}
    elif stated and stated not in (row["license"], f"{row['license']}-license"):
        raise LookupError(
            f"{row['repo']} states the license {stated!r}, our row {row['license']!r}; "
            "correct the row"
        )
    lfs = files[name].lfs
    sha256 = lfs.sha256 if lfs else None
    return row | {"revision": found.sha, "file": name, "sha256": sha256, "size": files[name].size}


# Pinning


@dataclass(frozen=True, kw_only=True)
class Pin:
    """The result of pinning a row."""

    id: str
    row: Row
    """The pinned row, or the unchanged row if there is a problem."""
    problem: str | None = None
    library: str | None = None
    """The library whose logits were compared with ours."""
    difference: float | None = None
    """The largest difference between two logits, as a fraction of the largest logit."""
    seconds: float


def pin(row: Row, collection: str, api: Any, *, cache: Path | None, keep: bool) -> Pin:
    """Download, verify and load the weights of a row, and compare their logits."""
    began, before = time.monotonic(), row
    fetched: list[Path] = []
    library, difference, problem = None, None, None
    how = Fetch(cache_dir=cache)
    try:
        held = cached_files(from_row(row, collection), how)
        row = pinned(row, api) if row.get("repo") else row
        checkpoint = from_row(row, collection)
        path = fetch(checkpoint, how)
        fetched = [file for file in cached_files(checkpoint, how) if file not in held]
        if not row.get("repo"):
            row = row | {"sha256": sha256_of(path), "size": path.stat().st_size}
        images = _photo(checkpoint)
        ours = _logits(create(row["variant"], checkpoint_path=path, num_classes=None), images)
        library, theirs = publishers_logits(checkpoint, path, images, how)
        if theirs is not None:
            difference = float((ours - theirs).abs().max() / theirs.abs().max())
            if not difference < SAME:
                problem = f"logits differ from those of {library} by {difference:.2g}"
    except (LookupError, HfHubHTTPError, RegNetError, OSError, MemoryError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
    if not keep:
        for file in fetched:
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)
    return Pin(
        id=id_of(row), row=before if problem else row, problem=problem, library=library,
        difference=difference, seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip


def id_of(row: Row) -> str:
    """Return our name of the weights of a row."""
    return f"{row['variant']}.{row['tag']}"


def _photo(checkpoint: Checkpoint) -> torch.Tensor:
    return checkpoint.preprocess(PHOTO)[None]


def _logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found = model.eval()(images)
    return getattr(found, "logits", found)


def publishers_logits(
    checkpoint: Checkpoint, path: Path, images: torch.Tensor, how: Fetch
) -> tuple[str | None, torch.Tensor | None]:
    """Return the name of the publisher's library and its logits, or (None, None) without it."""
    build = LIBRARIES.get(checkpoint.format)
    if build is None or not checkpoint.num_classes:
        return None, None
    try:
        return checkpoint.format, _logits(build(checkpoint, path, how), images)
    except ImportError:
        return None, None


def _timm(checkpoint: Checkpoint, path: Path, how: Fetch) -> Any:
    del how
    import timm

    return timm.create_model(
        checkpoint.variant, num_classes=checkpoint.num_classes, checkpoint_path=str(path)
    )


def _torchvision(checkpoint: Checkpoint, path: Path, how: Fetch) -> Any:
    del how
    from torchvision.models import get_model

    model = get_model((checkpoint.upstream or "").partition(".")[0], weights=None)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def _transformers(checkpoint: Checkpoint, path: Path, how: Fetch) -> Any:
    from transformers import RegNetForImageClassification

    fetch_file(checkpoint.repo or "", "config.json", checkpoint.revision, how)
    return RegNetForImageClassification.from_pretrained(path.parent, local_files_only=True)


LIBRARIES: Mapping[str, Callable[[Checkpoint, Path, Fetch], Any]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}
"""Functions that build the publisher's own network, by the format of its files."""


def pin_tables(tables: dict[str, list[Row]], args: argparse.Namespace) -> list[Pin]:
    """Pin the rows that match --pin, and record each result as soon as it is known."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="regnet")
    args.state.parent.mkdir(parents=True, exist_ok=True)
    known = documents.lines(args.state, "a pin") if args.state.exists() else []
    done = {p["id"]: Pin(**p) for p in known if not p["problem"]}
    pins = []
    for collection, rows in tables.items():
        for number, row in enumerate(track(rows, collection, disable=not sys.stderr.isatty())):
            name = id_of(row)
            if from_row(row, collection).is_local or not fnmatch(name, args.pin):
                continue
            found = done.get(name)
            if found is None:
                found = pin(row, collection, api, cache=args.cache, keep=args.keep)
                with args.state.open("ab") as file:
                    file.write(documents.line(asdict(found)))
            pins.append(found)
            rows[number] = row | found.row
    return pins


def report(pins: list[Pin]) -> str:
    """Summarize the results of all rows: a line for each problem, and a line of counts."""
    compared = [p for p in pins if p.difference is not None and not p.problem]
    lines = [f"{p.id}: {p.problem}" for p in pins if p.problem]
    worst = max((p.difference or 0.0 for p in compared), default=0.0)
    lines.append(
        f"{len(pins)} rows: {sum(not p.problem for p in pins)} pinned and loaded, "
        f"{len(compared)} compared with their publisher's library (largest difference "
        f"{worst:.1e}), {sum(bool(p.problem) for p in pins)} with problems"
    )
    return "\n".join(lines)


def timm_metrics(folder: Path) -> dict[str, list[Row]]:
    """Read accuracies from timm's result files, by timm's model name."""
    metrics: dict[str, list[Row]] = {}
    for name, dataset in RESULTS.items():
        with (folder / name).open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                metrics.setdefault(line["model"], []).append(
                    {
                        "dataset": dataset,
                        "top1": float(line["top1"]),
                        "top5": float(line["top5"]),
                        "image_size": int(line["img_size"]),
                        "crop_pct": float(line["crop_pct"]),
                    }
                )
    return metrics


def measured(row: Row, metrics: Mapping[str, list[Row]]) -> Row:
    """Return the row with timm's accuracies, or the unchanged row if timm has none.

    Accuracies are sorted by data set in the order of `RESULTS`, then by image size.
    """
    found = metrics.get(f"{row['variant']}.{row['tag']}")
    if not found:
        return row
    order = list(RESULTS.values())
    key = lambda metric: (order.index(metric["dataset"]), metric["image_size"])  # noqa: E731
    return row | {"metrics": sorted(found, key=key)}


def main() -> None:
    """Update or check the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pin", nargs="?", const="*", metavar="PATTERN")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--cache", type=Path, help="folder for the files; default: the Hub's cache")
    parser.add_argument("--state", type=Path, default=WEIGHTS.parent / "build/pin.jsonl")
    parser.add_argument("--timm-results", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    tables = {collection: read(collection) for collection in COLLECTIONS}
    if args.timm_results:
        metrics = timm_metrics(args.timm_results)
        tables["timm"] = [measured(row, metrics) for row in tables["timm"]]
    pins = pin_tables(tables, args) if args.pin else []
    stale = []
    for collection, rows in tables.items():
        path, text = WEIGHTS / f"{collection}.json", render(rows)
        if path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if not args.check:
                path.write_text(text, encoding="utf-8")
    if args.check and stale:
        sys.exit(f"{', '.join(stale)}: out of date; run scripts/update_catalog.py without --check")
    print(f"{sum(map(len, tables.values()))} rows, {len(stale)} files changed")
    if pins:
        print(report(pins))
    if any(p.problem for p in pins):
        sys.exit(1)


if __name__ == "__main__":
    main()
