"""`regnet predict`: classify files, folders, or a list on stdin."""

from pathlib import Path
from typing import Annotated

import typer

from regnet.cli.arguments import AsJson, Model, Trust, find_images
from regnet.cli.output import print_error, print_json, print_table, stdout
from regnet.cli.progress import ProgressBar


def command(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders, or - for a list of paths on stdin.")
    ],
    *,
    model: Model = "regnety_cifar",
    topk: Annotated[
        int | None, typer.Option(help="Classes per image; 5, or all if fewer.", min=1)
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Classify images; a file that cannot be read is reported, and the rest goes on.

    Example: regnet predict photo.jpg holiday/ --topk 3
    """
    from regnet.prediction import predict_each

    paths, failures = find_images(images)
    listed_wrong = bool(failures)
    for failure in failures:
        print_error(failure)
    results = []
    # Results that scroll by on the screen show the progress themselves.
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
        wrong = listed_wrong or any(not Path(path).exists() for path in paths)
        raise typer.Exit(2 if wrong else 1)
