"""`regnet list`: the variants, as a table or as JSON."""

from math import inf
from typing import Annotated

import typer

from regnet.cli.output import print_error, print_json, print_table, scaled


def command(
    pattern: Annotated[str, typer.Argument(help="Pattern with * and ?.")] = "*",
    *,
    family: Annotated[str | None, typer.Option(help="Such as regnety; resnext.")] = None,
    max_flops: Annotated[
        str | None, typer.Option(help="Most multiply-adds, such as 4e9, 4G or 600M.")
    ] = None,
    max_params: Annotated[str | None, typer.Option(help="Most parameters, such as 20M.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the published architectures with their complexity.

    Example: regnet list 'regnety_*' --max-flops 4G
    """
    from regnet.zoo.listing import info, list_models

    names = list_models(
        pattern,
        family=family,
        max_flops=parse_count("--max-flops", max_flops),
        max_params=parse_count("--max-params", max_params),
    )
    if not names:
        print_error(f"no variant fits {pattern!r} and the limits; `regnet list` names them all")
        raise typer.Exit(1)
    infos = [info(name) for name in names]
    if as_json:
        print_json(infos)
        return
    print_table(
        ("name", "~paper", ">image", ">flops", ">params", ">activations", "~weights"),
        [
            (
                row.name,
                row.label,
                str(row.input_size),
                scaled(row.complexity.flops),
                scaled(row.complexity.params),
                scaled(row.complexity.activations),
                " ".join(row.checkpoints),
            )
            for row in infos
        ],
    )


def parse_count(option: str, text: str | None) -> float:
    """A number that may end with k, M or G; infinite if not given."""
    if text is None:
        return inf
    unit = {"k": 1e3, "m": 1e6, "g": 1e9}.get(text[-1:].lower(), 1.0)
    try:
        number = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        number = -1.0
    if not number > 0:
        raise typer.BadParameter(
            f"needs a number such as 4e9, 4G or 600M, got {text!r}", param_hint=option
        )
    return number
