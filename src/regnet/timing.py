"""How long calls take: until steady, on changing inputs, and one against another in turn.

A number means nothing alone: `compare` runs two calls in the order A B B A, takes the ratio of
each pair, and claims a difference only where the bootstrap interval of their median excludes 1, A
against itself shows less in the same run, and the process had its processors to itself.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
"""Parts of a measurement between which the reference work is timed."""

WINDOW: Final = 20
"""Calls in a window of the search for steadiness."""

STEADY: Final = 0.01
"""Largest relative difference of the medians of three windows that counts as steady."""

SHORT: Final = 0.02
"""Where calls take fewer seconds than this, a turn begins with a call that is not counted: it pays
for what the other side left behind, such as its data in the caches and its threads that still spin.
In longer calls that is a small part."""

CLEAR: Final = 1.1
"""From this ratio on, in every pair, `settle` needs no more pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Seconds of single calls, host clock, the device's work included."""

    seconds: tuple[float, ...]
    steady: bool
    """Whether three windows agreed before the calls that count."""
    warmup_calls: int
    problem: str | None = None
    """Why the times mean little, such as a busy machine; None where nothing is known."""
    reference: tuple[float, float] | None = None
    """Least and most seconds of a fixed piece of work: before, between and after the calls."""

    @property
    def median(self) -> float:
        """Half of the calls took no longer."""
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        """The quickest call."""
        return min(self.seconds)

    def percentile(self, percent: float) -> float:
        """Time that `percent` of the calls did not exceed; p99 needs a thousand calls or more."""
        return float(np.percentile(self.seconds, percent))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """B's time over A's, pair by pair: above 1, A is faster."""

    ratios: tuple[float, ...]
    median: float
    low: float
    high: float
    """Ends of the median's bootstrap interval, 95 %."""
    control_low: float
    control_high: float
    """The same for A against A, from the same run."""
    problem: str | None = None
    """Why the times mean little, such as a busy machine; None where nothing is known."""

    @property
    def differs(self) -> bool:
        """Whether a difference may be claimed."""
        if self.problem or self.low <= 1 <= self.high:
            return False
        return not self.control_low <= self.median <= self.control_high

    def verdict(self, a: str = "A", b: str = "B") -> str:
        """One sentence."""
        if self.problem:
            return f"no claim: {self.problem}"
        if not self.differs:
            return "no difference shown"
        ratio, low, high = self.median, self.low, self.high
        if ratio < 1:
            a, ratio, low, high = b, 1 / ratio, 1 / high, 1 / low
        return f"{a} is {ratio:.2f}x faster, 95 % {low:.2f}-{high:.2f}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Gives a function that says by how many bytes memory grew at most since entering.

    Of the device's allocator on CUDA, of the process's resident memory on Linux; None elsewhere.
    Memory that the process had freed and still holds is taken again first, and not counted.
    """
    before = _start_of_peak(device)

    def grown() -> int | None:
        if before is None:
            return None
        if device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(device)) - before
        return max(_resident("VmHWM") - before, 0)

    yield grown


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
    """Seconds of one call, from its start until the device has finished."""
    synchronize(x.device)
    start = time.perf_counter()
    call(x)
    synchronize(x.device)
    return time.perf_counter() - start


def warm_up(
    call: Call, inputs: Sequence[Tensor], *, seconds: float, window: int = WINDOW
) -> tuple[bool, int]:
    """Call until three windows agree, or the time is over; whether they did, and calls made."""
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
    """Time single calls on inputs that take turns.

    Args:
        call: what to time; it may use a device, which is waited for.
        inputs: three or more, so that nothing can be remembered from the last call.
        calls: how many count, or fewer where the time is over; five at least.
        seconds: for those that count.
        warmup_seconds: at most, for those before.
    """
    window = WINDOW
    first = time_call(call, inputs[0])
    if first * 3 * WINDOW > warmup_seconds:  # slow calls: shorter windows rather than none
        window = max(2, int(warmup_seconds / (3 * max(first, 1e-9))))
        window = min(window, WINDOW)
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
        if part < 0:  # what the machine changes in between shows too
            references.append(reference_seconds(device, tries=5))
            time_call(call, x)  # the caches are the network's again
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
    """Samples of the same call from several rounds."""
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
    """Seconds of a fixed piece of work, some milliseconds long: the median of several tries.

    What a machine gives to a process changes by the minute where others share it; between two
    measurements this shows by how much.
    """
    side = 512 if device.type == "cpu" else 4096
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(side, side, generator=rng).to(device)
    return statistics.median(time_call(lambda x: x @ x, a) for _ in range(tries))


def time_queued(call: Call, inputs: Sequence[Tensor], *, calls: int = WINDOW) -> float:
    """Seconds per call where calls do not wait for each other: the median of three series.

    By the device's own clock on CUDA (events around the series), by the host's elsewhere.
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
    """Time two calls in turn: A B B A, each turn some calls on inputs that take turns.

    Args:
        a: the one.
        b: the other.
        inputs: for both.
        inputs_b: for the other, where it needs its own.
        pairs: A-B pairs, an even number; 30 or more for a claim.
        seconds: about how long, warmed up before; turns get longer to fill it.
        rng: of the bootstrap.
    """
    turns = _Turns(a, b, inputs, inputs_b or inputs, pairs=pairs, seconds=seconds)
    for _ in range((pairs + 1) // 2):
        turns.round()
    return turns.comparison(rng)


def settle(
    a: Call, b: Call, inputs: Sequence[Tensor], *, pairs: int = 20, seconds: float = 1.0
) -> Comparison:
    """Time two calls in turn until it is plain which is faster, or the pairs are used up.

    For choosing: since it stops where it looks decided, it finds differences that are none more
    often than `compare`, which is for claims.

    Args:
        a: the one.
        b: the other.
        inputs: for both.
        pairs: most A-B pairs.
        seconds: about how long at most, but for four pairs.
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
    """Two calls that are timed in the order A B B A, warmed up before."""

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
    """Medians of samples that are drawn in blocks, since calls that follow each other are alike."""
    parts = np.array_split(np.asarray(values), min(blocks, len(values)))
    draws = rng.integers(0, len(parts), (resamples, len(parts)))
    return np.array([np.median(np.concatenate([parts[n] for n in draw])) for draw in draws])


def bootstrap_median(
    values: Sequence[float], rng: np.random.Generator, *, resamples: int = 2000
) -> tuple[float, float]:
    """Interval that holds the median with 95 %, by resampling (percentiles)."""
    sample = np.asarray(values)
    medians = np.median(rng.choice(sample, (resamples, len(sample))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)
