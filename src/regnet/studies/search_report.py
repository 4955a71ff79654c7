"""Write the report of a search with images as one HTML file that works offline."""

import json
from functools import partial
from typing import TYPE_CHECKING

from regnet import pages
from regnet.figures import finish, inside_page, new_figure
from regnet.selection.limits import Limits
from regnet.studies.search import Searched, Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render(found: Searched, limits: Limits) -> str:
    """Return the report as HTML; without matplotlib it has no plot."""
    return pages.render(
        "regnet.studies",
        "search.html",
        found=found,
        limits=", ".join(f"{name} at most {value:g}" for name, value in limits.given.items()),
        picture=inside_page(partial(draw, found)),
        facts=json.dumps(found.conditions, indent=1),
    )


def draw(found: Searched) -> "Figure":
    """Draw error over latency with matplotlib; error bars show one standard deviation of seeds."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    published = [row for row in found.trained if not row.name.startswith("candidate")]
    others = [row for row in found.trained if row not in published]

    def bars(rows: list[Trained], marker: str, color: str, label: str) -> None:
        axes.errorbar(
            [row.latency_ms for row in rows],
            [row.error for row in rows],
            yerr=found.seed_deviation,
            xerr=[
                [row.latency_ms - row.low_ms for row in rows],
                [row.high_ms - row.latency_ms for row in rows],
            ],
            fmt=marker,
            color=color,
            label=label,
            elinewidth=0.8,
        )

    bars(others, "o", "tab:blue", "candidates")
    if published:
        bars(published, "s", "tab:gray", "published")
        for row in published:
            axes.annotate(
                row.name, (row.latency_ms, row.error), xytext=(5, 5), textcoords="offset points"
            )
    axes.step(
        [row.latency_ms for row in found.front],
        [row.error for row in found.front],
        where="post",
        color="tab:red",
        alpha=0.5,
        label="front",
    )
    axes.set_xlabel(f"ms per call, batch {found.conditions['batch_size']}")
    axes.set_ylabel("error, %")
    finish(axes)
    return figure
