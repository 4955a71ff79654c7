"""Write the report of a study as one HTML file, and its plots as SVG files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from regnet import pages
from regnet.design.complexity import complexity
from regnet.design.config import AnyNetConfig, RegNetConfig, config_from_dict
from regnet.design.widths import FloatArray
from regnet.figures import as_drawn, as_file_name, check_plot_file, finish, new_figure, save_figure
from regnet.selection.search import nearest_published, published_like
from regnet.spaces.custom import KIND
from regnet.spaces.space import COMPLEXITY, LATENCY
from regnet.studies import statistics
from regnet.studies.analysis import SpaceResult, analyze, refinable
from regnet.studies.population import Population
from regnet.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: Final = (
    "#1b6ca8", "#d1495b", "#2e933c", "#8f5db7", "#c77d0a", "#3a8f8f", "#7a5c3e", "#5b6770",
)  # fmt: skip
"""Colors of the spaces in their order; they repeat after the last one."""

_BAND_POINTS: Final = 80
"""Number of errors at which the band of an EDF is drawn."""

_FEW: Final = 3
"""Number of best, and of worst, networks of each space that are drawn."""

LOGARITHMIC: Final = ("w", "g", "b", "flops", "params", "activations")
"""Metrics whose names start with one of these are drawn on a logarithmic scale, as they are
sampled."""


def render(study: Study | None, populations: Mapping[str, Population], *, seed: int = 0) -> str:
    """Return the report of a study as HTML that needs neither the internet nor other files.

    Args:
        study: the definition of the study; None if the populations come from a table.
        populations: the populations by the names of their spaces, as `load` or `read_table` returns
            them.
        seed: seed of the bootstraps and permutations.

    Raises:
        ConfigError: no network is trained yet.
    """
    analysis = analyze(populations, seed=seed)
    empty = [name for name in populations if name not in analysis.spaces]
    spaces = []
    for number, (name, result) in enumerate(analysis.spaces.items()):
        population = populations[name]
        spaces.append(
            {
                "name": name,
                "color": COLORS[number % len(COLORS)],
                "size": f"{population.space.size:.1e}" if population.space else "given",
                "result": _plain(result),
                "planned": study.networks(name) if study else result.models + result.failed,
                "edf": _edf(population, seed),
                "models": [_model(population, at) for at in range(len(population))],
                "refined": _refined(population, result),
            }
        )
    pairs = [
        {"first": pair.first, "second": pair.second, **pair.comparison.to_dict()}
        for pair in analysis.pairs
    ]
    with_latency = all(LATENCY in populations[name].metrics for name in analysis.spaces)
    data = {
        "spaces": spaces,
        "pairs": pairs,
        "complexity": [*COMPLEXITY, *([LATENCY] if with_latency else [])],
        "logarithmic": list(LOGARITHMIC),
        "machines": analysis.machines,
        "warnings": analysis.warnings,
        "beside": _beside(populations, list(analysis.spaces)),
        "empty": empty,
        "unit": _unit(populations),
    }
    return pages.render(
        "regnet.studies",
        "report.html",
        title=f"Design spaces: {', '.join(analysis.spaces)}",
        study=json.dumps(study.to_dict(), indent=1) if study else "",
        data=data,
    )


def save_plots(
    populations: Mapping[str, Population], folder: Path, *, seed: int = 0
) -> tuple[Path, ...]:
    """Save the plots of the report as SVG files, and return their paths.

    The plots are the EDFs, the search curves, the learning curves, the best and worst networks, and
    for each space the errors against every parameter.

    Args:
        populations: the populations by the names of their spaces, as `load` returns them.
        folder: folder to save the files in; it is created if needed.
        seed: seed of the bootstraps and permutations.

    Raises:
        ConfigError: no network is trained yet.
        MissingExtraError: matplotlib is not installed.
        OSError: the files cannot be written.
    """
    unit = _unit(populations)
    error = f"error, {unit}" if unit else "error"
    paths = [folder / f"{name}.svg" for name in ("edf", "search")]
    check_plot_file(paths[0])
    analysis = analyze(populations, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    curves, searches = new_figure(6.5, 4.5), new_figure(6.5, 4.5)
    edf_axes, search_axes = curves.subplots(), searches.subplots()
    shade = min(0.12, 0.3 / len(analysis.spaces))  # bands lie on each other
    for number, (name, result) in enumerate(analysis.spaces.items()):
        color = COLORS[number % len(COLORS)]
        digits = ".1f" if unit else ".3g"
        label = f"{as_drawn(name)} [{result.minimum:{digits}} | {result.mean:{digits}}]"
        curve = _edf(populations[name], seed)
        edf_axes.step(curve["errors"], curve["share"], where="post", color=color, label=label)
        edf_axes.fill_between(curve["at"], curve["low"], curve["high"], color=color, alpha=shade)
        sizes = list(result.search)
        means, low, high = np.array([(b.mean, b.low, b.high) for b in result.search.values()]).T
        search_axes.plot(sizes, means, ".-", color=color, label=as_drawn(name))
        search_axes.fill_between(sizes, low, high, color=color, alpha=shade)
        path = folder / f"space-{as_file_name(name)}.svg"
        figure = new_figure(12, 3 * -(-len(result.best) // 4))
        panels = figure.subplots(-(-len(result.best) // 4), 4, squeeze=False).ravel()
        figure.suptitle(
            f"{as_drawn(name)}: {error} against each parameter, and where the best ones lie"
        )
        for axes, metric in zip(panels, result.best, strict=False):
            _draw_metric(axes, populations[name], metric, result, color)
        for axes in panels[::4]:
            axes.set_ylabel(error)
        for axes in panels[len(result.best) :]:
            axes.set_axis_off()
        save_figure(figure, path)
        paths.append(path)
    edf_axes.set(xlabel=error, ylabel="cumulative share of networks", ylim=(0, 1))
    search_axes.set(
        xlabel="networks tried", ylabel=error.replace("error", "error of the best"), xscale="log"
    )
    search_axes.xaxis.set_major_formatter("{x:g}")
    for axes, figure, path in ((edf_axes, curves, paths[0]), (search_axes, searches, paths[1])):
        finish(axes)
        save_figure(figure, path)
    found = {name: populations[name] for name in analysis.spaces}
    rows = [row for population in found.values() for row in population.rows]
    # Tables of other tools may have neither.
    if any(row.outcome and row.outcome.get("epochs") for row in rows):
        paths.append(folder / "curves.svg")
        save_figure(_learning_curves(found, error), paths[-1])
    if any(row.config for row in rows):
        paths.append(folder / "networks.svg")
        save_figure(_extremes(found, f" {unit}" if unit else ""), paths[-1])
    return tuple(paths)


def _unit(populations: Mapping[str, Population]) -> str:
    return next((population.unit for population in populations.values()), "%")


def _ranked(population: Population) -> tuple[list[int], list[int]]:
    """Return the best and the worst few networks, each sorted by error; no network is in both."""
    order = population.errors.argsort(kind="stable").tolist()
    few = min(_FEW, len(order) // 2)
    return order[:few], order[len(order) - few :]


def _learning_curves(populations: Mapping[str, Population], error: str) -> "Figure":
    """Draw the test error by epoch of the best networks of each space, and dashed of the worst."""
    figure = new_figure(6.5, 4.5)
    axes = figure.subplots()
    for number, (name, population) in enumerate(populations.items()):
        for style, chosen in zip(("-", "--"), _ranked(population), strict=True):
            for rank, at in enumerate(chosen):
                curve = np.array(_model(population, at)["curve"]).reshape(-1, 3)
                label = as_drawn(name) if style == "-" and not rank else None
                color = COLORS[number % len(COLORS)]
                axes.plot(curve[:, 0], curve[:, 2], style, color=color, label=label, lw=1)
    axes.set(xlabel="epoch", ylabel=f"test {error}")
    finish(axes)
    return figure


def _extremes(populations: Mapping[str, Population], unit: str) -> "Figure":
    """Draw the width of each block of the best and the worst networks, in a row per space."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3 * 2 * _FEW, 2.4 * len(populations))
    panels = figure.subplots(len(populations), 2 * _FEW, squeeze=False)
    for number, (row, (name, population)) in enumerate(
        zip(panels, populations.items(), strict=True)
    ):
        best, worst = _ranked(population)
        for axes, at in zip(row, [*best, *worst], strict=False):
            model = _model(population, at)
            if model["line"]:
                axes.plot(model["line"], ":", color="0.4")
            edges = np.arange(len(model["widths"]) + 1) - 0.5
            axes.stairs(model["widths"], edges, color=COLORS[number % len(COLORS)], lw=1.5)
            axes.set_title(f"{as_drawn(name)}, error {model['error']:.3g}{unit}", fontsize=9)
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.grid(alpha=0.3)
        row[0].set_ylabel("width, channels")
        for axes in row[len(best) + len(worst) :]:
            axes.set_axis_off()
    for axes in panels[-1]:
        axes.set_xlabel("block")
    return figure


def _draw_metric(
    axes: "Axes", population: Population, metric: str, result: SpaceResult, color: str
) -> None:
    best = result.best[metric]
    axes.axvspan(best.low, best.high, color=color, alpha=0.12)
    axes.axvline(best.median, color=color)
    axes.plot(population.metrics[metric], population.errors, ".", color="0.3", ms=4)
    axes.set_xlabel(as_drawn(metric))
    _readable_ticks(axes, metric, population.metrics[metric])
    axes.grid(alpha=0.3)


def _readable_ticks(axes: "Axes", metric: str, values: FloatArray) -> None:
    """Set few ticks with short labels: 3.8 M, and powers of two for what is drawn from them."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.rint(values)).all())
    # Within a factor of four, a logarithmic scale has no room for its usual ticks.
    if metric.startswith(LOGARITHMIC) and low > 0 and high / low >= 4:
        base = 2 if metric.startswith(("g", "b")) else 10
        axes.set_xscale("log", base=base)
        axes.xaxis.set_major_locator(LogLocator(base, (1.0,) if base == 2 else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole and high < 1000))
    axes.xaxis.set_major_formatter(EngFormatter() if high >= 1000 else "{x:g}")


def _edf(population: Population, seed: int) -> dict[str, list[float]]:
    """Return the steps of the EDF, and its band at `_BAND_POINTS` errors."""
    curve = statistics.edf(population.errors)
    at = np.linspace(curve.errors[0], curve.errors[-1], _BAND_POINTS)
    low, high = statistics.edf_band(population.errors, at, np.random.default_rng(seed))
    return {
        name: [float(f"{value:.6g}") for value in values]
        for name, values in (
            ("errors", curve.errors), ("share", curve.share), ("at", at), ("low", low),
            ("high", high),
        )
    }  # fmt: skip


def _model(population: Population, at: int) -> dict[str, Any]:
    row = population.rows[at]
    assert row.outcome is not None, "it is trained"
    blocks, line, words = [], [], ""
    if not row.config:  # of a table that has none
        pass
    elif row.config["kind"] == KIND:
        words = ", ".join(f"{name} {value:g}" for name, value in row.config["parameters"].items())
    else:
        config = config_from_dict(row.config)
        blocks, words = [block.width for block in config.blocks()], _stages(config)
        line = list(config.explain().u) if isinstance(config, RegNetConfig) else []
    return {
        "number": row.number,
        "error": round(float(population.errors[at]), 4),
        "metrics": row.metrics,
        "widths": blocks,
        "line": line,
        "stages": words,
        "curve": [
            [epoch["epoch"], round(100 - epoch["train_top1"], 3),
             round(100 - epoch.get("average_top1", epoch["top1"]), 3)]
            for epoch in row.outcome.get("epochs", ())
        ],
        "seconds": row.outcome.get("seconds"),
        "config": row.config,
    }  # fmt: skip


def _beside(populations: Mapping[str, Population], names: Sequence[str]) -> list[dict[str, Any]]:
    """Describe the best networks of each space, and the published RegNets nearest in flops.

    The published networks get the classes, stem and image size of the first space of RegNets or
    AnyNets. If there is no such space, the list is empty.
    """
    rows, flops = [], []
    for name in names:
        population = populations[name]
        for at in _ranked(population)[0]:
            row = population.rows[at]
            if row.config and row.config["kind"] != KIND:
                config = config_from_dict(row.config)
                error = float(population.errors[at])
                rows.append(_structure(f"{name} {row.number}", config, row.metrics, error))
                flops += [row.metrics["flops"]] if "flops" in row.metrics else []
    spaces = [populations[name].space for name in names]
    space = next((space for space in spaces if space and space.family != KIND), None)
    if not flops or space is None:
        return []
    configs, size = published_like(space), space.image_size
    for name in nearest_published(float(np.median(flops)), configs, size)[:_FEW]:
        cost = complexity(configs[name], size)
        metrics = {"flops": cost.flops, "params": cost.params}
        rows.append(_structure(name, configs[name], metrics, None))
    return rows


def _structure(
    name: str,
    config: AnyNetConfig | RegNetConfig,
    metrics: Mapping[str, float],
    error: float | None,
) -> dict[str, Any]:
    return {
        "name": name,
        "error": error,
        "flops": metrics.get("flops"),
        "params": metrics.get("params"),
        "depth": sum(config.depths),
        "depths": list(config.depths),
        "widths": list(config.widths),
        "groups": [stage.group_width for stage in config.stages],
        "bottlenecks": [stage.bottleneck_ratio for stage in config.stages],
        "wm": config.wm if isinstance(config, RegNetConfig) else None,
    }


def _stages(config: AnyNetConfig | RegNetConfig) -> str:
    return f"depths {list(config.depths)}, widths {list(config.widths)}"


def _refined(population: Population, result: SpaceResult) -> list[dict[str, Any]]:
    """Return the sampled range and the refined range of each metric that `refine` restricts."""
    if population.space is None:  # Given networks are not a space that can be refined.
        return []
    return [
        {
            "metric": metric,
            "from": [float(values.min()), float(values.max())],
            "to": [best.low, best.high],
            "best": best.median,
        }
        for metric in refinable(population.space)
        for best, values in [(result.best[metric], population.metrics[metric])]
    ]


def _plain(result: SpaceResult) -> dict[str, Any]:
    return {
        "models": result.models,
        "failed": result.failed,
        "minimum": result.minimum,
        "mean": result.mean,
        "best": {name: [b.low, b.median, b.high] for name, b in result.best.items()},
        "correlation": dict(result.correlation),
        "search": [[size, b.mean, b.low, b.high] for size, b in result.search.items()],
    }
