"""Choose the most accurate published network that satisfies a latency limit and a license.

Nothing is downloaded, because the latency of a network does not depend on the values of its
weights. A few networks are measured, and a model fitted to them predicts the latency of the others.
Networks that could be the answer are then measured, too.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Final

import torch

from regnet import digest
from regnet.bench.document import AUTO, BEST
from regnet.devices import find_device
from regnet.engines.optimize import ENGINES, QUICK, find_engine
from regnet.errors import ConfigError, EngineError, check_number
from regnet.machine import Waiting, environment
from regnet.selection.clock import REFERENCE, Clock, Peer
from regnet.selection.device import Conditions, check_engine
from regnet.selection.limits import DOUBTFUL
from regnet.selection.published import Measure, Setting, efficientnets, settings
from regnet.selection.timings import Network, Predictor, is_plain, timings_here
from regnet.weights.catalog import checkpoints

OUTSIDE: Final = QUICK["cpu"][1:]
"""Engines besides the reference that "auto" tries if they are installed."""

PROBES: Final = 10
"""Number of networks that are measured on the reference engine to predict the others."""

OUTSIDE_PROBES: Final = 3
"""Number of networks that are measured on each other engine. Three are enough, because the latency
model of the reference engine is scaled to them."""

MOST_BUILT: Final = 12
"""Largest number of networks that are built for other engines. Building one takes seconds."""

MARGIN: Final = 1.4
"""Networks whose predicted latency is above this multiple of the limit are not measured."""

MISSES: Final = 4
"""Each measured network that turns out too slow shrinks the margin. After this number of them, only
networks that are predicted to be within the limit are measured."""

SURE: Final = 0.8
"""A network that is predicted to take at most this part of the limit is built even if no more
networks may be. Predictions are off by 10 to 18 % in the median, so it very likely fits."""

_SPARE: Final = MOST_BUILT - len(OUTSIDE)
"""Networks that may be built before the pick is raced, which builds one per other engine."""

RACE: Final = 2.0
"""Before a network becomes the answer, the engines whose predicted latency is at most this multiple
of the lowest one are timed on it in alternation."""

GAIN: Final = 6.0
"""Largest factor by which another engine is expected to be faster than the reference. EfficientNets
above this multiple of the limit on the reference are not measured on another engine."""

APART: Final = 1.1
"""One of two networks that were measured one after another is shown as faster only if their
intervals are further apart than this factor."""

PEERS: Final = 3
"""Number of EfficientNets that are measured on the engine of the pick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A published setting and its latency on this device."""

    setting: Setting
    engine: str
    latency_ms: float
    """Median time of a call; a prediction if there is no interval."""
    low_ms: float | None
    high_ms: float | None
    """The 95 % interval of the median is `low_ms` to `high_ms`; None for a prediction."""
    reference_ms: tuple[float, float] | None = None
    """Shortest and longest time of a fixed piece of work, run before, between and after the calls.
    They show how much the speed of the machine changed meanwhile."""

    @property
    def measured(self) -> bool:
        """Whether the latency was measured, rather than predicted."""
        return self.low_ms is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The network that `choose` found, and the alternatives to it."""

    pick: Choice | None
    """The most accurate network within the limits; None if no network is within them."""
    front: tuple[Choice, ...]
    """Networks that the license allows and that no other of these beats in both latency and
    accuracy, sorted by latency."""
    next_better: Choice | None
    """The fastest network that is more accurate than the pick; None if there is none."""
    without_license: Choice | None
    """The most accurate network within the latency limit that the license excludes, if it is
    more accurate than the pick."""
    fastest: Choice
    """The fastest network that the license allows."""
    peers: tuple[Peer, ...]
    """EfficientNets, sorted by latency; empty unless `choose` was called with `peers`."""
    problem: str | None
    """Why the times are unreliable, such as a busy machine; None if the machine was idle."""
    latency_ms: float
    """The latency limit."""
    license: str | None
    metric: Measure
    batch_size: int
    prediction_error: float
    """Median relative error of the predictions on networks left out of the fit."""
    measured: int
    """Number of networks measured for this answer; saved measurements do not count."""
    environment: dict[str, Any]

    @property
    def predicted(self) -> bool:
        """Whether a time of the answer is a prediction."""
        others = (self.next_better, self.without_license)
        return not all(row.measured for row in (*self.front, *filter(None, others)))

    @property
    def doubts(self) -> tuple[str, ...]:
        """Reasons to doubt the answer; print them before it."""
        found = (
            [f"unreliable, and not saved: {self.problem}; retry on an idle machine"]
            if self.problem
            else []
        )
        if self.predicted and self.prediction_error > DOUBTFUL:
            found.append(
                "the times marked ~ are predicted, with a median error of "
                f"{self.prediction_error:.0%}"
            )
        return tuple(found)

    @property
    def lines(self) -> tuple[str, ...]:
        """The next steps with the pick: shell commands and lines of Python."""
        if self.pick is None:
            return ()
        name, size = self.pick.setting.checkpoint, self.pick.setting.image_size
        crop, usual = self.pick.setting.crop_pct, checkpoints()[name].preprocess
        transform = "transform = regnet.preprocess(model)"
        if (usual.size, usual.crop_pct) != ((size, size), crop):
            transform = (
                "transform = dataclasses.replace(regnet.preprocess(model), "
                f"size=({size}, {size}), crop_pct={crop})"
            )
        return (
            f"regnet weights fetch {name}",
            f'model = regnet.create("{name}", pretrained=True).eval()',
            f"fast = regnet.optimize(model, torch.zeros({self.batch_size}, 3, {size}, {size}))",
            transform,
            f"regnet train photos/ --model {name} --out runs/mine",
        )


def choose(
    latency_ms: float,
    *,
    license: str | None = "commercial",
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    min_top1: float | None = None,
    metric: Measure = "top1",
    engine: str = "auto",
    models: str = "*",
    peers: bool = False,
    on_step: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> Chosen:
    """Find the most accurate published network that is fast enough on this device.

    Nothing is downloaded. Measurements are saved on disk for the same device, threads and versions,
    so that the next call returns at once.

    Args:
        latency_ms: largest median time of a call, that is, of a batch, in milliseconds.
        license: a license such as "apache-2.0"; "commercial": any that allows commercial use;
            None: any.
        batch_size: images per call.
        device: the device that the network will run on.
        min_top1: lowest accuracy to accept, in percent, by the metric.
        metric: "top1" on ImageNet-1k, "real" with the labels of ReaL, or "v2" on ImageNet-V2.
        engine: the name of an engine. "auto": the fastest of folded eager, ONNX Runtime and
            OpenVINO, as far as they are installed. "best": for networks that could be the answer,
            also all other engines, including compilers.
        models: pattern with * and ?, for the ids of checkpoints or the names of variants.
        peers: also measure the paper's EfficientNets, whose weights pycls publishes, and show them
            beside the answer.
        on_step: called with the current step, the number of networks done, and their total.

    Returns:
        The pick, the alternatives to it, and the conditions under which they were measured.

    Raises:
        ConfigError: a limit, a license, a metric or an engine is not valid, or no network is left.
        EngineError: the engine cannot be used here.
    """
    check_number("latency_ms", latency_ms, least=0)
    if not latency_ms > 0:
        raise ConfigError(f"latency_ms must be positive, got {latency_ms!r}")
    every = settings(models, license=license, metric=metric, min_accuracy=min_top1)
    allowed = [row for row in every if row.allowed]
    if not allowed:
        raise ConfigError(
            f"no published weights that fit have the license {license!r}; license=None "
            f"(--license any) allows all {len(every)} of them"
        )
    where = find_device(device)
    names = _engines(engine, where)
    waiting, timings = Waiting(), timings_here(where, batch_size)
    question = {
        "latency_ms": latency_ms,
        "settings": digest.of_json([[r.checkpoint, r.image_size, r.allowed] for r in every]),
        "engines": names,
        "engine": engine,
        "peers": peers,
    }
    clock = Clock(timings, where, batch_size, on_step, measuring=not timings.answers(question))
    found = _Search(clock, names, every, latency_ms, asked=engine)
    pick = found.pick(allowed)
    best = pick.setting.accuracy if pick else 0
    others = found.pick([row for row in every if not row.allowed and row.accuracy > best])
    pick = found.better(pick, allowed)
    best = pick.setting.accuracy if pick else 0
    if others and others.setting.accuracy <= best:
        others = None
    peer_rows = tuple(_peers(clock, pick, latency_ms)) if peers else ()
    # The last measurements count, too: a repeated call reads all of them from disk, and must return
    # the same answer.
    found.fit()
    run = [choice for choice in map(found.choice, allowed) if isfinite(choice.latency_ms)]
    slower = [choice for choice in run if choice.setting.accuracy > best]
    if not clock.problem:
        timings.answered(question)
    front = _front(run)
    if pick and pick not in front:
        front.append(pick)
    return Chosen(
        pick=pick,
        front=tuple(sorted(front, key=lambda c: c.latency_ms)),
        next_better=min(slower, key=lambda c: c.latency_ms, default=None) if pick else None,
        without_license=others,
        fastest=min(map(found.choice, allowed), key=lambda c: c.latency_ms),
        peers=peer_rows,
        problem=clock.problem or (waiting.problem if clock.measured else None),
        latency_ms=latency_ms,
        license=license,
        metric=metric,
        batch_size=batch_size,
        prediction_error=found.error,
        measured=clock.measured,
        environment=environment(where),
    )


def _engines(engine: str, device: torch.device) -> tuple[str, ...]:
    """Return the engines to measure, the reference first."""
    if engine not in (AUTO, BEST):
        find_engine(engine)
        check_engine(Conditions(device=device, engine=engine))
        return (engine,) if engine == REFERENCE else (REFERENCE, engine)
    usable = []
    for name in OUTSIDE:
        try:
            check_engine(Conditions(device=device, engine=name))
        except EngineError:
            continue
        usable.append(name)
    return (REFERENCE, *usable)


class _Search:
    """Decides which networks to measure, and predicts the latency of the others."""

    def __init__(
        self,
        clock: Clock,
        engines: Sequence[str],
        every: Sequence[Setting],
        limit: float,
        *,
        asked: str,
    ) -> None:
        self.clock, self.limit, self.best = clock, limit, asked == BEST
        networks = {row.network: row for row in sorted(every, key=lambda row: row.flops)}
        self.of = PROBES + OUTSIDE_PROBES * (len(engines) - 1) + 4
        probes = _probes(list(networks.values()), PROBES)
        rows = [row for setting in probes if (row := clock.time(setting, engines[0], of=self.of))]
        if not rows:
            raise EngineError(f"{engines[0]} cannot run any of these networks here")
        base = Predictor(clock.timings.on(engines[0]))
        # The predictors of the other engines scale this one, so they need networks that both have
        # run. Networks far above the limit are left out.
        near = [row for row in probes if base(row.network) <= 8 * limit] or probes[:1]
        for name in engines[1:]:
            for setting in _probes(near, OUTSIDE_PROBES):
                clock.time(setting, name, of=self.of)
        self.engines = engines if asked in (AUTO, BEST) else (asked,)
        self.predictors: dict[str, Predictor] = {}
        self.fit()
        if not self.predictors:
            raise EngineError(
                f"{asked} cannot run any of these networks here; leave the engine out to use others"
            )

    def fit(self) -> None:
        """Fit the predictors to all measurements so far."""
        base = Predictor(self.clock.timings.on(REFERENCE))
        for name in self.engines:
            if name == REFERENCE:
                self.predictors[name] = base
            elif rows := self.clock.timings.on(name):
                self.predictors[name] = Predictor(rows, base)

    @property
    def error(self) -> float:
        """Mean error of the predictors, weighted by the number of networks each was fitted to."""
        rows = [(found.count, found.error) for found in self.predictors.values()]
        return sum(n * error for n, error in rows) / sum(n for n, _ in rows)

    def engine(self, network: Network) -> str | None:
        """Return the engine expected to be the fastest for a network; None if none can run it."""
        usable = [name for name in self.predictors if (network, name) not in self.clock.failed]
        return min(usable, key=lambda name: self.predictors[name](network), default=None)

    def choice(self, setting: Setting, *, known: bool = False) -> Choice:
        """Return a setting with the latency of its fastest engine, measured or predicted.

        With `known`, a measured latency is preferred to a lower prediction for another engine.
        """
        network = setting.network
        usable = [engine.name for engine in ENGINES] if self.best else self.predictors
        rows = [self.clock.timings.get(network, name) for name in usable]
        times = {row.engine: row.latency_ms for row in rows if row}
        name = self.engine(network)
        if name is None:
            return Choice(setting=setting, engine="none", latency_ms=inf, low_ms=None, high_ms=None)
        if times and (known or min(times.values()) <= self.predictors[name](network)):
            name = min(times, key=lambda engine: times[engine])
        row = self.clock.timings.get(network, name)
        return Choice(
            setting=setting,
            engine=name,
            latency_ms=row.latency_ms if row else self.predictors[name](network),
            low_ms=row.low_ms if row else None,
            high_ms=row.high_ms if row else None,
            reference_ms=row.reference_ms if row else None,
        )

    def better(self, pick: Choice | None, candidates: Sequence[Setting]) -> Choice | None:
        """Return the pick, or a more accurate network if later measurements show that it fits."""
        while True:
            left = [
                row
                for row in candidates
                if (pick is None or row.accuracy > pick.setting.accuracy)
                and self.choice(row).latency_ms <= self.limit
            ]
            found = self.pick(left, margin=1.0)
            if found is None:
                return pick
            pick = found

    def pick(self, candidates: Sequence[Setting], margin: float = MARGIN) -> Choice | None:
        """Return the most accurate candidate that is measured to be within the limit.

        Candidates must be sorted by accuracy, the best first.
        """
        misses = 0
        for setting in candidates:
            most = 1 + (margin - 1) * max(0, 1 - misses / MISSES)
            if self.choice(setting).latency_ms > most * self.limit:
                continue
            found = self._measure(setting)
            if found.measured and found.latency_ms <= self.limit:
                found = self._raced(setting)
                if found.latency_ms <= self.limit:
                    return found
            misses += 1
        return None

    def _raced(self, setting: Setting) -> Choice:
        """Time the setting in alternation on the engines that may be the fastest for it."""
        network = setting.network
        times = {name: predictor(network) for name, predictor in self.predictors.items()}
        near = [name for name, ms in times.items() if ms <= RACE * min(times.values())]
        if self.best:
            near = [engine.name for engine in ENGINES]
        if len(near) > 1 and not any(self.clock.raced(network, name) for name in near):
            self.clock.race(setting, near, of=self.of)
        return self.choice(setting)

    def _measure(self, setting: Setting) -> Choice:
        """Measure the setting on the engine that is expected to be the fastest for it.

        If no more networks may be built, and it is not sure to fit, measure it on the reference
        engine. A network that is fast enough there is fast enough.
        """
        while not self.choice(setting).measured:
            name = self.engine(setting.network)
            if name is None:
                break
            sure = self.choice(setting).latency_ms <= SURE * self.limit
            if not self._left and not sure and REFERENCE in self.predictors:
                self.clock.time(setting, REFERENCE, of=self.of)
                self.fit()
                return self.choice(setting, known=True)
            if self.clock.time(setting, name, of=self.of) is None and not self.clock.measuring:
                break
            self.fit()
        return self.choice(setting)

    @property
    def _left(self) -> int:
        """How many more networks may be built before the race of the pick."""
        return max(0, _SPARE - self.clock.built)


def _probes(rows: Sequence[Setting], count: int) -> list[Setting]:
    """Choose `count` rows evenly, a third of them with activations other than ReLU if possible."""
    plain, others = (
        [row for row in rows if is_plain(row.network) is kind] for kind in (True, False)
    )
    some = min(len(others), count // 3) if plain else count
    return _spread(plain, count - some) + _spread(others, some)


def _spread(rows: Sequence[Setting], count: int) -> list[Setting]:
    """Choose `count` rows evenly from the first to the last; a single one from the middle."""
    if count == 1 and rows:
        return [rows[len(rows) // 2]]
    if len(rows) <= count:
        return list(rows)
    return [rows[round(n * (len(rows) - 1) / (count - 1))] for n in range(count)]


def milliseconds(row: Choice | Peer) -> str:
    """Format a latency with its interval, or with the mark ~ of a prediction."""
    if row.low_ms is None or row.high_ms is None:
        return f"~{row.latency_ms:.1f} ms"
    return f"{row.latency_ms:.1f} ms ({row.low_ms:.1f}-{row.high_ms:.1f})"


def _front(choices: Iterable[Choice]) -> list[Choice]:
    """Return the most accurate network, and each one that is faster than all more accurate ones.

    `shown_faster` decides which networks are faster.
    """
    front: list[Choice] = []
    for row in sorted(choices, key=lambda c: (-c.setting.accuracy, c.latency_ms)):
        if not front or shown_faster(row, front[-1]):
            front.append(row)
    return front


def shown_faster(a: Choice, b: Choice) -> bool:
    """Return whether a network may be shown as faster than another one.

    Measured networks were timed one after another, and the machine may have changed meanwhile. So
    their intervals must lie further apart than `APART` and the change of the fixed piece of work
    together. Predictions are compared as they are.
    """
    if a.high_ms is None or b.low_ms is None:
        return a.latency_ms < b.latency_ms
    changed = 1.0
    if a.reference_ms and b.reference_ms:
        changed = max(1.0, b.reference_ms[1] / a.reference_ms[0])
    return APART * changed * a.high_ms < b.low_ms


def _peers(clock: Clock, pick: Choice | None, limit: float) -> list[Peer]:
    """Measure EfficientNets on the reference engine, and a few on the engine of the pick."""
    engine = pick.engine if pick else REFERENCE
    rows = [row for name in efficientnets() if (row := clock.peer(name, REFERENCE))]
    if engine != REFERENCE:
        # An engine speeds up EfficientNets no more than RegNets. So only those that could come
        # within the limit are measured on it, the most accurate first.
        near = [row for row in rows if row.latency_ms <= GAIN * limit] or rows[:1]
        for row in sorted(near, key=lambda row: -row.accuracy)[:PEERS]:
            if found := clock.peer(row.name, engine):
                rows = [found if other.name == row.name else other for other in rows]
    return sorted(rows, key=lambda row: row.latency_ms)
