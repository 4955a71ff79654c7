"""`regnet search --data`: train candidates and report the best."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regnet.cli.networks import Networks
from regnet.cli.output import print_json, print_table, scaled, stderr, stdout
from regnet.cli.progress import ProgressBar

if TYPE_CHECKING:
    from regnet.selection.limits import Limits
    from regnet.studies.search import Searched, Trained
    from regnet.studies.store import Row

REPORT = "report.html"
FRONT = "front"


def trained_search(
    folder: Path,
    limits: "Limits",
    *,
    measuring: dict[str, Any],
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Search with images, print the result, and write the report and configs into the folder."""
    from regnet import documents
    from regnet.atomic import write_bytes
    from regnet.studies.search import search_with_data
    from regnet.studies.search_report import render

    with ProgressBar("sampling") as bar:

        def begins(name: str, where: Path) -> Callable[["Row"], None]:
            stderr.print(f"{name}: {where}")
            return Networks(where, bar).result

        try:
            found = search_with_data(
                folder, limits, on_step=bar.step, on_round=begins, **options, **measuring
            )
        except (KeyboardInterrupt, SystemExit):
            stderr.print(
                "stopped; trained networks are saved. Run the same command again to resume"
            )
            raise
    if as_json:
        print_json(documents.plain(found))
    else:
        _print(found)
    write_bytes(folder / REPORT, render(found, limits).encode())
    stderr.print(f"report: {folder / REPORT}")
    configs = folder / FRONT
    configs.mkdir(exist_ok=True)
    for number, row in enumerate(found.front, 1):
        name = f"{number:02d}-{row.latency_ms:.2f}ms-{row.error:.1f}.json"
        write_bytes(configs / name, row.config.to_json().encode())
    stderr.print(f"configs of the front: {configs}")
    if out:
        write_bytes(out, found.pick.config.to_json().encode())
        stderr.print(f"wrote {out}")


def _print(found: "Searched") -> None:
    for doubt in found.doubts:
        stdout.print(doubt)
    print_table(
        ("", ">error %", ">ms", ">95 %", ">flops", ">params", "depths", "widths"),
        [_cells(row, found) for row in found.trained],
    )
    c = found.conditions
    environment = c["environment"]
    stdout.print(
        f"\n{found.candidates} candidates; errors of the last round come from the seeds that "
        "selected the networks, so the best look better than they are; times are those of "
        f"{c['engine']} {c['precision']}, batch {c['batch_size']}, "
        f"{c['image_size']} pixels, {environment['device']}, {environment['threads']} threads; "
        "*: no other network is both better and faster"
    )
    stdout.print(verdict(found))


def verdict(found: "Searched") -> str:
    """Return a sentence that compares the pick with the best published network."""
    d = found.against_rival
    if d is None or found.rival is None:
        return "no published RegNet that was measured is within the limits"
    interval = f"95 % {d.low:+.1f} to {d.high:+.1f}"
    told = {
        "better": f"better by {d.points:.1f} points",
        "worse": f"worse by {-d.points:.1f} points",
        "no difference shown": f"no difference shown: {d.points:+.1f} points",
    }[d.verdict]
    return (
        f"{found.pick.name} compared with {found.rival.name}: {told} ({interval}; "
        f"{d.pick_error:.2f} and {d.rival_error:.2f} % error, "
        f"{d.replicas} trainings each with new seeds)"
    )


def _cells(row: "Trained", found: "Searched") -> tuple[str, ...]:
    mark = " *" if row in found.front else ""
    return (
        f"{row.name}{mark}", f"{row.error:.2f}", f"{row.latency_ms:.2f}",
        f"{row.low_ms:.2f}-{row.high_ms:.2f}", scaled(row.flops), scaled(row.params),
        str(list(row.config.depths)), str(list(row.config.widths)),
    )  # fmt: skip
