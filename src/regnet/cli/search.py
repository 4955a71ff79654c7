"""regnet search: a RegNet for this device."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regnet.cli.list_models import parse_count
from regnet.cli.output import print_json, print_table, scaled, stderr, stdout
from regnet.errors import ConfigError

if TYPE_CHECKING:
    from regnet.studies.search import Found, Measured


def command(
    *,
    flops: Annotated[str | None, typer.Option(help="Multiply-adds, at most: 400e6, 400M.")] = None,
    params: Annotated[str | None, typer.Option(help="Parameters, at most: 5M.")] = None,
    activations: Annotated[str | None, typer.Option(help="Activations, at most: 4M.")] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Milliseconds of a call, at most; the median.")
    ] = None,
    memory_mb: Annotated[
        float | None,
        typer.Option(help="Megabytes of weights and feature maps, at most; by arithmetic."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = "cpu",
    space: Annotated[
        str, typer.Option(help="regnety, or regnetx: no squeeze-excitation.")
    ] = "regnety",
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
    seed: Annotated[int, typer.Option(help="Of the sample.", min=0)] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the best one's config (.json), which can then be used as a model's name.",
        ),
    ] = None,
    pareto: Annotated[
        Path | None,
        typer.Option(help="A folder for the configs of the Pareto set, the fastest first."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find a RegNet for this device: as large as a latency and other limits allow.

    Accuracy is not predicted: in the space that the paper found, networks of equal flops are about
    equally good, and more flops are better.

    Example: regnet search --flops 400M --latency-ms 15 --device cpu --output best.json
    """
    from regnet.atomic import write_bytes
    from regnet.devices import find_device
    from regnet.studies.search import Limits, search, search_space

    counts = {"flops": flops, "params": params, "activations": activations}
    limits = Limits(
        **{name: parse_count(f"--{name}", text) for name, text in counts.items() if text},
        latency_ms=latency_ms,
        memory_mb=memory_mb,
    )
    if output and (output.suffix != ".json" or not output.absolute().parent.is_dir()):
        raise ConfigError(f"{output}: the file must end in .json, in a folder that exists")
    if pareto and pareto.exists() and not pareto.is_dir():
        raise ConfigError(f"{pareto}: --pareto needs a folder, and this is a file")
    where = find_device(device)
    if threads:
        import torch

        torch.set_num_threads(threads)
    with _Bar() as bar:
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
            on_step=bar.step,
        )
    if as_json:
        print_json(found)
    else:
        _print(found)
    if output:
        write_bytes(output, found.best.config.to_json().encode())
        stderr.print(f"wrote {output}")
    if pareto:
        pareto.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(found.pareto, 1):
            name = f"{number:02d}-{row.latency_ms:.1f}ms-{row.flops / 1e6:.0f}MF.json"
            write_bytes(pareto / name, row.config.to_json().encode())
        stderr.print(f"wrote {len(found.pareto)} configs into {pareto}")


def _print(found: "Found") -> None:
    best = found.best
    rows = [("best", best)]
    rows += [("within", row) for row in found.pareto if row != best and not row.name]
    rows += [(row.name, row) for row in found.published]
    print_table(
        ("", ">flops", ">params", ">ms", ">95 %", ">predicted ms", "network"),
        [_cells(name, row) for name, row in rows],
    )
    facts = found.environment
    off = (
        ""
        if found.prediction_error is None
        else (f", and by {100 * found.prediction_error:.1f} % for the finalists")
    )
    stdout.print(
        f"\n{found.engine} {found.precision}, batch {found.batch_size}, {found.input_size} pixels, "
        f"{facts['device']}, {facts['threads']} threads; {found.measured} networks measured, "
        f"{found.candidates} ranked by a model of latency that is off by "
        f"{100 * found.fit_error:.1f} % (median of networks left out){off}"
    )
    if found.rival is None:
        stdout.print("no published RegNet has flops within 10 % of it")
    elif found.against_rival is not None:
        told = found.against_rival.verdict("the one found", found.rival)
        stdout.print(f"in turn with {found.rival}, the fastest published one of its flops: {told}")


def _cells(name: str, row: "Measured") -> tuple[str, ...]:
    guess = "" if row.predicted_ms is None else f"{row.predicted_ms:.2f}"
    config = row.config
    groups = sorted({stage.group_width for stage in config.anynet().stages})
    shape = f"depths {list(config.depths)}, widths {list(config.widths)}, groups {groups}"
    return (
        name, scaled(row.flops), scaled(row.params), f"{row.latency_ms:.2f}",
        f"{row.low_ms:.2f}-{row.high_ms:.2f}", guess, f"{row.name} {shape}" if name == "best"
        else shape,
    )  # fmt: skip


class _Bar:
    """A bar for the measurements; lines where nobody looks."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), console=stderr, transient=True, disable=not stderr.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("sampling", total=None)
        self.began = time.monotonic()

    def __enter__(self) -> "_Bar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, what: str, done: int, total: int) -> None:
        """Before each measurement, and after the last."""
        self.bar.update(self.task, description=what, completed=done, total=total)
        if not stderr.is_terminal and done in (0, total):
            stderr.print(f"{what}: {done} of {total}, {time.monotonic() - self.began:.0f} s")
