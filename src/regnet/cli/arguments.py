"""Options that several commands share, and the parsing of their values."""

import json
import sys
from collections.abc import Collection, Iterable
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
    """Set the number of threads that PyTorch uses, if one is given."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def check_choice(option: str, value: str, known: Collection[str]) -> None:
    """Refuse a value that is not among the known ones.

    Raises:
        ConfigError: the value is not known.
    """
    if value not in known:
        raise ConfigError(unknown(option, value, known))


def refuse_given(context: typer.Context, parameters: Iterable[str], reason: str) -> None:
    """Refuse options that the command line contains, because they would have no effect.

    Args:
        context: the context of the command.
        parameters: names of the command's parameters.
        reason: what is wrong with the option, to follow its name in the message.

    Raises:
        ConfigError: one of them was given.
    """
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for parameter in parameters:
        source = context.get_parameter_source(parameter)
        if source and source.name == "COMMANDLINE":
            raise ConfigError(f"{options[parameter]} {reason}")


def check_outputs(*files: Path | None, plot: Path | None = None) -> None:
    """Refuse output files that cannot be written, before any work is done for them.

    Raises:
        ConfigError: the folder of a file does not exist, a file is a folder, two files are the
            same, or a plot has another extension than those of `figures.FORMATS`.
        MissingExtraError: a plot is asked for, and matplotlib is not installed.
    """
    seen: set[Path] = set()
    for path in filter(None, (*files, plot)):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file")
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}; create it first")
        if path.resolve() in seen and not path.is_char_device():
            raise ConfigError(f"{path} is named for two outputs; name different files")
        seen.add(path.resolve())
    if plot:
        from regnet.figures import check_plot_file

        check_plot_file(plot)


def check_new_folder(path: Path) -> None:
    """Refuse an output folder that is not empty, before any work is done for it.

    Raises:
        ConfigError: the path is a file or a folder with files, or lies in a file.
    """
    check_folder(path)
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"{path} exists already; name a new folder")


def check_folder(path: Path) -> None:
    """Refuse an output folder that cannot be created.

    Raises:
        ConfigError: the path, or a part of it, is a file.
    """
    nearest = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{nearest} is a file; name a new folder")


def split(text: str) -> list[str]:
    """Split a comma-separated list, without empty parts.

    Raises:
        ConfigError: the list has no other parts.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"{text!r} names nothing; give at least one name or number")
    return parts


def whole_numbers(option: str, text: str) -> list[int]:
    """Parse a comma-separated list of positive whole numbers.

    Raises:
        BadParameter: the list is empty, or a part is not a positive whole number.
    """
    try:
        numbers = [int(part) for part in split(text)]
    except (ConfigError, ValueError):
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(
            f"needs positive whole numbers such as 1,16, got {text!r}", param_hint=option
        )
    return numbers


def parse_count(option: str, text: str | None) -> float:
    """Parse a positive number that may end in k, M or G; return infinity for None.

    Raises:
        BadParameter: the text is not a positive number.
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
    """Parse a duration such as 90s, 45m or 2h into seconds; return None for None.

    Raises:
        BadParameter: the text is not a positive duration with a unit.
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
    """Return the images in files, folders and lists on stdin ("-"), and a line for each failure."""
    from regnet.data.layout import listed, told

    paths: list[str] = []
    failures = []
    for image in images:
        if image == "-":
            lines = sys.stdin.read().removeprefix("\ufeff").splitlines()
            named, failed = find_images([line for line in lines if line.strip() and line != "-"])
            paths += named
            failures += failed if lines else ["there are no paths on stdin"]
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
    """Return a recipe by its name or from a JSON file, with changes of the form field=value.

    Raises:
        ConfigError: a recipe or a field does not exist, or a value cannot be used.
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
            # Text needs no quotes. "none" means null, except for policy, where it is a value.
            values[field] = None if text == "none" and field != "policy" else text
    if not name.endswith(".json"):
        return find_recipe(name, **values)
    text = documents.text_of(Path(name), "a recipe")
    try:
        base = recipe_from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return base.changed(**values)
