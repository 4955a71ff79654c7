"""`regnet predict`: classify files, folders, or a list on stdin."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from regnet.cli.output import print_error, print_json, print_table, stderr, stdout


def command(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders, or - for a list of paths on stdin.")
    ],
    *,
    model: Annotated[
        str, typer.Option(help="A variant with weights, or variant.tag.")
    ] = "regnety_cifar",
    topk: Annotated[
        int | None, typer.Option(help="Classes per image; 5, or all if fewer.", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Classify images; a file that cannot be read is reported, and the rest goes on.

    Example: regnet predict photo.jpg holiday/ --topk 3
    """
    from regnet.prediction import predict_each

    paths, failures = find_images(images)
    for failure in failures:
        print_error(failure)
    results = []
    # Results that scroll by on the screen show the progress themselves.
    shown = stdout.is_terminal and not as_json
    hidden = shown or not stderr.is_terminal
    progress = track(paths, "classifying", console=stderr, transient=True, disable=hidden)
    for result in predict_each(progress, model, topk=topk):
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
        raise typer.Exit(1)


def find_images(images: list[str]) -> tuple[list[str], list[str]]:
    """Paths of the image files among files, folders and lists on stdin, and what was wrong."""
    from regnet.data.images import IMAGE_SUFFIXES

    paths: list[str] = []
    failures = []
    for image in images:
        if image == "-":
            listed = sys.stdin.read().removeprefix("\ufeff").splitlines()
            found, failed = find_images([line for line in listed if line.strip() and line != "-"])
            paths += found
            failures += failed if listed else ["there are no paths on stdin"]
        elif not image:
            failures.append("an image's path is empty")
        elif (folder := Path(image)).is_dir():
            inside = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
            paths += [str(path) for path in sorted(inside)]
            failures += [] if inside else [f"{image}: no image files in this folder"]
        else:
            paths.append(image)
    return paths, failures
