"""`regnet predict`: classify files, folders, or a list on stdin."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from regnet.cli.output import print_error, print_json, print_table


def command(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders, or - for a list of paths on stdin.")
    ],
    *,
    model: Annotated[
        str, typer.Option(help="A variant with weights, or variant.tag.")
    ] = "regnety_cifar",
    topk: Annotated[int, typer.Option(help="Classes per image.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Classify images; a file that cannot be read is reported, and the rest goes on.

    Example: regnet predict photo.jpg holiday/ --topk 3
    """
    from regnet.predict import predict_each

    results = []
    failed = 0
    for result in predict_each(_paths(images), model, topk=topk):
        if result.error:
            failed += 1
            print_error(result.error)
        if as_json:
            results.append(result)
        elif not result.error:
            rows = [(f"{100 * c.probability:.1f} %", c.label) for c in result.classes]
            print_table((">", ""), rows, title=result.image)
    if as_json:
        print_json(results)
    if failed:
        raise typer.Exit(1)


def _paths(images: list[str]) -> Iterator[str]:
    from regnet.data.images import IMAGE_SUFFIXES

    for image in images:
        if image == "-":
            yield from (line for line in sys.stdin.read().splitlines() if line.strip())
        elif (folder := Path(image)).is_dir():
            inside = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
            if not inside:
                print_error(f"{folder}: no image files in this folder")
            yield from (str(path) for path in sorted(inside))
        else:
            yield image
