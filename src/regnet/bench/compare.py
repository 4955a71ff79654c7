"""Compare two benchmark documents row by row."""

import statistics
from dataclasses import dataclass
from typing import Final

import numpy as np

from regnet.bench.document import Document, Row
from regnet.timing import bootstrap_blocks

MARGIN: Final = 1.05
"""Ratio that two runs of the same network may show on a quiet machine, because another process has
other addresses in memory and the processor is warmer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The times of one case in two runs."""

    case: str
    before_ms: float
    after_ms: float
    ratio: float
    """Time before divided by time after: above 1, the second run is faster."""
    low: float
    high: float
    """Ends of the 95 % interval of the ratio of medians, from resampling both runs."""
    verdict: str


def compare_documents(before: Document, after: Document) -> list[Change]:
    """Compare the cases that both documents have.

    Two runs at different times differ by more than their samples show. Therefore a fixed piece of
    work is timed beside every row. A difference is claimed only if it exceeds the difference of
    that work by more than `MARGIN`, and if the machine was busy in neither run. To see smaller
    differences, time both networks in alternation in one run (`regnet.timing.compare`).
    """
    rng = np.random.default_rng(0)
    old = {_key(row): row for row in before.rows if row.seconds}
    drift = _drift(before, after)
    changes = []
    for row in after.rows:
        if not row.seconds or _key(row) not in old:
            continue
        former = old[_key(row)]
        a, b = statistics.median(former.seconds), statistics.median(row.seconds)
        draws = bootstrap_blocks(former.seconds, rng) / bootstrap_blocks(row.seconds, rng)
        low, high = map(float, np.percentile(draws, [2.5, 97.5]))
        ratio = a / b
        changes.append(
            Change(
                case=_key(row),
                before_ms=1e3 * a,
                after_ms=1e3 * b,
                ratio=ratio,
                low=low,
                high=high,
                verdict=_verdict(former, row, ratio, (low, high), drift),
            )
        )
    return changes


def _drift(before: Document, after: Document) -> tuple[float, float] | None:
    """Return the least and largest factor by which the machine differed; None if not known."""
    first = [ms for row in before.rows for ms in row.reference_ms or ()]
    second = [ms for row in after.rows for ms in row.reference_ms or ()]
    if not first or not second:
        return None
    return min(1.0, min(first) / max(second)), max(1.0, max(first) / min(second))


def _verdict(
    before: Row,
    after: Row,
    ratio: float,
    interval: tuple[float, float],
    drift: tuple[float, float] | None,
) -> str:
    for which, row in (("first", before), ("second", after)):
        if row.problem:
            return f"no claim: in the {which} run {row.problem}"
    if drift is None:
        return "no claim: a run has no reference times; measure it again"
    (low, high), (least, most) = interval, drift
    if not (low > MARGIN * most or high < least / MARGIN):
        changed = max(most, 1 / least)
        if max(ratio, 1 / ratio) > MARGIN and changed > MARGIN:
            return f"no difference shown: the machine itself changed by {changed - 1:.0%}"
        return "no difference shown"
    faster = "faster" if ratio > 1 else "slower"
    return f"{max(ratio, 1 / ratio):.2f}x {faster} in the second"


def _key(row: Row) -> str:
    case = row.case
    train = " train" if case.train else ""
    return (
        f"{case.name} {row.image_size}px batch {case.batch_size} {case.precision} {case.engine} "
        f"{case.layout}{train}"
    )
