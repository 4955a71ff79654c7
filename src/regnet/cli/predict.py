"""`regnet predict`: print the classes of images, or write those of a collection into one file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regnet.cli.arguments import (
    AsJson,
    Model,
    Threads,
    Trust,
    check_choice,
    check_outputs,
    find_images,
)
from regnet.cli.executors import Devices, ExecutorName, Gpus, Slurm, executor_of
from regnet.cli.output import print_error, print_json, print_table, stderr, stdout
from regnet.cli.progress import ProgressBar, duration
from regnet.errors import ConfigError


def command(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, or - for a list of paths on stdin; with --out also .tar "
            "and .parquet files, and hf:owner/name of the Hub."
        ),
    ],
    *,
    model: Model = "regnety_cifar",
    topk: Annotated[
        int | None,
        typer.Option(help="Classes per image. Default: 5, or all if there are fewer.", min=1),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write a row per image into this .parquet file; run again to resume."),
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="With --out: feature vectors instead of classes.")
    ] = False,
    float16: Annotated[
        bool, typer.Option("--float16", help="With --features: store them as float16.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            help="With --out: auto (fastest of three), best (fastest of all) "
            "or the name of an engine."
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="With --out: fp32, bf16 or fp16. Default: fp32.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="With --out: images per call. Default: 16, or 256 on a GPU.", min=1),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With --out: val or train, for a data set of the Hub.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="With --out: parallel processes. Default: one per core or GPU.", min=1),
    ] = None,
    threads: Threads = None,
    device: Devices = None,
    executor: ExecutorName = "local",
    gpus: Gpus = None,
    slurm: Slurm = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="With --out: exit with code 1 if an image cannot be read."),
    ] = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Classify images, or compute their features. Unreadable files are reported.

    Example: regnet predict photo.jpg holiday/ --topk 3

    Example: regnet predict photos/ --out features.parquet --features --model regnety_016.tv2_in1k
    """
    from typing import get_args

    from regnet.data.layout import SPLITS
    from regnet.data.sources import HUB_PREFIX
    from regnet.engines.base import Precision
    from regnet.prediction.collection import predict_collection

    only_with_out: dict[str, Any] = {
        "--features": features, "--float16": float16, "--engine": engine, "--precision": precision,
        "--batch-size": batch_size, "--split": split, "--workers": workers, "--threads": threads,
        "--device": device, "--gpus": gpus, "--slurm": slurm, "--strict": strict,
        "--executor": executor != "local",
    }  # fmt: skip
    if out is None:
        for name, given in only_with_out.items():
            if given:
                raise ConfigError(
                    f"{name} needs --out; add --out predictions.parquet, or leave it out"
                )
        _few(images, model=model, topk=topk, trust=trust, as_json=as_json)
        return
    check_choice("precision", precision or "fp32", get_args(Precision))
    check_choice("split", split or "val", tuple(SPLITS))
    check_outputs(out)
    if split and not any(image.startswith(HUB_PREFIX) for image in images):
        raise ConfigError("--split chooses images of a data set of the Hub; leave it out")
    if "-" in images:
        listed, failures = find_images(["-"])
        if failures:
            raise ConfigError(failures[0])
        images = [path for image in images for path in (listed if image == "-" else [image])]
    chosen = executor_of(executor, workers, device, threads, gpus, slurm, None)
    with ProgressBar("listing images") as bar:
        found = predict_collection(
            images,
            out,
            model,
            features=features,
            half=float16,
            topk=topk,
            engine=engine or "auto",
            precision=precision or "fp32",  # type: ignore[arg-type]  # checked
            batch_size=batch_size,
            split=split or "val",  # type: ignore[arg-type]  # checked
            executor=chosen,
            trust=trust,
            on_images=bar.step,
        )
    if as_json:
        print_json(found)
    else:
        done = found.images - found.resumed
        rate = f" at {done / found.seconds:,.0f} images/s" if done else ""
        before = f", {found.resumed:,} of them from an earlier run" if found.resumed else ""
        stderr.print(
            f"{found.out}: {found.images:,} rows by {found.model} on {found.engine} in "
            f"{duration(found.seconds)}{rate}{before}"
        )
        if found.unreadable:
            stderr.print(
                f"{found.unreadable:,} images could not be read; their rows say why (column error)"
            )
    if strict and found.unreadable:
        raise typer.Exit(1)


def _few(images: list[str], *, model: str, topk: int | None, trust: bool, as_json: bool) -> None:
    """Classify each image, and print its classes."""
    from regnet.prediction.images import predict_each

    paths, failures = find_images(images)
    listed_wrong = bool(failures)
    for failure in failures:
        print_error(failure)
    results = []
    # On a terminal the results themselves show the progress.
    shown = stdout.is_terminal and not as_json
    with ProgressBar("classifying", hidden=shown) as bar:
        for number, result in enumerate(predict_each(paths, model, topk=topk, trust=trust), 1):
            bar.step("classifying", number, len(paths))
            if result.error:
                failures.append(result.error)
                print_error(result.error)
            if as_json:
                results.append(result)
            elif not result.error:
                rows = [(f"{100 * c.probability:.1f} %", c.label) for c in result.classes]
                print_table((">", ""), rows, title=result.image)
    if as_json:
        print_json(results)
    if failures:
        # A path that does not exist is wrong usage (2), an unreadable image is a failure (1).
        wrong = listed_wrong or any(not Path(path).exists() for path in paths)
        raise typer.Exit(2 if wrong else 1)
