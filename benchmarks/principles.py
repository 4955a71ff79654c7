"""Compare the paper's statements about design with the populations of a study; writes JSON.

    python benchmarks/principles.py benchmarks/results/order/order.parquet \
        --out benchmarks/results/order/principles.json

Each statement is about a difference of mean errors, or about the value of a parameter that the best
networks have. The verdicts follow these rules, which were written when the errors of 55 of 384
networks were known, and made stricter when those of 81 were:

- "lower": the statement is "seen" if the 95 % interval of the difference lies below 0 and the
  permutation test agrees after Holm's correction for all differences of the table. It is "opposite"
  if the interval lies above 0 and the test agrees.
- "no loss": the same with a margin in the place of 0, which the difference must stay below.
- "value": the statement is "seen" if the interval of the best networks contains the paper's value
  and is at most half as wide as the interval of all sampled networks. It is "opposite" if the
  interval does not contain that value, and a tenth of the networks, at least `FEWEST_BESIDE`, lie
  on each side of it.
- In all other cases the verdict is "not told apart".

Differences need at least `FEWEST` networks on each side, and those within spaces count only the
spaces that have so many of each kind; otherwise the verdict is "too few networks".
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from regnet.atomic import write_bytes
from regnet.design.widths import FloatArray
from regnet.spaces import sample
from regnet.studies import statistics
from regnet.studies.analysis import analyze
from regnet.studies.journal import FILE
from regnet.studies.population import Population
from regnet.studies.population import read as read_study
from regnet.studies.statistics import Comparison, MeanError
from regnet.studies.tables import read_table

MARGIN: Final = 2.0
"""Increase of the mean error, in points, below which nothing is called lost: about a third of the
paper's largest step, from C to D. A smaller one could not be shown with 64 networks of each space.
"""

FEWEST: Final = 5
"""Smallest number of networks of a kind, in a space or a bin, whose mean is compared."""

FEWEST_BESIDE: Final = 8
"""Smallest number of networks on each side of a value that can lose to it."""

REPEATS: Final = 10_000
MAX_BINS: Final = 10

DRAWS: Final = 1000
"""Number of networks of each space that are drawn, but not trained, to learn its mean depth."""

POWER: Final = 1.96 + 0.84
"""A true difference of this many standard errors is seen in four of five studies."""

Populations = Mapping[str, Population]
Verdict = Literal["seen", "not told apart", "opposite", "too few networks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A statement of the paper, its number and ours, and the verdict.

    All numbers of ours are None if there are too few networks.
    """

    statement: str
    source: str
    """Section or figure of the paper."""
    paper: float | None
    """The paper's difference in points of mean error, or its value; None if it gives no number."""
    expects: Literal["lower", "no loss", "value"]
    networks: tuple[int, ...]
    """Numbers of networks: of both sides of a difference, or of the population of a value."""
    verdict: Verdict
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    """p-value after Holm's correction; for "no loss" it is that of the test against the margin.
    None for statements about values."""
    at_equal_depth: tuple[float, float, float] | None = None
    """The difference that remains when depth is held equal, by least squares, and its interval.
    None for values, and for pairs, which have the same depth."""
    at_own_depth: tuple[float, float, float] | None = None
    """The difference if the networks of each side had the mean depth of their space, from which the
    trained ones differ by chance, and its interval; None where spaces or depths are not known."""
    drawn: tuple[float, float, float] | None = None
    """For values: median and 95 % interval of the parameter in all networks of the population."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A difference of mean errors that the paper claims, first population minus second."""

    says: str
    source: str
    paper: float | None
    expects: Literal["lower", "no loss"]
    first: str
    second: str
    paired: bool = False
    """Whether networks with the same number in both populations differ only in what is compared."""


@dataclass(frozen=True, slots=True)
class Networks:
    """Errors and depths of some networks."""

    errors: FloatArray
    depths: FloatArray

    @classmethod
    def of(cls, population: Population, chosen: Any = slice(None)) -> "Networks":
        """Return the chosen networks of a population; all by default."""
        return cls(population.errors[chosen], population.metrics["d"][chosen])


Strata = Sequence[tuple[Networks, Networks]]
"""Two kinds of networks in each of some spaces."""

STATEMENTS: Final = (
    Statement(says="all stages can share the bottleneck ratio (B - A)", source="figure 5",
              paper=0.2, expects="no loss", first="anynetx_b", second="anynetx_a"),
    Statement(says="all stages can share the group width (C - B)", source="figure 5",
              paper=0.2, expects="no loss", first="anynetx_c", second="anynetx_b"),
    Statement(says="widths should not fall from stage to stage (D - C)", source="figure 7",
              paper=-6.2, expects="lower", first="anynetx_d", second="anynetx_c"),
    Statement(says="depths should not fall either (E - D)", source="figure 7",
              paper=-0.5, expects="lower", first="anynetx_e", second="anynetx_d"),
    Statement(says="widths should follow a quantized line (RegNetX - E)", source="figure 9",
              paper=-1.7, expects="lower", first="regnetx", second="anynetx_e"),
    Statement(says="a quantized line with deeper networks (w_a from 4 on; RegNetX - E)",
              source="figure 9", paper=None, expects="lower", first="as_deep",
              second="anynetx_e"),
    Statement(says="all steps together (RegNetX - A)", source="figure 9",
              paper=-8.0, expects="lower", first="regnetx", second="anynetx_a"),
    Statement(says="b = 1 beats the inverted bottleneck b = 1/4", source="figure 14",
              paper=None, expects="lower", first="b_1", second="b_quarter"),
    Statement(says="b = 1 beats b = 1/2", source="figure 14",
              paper=None, expects="lower", first="b_1", second="b_half"),
    Statement(says="b = 1 beats the bottleneck b = 2", source="figure 11",
              paper=None, expects="lower", first="b_1", second="b_2"),
    Statement(says="b = 1 beats the bottleneck b = 4", source="figure 11",
              paper=None, expects="lower", first="b_1", second="b_4"),
    Statement(says="grouped convolutions beat depthwise ones, with b = 1",
              source="figure 14", paper=None, expects="lower", first="grouped",
              second="depthwise"),
    Statement(says="squeeze-excitation helps (RegNetY - RegNetX)", source="figure 14",
              paper=-1.3, expects="lower", first="with_se", second="regnetx", paired=True),
)  # fmt: skip
"""The paper's numbers are differences of population means on ImageNet. A statement is judged if the
tables contain both populations, which come from the study of the space order or from the spaces of
`benchmarks/spaces.py`, or are a part of RegNetX (`parts`)."""

ORDER: Final = ("anynetx_a", "anynetx_b", "anynetx_c", "anynetx_d", "anynetx_e", "regnetx")
"""The spaces in the paper's order."""

SPLITS: Final = (
    ("no bottleneck (b = 1) beats a bottleneck (b > 1)", "section 4", "b", ORDER[1:]),
    ("grouped convolutions (g > 1) beat depthwise ones (g = 1)", "section 4", "g", ORDER[2:]),
)
"""Comparisons within populations: statement, source, parameter, and the spaces whose stages share
one value of it."""

VALUES: Final = (
    ("the best networks have about 20 blocks", "figure 11", "d", 20.0),
    ("the best networks have w_m near 2.5", "figure 11", "wm", 2.5),
)
"""Statements about RegNetX: statement, source, parameter, and the paper's value."""


def main() -> None:
    """Judge every statement for which the tables contain networks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tables", nargs="+", type=Path, help="output of regnet study export")
    parser.add_argument("--out", type=Path, help="JSON file; default: standard output")
    args = parser.parse_args()
    populations: dict[str, Population] = {}
    for table in args.tables:
        for name, one in read_table(table).items():
            # Spaces that an earlier version restricted to three stages have that in their names.
            if (known := name.removesuffix("_3")) in populations:
                sys.exit(f"{table}: there are two populations of the space {known}")
            populations[known] = one
    analysis = analyze(populations)
    depths = {name: depth for table in args.tables for name, depth in mean_depths(table)}
    findings = judged({**parts(populations.get("regnetx")), **populations}, depths)
    if not findings:
        sys.exit(f"no statement is about the spaces {', '.join(populations)}")
    seconds = [
        row.outcome["seconds"]
        for population in populations.values()
        for row in (*population.rows, *(row for _, row in population.replicas))
        if row.outcome
    ]
    document = {
        "margin": MARGIN,
        "finished": analysis.finished,
        "machines": analysis.machines,
        "networks": {name: len(population) for name, population in populations.items()},
        "failed": sum(len(population.failed) for population in populations.values()),
        "repeated": sum(len(population.replicas) for population in populations.values()),
        "minutes": float(np.median(seconds)) / 60,
        "hours": sum(seconds) / 3600,
        "complexity": complexity({n: populations[n] for n in ORDER if n in populations}),
        "mean_depths": depths,
        "findings": [asdict(finding) for finding in findings],
    }
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if args.out:
        write_bytes(args.out, text.encode())
    else:
        print(text, end="")


def parts(regnetx: Population | None) -> Populations:
    """Return those networks of RegNetX that are samples of a smaller space.

    Networks are sampled by rejection, so those with a value of b are what the space with only this
    value gives.
    """
    if regnetx is None or not {"b", "g"} <= regnetx.metrics.keys():
        return {}
    return {
        name: Population(
            space=None,
            errors=regnetx.errors[part],
            metrics={metric: values[part] for metric, values in regnetx.metrics.items()},
            rows=tuple(compress(regnetx.rows, part)),
        )
        for name, part in _masks(regnetx.metrics["b"], regnetx.metrics["g"]).items()
    }


def _masks(b: FloatArray, g: FloatArray) -> dict[str, Any]:
    """Return which networks of RegNetX belong to each part, by their ratios and group widths."""
    return {"b_1": b == 1, "b_2": b == 2, "b_4": b == 4, "grouped": (b == 1) & (g > 1)}


def mean_depths(table: Path) -> Iterator[tuple[str, float]]:
    """Yield the mean depth of each space whose networks a table holds, and of the parts of RegNetX.

    The spaces are those of the study in the table's folder; without one they are not known.
    """
    if not (table.parent / FILE).exists():
        return
    for space in read_study(table.parent).spaces:
        drawn, name = sample(space, DRAWS), space.name.removesuffix("_3")
        depths = drawn.metric("d")
        yield name, float(depths.mean())
        if name == "regnetx":
            for part, chosen in _masks(drawn.metric("b"), drawn.metric("g")).items():
                yield part, float(depths[chosen].mean())


def complexity(order: Populations) -> dict[str, Any] | None:
    """Return how the spaces differ in depth, and their mean errors at equal depth and complexity.

    A metric is made uniform by weights, with the largest number of bins up to `MAX_BINS` with which
    each bin has at least `FEWEST` networks of every space. A metric for which not even two bins
    have that is left out. Less than two spaces have nothing to compare: the result is None.
    """
    if len(order) < 2:
        return None
    networks = {name: Networks.of(population) for name, population in order.items()}
    errors = np.concatenate([one.errors for one in networks.values()])
    depths = np.concatenate([one.depths for one in networks.values()])
    counts = [len(one.errors) for one in networks.values()]
    space, fewest = _indicators(counts), min(counts)
    with_depth = np.column_stack([space, depths - depths.mean()])
    adjusted, _, _ = _least_squares(with_depth, errors)
    return {
        "depth": float(depths.mean()),
        "depths": {name: float(one.depths.mean()) for name, one in networks.items()},
        "correlation": {
            name: statistics.rank_correlation(one.depths, one.errors)
            for name, one in networks.items()
        },
        "means": {name: float(one.errors.mean()) for name, one in networks.items()},
        "at_equal_depth": dict(zip(networks, map(float, adjusted), strict=False)),
        "explained_by_space": _explained(space, errors),
        "explained_by_depth": _explained(np.column_stack([np.ones(len(depths)), depths]), errors),
        "explained_with_depth": _explained(with_depth, errors),
        "detectable": POWER * _deviation(space, errors) * math.sqrt(2 / fewest),
        "fewest": fewest,
        "weighted": [
            {
                "metric": metric,
                "bins": bins,
                "means": {
                    name: space.mean
                    for name, space in analyze(order, normalize=metric, bins=bins).spaces.items()
                },
            }
            for metric in ("flops", "activations", "params")
            for bins in [_bins(order, metric)]
            if bins > 1
        ],
    }


def _bins(order: Populations, metric: str) -> int:
    """Return the largest number of bins of the shared range that have `FEWEST` networks each."""
    values = [population.metrics[metric] for population in order.values()]
    ends = (max(v.min() for v in values), min(v.max() for v in values))
    if not ends[0] < ends[1]:
        return 0
    for bins in range(MAX_BINS, 0, -1):
        if min(np.histogram(v, bins, ends)[0].min() for v in values) >= FEWEST:
            return bins
    return 0


def judged(populations: Populations, depths: Mapping[str, float] | None = None) -> list[Finding]:
    """Return all findings; the p-values are corrected for all differences together.

    Args:
        populations: the networks of each space.
        depths: the mean depth of each space, for `Finding.at_own_depth`.
    """
    claims = [*_steps(populations, depths or {}), *_splits(populations)]
    judged_alone = [comparison for _, comparison in claims if comparison]
    adjusted = iter(statistics.adjust(judged_alone))
    differences = []
    for claim, comparison in claims:
        if comparison is None:
            differences.append(Finding(**claim, verdict="too few networks"))
            continue
        found = next(adjusted)
        margin = MARGIN if claim["expects"] == "no loss" else 0.0
        differences.append(
            Finding(
                **claim,
                ours=found.difference + margin,
                low=found.low + margin,
                high=found.high + margin,
                p_value=found.p_value,
                verdict={"better": "seen", "worse": "opposite"}.get(  # type: ignore[arg-type]
                    found.verdict, "not told apart"
                ),
            )
        )
    return [*differences, *_values(populations)]


def _steps(
    populations: Populations, depths: Mapping[str, float]
) -> Iterator[tuple[dict[str, Any], Comparison | None]]:
    """Yield the claims about two populations, as fields of a finding, and their comparisons."""
    for statement in STATEMENTS:
        a, b = populations.get(statement.first), populations.get(statement.second)
        if a is None or b is None:
            continue
        claim: dict[str, Any] = {
            "statement": statement.says,
            "source": statement.source,
            "paper": statement.paper,
            "expects": statement.expects,
            "networks": (len(a.errors), len(b.errors)),
        }
        if statement.paired:
            pairs = len({row.number for row in a.rows} & {row.number for row in b.rows})
            claim["networks"] = (pairs, pairs)
        if min(claim["networks"]) < FEWEST:
            yield claim, None
            continue
        if statement.paired:
            both = {statement.second: b, statement.first: a}
            [pair] = analyze(both, paired=True).pairs
            yield claim, pair.comparison
            continue
        strata = [(Networks.of(a), Networks.of(b))]
        claim["at_equal_depth"] = at_equal_depth(strata)
        if {statement.first, statement.second} <= depths.keys():
            wanted = depths[statement.first], depths[statement.second]
            claim["at_own_depth"] = at_own_depth(*strata[0], *wanted)
        yield claim, stratified(strata, MARGIN if statement.expects == "no loss" else 0.0)


def _splits(populations: Populations) -> Iterator[tuple[dict[str, Any], Comparison | None]]:
    """Yield the claims about kinds of networks within populations, likewise."""
    for statement, source, parameter, names in SPLITS:
        every: list[tuple[Networks, Networks]] = []
        for population in (populations[name] for name in names if name in populations):
            wide = population.metrics[parameter] > 1
            # According to the paper, b = 1 and g > 1 are better.
            better = wide if parameter == "g" else ~wide
            every.append((Networks.of(population, better), Networks.of(population, ~better)))
        if not every:
            continue
        strata = [pair for pair in every if min(len(one.errors) for one in pair) >= FEWEST]
        claim: dict[str, Any] = {
            "statement": statement,
            "source": source,
            "paper": None,
            "expects": "lower",
            "networks": tuple(
                sum(len(pair[side].errors) for pair in strata or every) for side in (0, 1)
            ),
            "at_equal_depth": at_equal_depth(strata) if strata else None,
        }
        yield claim, stratified(strata) if strata else None


def stratified(strata: Strata, margin: float = 0.0) -> Comparison:
    """Compare two kinds of networks within each space, then average the differences over spaces.

    A space has the weight n_a n_b / (n_a + n_b), to which the precision of its difference is
    proportional. The interval is Welch's, and the permutation test exchanges the kinds within each
    space. The margin is subtracted from the errors of the first kind.
    """
    rng = np.random.default_rng(0)
    pairs = [(first.errors - margin, second.errors) for first, second in strata]
    weights = np.array([len(a) * len(b) / (len(a) + len(b)) for a, b in pairs])
    shares = weights / weights.sum()
    difference, mixed, means = 0.0, np.zeros(REPEATS), []
    for share, (a, b) in zip(shares, pairs, strict=True):
        difference += share * float(a.mean() - b.mean())
        means += [MeanError.of(each).scaled(share) for each in (a, b)]
        both = rng.permuted(np.tile(np.concatenate([a, b]), (REPEATS, 1)), axis=1)
        mixed += share * (both[:, : len(a)].mean(1) - both[:, len(a) :].mean(1))
    return statistics.compared(difference, statistics.half_width(means), mixed)


def at_equal_depth(strata: Strata) -> tuple[float, float, float]:
    """Return the difference of two kinds with the depth held equal, and its 95 % interval.

    This is a regression of the error on the kind, the number of blocks and the space.
    """
    sides = [(first.errors, second.errors) for first, second in strata]
    kind = np.concatenate([np.r_[np.ones(len(a)), np.zeros(len(b))] for a, b in sides])
    depths = np.concatenate([np.r_[first.depths, second.depths] for first, second in strata])
    spaces = _indicators([len(a) + len(b) for a, b in sides])
    errors = np.concatenate([np.r_[a, b] for a, b in sides])
    found, variances, freedom = _least_squares(np.column_stack([kind, depths, spaces]), errors)
    half = statistics.student(freedom) * math.sqrt(variances[0])
    return float(found[0]), float(found[0] - half), float(found[0] + half)


def at_own_depth(
    first: Networks, second: Networks, depth: float, other: float
) -> tuple[float, float, float] | None:
    """Return the difference of two spaces at these mean depths, and its 95 % interval.

    The mean error of each side is moved along its own regression of the error on the depth. Both
    the difference of plain means and this one estimate the difference of the two spaces; this one
    is free of the chance by which the trained networks are too deep or too shallow. None if all
    networks of a side have the same depth.
    """
    means, variances, freedoms = [], [], []
    for one, wanted in ((first, depth), (second, other)):
        if np.ptp(one.depths) == 0:
            return None
        x = np.column_stack([np.ones(len(one.depths)), one.depths - wanted])
        found, squared, freedom = _least_squares(x, one.errors)
        means.append(float(found[0]))
        variances.append(float(squared[0]))
        freedoms.append(freedom)
    total = sum(variances)
    welch = total**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    half, difference = statistics.student(welch) * math.sqrt(total), means[0] - means[1]
    return difference, difference - half, difference + half


def _indicators(counts: Sequence[int]) -> FloatArray:
    """Return a matrix (sum of counts, len(counts)) that says to which group each row belongs."""
    return np.repeat(np.eye(len(counts)), counts, axis=0)


def _least_squares(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, int]:
    """Return the coefficients, their squared standard errors, and the degrees of freedom."""
    found, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    freedom = len(y) - int(rank)
    residual = ((y - x @ found) ** 2).sum() / freedom
    return np.asarray(found), residual * np.diag(np.linalg.pinv(x.T @ x)), freedom


def _deviation(x: FloatArray, y: FloatArray) -> float:
    """Return the standard deviation of what a regression leaves unexplained."""
    found, _, freedom = _least_squares(x, y)
    return math.sqrt(((y - x @ found) ** 2).sum() / freedom)


def _explained(x: FloatArray, y: FloatArray) -> float:
    """Return the share of the variance that a regression explains (R squared)."""
    found, _, _ = _least_squares(x, y)
    return float(1 - ((y - x @ found) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def _values(populations: Populations) -> Iterator[Finding]:
    population = populations.get("regnetx")
    if population is None:
        return
    metrics = {name: population.metrics[name] for _, _, name, _ in VALUES}
    best = statistics.best_values(metrics, population.errors, np.random.default_rng(0))
    for statement, source, name, paper in VALUES:
        found, there = best[name], metrics[name]
        low, median, high = map(float, np.percentile(there, [2.5, 50, 97.5]))
        holds = found.low <= paper <= found.high
        narrow = found.high - found.low <= (high - low) / 2
        # Networks that are not there cannot lose: the study must have some on both sides.
        beside = min(int((there < paper).sum()), int((there > paper).sum()))
        refuted = not holds and beside >= max(FEWEST_BESIDE, len(there) / 10)
        yield Finding(
            statement=statement,
            source=source,
            paper=paper,
            expects="value",
            networks=(len(population),),
            ours=found.median,
            low=found.low,
            high=found.high,
            drawn=(median, low, high),
            verdict="seen" if holds and narrow else "opposite" if refuted else "not told apart",
        )


if __name__ == "__main__":
    main()
