"""Options that several commands share, and the parsing of their values."""

import json
import sys
from collections.abc import Collection
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regnet import documents
from regnet.errors import ConfigError, unknown

if TYPE_CHECKING:
    from regnet.training.recipe import Recipe

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")]

Threads = Annotated[int | None, typer.Option(help="Threads to use on a CPU.", min=1)]

Model = Annotated[
    str,
    typer.Option(
        help="A checkpoint (regnety_016.tv2_in1k), a folder, a file of weights or an exported file."
    ),
]

Trust = Annotated[bool, typer.Option("--trust", help="Open a .pt2 file, which can run code.")]

Plot = Annotated[Path | None, typer.Option(help="Write a plot (.svg, .png, .pdf).")]


def set_threads(threads: int | None) -> None:
    """Make PyTorch use so many threads, if a number is given."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def check_choice(option: str, value: str, known: Collection[str]) -> None:
    """Refuse a value that is not one of the known ones.

    Raises:
        ConfigError: it is not.
    """
    if value not in known:
        raise ConfigError(unknown(option, value, known))


def check_folder_of(*paths: Path | None) -> None:
    """Refuse files to write in folders that do not exist, before the work for them.

    Raises:
        ConfigError: there is no such folder.
    """
    for path in filter(None, paths):
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")


def check_new_folder(path: Path) -> None:
    """Refuse a folder to write that holds something, before the work for it.

    Raises:
        ConfigError: it is a file or a folder with files, or lies in a folder that does not exist.
    """
    check_folder_of(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists already; name a new folder")


def split(text: str) -> list[str]:
    """Return the parts of a list that is given with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(option: str, text: str) -> list[int]:
    """Return the numbers of a list that is given with commas.

    Raises:
        BadParameter: one is not a positive whole number.
    """
    try:
        numbers = [int(part) for part in split(text)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(
            f"needs whole numbers such as 1,16, got {text!r}", param_hint=option
        )
    return numbers


def parse_count(option: str, text: str | None) -> float:
    """Return a number that may end with k, M or G; infinity if none is given.

    Raises:
        BadParameter: it is not a positive number.
    """
    if text is None:
        return inf
    unit = {"k": 1e3, "m": 1e6, "g": 1e9}.get(text[-1:].lower(), 1.0)
    try:
        number = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        number = -1.0
    if not 0 < number < inf:
        raise typer.BadParameter(
            f"needs a number such as 4e9, 4G or 600M, got {text!r}", param_hint=option
        )
    return number


def parse_duration(option: str, text: str | None) -> float | None:
    """Return seconds of a time such as 90s, 45m or 2h; None if none is given.

    Raises:
        BadParameter: it is no such time.
    """
    if text is None:
        return None
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:].lower())
    try:
        seconds = float(text[:-1]) * (unit or inf)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < inf:
        raise typer.BadParameter(
            f"needs a time such as 90s, 45m or 2h, got {text!r}", param_hint=option
        )
    return seconds


def find_images(images: list[str]) -> tuple[list[str], list[str]]:
    """Return the image files among files, folders and lists on stdin, and what is wrong."""
    from regnet.data.layout import listed, told

    paths: list[str] = []
    failures = []
    for image in images:
        if image == "-":
            lines = sys.stdin.read().removeprefix("\ufeff").splitlines()
            named, failed = find_images([line for line in lines if line.strip() and line != "-"])
            paths += named
            failures += failed if lines else ["there are no paths on stdin"]
        elif not image:
            failures.append("an image's path is empty")
        elif (folder := Path(image)).is_dir():
            found = listed(folder)
            paths += [str(folder.joinpath(*parts)) for parts in found.files]
            if not found.files:
                skipped = f" (skipped: {told(found.skipped)})" if found.skipped else ""
                failures.append(f"{image}: no image files in this folder{skipped}")
        else:
            paths.append(image)
    return paths, failures


def read_recipe(name: str, changes: list[str]) -> "Recipe":
    """Return a named recipe, or the recipe in a JSON file, with changes of the form field=value.

    Raises:
        ConfigError: there is no such recipe or field, or a value cannot be used.
    """
    from regnet.training.recipe import find_recipe, recipe_from_json

    values: dict[str, Any] = {}
    for change in changes:
        field, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"--set needs field=value, got {change!r}")
        try:
            values[field] = json.loads(text)
        except ValueError:
            values[field] = None if text == "none" and field != "policy" else text
    if not name.endswith(".json"):
        return find_recipe(name, **values)
    text = documents.text_of(Path(name), "a recipe")
    try:
        base = recipe_from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return base.changed(**values)
