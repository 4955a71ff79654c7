"""Train the checkpoint that ships with the package: a small RegNetY on CIFAR-10.

    python scripts/train_embedded.py --data PATH/cifar10 --out runs/embedded

reads {train,test}.parquet (with the columns `img` and `label`, as in the public `uoft-cs/cifar10`)
and trains one cycle after another. If --out holds an interrupted run, the script resumes it; a
cycle whose folder in --out already contains model/ is finished and is skipped. At the end the
script writes the files in weights/: the fp16 weights, the table row, and the model card with the
accuracy that `regnet evaluate` measures for that file. On a GPU (--device cuda) all cycles take
minutes.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

from safetensors.torch import save_file

import regnet
from regnet.allocator import keep_freed_memory
from regnet.atomic import write_bytes
from regnet.cli.train import epoch_line
from regnet.design.complexity import complexity
from regnet.design.variants import VARIANTS
from regnet.evaluation.calibration import Calibration, calibrate
from regnet.evaluation.evaluate import Evaluation, evaluate
from regnet.training import run as runs
from regnet.training.loop import LOG, resume, train
from regnet.training.recipe import find_recipe
from regnet.training.session import Options
from regnet.weights.catalog import find_checkpoint, label_sets

VARIANT, TAG = "regnety_cifar", "cifar10"
CONFIG = VARIANTS[VARIANT].config
CYCLES = (
    find_recipe("cifar", epochs=56),
    find_recipe("cifar", epochs=11, lr=0.05, warmup_epochs=0, clean_epochs=0),
    find_recipe(
        "cifar", epochs=66, lr=0.15, warmup_epochs=1, mixup=0.2, cutmix=1.0, cutout=0,
        precision="fp32",
    ),
)  # fmt: skip
"""Warm restarts (Loshchilov and Hutter 2017): each cycle starts from the last one's weights."""
TESTED = 2000
"""Test images that are evaluated after each epoch to follow the training; the published accuracy is
measured on all test images."""
WEIGHTS = Path(__file__).parents[1] / "weights"
COMMAND = "python scripts/train_embedded.py --data cifar10 --out runs/embedded"

CARD = """---
license: apache-2.0
library_name: regnet
pipeline_tag: image-classification
datasets: [uoft-cs/cifar10]
---
# {id}

A small RegNetY with a CIFAR stem ({flops:.1f} M multiply-adds at 32x32, {params:.2f} M
parameters, {size:.2f} MB in fp16). It comes with the package, so that a first prediction needs no
download.

| | |
| --- | --- |
| top-1 on the {count:,} test images of {dataset} | **{top1:.2f} %** |
| top-5, calibration error | {top5:.2f} %, {calibration:.2f} % |
| classes | {classes} |
| last cycle | {last_cycle} |
| SHA-256 | `{sha256}` |

"cifar-10-jpeg" is the data set with its images stored as JPEG of quality 75. Accuracies on it are a
little lower than on the original images. The figures are those that `regnet evaluate` measures for
the published fp16 file, computed in float32.

The network was trained in cycles of the recipe `cifar`. Each cycle began with the weights of the
one before:

| cycle | changes to the recipe |
| ---: | --- |
{cycles}

This command repeats the cycles:

    {command}

The published weights were trained on several machines, one cycle after the other, so another
training will not give the same bits.

The confidences are calibrated: all logits are divided by one temperature, {temperature:.3f}, which
was fitted on the test images and folded into the classifier. The predicted classes did not change.
The calibration error was {uncalibrated:.2f} % without the temperature. With it, the error is
{crossed:.2f} % by two-fold cross-fitting, where each half of the images is judged by the
temperature of the other half.

The network knows ten classes and sees images of 32x32 pixels. It is a demonstration, not a product.
"""


def main() -> None:
    """Train the cycles that are not finished yet, and publish the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--calibrate", action="store_true", help="do not train; calibrate the published weights"
    )
    args = parser.parse_args()
    if args.calibrate:
        recalibrate(args.out, args.data)
        return
    options = Options(
        device=args.device, compile=True, on_epoch=lambda row: print(epoch_line(row), flush=True)
    )
    if args.device == "cpu":
        keep_freed_memory()
    start = VARIANT
    for number, recipe in enumerate(CYCLES, 1):
        out = args.out / f"cycle-{number}"
        if not (out / "model").is_dir():
            if (out / runs.FILE).exists():
                done = resume(out, options=options)
            else:
                done = train(
                    start, args.data, out, recipe=recipe, val_images=TESTED, options=options
                )
            if done.stopped_by is not None:
                sys.exit(f"stopped and saved in {out}; run the same command again to resume")
        start = f"local-dir:{out / 'model'}"
    command = COMMAND if args.device == "cpu" else f"{COMMAND} --device {args.device}"
    publish(out, args.data, command=command)


def publish(out: Path, data: Path, *, command: str) -> None:
    """Write the fp16 weights, the table row and the model card, with the accuracy of that file.

    Weights that are not better than the published ones are not published; they stay in --out.
    """
    trained = regnet.create(f"local-dir:{out / 'model'}", pretrained=True)
    machine = runs.read(out)[1].environment
    log = [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
    minutes = sum(row["seconds"] + row["test_seconds"] for row in log) / 60
    last_cycle = (
        f"{machine['date'][:10]}, torch {machine['packages']['torch']}, {machine['device']}, "
        f"{minutes:.1f} minutes"
    )
    candidate, found, calibration = calibrated(trained, out, data)
    published = find_checkpoint(VARIANT, TAG).metrics[0].top1
    if found.top1 <= published or found.evaluated != 10_000:
        sys.exit(
            f"{candidate}: not published; top-1 is {found.top1:.2f} % on {found.evaluated} images, "
            f"but must exceed the published {published:.2f} % on all 10,000"
        )
    write(candidate, found, calibration, command=command, last_cycle=last_cycle)


def recalibrate(out: Path, data: Path) -> None:
    """Calibrate the published weights and change nothing else in them."""
    out.mkdir(parents=True, exist_ok=True)
    card = (WEIGHTS / f"{VARIANT}.{TAG}.md").read_text(encoding="utf-8")
    last_cycle = re.search(r"^\| last cycle \| (.*) \|$", card, re.MULTILINE)
    row = find_checkpoint(VARIANT, TAG)
    assert last_cycle is not None, "the card is written by this script"
    assert row.command is not None, "the row is written by this script"
    trained = regnet.create(f"{VARIANT}.{TAG}", pretrained=True)
    candidate, found, calibration = calibrated(trained, out, data)
    if found.top1 != row.metrics[0].top1:
        sys.exit(
            f"{candidate}: top-1 is {found.top1:.2f} %, not the published accuracy; check that "
            "--data is CIFAR-10"
        )
    write(candidate, found, calibration, command=row.command, last_cycle=last_cycle[1])


def calibrated(
    trained: regnet.RegNet, out: Path, data: Path
) -> tuple[Path, Evaluation, Calibration]:
    """Save the weights in half precision, with a folded temperature that changes no answer."""

    def saved(path: Path, keep: tuple[str, ...] = ()) -> Evaluation:
        tensors = {
            name: value.half() if value.is_floating_point() and not name.startswith(keep) else value
            for name, value in trained.state_dict().items()
        }
        whole = {name: value.contiguous() for name, value in tensors.items()}
        save_file(whole, path, metadata={"format": "pt"})
        model = regnet.create(VARIANT, checkpoint_path=path)
        model.card = replace(trained.card, labels=label_sets()["cifar-10"])
        return evaluate(model, data, batch_size=500)

    before = saved(out / "uncalibrated.safetensors")
    calibration = calibrate(trained, data, batch_size=500)
    candidate = out / f"{VARIANT}.{TAG}.safetensors"
    found = saved(candidate)
    # Rounding to fp16 can exchange two almost equal logits; the classifier then stays in fp32.
    if found.answers != before.answers:
        found = saved(candidate, keep=("head.fc",))
    if found.answers != before.answers:
        sys.exit(f"{candidate}: the temperature changes answers even with the classifier in fp32")
    write_bytes(out / "evaluation.json", json.dumps(asdict(found), default=str).encode())
    return candidate, found, calibration


def write(
    candidate: Path, found: Evaluation, calibration: Calibration, *, command: str, last_cycle: str
) -> None:
    """Write the weights, the table row and the model card."""
    transform = regnet.preprocess(regnet.create(f"{VARIANT}.{TAG}", pretrained=True))
    path = WEIGHTS / candidate.name
    shutil.copyfile(candidate, path)
    cost = complexity(CONFIG, 32)
    row = {
        "variant": VARIANT,
        "tag": TAG,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size": path.stat().st_size,
        "format": "timm",
        "license": "apache-2.0",
        "num_classes": CONFIG.num_classes,
        "labels": "cifar-10",
        "preprocess": {
            "size": transform.size, "crop_pct": 1.0, "mean": transform.mean, "std": transform.std,
        },
        "metrics": [
            {
                "dataset": found.dataset, "top1": found.top1, "top5": found.top5,
                "image_size": 32, "crop_pct": 1.0,
            }
        ],
        "metrics_source": "scripts/train_embedded.py",
        "command": command,
    }  # fmt: skip
    (WEIGHTS / "embedded.json").write_text(f"[\n{json.dumps(row)}\n]\n", encoding="utf-8")
    card = CARD.format(
        id=f"{VARIANT}.{TAG}",
        sha256=row["sha256"],
        command=command,
        dataset=found.dataset,
        count=found.evaluated,
        top1=found.top1,
        top5=found.top5,
        calibration=found.calibration_error,
        flops=cost.flops / 1e6,
        params=cost.params / 1e6,
        size=path.stat().st_size / 1e6,
        last_cycle=last_cycle,
        temperature=calibration.temperature,
        crossed=calibration.error_after,
        uncalibrated=calibration.error_before,
        classes=", ".join(label_sets()["cifar-10"]),
        cycles=rows_of_cycles(),
    )
    (WEIGHTS / f"{VARIANT}.{TAG}.md").write_text(card, encoding="utf-8")
    print(json.dumps({"top1": found.top1, "file": str(path)}))


def rows_of_cycles() -> str:
    """Return the rows of the card's table: the settings that each cycle changes in the recipe."""
    usual = find_recipe("cifar").to_dict()
    changes = [
        {name: value for name, value in recipe.to_dict().items() if value != usual[name]}
        for recipe in CYCLES
    ]
    return "\n".join(f"| {at} | `{json.dumps(row)}` |" for at, row in enumerate(changes, 1))


if __name__ == "__main__":
    main()
