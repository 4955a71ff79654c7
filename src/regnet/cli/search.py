"""`regnet search`: search for a RegNet for this device."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from regnet.cli.arguments import (
    AsJson,
    Device,
    Threads,
    check_new_folder,
    check_outputs,
    parse_count,
    parse_duration,
    read_recipe,
    refuse_given,
    set_threads,
)
from regnet.cli.executors import ExecutorName, Slurm, executor_of
from regnet.cli.networks import SetOption, TrainImages, ValImages, Workers
from regnet.cli.output import print_json, print_table, scaled, stderr, stdout
from regnet.cli.progress import ProgressBar
from regnet.cli.trained_search import trained_search
from regnet.errors import ConfigError

if TYPE_CHECKING:
    from regnet.selection.limits import Found, Measured


ALONE: Final = ("image_size", "num_classes", "finalists", "pareto")
"""Options that are refused with --data, where the images and the trainings decide instead."""

TRAINING: Final = (
    "val", "folder", "recipe", "set_", "candidates", "budget", "replicas", "train_images",
    "val_images", "workers", "executor", "slurm",
)  # fmt: skip
"""Options that are refused without --data, because they only concern training."""


def command(
    context: typer.Context,
    *,
    flops: Annotated[
        str | None, typer.Option(help="Largest number of multiply-adds, such as 400e6 or 400M.")
    ] = None,
    params: Annotated[
        str | None, typer.Option(help="Largest number of parameters, such as 5M.")
    ] = None,
    activations: Annotated[
        str | None, typer.Option(help="Largest number of activations, such as 4M.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Largest median time of a call, in milliseconds.")
    ] = None,
    memory_mb: Annotated[
        float | None,
        typer.Option(help="Largest memory for weights and feature maps in megabytes, as computed."),
    ] = None,
    device: Device = "cpu",
    space: Annotated[
        str, typer.Option(help="regnety, or regnetx (without squeeze-excitation).")
    ] = "regnety",
    engine: Annotated[
        str,
        typer.Option(
            help="Engine that will run the network; auto: the fastest that needs no compiler."
        ),
    ] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="Images per call.", min=1)] = 1,
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.", min=1)] = 224,
    num_classes: Annotated[int, typer.Option(help="Number of classes.", min=1)] = 1000,
    in_chans: Annotated[int, typer.Option(help="Channels of the images.", min=1)] = 3,
    stem: Annotated[str, typer.Option(help="Stem: simple, or cifar for small images.")] = "simple",
    stages: Annotated[int, typer.Option(help="Stages of the networks.", min=1)] = 4,
    threads: Threads = None,
    probes: Annotated[
        int, typer.Option(help="Networks to measure before the others are predicted.", min=8)
    ] = 24,
    finalists: Annotated[int, typer.Option(help="Most promising networks to measure.", min=1)] = 6,
    seconds: Annotated[float, typer.Option(help="Measuring time per network, in seconds.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the sample.", min=0)] = 0,
    data: Annotated[
        str | None,
        typer.Option(help="Images to train candidates on, as `regnet train` takes them."),
    ] = None,
    val: Annotated[
        str | None, typer.Option(help="Images to test on. Default: those beside --data.")
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="With --data: folder of the search; run again to resume.")
    ] = Path("runs/search"),
    recipe: Annotated[
        str, typer.Option(help="With --data: name of a recipe, or a JSON file.")
    ] = "dds-short",
    set_: SetOption = None,
    candidates: Annotated[
        int, typer.Option(help="With --data: largest number of candidates to train.", min=4)
    ] = 16,
    budget: Annotated[
        str | None,
        typer.Option(
            help="With --data: approximate training time, such as 90m or 2h; limits the candidates."
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option(help="With --data: trainings of each finalist.", min=2, max=10)
    ] = 4,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    workers: Workers = None,
    executor: ExecutorName = "local",
    slurm: Slurm = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the config of the best network (.json); the path is a model name."
        ),
    ] = None,
    pareto: Annotated[
        Path | None,
        typer.Option(help="Folder for the configs of the Pareto set."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search for a RegNet that is as good as your limits allow on this device.

    Without --data accuracy is not measured. More flops are taken to be better, and among networks
    of equal flops a prior from trained populations decides. With --data, candidates and published
    networks of that latency are trained by successive halving, and the best of each are trained
    again and compared.

    Example: regnet search --flops 400M --latency-ms 15 --device cpu --out best.json
    """
    from regnet import documents
    from regnet.atomic import write_bytes
    from regnet.devices import find_device
    from regnet.selection.limits import Limits
    from regnet.selection.search import search
    from regnet.spaces.paper import search_space

    counts = {"flops": flops, "params": params, "activations": activations}
    limits = Limits(
        **{name: parse_count(f"--{name}", text) for name, text in counts.items() if text},
        latency_ms=latency_ms,
        memory_mb=memory_mb,
    )
    check_outputs(out)
    if out and out.suffix != ".json":
        raise ConfigError(f"{out}: --out must name a .json file")
    if pareto:
        check_new_folder(pareto)
    where = find_device(device)
    set_threads(threads)
    found = search_space(space)
    wanted = replace(
        found,
        num_stages=stages,
        architecture=replace(
            found.architecture,
            num_classes=num_classes,
            in_chans=in_chans,
            stem=stem,  # type: ignore[arg-type]  # the config checks it
        ),
    )
    measuring: dict[str, Any] = {
        "device": where,
        "engine": engine,
        "precision": precision,
        "batch_size": batch_size,
        "probes": probes,
        "seconds": seconds,
    }
    if data is not None:
        refuse_given(context, ALONE, "cannot be used with --data; leave it out")
    else:
        refuse_given(context, TRAINING, "needs --data; leave it out")
    if data is not None:
        trained_search(
            folder,
            limits,
            data=data,
            val=val,
            recipe=read_recipe(recipe, set_ or []),
            space=wanted,
            candidates=candidates,
            budget=parse_duration("--budget", budget),
            replicas=replicas,
            train_images=train_images,
            val_images=val_images,
            seed=seed,
            executor=executor_of(executor, workers, [str(where)], None, None, slurm, None),
            measuring=measuring,
            out=out,
            as_json=as_json,
        )
        return
    with ProgressBar("sampling") as bar:
        done = search(
            limits,
            space=wanted,
            image_size=image_size,
            finalists=finalists,
            seed=seed,
            on_step=bar.step,
            **measuring,
        )
    if as_json:
        print_json(documents.plain(done) | {"doubts": done.doubts})
    else:
        _print(done)
    if out:
        write_bytes(out, done.best.config.to_json().encode())
        stderr.print(f"wrote {out}")
    if pareto:
        pareto.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(done.pareto, 1):
            name = f"{number:02d}-{row.latency_ms:.1f}ms-{row.flops / 1e6:.0f}MF.json"
            write_bytes(pareto / name, row.config.to_json().encode())
        stderr.print(f"wrote {len(done.pareto)} configs into {pareto}")


def _print(found: "Found") -> None:
    for doubt in found.doubts:
        stdout.print(doubt)
    best = found.best
    rows = [("best", best)]
    rows += [("within", row) for row in found.pareto if row != best and not row.name]
    rows += [(row.name, row) for row in found.published]
    print_table(
        ("", ">flops", ">worth", ">params", ">ms", ">95 %", ">predicted ms", "network"),
        [_cells(name, row) for name, row in rows],
    )
    facts = found.environment
    off = (
        ""
        if found.prediction_error is None
        else (f" and {100 * found.prediction_error:.1f} % on the finalists")
    )
    stdout.print(
        f"\n{found.engine} {found.precision}, batch {found.batch_size}, {found.image_size} pixels, "
        f"{facts['device']}, {facts['threads']} threads; {found.measured} networks measured, "
        f"{found.candidates} ranked by a latency model with a median error of "
        f"{100 * found.fit_error:.1f} % on networks left out of its fit{off}"
    )
    stdout.print(
        "worth: the flops of an ordinary published network that is predicted to be as good, by "
        f"{found.prior}"
    )
    if found.rival is None:
        stdout.print("none of the measured published RegNets is predicted to be at least as good")
    elif found.against_rival is not None:
        verdict = found.against_rival.verdict("the network found", found.rival)
        weak = " (weak: see above)" if found.doubts and found.against_rival.differs else ""
        stdout.print(
            f"compared with {found.rival}, the fastest published network that is predicted to be "
            f"at least as good: {verdict}{weak}"
        )


def _cells(name: str, row: "Measured") -> tuple[str, ...]:
    guess = "" if row.predicted_ms is None else f"{row.predicted_ms:.2f}"
    config = row.config
    groups = sorted({stage.group_width for stage in config.anynet().stages})
    shape = f"depths {list(config.depths)}, widths {list(config.widths)}, groups {groups}"
    return (
        name, scaled(row.flops), "" if row.worth is None else scaled(row.worth),
        scaled(row.params), f"{row.latency_ms:.2f}",
        f"{row.low_ms:.2f}-{row.high_ms:.2f}", guess, f"{row.name} {shape}" if name == "best"
        else shape,
    )  # fmt: skip
