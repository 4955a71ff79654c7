"""`regnet bench`: how fast networks are on this device."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regnet.cli.output import print_error, print_json, print_table, scaled, stderr, stdout
from regnet.errors import ConfigError

if TYPE_CHECKING:
    from regnet.bench.runner import Document, Row

app = typer.Typer(invoke_without_command=True, add_completion=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.callback()
def command(
    context: typer.Context,
    *,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = "cpu",
    models: Annotated[
        str | None,
        typer.Option(help="Names or patterns, by comma; files of a config (.json); checkpoints."),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Images per call, by comma.")] = "1",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, by comma.")] = "fp32",
    engine: Annotated[str, typer.Option(help="Engines, by comma, or all.")] = "folded",
    input_size: Annotated[
        int | None, typer.Option(help="Side of the images; else each network's own.", min=1)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads on a CPU.", min=1)] = None,
    train: Annotated[bool, typer.Option("--train", help="Forward and backward.")] = False,
    seconds: Annotated[float, typer.Option(help="For the calls that count, per case.")] = 3.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Three small networks; ends within a minute.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the document, all samples in it.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report that needs no network.")] = None,
    against: Annotated[Path | None, typer.Option(help="An earlier document to compare.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure latency and throughput; without arguments, the paper's comparison on this device.

    Example: regnet bench --models regnety_004,regnetx_004 --batch-size 1,16 --precision fp32,bf16
    """
    if context.invoked_subcommand:
        return
    import torch

    from regnet.bench.compare import read
    from regnet.bench.runner import DEFAULT_MODELS, QUICK_MODELS, Case, expand, run
    from regnet.engines.base import DTYPES
    from regnet.engines.optimize import ENGINES, find_engine

    where = _device(device)
    earlier = read(against) if against else None
    chosen = _split(models) if models else list(QUICK_MODELS if quick else DEFAULT_MODELS)
    engines = [e.name for e in ENGINES] if engine == "all" else _split(engine)
    for name in engines:
        find_engine(name)
    for name in _split(precision):
        if name not in DTYPES:
            raise ConfigError(f"precision must be one of {', '.join(DTYPES)}; got {name!r}")
    cases = [
        Case(
            model=model,
            batch_size=batch,
            precision=kind,  # type: ignore[arg-type]  # checked above
            engine=way,
            input_size=input_size,
            train=train,
        )
        for model in expand(chosen)
        for batch in _whole(batch_size)
        for kind in _split(precision)
        for way in (["eager"] if train else engines)
    ]
    if threads:
        torch.set_num_threads(threads)
    limit = min(seconds, 1.0) if quick else seconds
    # The progress is the rows themselves; with --json they go to stderr.
    done = run(cases, device=where, seconds=limit, on_row=lambda row: stderr.print(_line(row)))
    if out:
        _write(out, json.dumps(done.to_dict()))
    if html:
        from regnet.bench.report import render

        _write(html, render(done.to_dict()))
    if as_json:
        print_json(done.to_dict())
    else:
        _print(done)
        if earlier:
            _print_changes(earlier, done.to_dict())
    if not done.complete:
        print_error(f"interrupted after {len(done.rows)} of {len(cases)} cases")
        raise typer.Exit(130)
    if not any(row.latency_ms for row in done.rows):
        print_error("no case could be measured; the table says why")
        raise typer.Exit(1)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A document of regnet bench --out.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, case by case.

    Example: regnet bench compare before.json after.json
    """
    from regnet.bench.compare import compare_documents, read

    old, new = read(before), read(after)
    if as_json:
        print_json([asdict(change) for change in compare_documents(old, new)])
    else:
        _print_changes(old, new)


def _device(name: str) -> "torch.device":  # type: ignore[name-defined]  # noqa: F821 - imported late
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name!r}; use cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch sees no CUDA GPU here; use --device cpu, or install a CUDA build "
            "of torch where there is one"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: not available here; use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"--device {name}: use cpu, cuda or mps")
    return device


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in _split(text)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(
            f"needs whole numbers such as 1,16, got {text!r}", param_hint="--batch-size"
        )
    return numbers


def _write(path: Path, text: str) -> None:
    from regnet.atomic import write_bytes

    write_bytes(path, text.encode())
    stderr.print(f"wrote {path}")


def _line(row: "Row") -> str:
    case = row.case
    way = "train" if case.train else case.engine
    name = f"{case.model} batch {case.batch_size} {case.precision} {way}"
    return f"{name}: {row.reason or f'{row.latency_ms:.3f} ms'}"


def _print(done: "Document") -> None:
    from regnet.bench.runner import speedups

    print_table(
        (
            *("network", ">batch", "precision", "engine", ">image", ">flops", ">acts"),
            *(">ms", ">p90", ">img/s", ">of floor", ">error %", "~note"),
        ),
        [
            (
                row.case.model,
                str(row.case.batch_size),
                row.case.precision,
                "train" if row.case.train else row.case.engine,
                str(row.input_size or ""),
                scaled(row.flops),
                scaled(row.activations),
                f"{row.latency_ms:.2f}" if row.latency_ms else "",
                f"{row.p90_ms:.2f}" if row.p90_ms else "",
                f"{row.images_per_second:.1f}" if row.images_per_second else "",
                f"{100 * row.floor_fused_ms / row.latency_ms:.0f} %"
                if row.floor_fused_ms and row.latency_ms and not row.case.train
                else "",
                f"{row.paper_error:.1f}" if row.paper_error else "",
                row.reason or ("" if row.steady else "not steady"),
            )
            for row in done.rows
        ],
    )
    for (pair, batch), ratio in speedups(done).items():
        stdout.print(f"{pair}, batch {batch}: {ratio:.2f}")
    device = done.environment["device"]
    stdout.print(f"{device}, {done.environment['threads']} threads; errors are the paper's")


def _print_changes(before: dict[str, object], after: dict[str, object]) -> None:
    from regnet.bench.compare import compare_documents

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
            for change in compare_documents(before, after)
        ],
    )
