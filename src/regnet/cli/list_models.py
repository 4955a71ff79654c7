"""`regnet list`: list variants or their weights, as a table or as JSON."""

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Annotated

import typer

from regnet import documents
from regnet.cli.arguments import AsJson, parse_count
from regnet.cli.output import print_error, print_json, print_table, scaled, stderr
from regnet.errors import ConfigError, check_number

if TYPE_CHECKING:
    from regnet.zoo.listing import ModelInfo


def command(
    pattern: Annotated[str, typer.Argument(help="Pattern of names, with * and ?.")] = "*",
    *,
    family: Annotated[str | None, typer.Option(help="Family, such as regnety or resnext.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="List checkpoints instead of architectures.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(
            help="License of the weights: apache-2.0, ..., or commercial (any that allows it)."
        ),
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="Lowest ImageNet-1k top-1 accuracy in percent.")
    ] = None,
    max_flops: Annotated[
        str | None, typer.Option(help="Largest number of multiply-adds, such as 4e9, 4G or 600M.")
    ] = None,
    max_params: Annotated[
        str | None, typer.Option(help="Largest number of parameters, such as 20M.")
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        typer.Option(
            help="Largest time for one image in milliseconds, as measured on this machine."
        ),
    ] = None,
    sort: Annotated[str, typer.Option(help="Sort by name, top1, flops or params.")] = "name",
    as_json: AsJson = False,
) -> None:
    """List published architectures with their complexity, or published weights.

    Example: regnet list 'regnety_*' --license commercial --min-top1 80 --max-flops 4G --sort top1
    """
    from regnet.zoo.listing import info, list_models

    names = list_models(
        pattern,
        family=family,
        pretrained=pretrained,
        license=license,
        min_top1=min_top1,
        max_flops=parse_count("--max-flops", max_flops),
        max_params=parse_count("--max-params", max_params),
        sort=sort,  # type: ignore[arg-type]  # checked there
    )
    if not names:
        print_error(
            f"no network matches {pattern!r} and the limits; `regnet list` shows all variants"
        )
        raise typer.Exit(1)
    infos = [info(name) for name in names]
    times: dict[str, float] | None = None
    if max_latency_ms is not None:
        infos, times = _fast_enough(infos, max_latency_ms)
    if as_json:
        print_json(
            infos
            if times is None
            else [documents.plain(row) | {"latency_ms": times[_name(row)]} for row in infos]
        )
    elif any(row.checkpoint for row in infos):
        _print_weights(infos, times)
    else:
        _print_variants(infos, times)


def _fast_enough(
    infos: "list[ModelInfo]", limit: float
) -> "tuple[list[ModelInfo], dict[str, float]]":
    """Return the rows that were measured as fast enough, and the milliseconds of all by name.

    Raises:
        ConfigError: no network has been measured on this machine.
    """
    import torch

    from regnet.selection.timings import timings_here

    check_number("max_latency_ms", limit, least=0)
    known = timings_here(torch.device("cpu"), 1).fastest()
    if not known:
        raise ConfigError(
            "no measurement is saved for this machine, number of threads and versions (those on a "
            f"busy machine are not); run `regnet choose --latency-ms {limit:g}`"
        )
    times = {_name(row): known.get((row.name, _image_size(row)), inf) for row in infos}
    rows = [row for row in infos if times[_name(row)] <= limit]
    unknown = sum(time == inf for time in times.values())
    if unknown:
        stderr.print(
            f"{unknown} of {len(infos)} have not been measured on this machine and are left out; "
            "`regnet choose` measures those that it needs"
        )
    if not rows:
        print_error(f"no network measured on this machine takes {limit:g} ms or less")
        raise typer.Exit(1)
    return rows, times


def _name(row: "ModelInfo") -> str:
    return row.checkpoint.id if row.checkpoint else row.name


def _image_size(row: "ModelInfo") -> int:
    """Return the side of the images that the network gets by default, in pixels."""
    return row.checkpoint.preprocess.size[0] if row.checkpoint else row.image_size


def _with_times(
    columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], names: list[str],
    times: dict[str, float] | None,
) -> None:  # fmt: skip
    """Print a table, with milliseconds after its first column if they are known."""
    if times is not None:
        columns = (columns[0], ">ms", *columns[1:])
        rows = [
            (row[0], f"{times[name]:.1f}", *row[1:]) for row, name in zip(rows, names, strict=True)
        ]
    print_table(columns, rows)


def _print_variants(infos: "list[ModelInfo]", times: dict[str, float] | None) -> None:
    _with_times(
        ("name", "~paper", ">image", ">flops", ">params", ">activations", ">weights", "~default"),
        [
            (
                row.name,
                row.label,
                str(row.image_size),
                scaled(row.complexity.flops),
                scaled(row.complexity.params),
                scaled(row.complexity.activations),
                str(len(row.checkpoints) or ""),
                row.default or "",
            )
            for row in infos
        ],
        [_name(row) for row in infos],
        times,
    )


def _print_weights(infos: "list[ModelInfo]", times: dict[str, float] | None) -> None:
    """Print weights; a file that two publishers offer is one row, with its other name."""
    # A copy in a repository has as its origin the address of the first publication.
    shown = {row.checkpoint.id: row.checkpoint for row in infos if row.checkpoint}
    origins = {weights.origin: weights.id for weights in shown.values() if weights.repo}
    others: dict[str, str] = {
        origins[weights.url]: weights.id for weights in shown.values() if weights.url in origins
    }
    rows, names = [], []
    for row in infos:
        weights = row.checkpoint
        assert weights is not None, "these rows describe weights"
        if weights.id in others.values():
            continue
        names.append(weights.id)
        rows.append(
            (
                weights.id,
                f"{weights.top1:.2f}" if weights.top1 else "",
                str(weights.preprocess.size[0]),
                scaled(row.complexity.flops),
                scaled(row.complexity.params),
                str(weights.num_classes or ""),
                weights.license,
                others.get(weights.id, ""),
                weights.source,
            )
        )
    columns = ("weights", ">top-1", ">image", ">flops", ">params", ">classes", "license")
    _with_times((*columns, "same file", "~source"), rows, names, times)
