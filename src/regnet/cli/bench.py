"""`regnet bench`: measure how fast networks run on this device."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regnet.cli.arguments import (
    AsJson,
    Device,
    Threads,
    Trust,
    check_choice,
    check_outputs,
    refuse_given,
    set_threads,
    split,
    whole_numbers,
)
from regnet.cli.interrupt import handled
from regnet.cli.output import print_error, print_json, print_table, scaled, stderr, stdout
from regnet.cli.progress import ProgressBar
from regnet.errors import ConfigError

if TYPE_CHECKING:
    from regnet.bench.compare import Change
    from regnet.bench.document import Document, Pair, Row
    from regnet.data.sets import ImageSet
    from regnet.engines.base import Precision

app = typer.Typer(invoke_without_command=True, add_completion=False)


@app.callback()
def command(
    context: typer.Context,
    *,
    device: Device = "cpu",
    models: Annotated[
        str | None,
        typer.Option(
            help="Names or patterns of networks, config files (.json) or "
            "checkpoints, separated by commas."
        ),
    ] = None,
    batch_size: Annotated[
        str, typer.Option(help="Images per call; several sizes separated by commas.")
    ] = "1",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 or fp16; several separated by commas.")
    ] = "fp32",
    layout: Annotated[
        str,
        typer.Option(
            help="Memory layout: channels_last, contiguous; for engines that "
            "do not choose it themselves."
        ),
    ] = "channels_last",
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engines separated by commas, or all, best (the fastest for each network) or auto "
            "(the fastest that needs no compiler). Default: auto; folded with --quick."
        ),
    ] = None,
    peers: Annotated[
        str | None, typer.Option(help="Also measure the same networks of timm, torchvision.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the images in pixels. Default: that of each network.", min=1),
    ] = None,
    threads: Threads = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled images on which to measure accuracy, and agreement "
            "with the first network."
        ),
    ] = None,
    trust: Trust = False,
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Measure a training step (forward and backward) instead of inference."
        ),
    ] = False,
    seconds: Annotated[
        float, typer.Option(help="Measuring time per case, in seconds.", min=0.01)
    ] = 3.0,
    calls: Annotated[
        int,
        typer.Option(help="Largest number of measured calls; 1,000 are needed for a p99.", min=5),
    ] = 200,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Measure three small networks in rounds, within a minute."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the results with all samples as JSON.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write an HTML report that works offline.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot accuracy against latency (.svg, .png, .pdf).")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Results of an earlier run to compare with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure latency and throughput. Without arguments: the paper's comparison, on this device.

    Example: regnet bench --models regnety_004,regnetx_004 --batch-size 1,16 --precision fp32,bf16
    """
    if context.invoked_subcommand:
        refuse_given(
            context, context.params, "stands before the subcommand, where it has no effect"
        )
        return
    from regnet import documents
    from regnet.atomic import write_bytes
    from regnet.bench.compare import compare_documents
    from regnet.bench.document import AUTO, BEST, Case, read
    from regnet.bench.networks import DEFAULT_MODELS, QUICK_MODELS, expand
    from regnet.bench.runner import run
    from regnet.data.sets import open_set
    from regnet.devices import find_device
    from regnet.engines.base import DTYPES
    from regnet.engines.optimize import ENGINES, LAYOUTS, find_engine
    from regnet.zoo.resolver import is_exported

    if train and engine:
        raise ConfigError("--train runs eagerly; leave out --engine")
    if train and data:
        raise ConfigError("--data measures the accuracy of inference; leave it or --train out")
    check_outputs(out, html, plot=plot)
    where = find_device(device)
    earlier = read(against) if against else None
    chosen = split(models) if models else list(QUICK_MODELS if quick else DEFAULT_MODELS)
    ways = split(engine or ("folded" if quick or train else AUTO))
    engines = [e.name for e in ENGINES] if ways == ["all"] else ways
    for name in engines:
        if name not in (AUTO, BEST):
            find_engine(name)
    for option, asked, known in (("precision", precision, DTYPES), ("layout", layout, LAYOUTS)):
        for name in split(asked):
            check_choice(option, name, known)
    precisions, layouts = split(precision), split(layout)
    ran = ["eager"] if train else engines
    if layouts[0] != LAYOUTS[0] and {AUTO, BEST} & {*ran}:
        raise ConfigError(f"{AUTO} and {BEST} choose the layout; name engines, or omit --layout")
    networks = expand(chosen, split(peers) if peers else [])
    if train and (exported := [name for name in networks if is_exported(name)]):
        raise ConfigError(f"{exported[0]} is an exported file, which cannot be trained")
    cases = [
        Case(
            model=model,
            batch_size=batch,
            precision=kind,  # type: ignore[arg-type]  # checked above
            engine=way,
            layout=order,  # type: ignore[arg-type]  # checked above
            image_size=image_size,
            train=train,
        )
        for batch in whole_numbers("--batch-size", batch_size)
        for kind in precisions
        for order in layouts
        for way in ran
        if order == layouts[0] or way not in (AUTO, BEST)  # which choose the layout
        for model in networks
        # An exported file has one engine, precision and layout.
        if (kind, order, way) == (precisions[0], layouts[0], ran[0]) or not is_exported(model)
    ]
    set_threads(threads)
    images = open_set(data) if data else None
    limit = min(seconds, 1.0) if quick else seconds
    # Each row is printed on stderr as soon as it is measured, which shows the progress.
    done = run(
        cases,
        device=where,
        seconds=limit,
        calls=calls,
        in_turn=quick,
        trust=trust,
        on_row=lambda row: stderr.print(_line(row)),
        on_pair=lambda pair: stderr.print(_pair_line(pair)),
        on_document=lambda document: documents.write(out, document) if out else None,
    )
    handled()  # after Ctrl-C, `run` returns the rows that it has measured
    if images and done.complete:
        done = _with_accuracy(done, images, trust=trust)
    comparison = compare_documents(earlier, done) if earlier else None
    if as_json:
        changes = {} if comparison is None else {"against": comparison}
        print_json(documents.sealed(done) | changes)
    else:
        _print(done)
        if comparison is not None:
            _print_changes(comparison)
    if out:
        documents.write(out, done)
        stderr.print(f"wrote {out}")
    if html:
        from regnet.bench.report import render

        write_bytes(html, render(done).encode())
        stderr.print(f"wrote {html}")
    if plot:
        from regnet.bench.plot import save_benchmark

        save_benchmark(done, plot)
        stderr.print(f"wrote {plot}")
    if not done.complete:
        print_error(f"interrupted after {len(done.rows)} of {len(cases)} cases")
        raise typer.Exit(130)
    if not any(row.latency_ms for row in done.rows):
        print_error("no case could be measured; the table says why")
        raise typer.Exit(1)
    if images and any(row.latency_ms and row.data_top1 is None for row in done.rows):
        raise typer.Exit(1)  # the reasons are printed


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Results that regnet bench --out wrote.")],
    after: Annotated[Path, typer.Argument(help="Later results.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, case by case.

    Example: regnet bench compare before.json after.json
    """
    from regnet.bench.compare import compare_documents
    from regnet.bench.document import read

    changes = compare_documents(read(before), read(after))
    if not changes:
        raise ConfigError(
            f"{before} and {after} have no measured case in common; a case is a network with its "
            "batch size, precision, engine, layout and image size"
        )
    if as_json:
        print_json(changes)
    else:
        _print_changes(changes)


def _line(row: "Row") -> str:
    case = row.case
    name = f"{case.name} batch {case.batch_size} {row.ran_as or case.precision}"
    if row.latency_ms is None:
        return f"{name}: {row.reason}"
    doubt = row.problem or ("" if row.steady else "not steady")
    return f"{name}: {row.latency_ms:.3f} ms" + (f" ({doubt})" if doubt else "")


def _pair_line(pair: "Pair") -> str:
    return f"{pair.a} / {pair.b}, batch {pair.batch_size}, {pair.precision}: {pair.verdict}"


def _print(done: "Document") -> None:
    from regnet.bench.report import cells

    speedups = {
        (p.b, p.batch_size, p.precision, p.engine, p.layout): f"{p.ratio:.2f}" for p in done.pairs
    }
    columns: tuple[str, ...] = (
        *("network", ">batch", "ran", ">image", ">flops", ">acts", ">ms", "95 %"),
        *(">p90", ">img/s", ">of floor", ">error %", ">speed-up", "~note"),
    )
    judged = any(row.data_top1 is not None for row in done.rows)
    if judged:
        columns = (*columns[:-1], ">top-1 %", ">same class %", columns[-1])
    print_table(
        columns,
        [
            (
                row["network"],
                row["batch"],
                row["ran"],
                row["image"],
                scaled(line.flops),
                scaled(line.activations),
                row["ms"],
                row["95 %"],
                row["p90 ms"],
                row["images/s"],
                row["% of floor"] and f"{row['% of floor']} %",
                row["top-1 error %"],
                speedups.get(
                    (
                        line.case.name,
                        line.case.batch_size,
                        line.case.precision,
                        line.case.engine,
                        line.case.layout,
                    ),
                    "",
                ),
                *(_accuracy(line) if judged else ()),
                row["note"],
            )
            for line in done.rows
            for row in [cells(line)]
        ],
    )
    for pair in done.pairs:
        stdout.print(_pair_line(pair))
    sources = sorted({row.top1_source for row in done.rows if row.top1_source})
    told = f"; errors are those of {' and '.join(sources)}" if sources else ""
    stdout.print(f"{done.environment['device']}, {done.environment['threads']} threads{told}")


def _accuracy(row: "Row") -> tuple[str, ...]:
    """Return the cells with the accuracy and the agreement on the images of --data."""
    values = (row.data_top1, row.data_agreement)
    return tuple("" if value is None else f"{value:.2f}" for value in values)


def _with_accuracy(done: "Document", images: "ImageSet", *, trust: bool) -> "Document":
    """Add the accuracy of each measured network, and its agreement with the first network."""
    from dataclasses import replace

    from regnet.devices import core_count
    from regnet.errors import RegNetError
    from regnet.evaluation.evaluate import Evaluation, evaluate

    found: dict[tuple[Any, ...], Evaluation] = {}
    measured = [row for row in done.rows if row.latency_ms]
    with ProgressBar("evaluating") as bar:
        for name, size, engine, precision in dict.fromkeys(map(_setting, measured)):
            step = partial(bar.step, f"evaluating {name}")
            try:
                found[name, size, engine, precision] = evaluate(
                    name,
                    images,
                    engine=engine,
                    precision=precision,
                    image_size=size,
                    workers=core_count(),
                    trust=trust,
                    on_images=step,
                )
            except RegNetError as error:
                print_error(f"{name}: accuracy was not measured: {error}")
    first = next(iter(found.values()), None)
    rows = []
    for row in done.rows:
        one = found.get(_setting(row))
        if one and first:
            row = replace(row, data_top1=one.top1, data_agreement=one.agreement(first))
        rows.append(row)
    return replace(done, rows=tuple(rows))


def _setting(row: "Row") -> tuple[str, int | None, str, "Precision"]:
    """Return what decides the answers of a row's network: name, image size, engine, precision.

    In float32 all engines give the answers of eager PyTorch, because their outputs are checked. An
    exported file has one engine and precision, and takes no other.
    """
    from regnet.zoo.resolver import is_exported

    engine, precision, *_ = (row.ran or "eager fp32").split()
    if precision not in ("fp16", "bf16") or is_exported(row.case.name):
        engine, precision = "eager", "fp32"
    return row.case.name, row.case.image_size, engine, precision  # type: ignore[return-value]


def _print_changes(changes: "list[Change]") -> None:
    print_table(
        ("case", ">before ms", ">after ms", ">ratio", "95 %", "verdict"),
        [
            (
                change.case,
                f"{change.before_ms:.2f}",
                f"{change.after_ms:.2f}",
                f"{change.ratio:.3f}",
                f"{change.low:.3f}-{change.high:.3f}",
                change.verdict,
            )
            for change in changes
        ],
    )
