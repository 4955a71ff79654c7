"""Compare the paper's statements about design with the populations of a study; writes JSON.

    python benchmarks/principles.py benchmarks/results/order/order.parquet \
        --out benchmarks/results/order/principles.json

Each statement is about a difference of mean errors, or about the value of a parameter that the best
networks have. The rules for the verdicts were written when 55 of 384 networks were trained and
their errors were known:

- "lower": the statement is "seen" if the 95 % interval of the difference lies below 0 and the
  permutation test agrees after Holm's correction for all differences of the table. It is "opposite"
  if the interval lies above 0 and the test agrees.
- "no loss": the statement is "seen" if the interval ends below a margin, and "opposite" if it lies
  above 0 and the test agrees.
- "value": the statement is "seen" if the interval of the best networks contains the paper's value
  and covers at most half of the sampled range. It is "opposite" if the interval does not contain
  that value, although the population has networks on both sides of it.
- In all other cases the verdict is "not told apart".
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from regnet.atomic import write_bytes
from regnet.errors import ConfigError
from regnet.studies import statistics
from regnet.studies.analysis import analyze
from regnet.studies.population import Population
from regnet.studies.statistics import Comparison
from regnet.studies.tables import read_table

MARGIN: Final = 2.0
"""Largest increase of the mean error, in points, that counts as no loss: about a third of the
paper's largest step, from C to D."""

REPEATS: Final = 10_000
MAX_BINS: Final = 10

Populations = Mapping[str, Population]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A statement of the paper, its number and ours, and the verdict."""

    statement: str
    source: str
    """Section or figure of the paper."""
    paper: float | None
    """The paper's difference in points of mean error, or its value; None if it gives no number."""
    expects: Literal["lower", "no loss", "value"]
    networks: int
    """Number of networks behind our number."""
    ours: float
    low: float
    high: float
    p_value: float | None
    """p-value after Holm's correction; None for statements about values."""
    verdict: Literal["seen", "not told apart", "opposite"]


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


STATEMENTS: Final = (
    Statement(says="all stages can share the bottleneck ratio (B - A)", source="figure 5",
              paper=0.2, expects="no loss", first="anynetx_b_3", second="anynetx_a_3"),
    Statement(says="all stages can share the group width (C - B)", source="figure 5",
              paper=0.2, expects="no loss", first="anynetx_c_3", second="anynetx_b_3"),
    Statement(says="widths should not fall from stage to stage (D - C)", source="figure 7",
              paper=-6.2, expects="lower", first="anynetx_d_3", second="anynetx_c_3"),
    Statement(says="depths should not fall either (E - D)", source="figure 7",
              paper=-0.5, expects="lower", first="anynetx_e_3", second="anynetx_d_3"),
    Statement(says="widths should follow a quantized line (RegNetX - E)", source="figure 9",
              paper=-1.7, expects="lower", first="regnetx_3", second="anynetx_e_3"),
    Statement(says="all steps together (RegNetX - A)", source="figure 9",
              paper=-8.0, expects="lower", first="regnetx_3", second="anynetx_a_3"),
    Statement(says="b = 1 beats the inverted bottleneck b = 1/4", source="figure 14",
              paper=None, expects="lower", first="b_1", second="b_quarter"),
    Statement(says="b = 1 beats b = 1/2", source="figure 14",
              paper=None, expects="lower", first="b_1", second="b_half"),
    Statement(says="b = 1 beats the bottleneck b = 2", source="figure 11",
              paper=None, expects="lower", first="b_1", second="b_2"),
    Statement(says="b = 1 beats the bottleneck b = 4", source="figure 11",
              paper=None, expects="lower", first="b_1", second="b_4"),
    Statement(says="depthwise convolutions lose (g > 1 - g = 1, all with b = 1)",
              source="figure 14", paper=-2.9, expects="lower", first="grouped",
              second="depthwise"),
    Statement(says="squeeze-excitation helps (RegNetY - RegNetX)", source="figure 14",
              paper=-1.3, expects="lower", first="with_se", second="without_se", paired=True),
)  # fmt: skip
"""The paper's numbers are differences of population means on ImageNet. A statement is judged if the
tables contain both populations, which come from the study of the space order or from the spaces of
`benchmarks/spaces.py`."""

FIRST: Final = "anynetx_a_3"
"""The space that the paper begins with."""

ORDER: Final = ("anynetx_b_3", "anynetx_c_3", "anynetx_d_3", "anynetx_e_3", "regnetx_3")
"""Spaces whose stages share the bottleneck ratio; all but the first share the group width too."""

SPLITS: Final = (
    ("no bottleneck is best (b = 1 against b > 1)", "section 4", "b", ORDER),
    ("depthwise convolutions lose (g > 1 against g = 1)", "section 4", "g", ORDER[1:]),
)
"""Comparisons within populations: statement, source, parameter, and the spaces whose stages share
one value of it."""

SAMPLED: Final = {"d": (1, 63), "wm": (1.5, 3.0)}
"""Ranges from which the RegNetX with three stages were sampled."""

VALUES: Final = (
    ("the best networks have about 20 blocks", "figure 11", "d", 20.0),
    ("the best networks have w_m near 2.5", "figure 11", "wm", 2.5),
)


def main() -> None:
    """Judge every statement for which the tables contain networks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tables", nargs="+", type=Path, help="output of regnet study export")
    parser.add_argument("--out", type=Path, help="JSON file; default: standard output")
    args = parser.parse_args()
    populations: dict[str, Population] = {}
    for table in args.tables:
        populations |= read_table(table)
    analysis = analyze(populations)
    document = {
        "margin": MARGIN,
        "finished": analysis.finished,
        "machines": analysis.machines,
        "networks": {name: len(population) for name, population in populations.items()},
        "failed": sum(len(population.failed) for population in populations.values()),
        "minutes": float(
            np.median(
                [
                    row.outcome["seconds"] / 60
                    for population in populations.values()
                    for row in population.rows
                    if row.outcome
                ]
            )
        ),
        "normalized": list(normalized(populations)),
        "findings": [asdict(finding) for finding in judged(populations)],
    }
    text = json.dumps(document, indent=1) + "\n"
    if args.out:
        write_bytes(args.out, text.encode())
    else:
        print(text, end="")


def normalized(populations: Populations) -> Iterator[dict[str, Any]]:
    """Yield the mean errors of the spaces of the order, with networks weighted to equal complexity.

    The number of bins is the largest up to `MAX_BINS` with which each bin has a network of every
    space. A metric for which not even two bins have that is left out.
    """
    order = {name: populations[name] for name in (FIRST, *ORDER) if name in populations}
    for metric in (None, "flops", "activations", "params"):
        for bins in range(MAX_BINS, 1, -1):
            try:
                found = analyze(order, normalize=metric, bins=bins)
            except ConfigError:
                continue
            [pair] = [p for p in found.pairs if (p.first, p.second) == (ORDER[-1], FIRST)]
            yield {
                "metric": metric,
                "bins": bins,
                "means": {name: space.mean for name, space in found.spaces.items()},
                "ours": pair.comparison.difference,
                "low": pair.comparison.low,
                "high": pair.comparison.high,
            }
            break


def judged(populations: Populations) -> list[Finding]:
    """Return all findings; the p-values are corrected for all differences together."""
    claims = [*_steps(populations), *_splits(populations)]
    adjusted = statistics.adjust([comparison for _, comparison in claims])
    differences = [
        Finding(
            **claim,
            ours=found.difference,
            low=found.low,
            high=found.high,
            p_value=found.p_value,
            verdict=_verdict(claim["expects"], found),
        )
        for (claim, _), found in zip(claims, adjusted, strict=True)
    ]
    return [*differences, *_values(populations)]


def _verdict(expects: str, found: Comparison) -> Literal["seen", "not told apart", "opposite"]:
    if found.verdict == "worse":
        return "opposite"
    seen = found.high < MARGIN if expects == "no loss" else found.verdict == "better"
    return "seen" if seen else "not told apart"


def _steps(populations: Populations) -> Iterator[tuple[dict[str, Any], Comparison]]:
    """Yield the claims about two populations, as fields of a finding, and their comparisons."""
    for statement in STATEMENTS:
        a, b = populations.get(statement.first), populations.get(statement.second)
        if a is None or b is None:
            continue
        if statement.paired:
            both = {statement.second: b, statement.first: a}
            [pair] = analyze(both, paired=True).pairs
            comparison = pair.comparison
        else:
            comparison = statistics.compare(a.errors, b.errors, np.random.default_rng(0))
        claim = {
            "statement": statement.says,
            "source": statement.source,
            "paper": statement.paper,
            "expects": statement.expects,
            "networks": len(a) + len(b),
        }
        yield claim, comparison


def _splits(populations: Populations) -> Iterator[tuple[dict[str, Any], Comparison]]:
    """Yield the claims about kinds of networks within populations, likewise."""
    for statement, source, parameter, names in SPLITS:
        found = []
        for population in (populations[name] for name in names if name in populations):
            wide = population.metrics[parameter] > 1
            # According to the paper, b = 1 and g > 1 are better.
            better = wide if parameter == "g" else ~wide
            if better.any() and not better.all():
                found.append((population.errors[better], population.errors[~better]))
        if found:
            claim = {
                "statement": statement,
                "source": source,
                "paper": None,
                "expects": "lower",
                "networks": sum(len(a) + len(b) for a, b in found),
            }
            yield claim, stratified(found)


def stratified(strata: Sequence[tuple[np.ndarray, np.ndarray]]) -> Comparison:
    """Compare two kinds of networks within each space, then average the differences over spaces.

    A space has the weight n_a n_b / (n_a + n_b), to which the precision of its difference is
    proportional. The interval resamples networks within each kind of each space; the permutation
    test exchanges the kinds within each space.
    """
    rng = np.random.default_rng(0)
    weights = np.array([len(a) * len(b) / (len(a) + len(b)) for a, b in strata])
    shares = weights / weights.sum()
    difference, resampled, mixed = 0.0, np.zeros(REPEATS), np.zeros(REPEATS)
    for share, (a, b) in zip(shares, strata, strict=True):
        difference += share * float(a.mean() - b.mean())
        drawn = [
            each[rng.integers(len(each), size=(REPEATS, len(each)))].mean(1) for each in (a, b)
        ]
        resampled += share * (drawn[0] - drawn[1])
        both = rng.permuted(np.tile(np.concatenate([a, b]), (REPEATS, 1)), axis=1)
        mixed += share * (both[:, : len(a)].mean(1) - both[:, len(a) :].mean(1))
    low, high = map(float, np.percentile(resampled, [2.5, 97.5]))
    p_value = float((1 + (np.abs(mixed) >= abs(difference) * (1 - 1e-9)).sum()) / (1 + REPEATS))
    comparison = Comparison(
        difference=difference, low=low, high=high, p_value=p_value, ks=0.0, verdict=""
    )
    [judged_alone] = statistics.adjust([comparison])  # which gives it its verdict
    return judged_alone


def _values(populations: Populations) -> Iterator[Finding]:
    population = populations.get("regnetx_3")
    if population is None:
        return
    best = statistics.best_values(
        {name: population.metrics[name] for name in SAMPLED},
        population.errors,
        np.random.default_rng(0),
    )
    for statement, source, name, paper in VALUES:
        low, high = SAMPLED[name]
        found = best[name]
        there = population.metrics[name]
        # Networks that are not there cannot lose: the study must have some on both sides.
        judged = float(there.min()) <= paper <= float(there.max())
        holds = found.low <= paper <= found.high
        narrow = found.high - found.low <= (high - low) / 2
        yield Finding(
            statement=statement,
            source=source,
            paper=paper,
            expects="value",
            networks=len(population),
            ours=found.median,
            low=found.low,
            high=found.high,
            p_value=None,
            verdict="seen"
            if holds and narrow
            else "opposite"
            if judged and not holds
            else "not told apart",
        )


if __name__ == "__main__":
    main()
