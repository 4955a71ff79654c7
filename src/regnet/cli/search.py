"""regnet search: a RegNet for this device."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regnet.cli.output import print_json, print_table, scaled, stderr, stdout

if TYPE_CHECKING:
    from regnet.studies.search import Found, Measured


def command(
    *,
    flops: Annotated[float | None, typer.Option(help="Multiply-adds, at most: 400e6.")] = None,
    params: Annotated[float | None, typer.Option(help="Parameters, at most.")] = None,
    activations: Annotated[float | None, typer.Option(help="Activations, at most.")] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Milliseconds of a call, at most; the median.")
    ] = None,
    memory_mb: Annotated[
        float | None, typer.Option(help="Megabytes by which a process grows, at most.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = "cpu",
    space: Annotated[str, typer.Option(help="regnety, or regnetx: no squeeze-excitation.")] = (
        "regnety"
    ),
    engine: Annotated[
        str, typer.Option(help="What runs it; auto: the fastest that needs no compiler.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="Images per call.", min=1)] = 1,
    input_size: Annotated[int, typer.Option(help="Side of the images.", min=1)] = 224,
    threads: Annotated[int | None, typer.Option(help="Threads on a CPU.", min=1)] = None,
    probes: Annotated[
        int, typer.Option(help="Networks measured to predict the others.", min=8)
    ] = 24,
    finalists: Annotated[
        int, typer.Option(help="Networks measured of those preferred.", min=1)
    ] = 6,
    seconds: Annotated[float, typer.Option(help="For the calls that count, per network.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the best one's config; it can be used as a model's name."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find a RegNet for this device: as large as a latency and other limits allow.

    Accuracy is not predicted: in the space that the paper found, networks of equal flops are about
    equally good, and more flops are better.

    Example: regnet search --flops 400e6 --latency-ms 15 --device cpu --output best.json
    """
    from regnet.atomic import write_bytes
    from regnet.devices import find_device
    from regnet.studies.search import Limits, search, search_space

    limits = Limits(
        flops=flops,
        params=params,
        activations=activations,
        latency_ms=latency_ms,
        memory_mb=memory_mb,
    )
    where = find_device(device)
    if threads:
        import torch

        torch.set_num_threads(threads)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), console=stderr, transient=True, disable=not stderr.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("sampling", total=None)
        found = search(
            limits,
            space=search_space(space),
            device=where,
            engine=engine,
            precision=precision,  # type: ignore[arg-type]  # the search checks it
            batch_size=batch_size,
            input_size=input_size,
            probes=probes,
            finalists=finalists,
            seconds=seconds,
            seed=seed,
            on_step=lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
        )
    if output:
        write_bytes(output, found.best.config.to_json().encode())
        stderr.print(f"wrote {output}")
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: "Found") -> None:
    best = found.best
    rows = [("best", best)]
    rows += [("within", row) for row in found.pareto if row != best]
    rows += [(row.name, row) for row in found.published]
    print_table(
        ("", ">flops", ">params", ">ms", ">95 %", ">predicted ms", "config"),
        [_cells(name, row) for name, row in rows],
    )
    stdout.print(
        f"\n{found.engine} {found.precision}, batch {found.batch_size}; {found.measured} networks "
        f"measured, {found.candidates} ranked by a model of latency that is off by "
        f"{100 * found.fit_error:.1f} % (median of networks left out), and by "
        f"{100 * found.prediction_error:.1f} % for the finalists"
    )
    if found.against_rival is not None:
        told = found.against_rival.verdict("the best", str(found.rival))
        stdout.print(f"in turn with {found.rival}, the fastest published one of its flops: {told}")


def _cells(name: str, row: "Measured") -> tuple[str, ...]:
    guess = "" if row.predicted_ms is None else f"{row.predicted_ms:.2f}"
    c = row.config
    shape = f"depths {list(c.depths)}, widths {list(c.widths)}"
    return (
        name, scaled(row.flops), scaled(row.params), f"{row.latency_ms:.2f}",
        f"{row.low_ms:.2f}-{row.high_ms:.2f}", guess, "" if row.name else shape,
    )  # fmt: skip
