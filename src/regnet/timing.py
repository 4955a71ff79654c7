"""Time calls: warmed up until steady, on changing inputs, and two calls in alternation.

A time on its own proves little. `compare` therefore runs two calls in the order A B B A, and takes
the ratio of each pair. It claims a difference only if the bootstrap interval of the median ratio
excludes 1, the ratios of A to itself in the same run show a smaller difference, and the processors
were not busy with other work.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from regnet.machine import Waiting

Call = Callable[[Tensor], Any]

QUARTERS: Final = 4
"""Number of parts of a measurement; the reference work is timed between them."""

WINDOW: Final = 20
"""Number of calls in a window of the warm-up; the medians of windows show when it is steady."""

STEADY: Final = 0.01
"""Largest relative difference between the medians of three windows that counts as steady."""

SHORT: Final = 0.02
"""If calls take less than this, in seconds, each turn begins with a call that is not counted.

That call is slowed by what the other side left behind, such as its data in the caches and its
threads that still spin. In longer calls this is a small part of the time."""

CLEAR: Final = 1.1
"""If every pair has at least this ratio, `settle` needs no more pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Times of single calls in seconds, by the host's clock, including the work of the device."""

    seconds: tuple[float, ...]
    steady: bool
    """Whether the last three windows of the warm-up agreed."""
    warmup_calls: int
    problem: str | None = None
    """Why the times mean little, such as a busy machine; None if no problem is known."""
    reference: tuple[float, float] | None = None
    """Least and most seconds of a fixed piece of work, done before, between and after the calls."""

    @property
    def median(self) -> float:
        """Median time of a call, in seconds."""
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        """Time of the fastest call, in seconds."""
        return min(self.seconds)

    def percentile(self, percent: float) -> float:
        """Return the time that `percent` of the calls did not exceed; p99 needs 1,000 calls."""
        return float(np.percentile(self.seconds, percent))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The ratio of B's time to A's time, pair by pair; above 1, A is faster."""

    ratios: tuple[float, ...]
    median: float
    low: float
    """Lower end of the 95 % bootstrap interval of the median."""
    high: float
    """Upper end of that interval."""
    control_low: float
    """Lower end of the same interval for the ratios of A to A in the same run."""
    control_high: float
    """Upper end of that interval."""
    problem: str | None = None
    """Why the times mean little, such as a busy machine; None if no problem is known."""

    @property
    def differs(self) -> bool:
        """Whether a difference may be claimed."""
        if self.problem or self.low <= 1 <= self.high:
            return False
        return not self.control_low <= self.median <= self.control_high

    def verdict(self, a: str = "A", b: str = "B") -> str:
        """Return the result as one sentence, with the names of the two calls."""
        if self.problem:
            return f"no claim: {self.problem}"
        if not self.differs:
            return "no difference shown"
        ratio, low, high = self.median, self.low, self.high
        if ratio < 1:
            a, ratio, low, high = b, 1 / ratio, 1 / high, 1 / low
        return f"{a} is {ratio:.2f}x faster, 95 % {low:.2f}-{high:.2f}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> Callable[[], int | None]:
    """Return a function that returns the largest growth of memory, in bytes, since this call.

    On CUDA this is memory of the device's allocator, and on Linux the resident memory of the
    process; elsewhere the function returns None. Memory that the process had freed before but not
    returned to the system is reused first, and does not count as growth.
    """
    before = _start_of_peak(device)

    def grown() -> int | None:
        if before is None:
            return None
        if device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(device)) - before
        return max(_resident("VmHWM") - before, 0)

    return grown


def _start_of_peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
            return _resident("VmRSS")
        except OSError:
            return None
    return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


def time_call(call: Call, x: Tensor) -> float:
    """Return the seconds of one call, from its start until the device has finished."""
    synchronize(x.device)
    start = time.perf_counter()
    call(x)
    synchronize(x.device)
    return time.perf_counter() - start


def warm_up(
    call: Call, inputs: Sequence[Tensor], *, seconds: float, window: int = WINDOW
) -> tuple[bool, int]:
    """Repeat a call until the medians of three windows agree, or the time is over.

    Args:
        call: the call.
        inputs: inputs to use in turn.
        seconds: the longest time.
        window: number of calls in a window.

    Returns:
        Whether three windows agreed, and the number of calls.
    """
    medians: list[float] = []
    turns, calls, end = cycle(inputs), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        times = [time_call(call, x) for x in islice(turns, window)]
        calls += window
        medians.append(statistics.median(times))
        last = medians[-3:]
        if len(last) == 3 and max(last) <= min(last) * (1 + STEADY):
            return True, calls
    return False, calls


def measure(
    call: Call,
    inputs: Sequence[Tensor],
    *,
    calls: int = 100,
    seconds: float = 5.0,
    warmup_seconds: float = 5.0,
) -> Samples:
    """Time single calls, on several inputs in turn.

    Args:
        call: what to time. If it uses a device, the time includes waiting for the device.
        inputs: three or more inputs, so that no result can be reused from the previous call.
        calls: number of calls to time. If `seconds` have passed there are fewer, but at least five.
        seconds: the time for these calls.
        warmup_seconds: the longest time for the warm-up before them.
    """
    window = WINDOW
    first = time_call(call, inputs[0])
    if first * 3 * WINDOW > warmup_seconds:  # use shorter windows if three do not fit
        window = max(2, int(warmup_seconds / (3 * first)))
    steady, warmup_calls = warm_up(call, inputs, seconds=warmup_seconds, window=window)
    times: list[float] = []
    device = inputs[0].device
    references = [reference_seconds(device)]
    waiting = Waiting()
    left, part = seconds, seconds / QUARTERS
    for x in islice(cycle(inputs), calls):
        times.append(time_call(call, x))
        left, part = left - times[-1], part - times[-1]
        if len(times) >= 5 and left < 0:
            break
        if part < 0:  # the reference shows whether the machine changes during the measurement
            references.append(reference_seconds(device, tries=5))
            time_call(call, x)  # not counted: it fills the caches with the network's data again
            part = seconds / QUARTERS
    problem = waiting.problem
    references.append(reference_seconds(device))
    return Samples(
        seconds=tuple(times),
        steady=steady,
        warmup_calls=warmup_calls + 1,
        problem=problem,
        reference=(min(references), max(references)),
    )


def pooled(rounds: Sequence[Samples]) -> Samples:
    """Combine the samples of one call from several rounds."""
    references = [part.reference for part in rounds if part.reference]
    return Samples(
        seconds=tuple(second for part in rounds for second in part.seconds),
        steady=all(part.steady for part in rounds),
        warmup_calls=sum(part.warmup_calls for part in rounds),
        problem=next((part.problem for part in rounds if part.problem), None),
        reference=(min(low for low, _ in references), max(high for _, high in references))
        if references
        else None,
    )


def reference_seconds(device: torch.device, *, tries: int = 20) -> float:
    """Return the median seconds of a fixed piece of work, which takes some milliseconds.

    On a shared machine, the speed that a process gets changes from minute to minute. Comparing this
    time between two measurements shows by how much.
    """
    side = 512 if device.type == "cpu" else 4096
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(side, side, generator=rng).to(device)
    return statistics.median(time_call(lambda x: x @ x, a) for _ in range(tries))


def time_queued(call: Call, inputs: Sequence[Tensor], *, calls: int = WINDOW) -> float:
    """Return the seconds per call if calls are queued without waiting: the median of three series.

    On CUDA, events around each series measure it by the device's clock; elsewhere the host's clock
    measures it.

    Args:
        call: what to time.
        inputs: inputs to use in turn.
        calls: number of calls in a series.
    """
    device = inputs[0].device
    series = list(islice(cycle(inputs), calls))
    found: list[float] = []
    for _ in range(3):
        synchronize(device)
        if device.type == "cuda":
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(device)
            before.record(stream)
            for x in series:
                call(x)
            after.record(stream)
            synchronize(device)
            found.append(before.elapsed_time(after) / 1e3 / calls)
        else:
            start = time.perf_counter()
            for x in series:
                call(x)
            synchronize(device)
            found.append((time.perf_counter() - start) / calls)
    return statistics.median(found)


def compare(
    a: Call,
    b: Call,
    inputs: Sequence[Tensor],
    *,
    inputs_b: Sequence[Tensor] | None = None,
    pairs: int = 40,
    seconds: float = 10.0,
    rng: np.random.Generator | None = None,
) -> Comparison:
    """Time two calls in alternation, in the order A B B A, with several calls in each turn.

    Args:
        a: the first call.
        b: the second call.
        inputs: inputs of both calls, used in turn.
        inputs_b: inputs of the second call, if it needs others.
        pairs: number of A-B pairs, an even number; a claim needs 30 or more.
        seconds: approximate duration after the warm-up; it decides how many calls a turn has.
        rng: the source of randomness of the bootstrap.
    """
    turns = _Turns(a, b, inputs, inputs_b or inputs, pairs=pairs, seconds=seconds)
    for _ in range((pairs + 1) // 2):
        turns.round()
    return turns.comparison(rng)


def settle(
    a: Call, b: Call, inputs: Sequence[Tensor], *, pairs: int = 20, seconds: float = 1.0
) -> Comparison:
    """Time two calls in alternation until it is clear which one is faster.

    This is for making a choice. It stops as soon as the result looks clear, and so reports a
    difference where there is none more often than `compare`, which is for claims.

    Args:
        a: the first call.
        b: the second call.
        inputs: inputs of both calls, used in turn.
        pairs: the most A-B pairs.
        seconds: approximate longest duration; four pairs are timed even if they take longer.
    """
    turns = _Turns(a, b, inputs, inputs, pairs=pairs, seconds=seconds)
    end = time.perf_counter() + seconds
    while len(turns.ratios) < pairs:
        turns.round()
        low, high = min(turns.ratios), max(turns.ratios)
        if len(turns.ratios) >= 4 and (low > CLEAR or high < 1 / CLEAR):
            break
        if len(turns.ratios) >= 8 and (low > 1 or high < 1):
            break
        if len(turns.ratios) >= 4 and time.perf_counter() > end:
            break
    return turns.comparison()


class _Turns:
    """Two calls that are warmed up and then timed in the order A B B A."""

    def __init__(
        self,
        a: Call,
        b: Call,
        inputs_a: Sequence[Tensor],
        inputs_b: Sequence[Tensor],
        *,
        pairs: int,
        seconds: float,
    ) -> None:
        self.calls = a, b
        self.inputs = cycle(inputs_a), cycle(inputs_b)
        for call, own in ((a, inputs_a), (b, inputs_b)):
            warm_up(call, own, seconds=seconds / 4, window=3)
        self.once = time_call(a, inputs_a[0]), time_call(b, inputs_b[0])
        self.repeats = max(1, min(100, int(seconds / (pairs * max(sum(self.once), 1e-9))) - 1))
        self.ratios: list[float] = []
        self.control: list[float] = []
        self.waiting = Waiting()

    def round(self) -> None:
        first_a, first_b, second_b, second_a = map(self._turn, (0, 1, 1, 0))
        self.ratios += [first_b / first_a, second_b / second_a]
        self.control += [first_a / second_a]

    def _turn(self, side: int) -> float:
        call, inputs = self.calls[side], self.inputs[side]
        if max(self.once) < SHORT:
            time_call(call, next(inputs))
        return min(time_call(call, x) for x in islice(inputs, self.repeats))

    def comparison(self, rng: np.random.Generator | None = None) -> Comparison:
        rng = rng or np.random.default_rng(0)
        low, high = bootstrap_median(self.ratios, rng)
        control_low, control_high = bootstrap_median(self.control, rng)
        return Comparison(
            ratios=tuple(self.ratios),
            median=statistics.median(self.ratios),
            low=low,
            high=high,
            control_low=control_low,
            control_high=control_high,
            problem=self.waiting.problem,
        )


def bootstrap_blocks(
    values: Sequence[float], rng: np.random.Generator, *, blocks: int = 10, resamples: int = 1000
) -> np.ndarray[Any, Any]:
    """Return medians of bootstrap samples that are drawn in blocks of consecutive values.

    Blocks are needed because consecutive calls take similar times, and are not independent.
    """
    parts = np.array_split(np.asarray(values), min(blocks, len(values)))
    draws = rng.integers(0, len(parts), (resamples, len(parts)))
    return np.array([np.median(np.concatenate([parts[n] for n in draw])) for draw in draws])


def bootstrap_median(
    values: Sequence[float], rng: np.random.Generator, *, resamples: int = 2000
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median, by percentiles of resampled medians."""
    sample = np.asarray(values)
    medians = np.median(rng.choice(sample, (resamples, len(sample))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)
