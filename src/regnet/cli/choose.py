"""`regnet choose`: choose a published network for this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regnet.cli.arguments import AsJson, Device, Plot, Threads, check_outputs, set_threads
from regnet.cli.output import print_error, print_json, print_table, stderr, stdout
from regnet.cli.progress import ProgressBar

if TYPE_CHECKING:
    from regnet.selection.choose import Chosen


def command(
    latency_ms: Annotated[
        float, typer.Option(help="Largest median time of a call, in milliseconds.", min=0)
    ],
    *,
    license: Annotated[
        str | None,
        typer.Option(
            help="License of the weights: commercial (any that allows it), any, apache-2.0, ..."
        ),
    ] = "commercial",
    batch_size: Annotated[int, typer.Option(help="Images per call.", min=1)] = 1,
    device: Device = "cpu",
    min_top1: Annotated[
        float | None, typer.Option(help="Lowest accuracy in percent, by the metric.")
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="Accuracy to rank by: top1 (ImageNet-1k), real (labels of "
            "ReaL) or v2 (ImageNet-V2)."
        ),
    ] = "top1",
    engine: Annotated[
        str,
        typer.Option(
            help="Engine: auto (the fastest of PyTorch, ONNX Runtime, OpenVINO), best (compilers "
            "too), or a name."
        ),
    ] = "auto",
    models: Annotated[
        str, typer.Option(help="Pattern of checkpoints or variants to choose from.")
    ] = "*",
    peers: Annotated[
        bool, typer.Option("--peers", help="Also measure the paper's EfficientNets.")
    ] = False,
    threads: Threads = None,
    plot: Plot = None,
    html: Annotated[
        Path | None, typer.Option(help="Write an HTML report that works offline.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the most accurate published network for a latency and a license on this machine.

    Nothing is downloaded. A few networks are measured, and the measurements are saved.

    Example: regnet choose --latency-ms 20 --license commercial
    """
    check_outputs(html, plot=plot)
    from regnet.devices import find_device
    from regnet.selection.choose import choose

    set_threads(threads)
    where = find_device(device)
    with ProgressBar("measuring") as bar:
        found = choose(
            latency_ms,
            license=None if license == "any" else license,
            batch_size=batch_size,
            device=where,
            min_top1=min_top1,
            metric=metric,  # type: ignore[arg-type]  # checked there
            engine=engine,
            models=models,
            peers=peers,
            on_step=bar.step,
        )
    if plot:
        from regnet.selection.plot import save_choice

        save_choice(found, plot)
        stderr.print(f"wrote {plot}")
    if html:
        from regnet.atomic import write_bytes
        from regnet.selection.report import render

        write_bytes(html, render(found).encode())
        stderr.print(f"wrote {html}")
    if as_json:
        print_json({"chosen": found, "doubts": found.doubts, "lines": found.lines})
    else:
        _print(found)
    if found.pick is None:
        raise typer.Exit(1)


def _print(found: "Chosen") -> None:
    from regnet.selection.choose import milliseconds

    for doubt in found.doubts:
        stdout.print(doubt)
    if found.doubts:
        stdout.print("")
    pick = found.pick
    if pick is None:
        fastest = found.fastest
        print_error(
            f"no network takes {found.latency_ms:g} ms or less on this machine; the fastest, "
            f"{fastest.setting.checkpoint} at {fastest.setting.image_size} pixels, takes "
            f"{fastest.latency_ms:.1f} ms; raise --latency-ms"
        )
        return
    stdout.print(
        f"{pick.setting.checkpoint}, images of {pick.setting.image_size} pixels: "
        f"{pick.setting.accuracy:.2f} %, {milliseconds(pick)} on {pick.engine}\n"
    )
    # The table shows the pick with up to three networks on each side of it.
    rows = list(found.front)
    place = next((n for n, row in enumerate(rows) if row.setting == pick.setting), len(rows) - 1)
    print_table(
        ("", "weights", f">{found.metric}, %", ">image", ">ms", "engine", "license"),
        [
            (
                "pick" if row.setting == pick.setting else "",
                row.setting.checkpoint,
                f"{row.setting.accuracy:.2f}",
                str(row.setting.image_size),
                milliseconds(row),
                row.engine,
                row.setting.license,
            )
            for row in rows[max(0, place - 3) : place + 4]
        ],
    )
    if better := found.next_better:
        stdout.print(
            f"\nmore accurate: {better.setting.checkpoint} ({better.setting.accuracy:.2f} %), "
            f"{milliseconds(better)}"
        )
    if other := found.without_license:
        stdout.print(
            f"excluded by --license: {other.setting.checkpoint} "
            f"({other.setting.accuracy:.2f} %, {milliseconds(other)}), {other.setting.license}"
        )
    if found.peers:
        stdout.print("\nfor comparison, the paper's EfficientNets with the weights of pycls:")
        print_table(
            ("network", ">top1, %", ">image", ">ms", "engine"),
            [
                (
                    row.name,
                    f"{row.accuracy:.2f}",
                    str(row.image_size),
                    milliseconds(row),
                    row.engine,
                )
                for row in found.peers
            ],
        )
    stdout.print("")
    for line in found.lines:
        stdout.print(f"  {line}", markup=False, highlight=False)
    guessed = f"~: predicted, with a median error of {found.prediction_error:.0%}; "
    count = f"{found.measured} network{'s' * (found.measured != 1)} measured now"
    stderr.print(f"\n{guessed * found.predicted}{count}")
