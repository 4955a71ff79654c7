"""Race engines: build and check each candidate, and time the fastest ones in alternation."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from regnet.engines.base import AnyPrecision, Engine, Layout, Runner, Target
from regnet.engines.check import (
    INPUT_SETS,
    WRONG,
    answers,
    build_checked,
    finite_or_none,
    worst_error,
)
from regnet.engines.compiled import least_seconds
from regnet.engines.int8 import Images, build_int8, floats
from regnet.errors import EngineError, in_one_line, out_of_memory
from regnet.timing import (
    Comparison,
    bootstrap_median,
    compare,
    measure,
    peak_memory,
    settle,
    time_call,
)

CLOSE: Final = 1.25
"""Candidates within this factor of the fastest are timed again, alternating with it. An engine
timed on its own can measure up to 19 % slower than in alternation on a shared machine."""

LOST: Final = 1.05
"""A precision has lost on an engine if it takes this many times as long as another one does there.
"""

REST: Final = 1.11
"""No compiler is tried if its convolutions alone, times this factor, take longer than the fastest
engine. Compiled networks took 1.06 to 1.43 times as long as their convolutions, so skipping them
loses 5 % at most."""

COMPILING: Final = 30.0
"""Approximate seconds that a compiler needs for a network."""

COVERED: Final[Mapping[str, tuple[str, ...]]] = {
    "compiled": ("aot_inductor", "compiled_cuda_graph"),
}
"""Engines that are not tried if one of the engines behind them ran, because those run the same
kernels with less Python in between."""

STREAMING: Final = 1.5
"""An engine that takes this many times as long as the fastest one is not tried with streams,
because streams gained a third at most."""

NOT_TRIED: Final = "not tried: "
UNSUITABLE: Final = "unsuitable: "
FAILED: Final = "failed: "
"""Beginnings of the reasons why a candidate was left out, like `WRONG`."""

LASTING: Final = (WRONG, UNSUITABLE, FAILED)
"""Beginnings of the reasons that would be the same in another race. `NOT_TRIED` is not one of them,
because another candidate may have been the cause."""

OnStep = Callable[[str, int, int], None]
"""Takes the current step, the number of finished candidates, and their total."""

Key = tuple[str, str, str, int]
"""Engine, precision, layout and streams, which together identify a candidate."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A candidate before it is built: an engine and its target."""

    engine: Engine
    target: Target
    images: Images | None = None
    """For int8 only: the images that calibrate and judge it."""

    @property
    def precision(self) -> AnyPrecision:
        """The precision to compute in."""
        return "int8" if self.images else self.target.precision

    @property
    def key(self) -> "Key":
        """Engine, precision, layout and streams."""
        return self.engine.name, self.precision, self.target.layout, self.target.streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The result of an engine with its target: its times, or the reason why it has none."""

    engine: str
    precision: AnyPrecision
    layout: Layout = "channels_last"
    streams: int = 0
    """Pieces of a batch that it computes at the same time; 0: all threads work on one batch."""
    reason: str | None = None
    """Why it was left out; None if it was timed."""
    latency_ms: float | None = None
    """Median of single calls."""
    interval: tuple[float, float] | None = None
    """Of the winner only: 95 % interval of that median, in milliseconds."""
    problem: str | None = None
    """Of the winner only: why its times are not reliable, such as a busy machine."""
    error: float | None = None
    """norm(output - reference) / norm(reference), the largest over the inputs."""
    agreement: float | None = None
    """Of int8 only: share of the images that got the same class as from float32."""
    build_seconds: float | None = None
    peak_bytes: int | None = None
    """Largest growth of memory while it was built and first called."""
    speedup: tuple[float, float, float] | None = None
    """Of the winner only: eager's time divided by its own, timed in alternation; the median and the
    ends of its 95 % interval."""
    verdict: str | None = None
    """Of the winner only: what may be claimed about the speedup."""

    def __str__(self) -> str:
        contiguous = " contiguous" if self.layout == "contiguous" else ""
        streams = f" {self.streams} stream{'s'[: self.streams - 1]}" if self.streams else ""
        return f"{self.engine} {self.precision}{contiguous}{streams}"

    @property
    def key(self) -> "Key":
        """Engine, precision, layout and streams."""
        return self.engine, self.precision, self.layout, self.streams


def fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the candidate that took the least time; None if no candidate was timed."""
    ran = [row for row in candidates if row.latency_ms is not None]
    return min(ran, key=lambda row: row.latency_ms or math.inf, default=None)


class Race:
    """A race for one network and shape: its inputs, its reference, and the candidates so far."""

    def __init__(
        self,
        model: nn.Module,
        shape: tuple[int, ...],
        device: torch.device,
        *,
        seconds: float,
        budget_seconds: float | None = None,
        exhaustive: bool = False,
        on_step: OnStep = lambda _what, _done, _all: None,
    ) -> None:
        rng = torch.Generator().manual_seed(0)
        # Random numbers instead of zeros, because processors are faster on zeros.
        self.inputs = [torch.randn(shape, generator=rng).to(device) for _ in range(INPUT_SETS)]
        self.reference = answers(model, self.inputs)
        self.model, self.seconds = model, seconds
        self.budget, self.exhaustive, self.on_step = budget_seconds, exhaustive, on_step
        self.began = time.monotonic()
        self.rows: dict[Key, Candidate] = {}
        self.runners: dict[Key, Runner] = {}
        """Runners of the fastest candidate and of those close to it. Other runners are dropped,
        because they hold weights and memory."""
        self.eager: Runner | None = None
        self._bounds: dict[str, float | None] = {}

    def run(self, ways: Sequence[Way]) -> tuple[list[Candidate], Runner | None]:
        """Try candidates that may win, cheap ones first; return all rows and the fastest runner."""
        for number, way in enumerate(sorted(ways, key=_cost)):
            self.on_step(f"building {way.engine.name} {way.precision}", number, len(ways))
            if why := None if way.engine.obstacle(way.target) else self._hopeless(way):
                self.rows[way.key] = candidate(way, reason=f"{NOT_TRIED}{why}")
            else:
                self._enter(way)
            _log.info("%s", _told(self.rows[way.key]))
        self.on_step("timing the fastest", len(ways), len(ways))
        self._finish()
        best = fastest(list(self.rows.values()))
        rows = [self.rows[way.key] for way in ways]
        return rows, None if best is None else self.runners[best.key]

    def build(self, way: Way) -> tuple[Candidate, Runner | None]:
        """Build and check one candidate; the runner is None if it must not be used."""
        row = candidate(way)
        try:
            if way.images:
                return self._build_int8(row, way, way.images)
            grown = peak_memory(way.target.device)
            built = build_checked(way.engine, self.model, self.inputs, self.reference, way.target)
            row = replace(
                row,
                reason=built.reason,
                build_seconds=built.seconds,
                error=built.error,
                peak_bytes=grown() if built.runner else None,
            )
            return row, None if built.reason else built.runner
        except EngineError as problem:
            return replace(row, reason=f"{UNSUITABLE}{problem}"), None
        except Exception as problem:  # noqa: BLE001 - an engine may raise anything
            # Memory and disks may have room at another time; other failures come back.
            passing = out_of_memory(problem) or isinstance(problem, OSError)
            reason = in_one_line(problem, most=200)
            return replace(row, reason=reason if passing else f"{FAILED}{reason}"), None

    def _build_int8(
        self, row: Candidate, way: Way, images: Images
    ) -> tuple[Candidate, Runner | None]:
        start = time.monotonic()
        # Only two tries, because each layer in float costs some of the time that int8 saves.
        for keep in islice(floats(self.model, images.calibration), 2):
            runner = build_int8(self.model, self.inputs[0], way.target, images.calibration, keep)
            agreement = images.agreement(runner, self.model, way.target.device)
            problem = images.problem(agreement)
            if problem is None:
                break
        seconds = time.monotonic() - start
        row = replace(
            row,
            reason=problem and f"{WRONG}{problem}",
            build_seconds=seconds,
            error=finite_or_none(worst_error(runner, self.inputs, self.reference)),
            agreement=agreement,
        )
        return row, None if problem else runner

    def _enter(self, way: Way) -> None:
        """Build one candidate, and time it in alternation with the fastest one so far."""
        row, runner = self.build(way)
        self.rows[way.key] = row
        if runner is None:
            return
        if way.engine.name == "eager":
            self.eager = runner
        best = fastest(list(self.rows.values()))
        if self.exhaustive or best is None:
            samples = measure(
                runner, self.inputs, seconds=self.seconds, warmup_seconds=self.seconds
            )
            latency = 1e3 * samples.median
        else:
            found = self._settled(self.runners[best.key], runner)
            latency = found.median * (best.latency_ms or math.nan)
        self.rows[way.key] = replace(row, latency_ms=latency)
        self.runners[way.key] = runner
        self._keep_the_fastest()
        if way.target.device.type == "cuda":
            torch.cuda.empty_cache()

    def _keep_the_fastest(self) -> None:
        best = fastest(list(self.rows.values()))
        limit = CLOSE * (best.latency_ms if best and best.latency_ms else math.inf)
        self.runners = {
            key: runner
            for key, runner in self.runners.items()
            if (self.rows[key].latency_ms or 0) <= limit
        }

    def _settled(self, leader: Runner, other: Runner) -> Comparison:
        """Time two runners in alternation, and once more if the machine was busy meanwhile."""
        found = settle(leader, other, self.inputs, seconds=self.seconds)
        if found.problem:
            found = settle(leader, other, self.inputs, seconds=self.seconds)
        return found

    def _finish(self) -> None:
        """Time the closest candidates in alternation, then the winner alone and against eager."""
        best = fastest(list(self.rows.values()))
        if best is None:
            return
        for key in self.runners.keys() - {best.key}:
            leader, other = self.runners[best.key], self.runners[key]
            if self.exhaustive:
                found = compare(leader, other, self.inputs, pairs=20, seconds=self.seconds)
            else:
                found = self._settled(leader, other)
            latency = (best.latency_ms or math.nan) * found.median
            self.rows[key] = replace(self.rows[key], latency_ms=latency)
        best = fastest(list(self.rows.values()))
        assert best is not None
        winner = self.runners[best.key]
        samples = measure(winner, self.inputs, seconds=self.seconds, warmup_seconds=self.seconds)
        # All other times are ratios to the fastest one, so the winner's own median scales them all.
        scale = 1e3 * samples.median / (best.latency_ms or math.nan)
        for key, row in self.rows.items():
            if row.latency_ms is not None:
                self.rows[key] = replace(row, latency_ms=row.latency_ms * scale)
        low, high = bootstrap_median(samples.seconds, np.random.default_rng(0))
        self.rows[best.key] = replace(
            self.rows[best.key], interval=(1e3 * low, 1e3 * high), problem=samples.problem
        )
        if self.eager and best.engine != "eager":
            found = compare(winner, self.eager, self.inputs, pairs=12, seconds=self.seconds)
            speedup = found.median, found.low, found.high
            told = found.verdict(f"{best}", "eager")
            self.rows[best.key] = replace(self.rows[best.key], speedup=speedup, verdict=told)

    def _hopeless(self, way: Way) -> str | None:
        """Return why a candidate cannot win and is not built; None if it may win."""
        name, spent = way.engine.name, time.monotonic() - self.began
        ran = {key: row for key, row in self.rows.items() if row.latency_ms}
        if self.budget is not None and ran:
            left = self.budget - spent
            if left <= (COMPILING if way.engine.compiles else 0):
                need = f", and a compiler takes {COMPILING:.0f} s" if left > 0 else ""
                return f"{max(left, 0):.0f} s of budget_seconds={self.budget:g} were left{need}"
        if self.exhaustive:
            return None
        for other in COVERED.get(name, ()):
            if (other, *way.key[1:]) in ran:
                return f"{other} runs the same kernels with less Python in between"
        for other, engines in self._losses(way).items():
            if len(engines) >= 2:
                return f"{way.precision} was slower than {other} on {' and '.join(engines)}"
        best = fastest(list(ran.values()))
        batch = ran.get((*way.key[:3], 0)) if way.target.streams else None
        if batch and best and batch.latency_ms and best.latency_ms:
            ratio = batch.latency_ms / best.latency_ms
            if ratio > STREAMING:
                return f"without streams it took {ratio:.1f} times as long as {best}"
        if way.engine.compiles and best and (bound := self._bound(way)) is not None:
            # The speed of the machine may have changed since, so the leader is timed again.
            leader = 1e3 * min(time_call(self.runners[best.key], x) for x in self.inputs)
            if REST * bound > leader:
                return (
                    f"the convolutions alone take {bound:.2f} ms in oneDNN, which it "
                    f"calls, and {best} takes {leader:.2f} ms in total"
                )
        return None

    def _losses(self, way: Way) -> dict[str, list[str]]:
        """Return the precisions that beat this one, with the engines on which they did."""
        rows = {key: row for key, row in self.rows.items() if not row.streams}
        own = {k[0]: r for k, r in rows.items() if k[1] == way.precision and r.latency_ms}
        losses: dict[str, list[str]] = {}
        for (engine, precision, *_), row in rows.items():
            mine = own.get(engine)
            if mine is None or precision == way.precision or row.latency_ms is None:
                continue
            if (mine.latency_ms or math.nan) > LOST * row.latency_ms:
                losses.setdefault(precision, []).append(engine)
        return {precision: sorted(set(engines)) for precision, engines in losses.items()}

    def _bound(self, way: Way) -> float | None:
        """Return the milliseconds that a compiled network takes at least; None if not known."""
        if way.precision not in self._bounds:
            found = least_seconds(self.model, self.inputs[0], way.target)
            self._bounds[way.precision] = None if found is None else 1e3 * found
        return self._bounds[way.precision]


def _cost(way: Way) -> tuple[bool, ...]:
    """Return a sort key: cheap builds first, then float32, and engines of `COVERED` last.

    Candidates that run early let later ones be skipped (`Race._hopeless`).
    """
    return (
        way.engine.compiles,
        way.target.streams > 0,
        way.images is not None,
        way.precision != "fp32",
        way.engine.name in COVERED,
    )


def candidate(way: Way, **facts: Any) -> Candidate:
    """Return the row of a candidate, with facts about it."""
    return Candidate(
        engine=way.engine.name,
        precision=way.precision,
        layout=way.target.layout,
        streams=way.target.streams,
        **facts,
    )


def _told(row: Candidate) -> str:
    return f"{row}: {row.reason or f'{row.latency_ms:.3f} ms'}"


@contextmanager
def settings_of_a_race(device: torch.device) -> Iterator[None]:
    """Make a CUDA device the current one, and restore torch's settings afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32, torch.get_num_threads())
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before[:3]
        torch.set_num_threads(before[3])
