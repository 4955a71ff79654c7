"""Compare the recipe `finetune` with random weights and with training the classifier only; JSON.

    python benchmarks/finetune.py --photos photos/ --cifar cifar10/ --out finetune.json

The weights that come with the package are fine-tuned on small data sets, with five seeds each:

- shapes: 240 drawn shapes of six classes, tested on 360 others
- photos: photos in class folders, sorted into two classes by their folder's number; tested on half
- cifar: 200 images of CIFAR-10's test set, tested on 400 others (the weights saw neither)

Every method trains for the same number of epochs on the same images at the same size, which takes
the same time whichever weights are trained. Rows that are already in --out are not repeated.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from scipy import stats

import regnet
from regnet.atomic import write_bytes
from regnet.data.shapes import CLASSES, Shapes
from regnet.machine import environment
from regnet.training.recipe import find_recipe
from regnet.training.session import Options

START = "regnety_cifar.cifar10"
EPOCHS = 20
SEEDS = 5
WAYS = {
    "finetune": (START, find_recipe("finetune", epochs=EPOCHS)),
    "random weights": (
        "regnety_cifar",
        replace(
            find_recipe("cifar", epochs=EPOCHS, batch_size=32),
            lr=0.2,
            precision="fp32",
            crop="resized",
            min_area=0.35,
            cutout=0,
        ),
    ),
    "classifier alone": (
        START,
        replace(find_recipe("finetune", epochs=EPOCHS), layer_decay=1e-9, lr=0.4),
    ),
}


def shapes(folder: Path) -> None:
    """Write 240 drawn shapes for training and 360 for testing, in class folders."""
    for split, count in (("train", 240), ("val", 360)):
        drawn = Shapes(split)
        for index in range(count):
            place = folder / split / CLASSES[index % len(CLASSES)]
            place.mkdir(parents=True, exist_ok=True)
            drawn.open(index).save(place / f"{index:05d}.png")


def photos(source: Path, folder: Path) -> None:
    """Link photos into two classes; every second photo is for testing."""
    files = [(n, path) for n, place in enumerate(sorted(source.iterdir())) if place.is_dir()
             for path in sorted(place.iterdir())]  # fmt: skip
    last = max(number for number, _ in files)
    for index, (number, path) in enumerate(files):
        to = folder / ("train", "val")[index % 2] / ("first", "second")[2 * number > last]
        to.mkdir(parents=True, exist_ok=True)
        (to / f"{path.parent.name}-{path.name}").symlink_to(path.absolute())


def cifar(source: Path, folder: Path) -> None:
    """Write 200 of CIFAR-10's test images for training and 400 others for testing."""
    [file] = sorted(source.rglob("*test*.parquet"))
    rows = pq.read_table(file).slice(0, 600).to_pylist()
    for index, row in enumerate(rows):
        image, label = row.get("img") or row["image"], row["label"]
        to = folder / ("train" if index < 200 else "val") / str(label)
        to.mkdir(parents=True, exist_ok=True)
        (to / f"{index:05d}.png").write_bytes(image["bytes"])


def main() -> None:
    """Train with every method, data set and seed, and write the document after each run."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    document: dict[str, Any] = {"environment": environment(torch.device("cpu")), "rows": []}
    if args.out.exists():
        document["rows"] = json.loads(args.out.read_text("utf-8"))["rows"]
    done = {(row["set"], row["way"], row["seed"]) for row in document["rows"]}
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), {}
        shapes(folder / "shapes")
        if args.photos:
            photos(args.photos, folder / "photos")
            size["photos"] = 64
        if args.cifar:
            cifar(args.cifar, folder / "cifar")
        for data in sorted(folder.iterdir(), reverse=True):
            for seed in range(SEEDS):
                for way, (model, recipe) in WAYS.items():
                    if (data.name, way, seed) in done:
                        continue
                    start = time.monotonic()
                    trained = regnet.train(
                        model, data, None, recipe=recipe, seed=seed,
                        image_size=size.get(data.name), options=Options(workers=0),
                    )  # fmt: skip
                    document["rows"].append(
                        {
                            "set": data.name, "way": way, "seed": seed,
                            "top1": trained.top1,
                            "seconds": round(time.monotonic() - start, 1),
                        }
                    )  # fmt: skip
                    print(json.dumps(document["rows"][-1]), flush=True)
                    document["differences"] = differences(document["rows"])
                    write_bytes(args.out, json.dumps(document, indent=1).encode())


def differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return by how many points the recipe is better: means over seeds with 95 % t intervals."""
    top1 = {(row["set"], row["way"], row["seed"]): row["top1"] for row in rows}
    found = []
    for name in sorted({row["set"] for row in rows}):
        for way in list(WAYS)[1:]:
            pairs = [
                top1[name, "finetune", seed] - top1[name, way, seed]
                for seed in range(SEEDS)
                if (name, way, seed) in top1 and (name, "finetune", seed) in top1
            ]
            if len(pairs) < 2:
                continue
            mean, error = statistics.mean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5
            reach = float(stats.t.ppf(0.975, len(pairs) - 1)) * error
            found.append(
                {"set": name, "over": way, "points": mean, "low": mean - reach,
                 "high": mean + reach, "seeds": len(pairs)}
            )  # fmt: skip
    return found


if __name__ == "__main__":
    main()
