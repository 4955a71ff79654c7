"""Tests of timing: measurements are steady, and only real differences are claimed."""

import statistics
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch

from regnet.timing import (
    Comparison,
    Samples,
    bootstrap_median,
    compare,
    measure,
    pooled,
    settle,
    time_queued,
)
from tests.marks import linux

INPUTS = [torch.zeros(1) for _ in range(3)]


class Clock:
    """A clock that advances only when a call says so, so that other processes do not matter."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Quiet:
    """A stand-in for `Waiting`, which would report a busy machine."""

    problem = None


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("regnet.timing.time", clock)
    monkeypatch.setattr("regnet.timing.Waiting", Quiet)
    return clock


class Busy:
    """A call that takes about the given number of seconds, with some noise."""

    def __init__(self, clock: Clock, seconds: float, rng: np.random.Generator) -> None:
        self.clock, self.seconds, self.rng = clock, seconds, rng

    def __call__(self, _x: torch.Tensor) -> None:
        self.clock.now += self.seconds * (1 + 0.02 * abs(self.rng.standard_normal()))


def test_a_call_against_itself_shows_no_difference(clock):
    rng = np.random.default_rng(0)
    verdicts = [
        compare(Busy(clock, 5e-4, rng), Busy(clock, 5e-4, rng), INPUTS, seconds=0.1, rng=rng)
        for _ in range(20)
    ]
    assert sum(found.differs for found in verdicts) <= 1


def test_a_difference_of_five_percent_is_detected(clock):
    rng = np.random.default_rng(1)
    fast, slow = Busy(clock, 1e-3, rng), Busy(clock, 1.05e-3, rng)
    found = compare(fast, slow, INPUTS, seconds=0.5, rng=rng)
    assert found.differs
    assert found.median == pytest.approx(1.05, rel=0.02)
    assert found.verdict("new", "old").startswith("new is 1.0")
    back = compare(slow, fast, INPUTS, seconds=0.5, rng=rng)
    assert back.verdict("new", "old").startswith("old is 1.0")


def test_a_difference_as_large_as_that_of_the_control_is_not_claimed():
    same = {"ratios": (1.04,), "median": 1.04, "low": 1.02, "high": 1.06}
    assert Comparison(**same, control_low=0.99, control_high=1.01).differs
    noisy = Comparison(**same, control_low=0.95, control_high=1.05)
    assert not noisy.differs
    assert noisy.verdict() == "no difference shown"


def test_no_difference_is_claimed_on_a_busy_machine(clock, monkeypatch):
    busy = types.SimpleNamespace(problem="the machine is busy")
    monkeypatch.setattr("regnet.timing.Waiting", lambda: busy)
    rng = np.random.default_rng(1)
    found = compare(Busy(clock, 1e-3, rng), Busy(clock, 2e-3, rng), INPUTS, seconds=0.1)
    assert found.low > 1.5
    assert not found.differs
    assert found.verdict() == "no claim: the machine is busy"
    assert measure(Busy(clock, 1e-3, rng), INPUTS, calls=5).problem == "the machine is busy"


@pytest.mark.parametrize(("times", "pairs"), [(0.5, 4), (2.0, 4), (1.05, 8), (1.0, 20)])
def test_a_clear_difference_is_settled_early(clock, times, pairs):
    rng = np.random.default_rng(5)
    found = settle(Busy(clock, 1e-3, rng), Busy(clock, times * 1e-3, rng), INPUTS, seconds=9.0)
    assert found.median == pytest.approx(times, rel=0.03)
    assert len(found.ratios) == pairs


def test_slow_calls_are_settled_with_four_pairs(clock):
    rng = np.random.default_rng(6)
    call = Busy(clock, 3.0, rng)
    assert len(settle(call, call, INPUTS, seconds=1.0).ratios) == 4


def test_rounds_are_pooled():
    parts = [
        Samples(seconds=(1.0, 2.0), steady=True, warmup_calls=3),
        Samples(seconds=(3.0,), steady=False, warmup_calls=4, problem="busy"),
    ]
    assert pooled(parts) == Samples(
        seconds=(1.0, 2.0, 3.0), steady=False, warmup_calls=7, problem="busy"
    )


def test_samples_have_the_requested_count_and_consistent_summaries(clock):
    rng = np.random.default_rng(2)
    found = measure(Busy(clock, 1e-3, rng), INPUTS, calls=30, seconds=1, warmup_seconds=0.5)
    assert len(found.seconds) == 30
    assert found.minimum >= 1e-3
    assert found.minimum <= found.median <= found.percentile(90)
    assert found.warmup_calls > 20


def test_slow_calls_are_measured_within_the_time():
    start = time.perf_counter()
    found = measure(lambda _x: time.sleep(0.05), INPUTS, seconds=0.2, warmup_seconds=0.2)
    assert time.perf_counter() - start < 3
    assert len(found.seconds) >= 5


def test_inputs_alternate():
    seen = []
    inputs = [torch.full((1,), float(n)) for n in range(3)]
    measure(lambda x: seen.append(x.item()), inputs, calls=6, warmup_seconds=0.01)
    assert seen[-6:] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("spread", [0.01, 0.3])
def test_bootstrap_intervals_contain_the_true_median(spread):
    rng = np.random.default_rng(3)
    held = []
    for _ in range(100):
        low, high = bootstrap_median(list(rng.normal(1, spread, 40)), rng)
        held.append(low <= 1 <= high)
    assert statistics.mean(held) > 0.85


def test_queued_calls_are_timed_together(clock):
    rng = np.random.default_rng(4)
    found = time_queued(Busy(clock, 1e-3, rng), INPUTS)
    assert found == pytest.approx(1.016e-3, rel=0.02)


def test_each_side_of_a_comparison_has_its_own_inputs():
    seen = {"a": set(), "b": set()}
    others = [torch.ones(1) for _ in range(3)]
    compare(
        lambda x: seen["a"].add(x.item()),
        lambda x: seen["b"].add(x.item()),
        INPUTS, inputs_b=others, seconds=0.01, pairs=2,
    )  # fmt: skip
    assert seen == {"a": {0.0}, "b": {1.0}}


PEAK = """
import torch
from regnet.timing import peak_memory

grown = peak_memory(torch.device("cpu"))
block = bytearray(300_000_000)
block[::4096] = b"x" * len(block[::4096])
del block
print(grown())
"""


@pytest.mark.slow
@linux
def test_peak_memory_of_a_call_is_measured():
    # A new process: one that has freed as much memory before would reuse it and not grow.
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 250e6 < int(run.stdout) < 400e6
