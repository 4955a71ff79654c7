"""Compare the published accuracies of checkpoints with those measured on your own images.

    python scripts/check_imagenet.py imagenet/val imagenetv2/* --real real.json --out checks.json
    python scripts/check_imagenet.py imagenet/val --models 'regnety_*.tv2_in1k' --license commercial

Each checkpoint is evaluated on each image set at every setting (image size and crop) for which its
publisher states an accuracy, or once at its default setting if none is stated. Image sets are
recognized by their classes, images and names, as in `regnet evaluate`; if that fails, name the set
with --dataset NAME. A row is written after every evaluation. Run the same command again to resume
after an interruption, even one in the middle of an evaluation: finished evaluations are not
repeated, and failed ones are tried again. At the end, a table shows the verdict of each row.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import regnet
from regnet import digest
from regnet.atomic import write_bytes
from regnet.data.sets import ImageSet, open_set
from regnet.devices import core_count, find_device
from regnet.errors import RegNetError
from regnet.evaluation.evaluate import Evaluation, Published, evaluate
from regnet.machine import environment
from regnet.weights.catalog import find_checkpoint

Setting = tuple[int | None, float | None]


def settings(name: str) -> list[Setting]:
    """Image size and crop of each published accuracy; (None, None) is the default setting."""
    variant, _, tag = name.partition(".")
    found = {(row.image_size, row.crop_pct) for row in find_checkpoint(variant, tag).metrics}
    return sorted(found, key=str) or [(None, None)]


def rows_of(
    name: str, where: Path, setting: Setting, done: Evaluation, published: Published | None
) -> Iterator[dict[str, Any]]:
    """Yield a row for the labels of the set and, if ReaL labels were used, a row for those."""
    shared = {
        "checkpoint": name,
        "weights": done.weights,
        "path": str(where),
        "setting": list(setting),
        "image_size": done.preprocess["size"][0],
        "crop_pct": done.preprocess["crop_pct"],
        "images": done.evaluated,
        "unreadable": done.count - done.evaluated,
    }
    for dataset, top1, beside in (
        (done.dataset, done.top1, published),
        ("imagenet-real", done.real_top1, done.published_real),
    ):
        if top1 is not None:
            yield {
                **shared,
                "dataset": dataset,
                "top1": top1,
                "published": beside and beside.top1,
                "verdict": beside.verdict if beside else "nothing is published",
            }


def check(
    name: str, images: ImageSet, where: Path, setting: Setting, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Evaluate a checkpoint on a set at a setting; a failure becomes a row with its reason."""
    size, crop = setting
    folder = args.keep / f"{name}@{size}x{crop}" / f"{where.name}-{images.fingerprint[:8]}"
    try:
        done = evaluate(
            name,
            images,
            engine=args.engine,
            batch_size=args.batch_size,
            workers=args.workers,
            device=args.device,
            image_size=size,
            crop_pct=crop,
            dataset=args.dataset,
            real_labels=args.real if args.real and _has_real(images) else None,
            keep=folder,
        )
    except RegNetError as error:
        facts = {"checkpoint": name, "path": str(where), "setting": list(setting)}
        return [{**facts, "dataset": args.dataset, "reason": str(error)}]
    return list(rows_of(name, where, setting, done, done.published))


def _has_real(images: ImageSet) -> bool:
    return Path(images.names[0]).name.startswith("ILSVRC2012_val_")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table with a header and one line per row."""
    columns = ("checkpoint", "dataset", "pixels", "measured, %", "published, %", "verdict")
    cells = [columns]
    for row in rows:
        where = row["dataset"] or row["path"]
        if "reason" in row:
            cells.append((row["checkpoint"], where, "", "", "", row["reason"]))
            continue
        published = "" if row["published"] is None else f"{row['published']:.2f}"
        cells.append(
            (
                row["checkpoint"], where, str(row["image_size"]), f"{row['top1']:.2f}", published,
                row["verdict"],
            )
        )  # fmt: skip
    widths = [max(len(cell[number]) for cell in cells) for number in range(len(columns))]
    for line in cells:
        yield "  ".join(
            text.ljust(width) for text, width in zip(line, widths, strict=True)
        ).rstrip()


def main() -> None:
    """Run the evaluations that are missing from the output file, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sets", nargs="+", type=Path, help="folders or files with images")
    parser.add_argument("--models", default="*", help="pattern of checkpoint names")
    parser.add_argument("--license", help="license of the weights, such as commercial")
    parser.add_argument("--real", type=Path, help="the file real.json of ImageNet-ReaL")
    parser.add_argument("--dataset", help="name of the image sets, if they are not recognized")
    parser.add_argument("--engine", default="eager")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=core_count())
    parser.add_argument("--keep", type=Path, default=Path("runs/check_imagenet"))
    parser.add_argument("--out", type=Path, default=Path("check_imagenet.json"))
    args = parser.parse_args()
    names = regnet.list_models(args.models, pretrained=True, license=args.license)
    if not names:
        sys.exit(
            f"check_imagenet: no published checkpoint matches {args.models!r}; "
            "`regnet list --pretrained` lists them all"
        )
    document: dict[str, Any] = {"environment": environment(find_device(args.device)), "rows": []}
    if args.out.exists():
        document["rows"] = json.loads(args.out.read_text())["rows"]
    # Rows with a reason are failures; dropping them makes the loop below try them again.
    rows = [row for row in document["rows"] if "reason" not in row]
    asked = {
        "dataset": args.dataset, "engine": args.engine,
        "real": None if args.real is None else digest.of_file(args.real),
    }  # fmt: skip
    done = {
        (row["checkpoint"], row["path"], *row["setting"])
        for row in rows
        if row.get("asked", asked) == asked
    }
    for where in args.sets:
        images = open_set(where, "val")
        for name in names:
            for setting in settings(name):
                if (name, str(where), *setting) in done:
                    continue
                found = check(name, images, where, setting, args)
                key = (name, str(where), list(setting))  # what other options gave is replaced
                rows = [r for r in rows if (r["checkpoint"], r["path"], r["setting"]) != key]
                rows += [{**row, "asked": asked} for row in found]
                print(json.dumps(rows[-1]), flush=True)
                document["rows"] = rows
                write_bytes(args.out, json.dumps(document, indent=1).encode())
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
