"""Bring the tables of published weights in `weights/` up to date.

    python scripts/update_catalog.py --pin
    python scripts/update_catalog.py --timm-results PATH/pytorch-image-models/results
    python scripts/update_catalog.py --check

--pin asks the Hub for the newest commit of each repository, the name, size and SHA-256 of its
weights and its license, and writes them into the tables; a license that differs from ours stops
it. --timm-results takes accuracies from timm's result files. --check writes nothing and fails if
the files are not as this script writes them. New weights are a new row, by hand, then --pin.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import track

from regnet.weights.files import USUAL_NAMES

WEIGHTS = Path(__file__).parents[1] / "weights"
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
"""timm's result files, and what we call their data sets."""

Row = dict[str, Any]


def read(collection: str) -> list[Row]:
    """The rows of a table."""
    rows: list[Row] = json.loads((WEIGHTS / f"{collection}.json").read_text(encoding="utf-8"))
    return rows


def render(rows: list[Row]) -> str:
    """A table as text: one row per line, fields in one order, nothing that says nothing."""
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
    """The row with what the Hub says of its repository."""
    found = api.model_info(row["repo"], files_metadata=True)
    files = {file.rfilename: file for file in found.siblings}
    name = row.get("file") or next((name for name in USUAL_NAMES if name in files), None)
    if name not in files:
        raise LookupError(f"{row['repo']}: none of {', '.join(USUAL_NAMES)} is there")
    card: Mapping[str, Any] = found.card_data or {}
    stated = card.get("license_name") or card.get("license")
    if stated and row["license"] == "unknown":
        row = row | {"license": stated}
    elif stated and stated not in (row["license"], f"{row['license']}-license"):
        raise LookupError(f"{row['repo']} states the license {stated!r}, we {row['license']!r}")
    lfs = files[name].lfs
    sha256 = lfs.sha256 if lfs else None
    return row | {"revision": found.sha, "file": name, "sha256": sha256, "size": files[name].size}


def timm_metrics(folder: Path) -> dict[str, list[Row]]:
    """Accuracies by timm's model name."""
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
    """The row with timm's accuracies, the default image size first; as it was if timm has none."""
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
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--timm-results", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    tables = {collection: read(collection) for collection in COLLECTIONS}
    if args.timm_results:
        metrics = timm_metrics(args.timm_results)
        tables["timm"] = [measured(row, metrics) for row in tables["timm"]]
    if args.pin:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi(library_name="regnet")
        problems = []
        for collection, rows in tables.items():
            for number, row in enumerate(track(rows, collection)):
                try:
                    rows[number] = pinned(row, api) if row.get("repo") else row
                except (LookupError, HfHubHTTPError) as error:
                    problems.append(str(error))
        if problems:
            sys.exit("nothing was written:\n" + "\n".join(problems))
    stale = []
    for collection, rows in tables.items():
        path, text = WEIGHTS / f"{collection}.json", render(rows)
        if path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if not args.check:
                path.write_text(text, encoding="utf-8")
    if args.check and stale:
        sys.exit(f"{', '.join(stale)}: not as this script writes them; run it without --check")
    print(f"{sum(map(len, tables.values()))} rows, {len(stale)} files changed")


if __name__ == "__main__":
    main()
