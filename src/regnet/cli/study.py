"""`regnet study`: sample, train, compare and refine design spaces, as the paper does."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from regnet.cli.arguments import (
    AsJson,
    check_choice,
    check_folder,
    check_outputs,
    parse_count,
    read_recipe,
    refuse_given,
)
from regnet.cli.executors import Devices, ExecutorName, Gpus, Slurm, executor_of
from regnet.cli.networks import Networks, SetOption, TrainImages, ValImages, Workers
from regnet.cli.output import print_json, print_table, stderr, stdout
from regnet.cli.progress import ProgressBar, duration
from regnet.cli.spaces import read_networks, read_space, restricted
from regnet.errors import ConfigError, shell, unknown

if TYPE_CHECKING:
    from regnet.executors import Executor
    from regnet.studies.analysis import Gain
    from regnet.studies.population import Population
    from regnet.studies.study import Study

REPORT = "report.html"

app = typer.Typer(
    help="Sample design spaces, train the populations, compare and refine them.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="The folder of the study.")]
Source = Annotated[
    Path, typer.Argument(help="Folder of a study, or a table: .parquet, .csv, or .json of NDS.")
]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)]
SelectOption = Annotated[
    str,
    typer.Option(
        "--select",
        help="Epoch whose error counts: last, or lowest (of any epoch).",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads per network. Default: the cores divided among them.", min=1),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(help="Longest training time of a network in minutes; longer counts as failed."),
]
TrustCode = Annotated[
    bool, typer.Option("--trust", help="Run the functions that the study or a space specifies.")
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Train failed networks again.")]


_OF_TRAINING: Final = ("recipe", "set_", "train_images", "val_images", "val")
"""Options of `init` that an objective does not use."""

_OF_SPACES: Final = ("flops", "tolerance", "latency_ms", "stages", "final", "restrict", "stem",
                     "stem_width")  # fmt: skip
"""Options of `init` that choose a part of a space."""


@app.command("init")
def init(
    context: typer.Context,
    folder: Folder,
    *,
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="anynetx_a to anynetx_e, regnetx, regnety, regnetz, or a JSON file. Repeatable."
        ),
    ] = None,
    configs: Annotated[
        list[Path] | None,
        typer.Option(help="JSON list of networks to train instead of sampled ones. Repeatable."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Images, as `regnet train` takes them. Default: drawn shapes."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="Function that computes the error, package.module:function, instead of --data."
        ),
    ] = None,
    models: Annotated[int, typer.Option(help="Networks per space.", min=1)] = 100,
    replicas: Annotated[
        int,
        typer.Option(
            help="Trainings of the first networks of each space, to measure seed noise.", min=1
        ),
    ] = 1,
    replicated: Annotated[
        int,
        typer.Option(help="With --replicas: number of these networks per space.", min=1),
    ] = 8,
    flops: Annotated[
        str | None, typer.Option(help="Largest number of multiply-adds, such as 4e6 or 400M.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Share by which networks may have fewer.")] = 0.1,
    stages: Annotated[
        int | None,
        typer.Option(
            help="Stages of the networks, such as 3 for images of 32 pixels. Default: the space's.",
            min=1,
        ),
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(
            help="Largest predicted latency of a network on this CPU, in milliseconds. The model "
            "is fitted first, in about a minute, and saved with the space."
        ),
    ] = None,
    final: Annotated[
        bool, typer.Option("--final", help="Constrain RegNet spaces as in the paper's section 5.")
    ] = False,
    restrict: Annotated[
        list[str] | None,
        typer.Option(help="Range of a parameter: d=12:28, wm=2:, b=1. Repeatable."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the images in pixels, with an objective. Default: 224.", min=1),
    ] = None,
    stem: Annotated[
        str | None, typer.Option(help="Stem: simple, or cifar for small images.")
    ] = None,
    stem_width: Annotated[int | None, typer.Option(help="Channels of the stem.")] = None,
    val: Annotated[
        str | None, typer.Option(help="Images to test on. Default: those beside --data.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a JSON file.")] = "dds-short",
    set_: SetOption = None,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", min=0)] = 0,
    trust: TrustCode = False,
    run: Annotated[
        bool, typer.Option("--run", help="Also train, analyze and write the report.")
    ] = False,
    workers: Workers = None,
    device: Devices = None,
    threads: Threads = None,
    executor: ExecutorName = "local",
    gpus: Gpus = None,
    slurm: Slurm = None,
    time_limit: TimeLimit = None,
    as_json: AsJson = False,
) -> None:
    """Begin a study by sampling its networks. With --run also train, compare and report.

    Spaces and studies may specify functions of your own, which run only with --trust. They are
    imported from installed packages and from the current folder.

    Example: regnet study init runs/study --data cifar10/ --space anynetx_a --space regnetx
    --flops 4e6 --stem cifar --recipe cifar-short --run
    """
    from regnet.devices import core_count
    from regnet.selection.limits import DOUBTFUL
    from regnet.studies import Study, population

    if image_size and not objective:
        raise ConfigError(
            "--image-size needs --objective; otherwise the images and the recipe decide the size"
        )
    if objective and not data:
        refuse_given(
            context, _OF_TRAINING,
            "is only for training on images, and the objective trains; leave it out",
        )  # fmt: skip
    if replicas == 1:
        refuse_given(context, ("replicated",), "needs --replicas; add it, or leave it out")
    if flops is None:
        refuse_given(context, ("tolerance",), "needs --flops; add it, or leave it out")
    if configs and not space:
        refuse_given(
            context, _OF_SPACES,
            "only restricts a space; the networks of --configs are given; leave it out",
        )  # fmt: skip
    shape: dict[str, Any] = {
        name: value
        for name, value in (("stem", stem), ("stem_width", stem_width))
        if value is not None
    }
    spaces = [
        read_space(
            name,
            flops=None if flops is None else parse_count("--flops", flops),
            tolerance=tolerance,
            final=final,
            num_stages=stages,
            image_size=image_size,
            **shape,
        )
        for name in space or ()
    ]
    study = Study(
        spaces=tuple(restricted(spaces, restrict or [])),
        models=models,
        given=tuple(read_networks(path, image_size) for path in configs or ()),
        replicas=replicas,
        replicated=replicated,
        train="" if objective and not data else data or "shapes",
        val=val or ("" if objective and not data else data or "shapes"),
        objective=objective or "",
        code="." if objective or any(found.custom for found in spaces) else None,
        train_images=train_images,
        val_images=val_images,
        recipe=read_recipe(recipe, set_ or []),
        seed=seed,
    )
    chosen = executor_of(executor, workers, device, threads, gpus, slurm, time_limit)
    _check_trust(study, trust=trust)
    with ProgressBar("counting") as bar:
        if latency_ms is not None:
            study = population.limit_latency(
                study,
                latency_ms,
                on_probe=lambda done, total: bar.step("measuring latencies", done, total),
            )
        study = population.init(
            folder, study, on_network=lambda done, total: bar.step("counting", done, total)
        )
    stderr.print(f"{folder}: {study.count} networks of {len(study.names)} spaces")
    _tell_of_failed_builds(folder)
    for found in study.spaces:
        if found.latency:
            doubt = "; they only give a rough order" if found.latency.error > DOUBTFUL else ""
            stderr.print(
                f"{found.name}: latencies are predicted ({found.latency.of}) with a median error "
                f"of {found.latency.error:.0%} on networks left out of the fit{doubt}"
            )
    if not study.objective and executor == "local" and device in (None, [], ["cpu"]):
        cores = min(workers or core_count(), core_count())
        seconds = population.work(folder) / (cores * population.CORE_SPEED)
        stderr.print(
            f"about {duration(seconds)} on {cores} core{'s' * (cores > 1)}: a rough guess, until "
            "the first networks are trained"
        )
    if run:
        _train(folder, chosen, trust=trust, retry_failed=False)
        _fail_if_all_failed(folder)
        _report(folder, folder / REPORT)
        analyze(folder, as_json=as_json)
    else:
        status(folder, as_json=as_json)


def run(
    folder: Folder,
    *,
    workers: Workers = None,
    device: Devices = None,
    threads: Threads = None,
    executor: ExecutorName = "local",
    gpus: Gpus = None,
    slurm: Slurm = None,
    time_limit: TimeLimit = None,
    retry_failed: Retry = False,
    data: Annotated[
        str | None, typer.Option(help="Where the same images are now, if they have moved.")
    ] = None,
    val: Annotated[str | None, typer.Option(help="Where the same test images are now.")] = None,
    trust: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Train the networks that are not trained yet. Run it again to resume.

    Several may run at once on one host, and share the work.

    Example: regnet study run runs/study --workers 2
    """
    chosen = executor_of(executor, workers, device, threads, gpus, slurm, time_limit)
    _train(folder, chosen, trust=trust, retry_failed=retry_failed, data=data, val=val)
    status(folder, as_json=as_json)
    _fail_if_all_failed(folder)


app.command("run")(run)
app.command("resume", help="The same as run.")(run)


@app.command("status")
def status(folder: Folder, *, as_json: AsJson = False) -> None:
    """Show the progress of a study.

    Example: regnet study status runs/study --json
    """
    from regnet.studies import population

    found = population.counts(folder)
    if as_json:
        print_json(found)
        return
    states = ("done", "running", "pending", "failed")
    print_table(
        ("space", *(f">{state}" for state in states)),
        [
            (name, *(str(of_space.get(state, 0)) for state in states))
            for name, of_space in found.items()
        ],
    )


@app.command("analyze")
def analyze(
    source: Source,
    *,
    normalize: Annotated[
        str | None,
        typer.Option(
            help="Metric whose distribution is made uniform by weights: "
            "flops, params or activations."
        ),
    ] = None,
    bins: Annotated[int, typer.Option(help="Bins of the range that all spaces share.", min=1)] = 10,
    paired: Annotated[
        bool,
        typer.Option("--paired", help="Compare networks of the same number."),
    ] = False,
    select: SelectOption = "last",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare the spaces, and show which values their best networks have.

    A table can be the output of `regnet study export`, a file with the columns space and error, or
    a JSON file of NDS.

    Example: regnet study analyze runs/study
    """
    from regnet.studies import population
    from regnet.studies.analysis import analyze as analyzed

    populations = _populations(source, select)
    found = analyzed(populations, seed=seed, normalize=normalize, bins=bins, paired=paired)
    study = population.read(source) if source.is_dir() else None
    if as_json:
        print_json({"study": study.to_dict() if study else None, **found.to_dict()})
        return
    if study:
        _tell_of_the_rest(source)
    units = {population.unit for population in populations.values()}
    percent, digits = (" %", ".2f") if units == {"%"} else ("", ".4g")
    print_table(
        ("space", ">networks", ">failed", f">min error{percent}", f">mean error{percent}"),
        [
            (name, f"{r.models}", f"{r.failed}", f"{r.minimum:{digits}}", f"{r.mean:{digits}}")
            for name, r in found.spaces.items()
        ],
    )
    if found.pairs:
        stdout.print()
        print_table(
            ("first", "second", ">difference of means", ">95 %", ">p", ">KS", "the first is"),
            [
                (p.first, p.second, f"{c.difference:+{digits}}",
                 f"{c.low:+{digits}} to {c.high:+{digits}}",
                 f"{c.p_value:.4f}", f"{c.ks:.3f}", c.verdict)
                for p in found.pairs
                for c in [p.comparison]
            ],
        )  # fmt: skip
    noisy = {name: r.noise for name, r in found.spaces.items() if r.noise}
    if noisy:
        stdout.print()
        print_table(
            ("space", ">trained again", ">seeds differ by", ">networks differ by",
             ">of the variance between networks"),
            [
                (name, f"{n.networks}", f"{n.seed_deviation:{digits}}",
                 f"{n.network_deviation:{digits}}",
                 f"{n.share:.0%} ({n.low:.0%} to {n.high:.0%})")
                for name, n in noisy.items()
            ],
        )  # fmt: skip
    for warning in found.warnings:
        stderr.print(f"warning: {warning}")
    for name, result in found.spaces.items():
        stdout.print()
        print_table(
            ("parameter", ">likely best", ">95 % of the best", ">rank correlation with error"),
            [
                (metric, f"{best.median:.4g}", f"{best.low:.4g} to {best.high:.4g}",
                 f"{result.correlation[metric]:+.2f}")
                for metric, best in result.best.items()
            ],
            title=name,
        )  # fmt: skip


@app.command("report")
def report(
    source: Source,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML file. Default: report.html in the study's folder, or here for a table."
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Also write the plots as SVG files into this folder.")
    ] = None,
    select: SelectOption = "last",
    seed: Seed = 0,
) -> None:
    """Write an interactive report as one HTML file that works offline.

    Example: regnet study report runs/study --out study.html
    """
    where = source if source.is_dir() else Path()
    out = out or where / REPORT
    check_outputs(out)
    if plots:
        check_folder(plots)
    _report(source, out, plots=plots, select=select, seed=seed)


@app.command("export")
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="File to write, .csv or .parquet.")],
) -> None:
    """Write a table with a row per trained network.

    Example: regnet study export runs/study study.parquet
    """
    from regnet.studies import population
    from regnet.studies.tables import write_table

    check_outputs(out)
    count = write_table(population.load(folder), out)
    stdout.print(f"{out}: {count} networks")


@app.command("refine")
def refine(
    folder: Folder,
    space: Annotated[str, typer.Argument(help="The space whose results are used.")],
    *,
    metric: Annotated[
        list[str] | None, typer.Option(help="Parameter to restrict. Repeatable. Default: all.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new space.")] = None,
    select: SelectOption = "last",
    seed: Seed = 0,
    trust: TrustCode = False,
) -> None:
    """Add the part of a space in which its best networks lie as a new space to train.

    Example: regnet study refine runs/study regnetx --metric d --metric wm
    """
    from regnet.studies import population
    from regnet.studies.analysis import analyze as analyzed
    from regnet.studies.analysis import gain, refinable
    from regnet.studies.analysis import refine as refined

    study = population.read(folder)
    _check_trust(study, trust=trust)
    populations = _populations(folder, select)
    found = analyzed(populations, seed=seed)
    if space not in found.spaces:
        raise ConfigError(unknown("space with trained networks", space, found.spaces))
    new = refined(study.space(space), found.spaces[space], *(metric or []), name=name)
    chosen = metric or refinable(study.space(space))
    _print_gain(gain(populations[space], found.spaces[space], *chosen), len(populations[space]))
    population.extend(folder, new)
    stderr.print(
        f"{folder}: added {study.models} networks of {new.name}; train them with "
        f"{shell('regnet', 'study', 'run', folder)}"
    )
    status(folder)


def _print_gain(found: "Gain", networks: int) -> None:
    """Print how much better the best part of a space is, and how much one parameter explains."""
    if not found.inside:
        stderr.print(f"none of the {networks} networks lies in all intervals")
        return
    name, points = max(found.alone.items(), key=lambda item: item[1])
    stderr.print(
        f"{found.inside} of {networks} networks lie in all intervals, with a mean error "
        f"{found.points:.3g} points below that of all; {name} alone explains {points:.3g} points"
    )


@app.command("recover")
def recover(folder: Folder, *, trust: TrustCode = False) -> None:
    """Rebuild a damaged study from all results that can still be read.

    Example: regnet study recover runs/study
    """
    from regnet.studies import population

    _check_trust(population.read(folder), trust=trust)
    kept, former = population.recover(folder)
    where = f"; the former file is now {former}" if former else ""
    stderr.print(f"recovered {kept} results{where}")
    status(folder)


def _populations(source: Path, select: str) -> "dict[str, Population]":
    from typing import get_args

    from regnet.studies import population
    from regnet.studies.tables import read_table

    check_choice("select", select, get_args(population.Select))
    chosen: population.Select = "lowest" if select == "lowest" else "last"
    return (read_table if source.is_file() else population.load)(source, chosen)


def _tell_of_the_rest(folder: Path) -> None:
    """Print how many networks of each space are not trained yet or failed, if any."""
    from regnet.studies import population

    for name, of_space in population.counts(folder).items():
        rest = of_space.get("pending", 0) + of_space.get("running", 0)
        if rest or of_space.get("failed"):
            failed = of_space.get("failed", 0)
            stderr.print(
                f"{name}: {of_space.get('done', 0)} networks are trained, {rest} not yet, "
                f"{failed} failed"
            )


def _check_trust(study: "Study", *, trust: bool) -> None:
    if study.functions and not trust:
        raise ConfigError(
            f"the study specifies functions to run: {', '.join(study.functions)}; if you trust "
            "their source, repeat the command with --trust"
        )


def _tell_of_failed_builds(folder: Path) -> None:
    """Print how many sampled networks of each space could not be built, if any, and why."""
    from regnet.studies import population

    for name, of_space in population.load(folder).items():
        if of_space.failed:
            outcome = of_space.failed[0].outcome
            assert outcome is not None, "a failed network has a reason"
            stderr.print(
                f"{name}: {len(of_space.failed)} sampled networks could not be built and were "
                f"replaced; the first: {outcome['reason']}"
            )


def _train(folder: Path, executor: "Executor", *, trust: bool, **options: Any) -> None:
    from regnet.studies import population

    _check_trust(population.read(folder), trust=trust)

    with ProgressBar("training") as bar:
        try:
            population.resume(
                folder,
                executor=executor,
                **options,
                on_result=Networks(folder, bar).result,
            )
        except (KeyboardInterrupt, SystemExit):
            stderr.print(
                "stopped; trained networks are saved. Resume with "
                f"{shell('regnet', 'study', 'run', folder)}"
            )
            raise


def _fail_if_all_failed(folder: Path) -> None:
    """Print how many networks failed, if any, and why; exit with code 1 if none was trained."""
    from regnet.studies import population

    found = population.load(folder)
    failed = [row for of_space in found.values() for row in of_space.failed]
    if failed:
        assert failed[0].outcome is not None, "a failed network has a reason"
        stderr.print(
            f"{len(failed)} networks failed, the first of {failed[0].space}: "
            f"{failed[0].outcome['reason']}; "
            f"{shell('regnet', 'study', 'export', folder, 'networks.csv')} lists all, and "
            f"{shell('regnet', 'study', 'run', folder, '--retry-failed')} trains them again"
        )
        if not any(len(of_space) for of_space in found.values()):
            raise typer.Exit(1)


def _report(
    source: Path,
    out: Path,
    *,
    plots: Path | None = None,
    select: str = "last",
    seed: int = 0,
) -> None:
    from regnet.atomic import write_bytes
    from regnet.studies import population
    from regnet.studies.report import render, save_plots

    populations = _populations(source, select)
    study = population.read(source) if source.is_dir() else None
    if study:
        _tell_of_the_rest(source)
    write_bytes(out, render(study, populations, seed=seed).encode())
    stderr.print(f"report: {out}")
    if plots:
        for path in save_plots(populations, plots, seed=seed):
            stderr.print(f"plot: {path}")
