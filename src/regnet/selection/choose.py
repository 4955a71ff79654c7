"""Choose the most accurate published network within limits of time and license.

Nothing is downloaded: how long a network takes does not depend on the values of its weights. A few
networks are measured, the others predicted; those that may decide are measured too.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final

import torch

from regnet import digest
from regnet.bench.document import AUTO, BEST
from regnet.engines.optimize import ENGINES, QUICK, find_engine
from regnet.errors import ConfigError, EngineError, check_number
from regnet.machine import Waiting, environment
from regnet.selection.clock import REFERENCE, Clock, Peer
from regnet.selection.device import Conditions, check_engine
from regnet.selection.limits import DOUBTFUL
from regnet.selection.published import Measure, Setting, efficientnets, settings
from regnet.selection.timings import Network, Predictor, is_plain, timings_here
from regnet.weights.catalog import checkpoints

OUTSIDE: Final = QUICK[1:]
"""Other engines that "auto" tries where they are installed."""

PROBES: Final = 10
"""Networks that are measured on the reference to predict the others."""

OUTSIDE_PROBES: Final = 3
"""On each of the other engines."""

MOST_BUILT: Final = 12
"""Networks that are built for other engines, which takes seconds each."""

MARGIN: Final = 1.4
"""What is predicted to take so many times the limit is not measured."""

MISSES: Final = 4
"""With each network that turned out too slow the margin shrinks; after so many it is none."""

_SPARE: Final = MOST_BUILT - len(OUTSIDE)
"""Those that are built before the race of the pick."""

RACE: Final = 2.0
"""Engines on which a network is predicted to take up to so many times the least are timed in turn
before it is the answer."""

GAIN: Final = 6.0
"""How much faster than on the reference a network may be on another engine."""

APART: Final = 1.1
"""Of two networks that were measured one after another, one is shown as faster from this ratio of
their intervals' ends on."""

PEERS: Final = 3
"""EfficientNets that are measured on the engine of the pick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A published setting, and how long it takes here."""

    setting: Setting
    engine: str
    latency_ms: float
    """Median of a call: measured, or predicted where there is no interval."""
    low_ms: float | None
    high_ms: float | None
    """95 % interval of the median."""
    reference_ms: tuple[float, float] | None = None
    """Least and most of a fixed piece of work before, between and after its calls."""

    @property
    def measured(self) -> bool:
        """Whether it was measured, rather than predicted."""
        return self.low_ms is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What was chosen, and what else there is."""

    pick: Choice | None
    """The most accurate within the limits; None where nothing is."""
    front: tuple[Choice, ...]
    """Those under the license of which none is both faster and more accurate, by latency."""
    next_better: Choice | None
    """The fastest that is more accurate than the pick."""
    without_license: Choice | None
    """The most accurate within the limit of time that the license leaves out, if it is better."""
    fastest: Choice
    """What the fastest under the license takes."""
    peers: tuple[Peer, ...]
    """EfficientNets where they were asked for, by latency."""
    problem: str | None
    """Why the times mean little; None for a quiet machine."""
    latency_ms: float
    """The limit."""
    license: str | None
    metric: Measure
    batch_size: int
    prediction_error: float
    """Median relative error of the prediction on networks left out of it."""
    measured: int
    """Networks that were measured for this answer, rather than before."""
    environment: dict[str, Any]

    @property
    def doubts(self) -> tuple[str, ...]:
        """What weakens the answer, to be said before it."""
        found = [f"no claim: {self.problem}; ask again when it is quiet"] if self.problem else []
        if self.prediction_error > DOUBTFUL:
            found.append(
                f"the times marked ~ are predicted, and off by {self.prediction_error:.0%} (median)"
            )
        return tuple(found)

    @property
    def lines(self) -> tuple[str, ...]:
        """What to do next: commands and Python."""
        if self.pick is None:
            return ()
        name, size = self.pick.setting.checkpoint, self.pick.setting.image_size
        crop, usual = self.pick.setting.crop_pct, checkpoints()[name].preprocess
        image = "image = regnet.preprocess(model)"
        if (usual.size, usual.crop_pct) != ((size, size), crop):
            image = (
                "image = dataclasses.replace(regnet.preprocess(model), "
                f"size=({size}, {size}), crop_pct={crop})"
            )
        return (
            f"regnet weights fetch {name}",
            f'model = regnet.create("{name}", pretrained=True).eval()',
            f"fast = regnet.optimize(model, torch.zeros({self.batch_size}, 3, {size}, {size}))",
            image,
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
    so that the next question is answered at once.

    Args:
        latency_ms: largest median time of a call, that is, of a batch, in milliseconds.
        license: a license such as "apache-2.0"; "commercial": any that allows commercial use;
            None: any.
        batch_size: images per call.
        device: the device that the network will run on.
        min_top1: least accuracy in percent, by the metric.
        metric: "top1" on ImageNet-1k, "real" with the labels of ReaL, or "v2" on ImageNet-V2.
        engine: the name of an engine. "auto": the fastest of folded eager, ONNX Runtime and
            OpenVINO, as far as they are installed. "best": for networks that could be the answer,
            also all other engines, including compilers.
        models: pattern of checkpoints or variants, with * and ?.
        peers: also measure the paper's EfficientNets, whose weights pycls publishes, and show them
            beside the answer.
        on_step: called with the current step, the number of networks done, and their total.

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
            f"no published weights under the license {license!r} fit; license=None (--license any) "
            f"has {len(every)}"
        )
    where = torch.device(device)
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
    found.fit()  # so that the question asked again, with all this on disk, has the same answer
    slower = [c for c in map(found.choice, allowed) if c.setting.accuracy > best]
    if not clock.problem:
        timings.answered(question)
    front = _front(map(found.choice, allowed))
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
    """Which networks are worth measuring, and what the others take."""

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
            raise EngineError(f"{engines[0]} runs none of these networks here")
        base = Predictor(clock.timings.on(engines[0]))
        # Other engines are compared with this one on networks that both have run.
        near = [row for row in probes if base(row.network) <= 8 * limit] or probes[:1]
        for name in engines[1:]:
            for setting in _probes(near, OUTSIDE_PROBES):
                clock.time(setting, name, of=self.of)
        self.engines = engines if asked in (AUTO, BEST) else (asked,)
        self.predictors: dict[str, Predictor] = {}
        self.fit()
        if not self.predictors:
            raise EngineError(f"{asked} runs none of these networks here")

    def fit(self) -> None:
        """Predict from all that is measured by now."""
        base = Predictor(self.clock.timings.on(REFERENCE))
        for name in self.engines:
            if name == REFERENCE:
                self.predictors[name] = base
            elif rows := self.clock.timings.on(name):
                self.predictors[name] = Predictor(rows, base)

    @property
    def error(self) -> float:
        """That of the predictors, the mean by how many networks each was fitted to."""
        rows = [(found.count, found.error) for found in self.predictors.values()]
        return sum(n * error for n, error in rows) / sum(n for n, _ in rows)

    def engine(self, network: Network) -> str | None:
        """The fastest for a network, as far as is known; None where none runs it."""
        usable = [name for name in self.predictors if (network, name) not in self.clock.failed]
        return min(usable, key=lambda name: self.predictors[name](network), default=None)

    def choice(self, setting: Setting, *, known: bool = False) -> Choice:
        """A setting with its time: measured, or predicted; if it must be known, only measured."""
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
        """The pick, or a more accurate one, by what is known after it was found."""
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
        """The most accurate within the limit, measured; candidates come the best first."""
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
        """The setting on the engines that may be the fastest for it, timed in turn."""
        network = setting.network
        times = {name: predictor(network) for name, predictor in self.predictors.items()}
        near = [name for name, ms in times.items() if ms <= RACE * min(times.values())]
        if self.best:
            near = [engine.name for engine in ENGINES]
        if len(near) > 1 and not any(self.clock.raced(network, name) for name in near):
            self.clock.race(setting, near, of=self.of)
        return self.choice(setting)

    def _measure(self, setting: Setting) -> Choice:
        """The setting measured on the engine that is thought the fastest for it.

        On the reference, where no more may be built: a network that is fast enough there is fast
        enough.
        """
        while not self.choice(setting).measured:
            name = self.engine(setting.network)
            if name is None:
                break
            if not self._left and REFERENCE in self.predictors:
                self.clock.time(setting, REFERENCE, of=self.of)
                self.fit()
                return self.choice(setting, known=True)
            if self.clock.time(setting, name, of=self.of) is None and not self.clock.measuring:
                break
            self.fit()
        return self.choice(setting)

    @property
    def _left(self) -> int:
        """How many networks may still be built, before the race of the pick."""
        return max(0, _SPARE - self.clock.built)


def _probes(rows: Sequence[Setting], count: int) -> list[Setting]:
    """So many of the rows, from the first to the last, a third of them not plain if there are."""
    plain, others = (
        [row for row in rows if is_plain(row.network) is kind] for kind in (True, False)
    )
    some = min(len(others), count // 3) if plain else count
    return _spread(plain, count - some) + _spread(others, some)


def _spread(rows: Sequence[Setting], count: int) -> list[Setting]:
    """So many of the rows, from the first to the last; of one, that in the middle."""
    if count == 1 and rows:
        return [rows[len(rows) // 2]]
    if len(rows) <= count:
        return list(rows)
    return [rows[round(n * (len(rows) - 1) / (count - 1))] for n in range(count)]


def milliseconds(row: Choice | Peer) -> str:
    """A time with its interval, or marked as predicted."""
    if row.low_ms is None or row.high_ms is None:
        return f"~{row.latency_ms:.1f} ms"
    return f"{row.latency_ms:.1f} ms ({row.low_ms:.1f}-{row.high_ms:.1f})"


def _front(choices: Iterable[Choice]) -> list[Choice]:
    """The most accurate, and of the others those that are faster than all more accurate ones.

    See `shown_faster` for those that were measured.
    """
    front: list[Choice] = []
    for row in sorted(choices, key=lambda c: (-c.setting.accuracy, c.latency_ms)):
        if not front or shown_faster(row, front[-1]):
            front.append(row)
    return front


def shown_faster(a: Choice, b: Choice) -> bool:
    """Whether a network may be shown as faster than another one.

    They were measured one after another, on a machine that may have changed meanwhile: more than
    the intervals, and what a fixed piece of work changed, must lie between them.
    """
    if a.high_ms is None or b.low_ms is None:
        return a.latency_ms < b.latency_ms
    changed = 1.0
    if a.reference_ms and b.reference_ms:
        changed = max(1.0, b.reference_ms[1] / a.reference_ms[0])
    return APART * changed * a.high_ms < b.low_ms


def _peers(clock: Clock, pick: Choice | None, limit: float) -> list[Peer]:
    """EfficientNets on the engine of the pick; of those that are far off, on the reference."""
    engine = pick.engine if pick else REFERENCE
    rows = [row for name in efficientnets() if (row := clock.peer(name, REFERENCE))]
    if engine != REFERENCE:
        # None of them gains more from an engine than RegNets do: they are measured in the order of
        # accuracy, those first that might be within the limit.
        near = [row for row in rows if row.latency_ms <= GAIN * limit] or rows[:1]
        for row in sorted(near, key=lambda row: -row.accuracy)[:PEERS]:
            if found := clock.peer(row.name, engine):
                rows = [found if other.name == row.name else other for other in rows]
    return sorted(rows, key=lambda row: row.latency_ms)
