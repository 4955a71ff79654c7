"""Two documents of the benchmark, row against row."""

import statistics
from dataclasses import dataclass

import numpy as np

from regnet.bench.document import Document, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One case in two runs."""

    case: str
    before_ms: float
    after_ms: float
    ratio: float
    """Before over after: above 1, it got faster."""
    low: float
    high: float
    """95 % interval of the ratio of medians, by resampling both runs."""
    verdict: str


def compare_documents(before: Document, after: Document) -> list[Change]:
    """Compare the cases that both documents have.

    Two runs at different times differ by more than their samples show. For a claim, measure both
    in one run, alternating: see `regnet.timing.compare`.
    """
    rng = np.random.default_rng(0)
    old = {_key(row): row for row in before.rows if row.seconds}
    changes = []
    for row in after.rows:
        if not row.seconds or _key(row) not in old:
            continue
        a, b = np.asarray(old[_key(row)].seconds), np.asarray(row.seconds)
        draws = np.median(rng.choice(a, (1000, len(a))), axis=1) / np.median(
            rng.choice(b, (1000, len(b))), axis=1
        )
        low, high = np.percentile(draws, [2.5, 97.5])
        ratio = statistics.median(a) / statistics.median(b)
        verdict = "no difference shown"
        if low > 1 or high < 1:
            verdict = (
                f"{max(ratio, 1 / ratio):.2f}x {'faster' if ratio > 1 else 'slower'} in the second"
            )
        changes.append(
            Change(
                case=_key(row),
                before_ms=1e3 * statistics.median(a),
                after_ms=1e3 * statistics.median(b),
                ratio=ratio,
                low=float(low),
                high=float(high),
                verdict=verdict,
            )
        )
    return changes


def _key(row: Row) -> str:
    case = row.case
    train = " train" if case.train else ""
    return (
        f"{case.name} {row.image_size}px batch {case.batch_size} {case.precision} {case.engine} "
        f"{case.layout}{train}"
    )
