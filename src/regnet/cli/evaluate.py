"""`regnet evaluate`: measure accuracy on labelled images, beside the published accuracy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regnet.atomic import write_bytes
from regnet.cli.arguments import (
    AsJson,
    Device,
    Model,
    Trust,
    check_choice,
    check_new_folder,
    check_outputs,
)
from regnet.cli.output import print_json, print_table, stderr, stdout
from regnet.cli.progress import ProgressBar
from regnet.documents import finite, plain
from regnet.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from regnet.data.sets import ImageSet
    from regnet.evaluation.calibration import Calibration
    from regnet.evaluation.evaluate import Evaluation


def command(
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled images: class folders, .tar, .parquet, or hf:owner/name of the Hub."
        ),
    ],
    *,
    model: Model = "regnety_cifar",
    split: Annotated[str, typer.Option(help="val or train, if the data has both.")] = "val",
    engine: Annotated[
        str, typer.Option(help="Engine that runs the model: eager, compiled, openvino, ...")
    ] = "eager",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="Images per call.", min=1)] = 64,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read images. Default: one per core.", min=0)
    ] = None,
    device: Device = "cpu",
    larger: Annotated[
        bool,
        typer.Option("--larger", help="Use the checkpoint's larger test setting, if it has one."),
    ] = False,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the images in pixels. Default: the checkpoint's.", min=1),
    ] = None,
    crop_pct: Annotated[
        float | None,
        typer.Option(help="Share of the image that the crop keeps. Default: the checkpoint's."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name of the published data set (imagenet-1k, ...), if it is not recognized."
        ),
    ] = None,
    real_labels: Annotated[
        Path | None,
        typer.Option(help="real.json of ImageNet-ReaL, for ImageNet's validation images."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Save answers in this folder; pass it again to resume an evaluation."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the complete result as JSON.")] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Fit a temperature on these images, and save the calibrated model in this folder."
        ),
    ] = None,
    trust: Trust = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Print a line for each class.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy on labelled images, beside the published one. Supports torchrun.

    Example: regnet evaluate imagenet/val --model regnety_016.tv2_in1k --keep runs/evaluation
    """
    import warnings
    from typing import get_args

    from regnet.data.layout import SPLITS
    from regnet.data.sets import open_set, refuse_new_class
    from regnet.devices import core_count, find_device, launched
    from regnet.engines.base import Precision
    from regnet.evaluation.evaluate import evaluate
    from regnet.zoo.resolver import is_exported

    check_choice("precision", precision, get_args(Precision))
    check_choice("split", split, tuple(SPLITS))
    check_outputs(out)
    for folder in filter(None, (keep, calibrate)):
        refuse_new_class(folder, data)
    if calibrate is not None:
        check_new_folder(calibrate)
        if is_exported(model):
            raise ConfigError(
                f"{model} is an exported file; --calibrate needs the model that was exported"
            )
        if larger or image_size is not None or crop_pct is not None:
            raise ConfigError(
                "--calibrate uses the checkpoint's own setting; leave out --larger, --image-size "
                "and --crop-pct"
            )
    where = find_device(device)
    readers = core_count() if workers is None else workers
    leads = launched().rank == 0
    if not leads:
        warnings.simplefilter("ignore")  # the first process shows them
    with ProgressBar("evaluating", hidden=not leads) as bar:
        images = open_set(data, split)  # type: ignore[arg-type]  # checked above
        # Printed once, with the first step: unusable options raise their errors before it.
        found = iter([images.summary])

        def step(count: int, total: int) -> None:
            for line in found:
                bar.line(line)
            bar.step("evaluating", count, total)

        done = evaluate(
            model,
            images,
            engine=engine,
            precision=precision,  # type: ignore[arg-type]  # checked above
            batch_size=batch_size,
            workers=readers,
            device=where,
            larger=larger,
            image_size=image_size,
            crop_pct=crop_pct,
            dataset=dataset,
            real_labels=real_labels,
            keep=keep,
            trust=trust,
            on_images=step,
        )
    if not leads:
        return
    document = plain(done)
    _write(out, document)
    if not as_json:
        _print(done, per_class=per_class)
    if calibrate is not None:
        temperature = _calibrated(
            model, images, calibrate, device=where, batch_size=batch_size, workers=readers
        )
        document["calibration"] = temperature
        _write(out, document)
        if not as_json:
            stdout.print(calibration_lines(temperature))
        stderr.print(f"wrote {calibrate}: its answers are the same, its confidences are calibrated")
    if as_json:
        print_json(document)


def _write(out: Path | None, document: dict[str, Any]) -> None:
    if out:
        write_bytes(out, json.dumps(finite(document), indent=1).encode())


def _calibrated(
    model: str,
    images: "ImageSet",
    folder: Path,
    *,
    device: "torch.device",
    batch_size: int,
    workers: int,
) -> "Calibration":
    """Fit the temperature of a model on images, and save the calibrated model in a folder."""
    from regnet.evaluation.calibration import calibrate
    from regnet.zoo.create import create

    network = create(model, pretrained=True).eval().to(device)
    with ProgressBar("calibrating") as bar:
        found = calibrate(
            network,
            images,
            batch_size=batch_size,
            workers=workers,
            on_images=lambda count, total: bar.step("calibrating", count, total),
        )
    network.cpu().save_pretrained(folder)
    return found


def calibration_lines(found: "Calibration") -> str:
    """Return two lines about a calibration: its temperature, and the errors before and after it."""
    return (
        f"temperature {found.temperature:.3f} ({found.halves[0]:.3f} and {found.halves[1]:.3f} on "
        f"the halves of {found.images:,} images)\n"
        f"calibration error {found.error_before:.2f} % before and {found.error_after:.2f} % after, "
        "each half scored with the temperature of the other half"
    )


LISTED = 20
"""Number of unreadable images to print; --json and --out list all of them."""


def _print(done: "Evaluation", *, per_class: bool) -> None:
    look = done.preprocess
    height, width = look["size"]
    rows = [
        ("model", done.model),
        ("images", f"{done.source}{f' ({done.dataset})' if done.dataset else ''}"),
        ("evaluated", f"{done.evaluated:,} of {done.count:,}"),
        (
            "setting",
            f"{height} x {width} pixels, crop {look['crop_pct']:g}, {done.engine} {done.precision}",
        ),
        (
            "classes matched by",
            f"{done.matched_by}{', and only these compete' if done.restricted else ''}",
        ),
        ("top-1", f"{done.top1:.2f} %"),
    ]
    if done.top5 is not None:
        rows.append(("top-5", f"{done.top5:.2f} %"))
    if done.real_top1 is not None:
        rows.append(("top-1, ReaL labels", f"{done.real_top1:.2f} %"))
    rows.append(("calibration error", f"{done.calibration_error:.2f} %"))
    rows += [
        (f"published, {found.dataset}", f"{found.top1:.2f} %: {found.verdict}")
        for found in (done.published, done.published_real)
        if found
    ]
    if done.published is None:
        reason = "for this setting" if done.dataset else "known; --dataset names the set"
        rows.append(("published", f"none {reason}"))
    print_table(("", ""), rows)
    for confusion in done.confusions[:5]:
        stdout.print(
            f"{confusion.images} images of {confusion.label} classified as {confusion.answer}"
        )
    if per_class:
        print_table(
            ("class", ">images", ">top-1"),
            [
                (c.name, f"{c.images}", "" if c.top1 is None else f"{c.top1:.1f} %")
                for c in done.classes
            ],
        )
    for warning in done.warnings:
        stderr.print(f"warning: {warning}")
    for reason in done.unreadable[:LISTED]:
        stderr.print(f"unreadable: {reason}")
    if len(done.unreadable) > LISTED:
        stderr.print(f"and {len(done.unreadable) - LISTED} more; --json lists all of them")
