"""Run the tests that need a GPU, those of the kernels first; writes JSON with a row per test."""

import sys
import time
from pathlib import Path
from typing import Final

import pytest
from common import Rows, arguments, device

ROOT: Final = Path(__file__).parents[2]

TESTS: Final = (
    "tests/kernels/test_kernels.py",
    "tests/engines/test_engines.py",
    "tests/training/test_train.py",
    "tests/bench/test_bench.py",
)


class Report:
    """A pytest plugin that adds a row for each test that ran."""

    def __init__(self, rows: Rows, end: float) -> None:
        self.rows, self.end = rows, end

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a row after a test was called, or after its setup failed or skipped it."""
        if report.when == "call" or (not report.passed and report.when == "setup"):
            reason = report.longreprtext[-500:] if report.failed else None
            self.rows.add(
                test=report.nodeid, outcome=report.outcome, seconds=report.duration, reason=reason
            )

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip the remaining tests once the time is over."""
        if time.monotonic() > self.end:
            pytest.skip("the time is over")


def main() -> None:
    """Run the tests; in a dry run, run one test that needs no GPU."""
    args = arguments(__doc__)
    rows = Rows(args.out, device(dry=args.dry))
    tests = TESTS[:1] if args.dry else TESTS
    chosen = ["-k", "test_obstacles"] if args.dry else ["-m", "gpu"]
    report = Report(rows, time.monotonic() + args.seconds)
    options = ["-q", "--slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
    sys.exit(pytest.main([*options, *chosen, *tests], plugins=[report]))


if __name__ == "__main__":
    import os

    os.chdir(ROOT)
    main()
