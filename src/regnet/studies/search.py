"""A RegNet for a device: as much network as a latency and other limits allow.

Networks of the paper's constrained space are sampled by the thousand, a few dozen are measured on
this device, a model of latency fitted to those predicts the others, and the most promising are
measured too. Accuracy is not predicted: within that space networks of equal flops are about equally
good (Radosavovic et al. 2020, section 4), so that flops stand for it. The fastest of them are an
extreme of the space, of which the paper says nothing.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, log
from typing import Any, Final

import numpy as np
import torch

from regnet.bench.document import Case, Row
from regnet.bench.runner import Bench
from regnet.design.complexity import complexity, population_complexity
from regnet.design.config import AnyNetConfig, ArchitectureConfig, RegNetConfig
from regnet.design.variants import PLAIN, VARIANTS
from regnet.design.widths import FloatArray, bottleneck_widths
from regnet.devices import find_device
from regnet.engines.base import DTYPES, Precision, Target
from regnet.engines.check import INPUT_SETS, answers, build_checked
from regnet.engines.optimize import ENGINES, find_engine, optimize
from regnet.errors import ConfigError, EngineError
from regnet.machine import environment
from regnet.nn.model import AnyNet
from regnet.studies.distributions import Distribution
from regnet.studies.latency import LatencyModel, features_of
from regnet.studies.sampling import BoolArray, Sample, sample_by_flops
from regnet.studies.space import SPACES, WIDE_GROUPS, Space
from regnet.timing import Comparison, compare
from regnet.zoo.create import create

CANDIDATES: Final = 3000
"""Networks sampled, and ranked by the model of latency."""

PARTS: Final = 12
"""Ranges of flops, equal in logarithms, of which each has as many candidates."""

NEAR: Final = 0.05
"""Networks that have no less flops than the largest by more than this part count as as large."""

EQUAL: Final = 0.1
"""A published network whose flops differ by no more than this part counts as of equal flops."""

LEAST_FLOPS: Final = 50e6
MOST_FLOPS: Final = 32e9
"""Range of the search at 224 pixels where flops are not limited: from a quarter of RegNetX-200MF's
to RegNetY-32GF's."""

ROUNDS: Final = 3
"""Times that finalists are chosen anew where none of them is within the limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a network may cost; None: any amount."""

    flops: float | None = None
    params: float | None = None
    activations: float | None = None
    latency_ms: float | None = None
    """Of a batch, the median."""
    memory_mb: float | None = None
    """Of weights and of the largest feature maps that are needed at once, by arithmetic; what a
    library takes for itself comes on top."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if not given:
            raise ConfigError("a search needs a limit: flops, params, latency, ...")
        for name, value in given.items():
            if not 0 < value < inf:
                raise ConfigError(f"{name} must be a positive number, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A network, measured on this device."""

    name: str
    """Of the variant; empty for one that was found."""
    config: RegNetConfig | AnyNetConfig
    flops: int
    params: int
    activations: int
    latency_ms: float
    low_ms: float
    high_ms: float
    """95 % interval of the median."""
    memory_mb: float
    """As in `Limits`."""
    predicted_ms: float | None = None
    """Before it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to."""

    best: Measured
    """The fastest of the largest networks within the limits, as measured once more after it was
    chosen; a published one, by its name, where that is shown to be faster."""
    pareto: tuple[Measured, ...]
    """Networks within the limits of which none is both larger and faster, by latency."""
    published: tuple[Measured, ...]
    """The published RegNetX and RegNetY nearest in flops, within the limits or not."""
    rival: str | None
    """The fastest published one of equal flops; None where there is none."""
    against_rival: Comparison | None
    """Its time over that of the network found, in turn: above 1, the one found is faster."""
    fit_error: float
    """Median relative error of the model of latency on networks left out of its fit."""
    prediction_error: float | None
    """Median relative error of what it predicted for the finalists, before they were measured."""
    engine: str
    precision: Precision
    layout: str
    batch_size: int
    input_size: int
    candidates: int
    measured: int
    environment: dict[str, Any]


def search_space(name: str = "regnety") -> Space:
    """Where to look: what the paper found, with group widths up to 128 that suit hardware.

    b = 1, 12 to 28 blocks, wm of 2 or more, and group widths as in pycls: multiples of 8.
    Parameters and activations are no more than the best networks of the same flops have
    (section 4; see `space.constrained`), all counted for ImageNet at 224 pixels, whatever the
    search is for.

    Raises:
        ConfigError: it is no RegNet space that has one image size.
    """
    if name not in ("regnetx", "regnety"):
        raise ConfigError(f"a search looks in regnetx or regnety; got {name!r}")
    parameters = {
        **SPACES[name].parameters,
        "b": Distribution(kind="values", values=(1.0,)),
        "g": WIDE_GROUPS,
    }
    space = replace(SPACES[name], name=f"{name}_search", parameters=parameters)
    return space.restrict(d=(12, 28), wm=(2.0, None)).where(
        "the paper's limits of parameters and activations", _paper_limits
    )


def _paper_limits(networks: Sample) -> BoolArray:
    architecture = replace(networks.space.architecture, num_classes=1000)
    cost = population_complexity(networks.population, architecture, 224)
    giga = cost.flops / 1e9
    few = cost.params <= 3.0e6 + 5.5e6 * giga
    return np.asarray(few & (cost.activations <= 6.5e6 * np.sqrt(giga)))


def memory_bytes(
    stages: Iterable[tuple[Any, Any, int]],
    stem: ArchitectureConfig,
    *,
    params: Any,
    input_size: Any,
    batch_size: int,
    element_bytes: int,
) -> Any:
    """What inference needs at least: weights, and the maps that a block needs at once.

    The first block of a stage needs most: its input, which the shortcut waits for, the bottleneck
    at the input's size, and the bottleneck after the stride. Widths, parameters and sizes are
    numbers, or arrays (n,) of many networks.

    Args:
        stages: width, bottleneck width and stride of each.
        stem: the architecture whose stem it is.
        params: number of parameters.
        input_size: side of the images in pixels.
        batch_size: images at once.
        element_bytes: of a number.
    """
    side = np.ceil(input_size / stem.stem_stride)
    width, most = stem.stem_width, stem.stem_width * side**2
    for width_out, inner, stride in stages:
        after = np.ceil(side / stride)
        needed = (width + inner) * side**2 + inner * after**2
        width, side, most = width_out, after, np.maximum(most, needed)
    return element_bytes * (params + batch_size * most)


def search(
    limits: Limits,
    *,
    space: Space | None = None,
    device: torch.device | str = "cpu",
    engine: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = 1,
    input_size: int = 224,
    probes: int = 24,
    finalists: int = 6,
    seconds: float = 1.0,
    seed: int = 0,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Found:
    """Find a RegNet for this device.

    Args:
        limits: what it may cost.
        space: where to look, of four stages; None: `search_space()`, which has
            squeeze-excitation.
        device: where it will run.
        engine: that of `regnet.engines` to run it with; `auto`: the fastest for a published RegNet
            of about that size, of those that need no compiler.
        precision: to compute in.
        batch_size: images per call.
        input_size: side of the images in pixels.
        probes: networks measured to fit the model of latency.
        finalists: of the networks that it prefers, how many are measured.
        seconds: for the calls of a measurement that count, and as long again to get steady.
        seed: of the sample.
        on_step: told what is done, how many of how many.

    Raises:
        ConfigError: no network is within the limits, or an option cannot be used.
        EngineError: the engine cannot run these networks here.
    """
    if precision not in DTYPES:
        raise ConfigError(f"precision must be one of {', '.join(DTYPES)}; got {precision!r}")
    for name, value, least in (
        ("batch_size", batch_size, 1), ("input_size", input_size, 1), ("probes", probes, 8),
        ("finalists", finalists, 1), ("seed", seed, 0),
    ):  # fmt: skip
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    space = replace(space or search_space(), input_size=input_size)
    if space.num_stages != 4:
        raise ConfigError(f"a search needs a space of 4 stages, got {space.num_stages}")
    looks = _Search(
        limits,
        space=space,
        target=Target(device=find_device(device), precision=precision),
        batch_size=batch_size,
        seconds=seconds,
        rng=np.random.default_rng(seed),
        tell=on_step or (lambda _what, _done, _total: None),
    )
    return looks.run(engine, probes=probes, finalists=finalists)


class _Search:
    def __init__(
        self,
        limits: Limits,
        *,
        space: Space,
        target: Target,
        batch_size: int,
        seconds: float,
        rng: np.random.Generator,
        tell: Callable[[str, int, int], None],
    ) -> None:
        self.limits, self.space, self.target = limits, space, target
        self.batch_size, self.seconds, self.rng, self.tell = batch_size, seconds, rng, tell
        self.bench = Bench(target.device, seconds, calls=200)
        self.engine = ""
        self.reason: str | None = None
        """Why a network was not measured, the last one."""
        self.measured: dict[int, Measured | None] = {}
        """Candidates that were measured, by their numbers; None where the engine failed."""
        self.guesses: dict[int, float] = {}
        """What was predicted for finalists."""

    def run(self, engine: str, *, probes: int, finalists: int) -> Found:
        # A wrong name, and limits that nothing meets, are told before anything is measured.
        if engine != "auto":
            self._take_engine(engine)
        self.candidates = self._candidates()
        if engine == "auto":
            self._race_engines()
        self.flops = self.candidates.metric("flops")
        self.features = features_of(self.candidates)
        self._probe(self._spread(probes - probes // 2))
        self._probe(self._near_the_limit(probes // 2))
        winner = self._winner(finalists)
        published = self._published(winner.flops)
        rival = min(
            (row for row in published if abs(row.flops / winner.flops - 1) <= EQUAL),
            key=lambda row: row.latency_ms,
            default=None,
        )
        against = self._compared(winner, rival) if rival else None
        best = winner
        if rival and against and against.differs and against.median < 1 and self._within(rival):
            best = rival
        rows = [row for row in self.measured.values() if row]
        within = [row for row in (*rows, winner, *published) if self._within(row)]
        errors = [
            abs(guess / row.latency_ms - 1)
            for at, guess in self.guesses.items()
            if (row := self.measured[at])
        ]
        return Found(
            best=best,
            pareto=_pareto(within),
            published=published,
            rival=rival.name if rival else None,
            against_rival=against,
            fit_error=self._model().error,
            prediction_error=float(np.median(errors)) if errors else None,
            engine=self.engine,
            precision=self.target.precision,
            layout=self.target.layout,
            batch_size=self.batch_size,
            input_size=self.space.input_size,
            candidates=len(self.candidates),
            measured=len(rows) + len(published),
            environment=environment(self.target.device),
        )

    @property
    def _range(self) -> tuple[float, float]:
        """Of flops, where to look: unlimited ones as at 224 pixels."""
        area = (self.space.input_size / 224) ** 2
        if self.limits.flops is None:
            return LEAST_FLOPS * area, MOST_FLOPS * area
        if [name for name, most in asdict(self.limits).items() if most is not None] == ["flops"]:
            return (1 - EQUAL) * self.limits.flops, self.limits.flops
        # Where another limit is the tighter one, smaller ones are needed.
        return min(LEAST_FLOPS * area, self.limits.flops / 2), self.limits.flops

    def _candidates(self) -> Sample:
        """Networks within all limits that arithmetic knows, as many of each size."""
        limits = self.limits
        space = self.space.restrict(
            params=(None, limits.params), activations=(None, limits.activations)
        )
        if limits.memory_mb is not None:
            space = space.where(f"memory up to {limits.memory_mb:g} MB", self._fits_memory)
        edges = np.geomspace(*self._range, PARTS + 1)
        return sample_by_flops(space, edges.tolist(), CANDIDATES // PARTS, self.rng)

    def _fits_memory(self, networks: Sample) -> BoolArray:
        stages = networks.population
        inner = bottleneck_widths(stages.widths, stages.bottleneck_ratios)
        needed = memory_bytes(
            zip(stages.widths.T, inner.T, stages.strides, strict=True),
            networks.space.architecture,
            params=networks.metric("params"),
            input_size=networks.input_sizes,
            batch_size=self.batch_size,
            element_bytes=self.target.dtype.itemsize,
        )
        return np.asarray(needed <= 1e6 * (self.limits.memory_mb or inf))

    def _take_engine(self, name: str) -> None:
        chosen = find_engine(name)
        if obstacle := chosen.obstacle(self.target):
            raise EngineError(f"{name} cannot be used here: {obstacle}")
        self.engine = chosen.name

    def _race_engines(self) -> None:
        """Take the engine that is the fastest here, and its layout."""
        self.tell("engines", 0, 1)
        low, high = self._range
        names = _nearest(self.limits.flops or (low * high) ** 0.5, self.space.input_size)
        size = self.space.input_size
        example = torch.randn(self.batch_size, 3, size, size, device=self.target.device)
        network = create(names[0]).eval().to(self.target.device)
        usable = [known.name for known in ENGINES if not known.compiles]
        race = optimize(
            network, example, precision=self.target.precision, engines=usable, seconds=self.seconds
        ).report
        ran = [
            row
            for row in race.candidates
            if row.precision == self.target.precision and row.latency_ms is not None
        ]
        if not ran:
            raise EngineError(f"no engine computes in {self.target.precision} here")
        winner = min(ran, key=lambda row: row.latency_ms or inf)
        self.engine, self.target = winner.engine, replace(self.target, layout=winner.layout)
        self.tell("engines", 1, 1)

    def _spread(self, count: int) -> list[int]:
        """Candidates of all sizes, the smallest first: one of each part, sorted by flops."""
        parts = np.array_split(np.argsort(self.flops), min(count, len(self.flops)))
        return [int(self.rng.choice(part)) for part in parts]

    def _near_the_limit(self, count: int) -> list[int]:
        """Candidates like those that the answer is chosen from: nearly as large as may be."""
        predicted, left = self._model().predict(self.features), self._left()
        within = self._allowed(predicted, 1.15) & left
        most = np.sort(self.flops[within])[-min(int(within.sum()), 20)] if within.any() else 0.0
        near = np.flatnonzero(within & (self.flops >= 0.7 * most))
        if not len(near):
            near = np.flatnonzero(left)
        return [int(at) for at in self.rng.permutation(near)[:count]]

    def _winner(self, finalists: int) -> Measured:
        """The best of several finalists, as measured once more."""
        for _ in range(ROUNDS):
            guesses = self._model().predict(self.features)
            chosen = self._promising(guesses, finalists)
            self.guesses.update({at: float(guesses[at]) for at in chosen})
            rows_of = self._measure("finalists", chosen)
            if any(row and self._within(row) for row in rows_of) or not chosen:
                break
        confirmed: set[int] = set()
        while True:
            rows = {at: row for at, row in self.measured.items() if row and self._within(row)}
            if not rows:
                raise ConfigError(self._nothing())
            most = max(row.flops for row in rows.values())
            large = [at for at, row in rows.items() if row.flops >= (1 - NEAR) * most]
            large.sort(key=lambda at: rows[at].latency_ms)
            if large[0] in confirmed:
                return rows[large[0]]
            # The fastest of several was lucky as well: a second measurement says how fast it is.
            again = [at for at in large[:3] if at not in confirmed]
            self._measure("once more", again)
            confirmed.update(again)

    def _promising(self, predicted: FloatArray, count: int) -> list[int]:
        """The largest that are predicted to be fast enough, and of those the fastest."""
        left = self._left()
        margin = 1 / (1 + self._model().error)
        allowed = self._allowed(predicted, margin) & left
        if allowed.sum() < count:  # then those that come nearest
            order = np.argsort(np.where(left, predicted, inf))
            allowed |= np.isin(np.arange(len(predicted)), order[:count]) & left
        # One optimistic guess must not set the size: the mean of the largest few does.
        largest = np.sort(self.flops[allowed])[-min(int(allowed.sum()), 20) :].mean()
        large = allowed & (self.flops >= (1 - NEAR) * largest)
        ranked = np.argsort(np.where(large, predicted, inf), kind="stable")[: int(large.sum())]
        more = np.flatnonzero(allowed & ~large)
        more = more[np.argsort(-self.flops[more])]
        return [int(at) for at in (*ranked, *more)][:count]

    def _allowed(self, predicted: FloatArray, margin: float) -> BoolArray:
        return np.asarray(predicted <= margin * (self.limits.latency_ms or inf))

    def _left(self) -> BoolArray:
        """Candidates that were not measured yet."""
        left = np.ones(len(self.flops), dtype=np.bool_)
        left[list(self.measured)] = False
        return left

    def _model(self) -> LatencyModel:
        known = {at: row.latency_ms for at, row in self.measured.items() if row}
        return LatencyModel(self.features[list(known)], list(known.values()))

    def _probe(self, which: Sequence[int]) -> None:
        """Measure candidates; the smallest first, and none far beyond the limit."""
        slow = 4 * (self.limits.latency_ms or inf)
        for number, at in enumerate(which):
            self.tell("probes", number, len(which))
            row = self._measure("", [at])[0]
            if row and row.latency_ms > slow and sum(map(bool, self.measured.values())) >= 4:
                break
        self.tell("probes", len(which), len(which))
        if not any(self.measured.values()):
            raise EngineError(f"{self.engine} runs none of the networks: {self.reason}")

    def _measure(self, what: str, which: Sequence[int]) -> list[Measured | None]:
        """Measure candidates, and remember them."""
        rows = self._rows(what, [self.candidates.config(at) for at in which])
        self.measured.update(zip(which, rows, strict=True))
        for at, row in zip(which, rows, strict=True):
            if row and at in self.guesses:
                self.measured[at] = replace(row, predicted_ms=self.guesses[at])
        return rows

    def _rows(
        self, what: str, configs: Sequence[RegNetConfig | AnyNetConfig]
    ) -> list[Measured | None]:
        """Each by the benchmark's own measurement; None where the engine cannot run it."""
        found: list[Measured | None] = []
        for number, config in enumerate(configs):
            if what:
                self.tell(what, number, len(configs))
            row = self.bench.row_of(
                config,
                Case(
                    model="",
                    batch_size=self.batch_size,
                    precision=self.target.precision,
                    layout=self.target.layout,
                    engine=self.engine,
                    input_size=self.space.input_size,
                ),
            )
            self.reason = row.reason or self.reason
            found.append(self._measured(config, row))
        if what:
            self.tell(what, len(configs), len(configs))
        return found

    def _measured(self, config: RegNetConfig | AnyNetConfig, row: Row) -> Measured | None:
        if row.latency_ms is None or row.low_ms is None or row.high_ms is None:
            return None
        needed = memory_bytes(
            ((s.width, s.width / s.bottleneck_ratio, s.stride) for s in config.anynet().stages),
            config,
            params=row.params,
            input_size=self.space.input_size,
            batch_size=self.batch_size,
            element_bytes=self.target.dtype.itemsize,
        )
        return Measured(
            name="",
            config=config,
            flops=row.flops,
            params=row.params,
            activations=row.activations,
            latency_ms=row.latency_ms,
            low_ms=row.low_ms,
            high_ms=row.high_ms,
            memory_mb=float(needed) / 1e6,
        )

    def _published(self, flops: float) -> tuple[Measured, ...]:
        """Published RegNetX and RegNetY nearest to an amount of flops, measured."""
        names = _nearest(flops, self.space.input_size)[:6]
        rows = self._rows("published", [VARIANTS[name].config for name in names])
        named = [replace(row, name=name) for name, row in zip(names, rows, strict=True) if row]
        return tuple(sorted(named, key=lambda row: abs(log(row.flops / flops))))

    def _within(self, row: Measured) -> bool:
        limits = self.limits
        pairs = (
            (row.flops, limits.flops), (row.params, limits.params),
            (row.activations, limits.activations), (row.latency_ms, limits.latency_ms),
            (row.memory_mb, limits.memory_mb),
        )  # fmt: skip
        return all(most is None or value <= most for value, most in pairs)

    def _nothing(self) -> str:
        """What to say where no network is within the limits."""
        rows = [row for row in self.measured.values() if row]
        fastest = min(rows, key=lambda row: row.latency_ms)
        return (
            f"none of {len(rows)} measured networks is within the limits; the fastest takes "
            f"{fastest.latency_ms:.2f} ms with {fastest.flops / 1e6:.0f} M flops; allow more"
        )

    def _compared(self, found: Measured, rival: Measured) -> Comparison | None:
        """Both in turn, so that whatever else the machine does meets both; None if it fails."""
        size, runners = self.space.input_size, []
        inputs = [
            torch.randn(self.batch_size, 3, size, size).to(self.target.device)
            for _ in range(INPUT_SETS)
        ]
        with contextlib.suppress(RuntimeError):  # out of memory: both have been measured alone
            for row in (found, rival):
                network: AnyNet = create(row.config).eval().to(self.target.device)
                expected = answers(network, inputs)
                engine = find_engine(self.engine)
                built = build_checked(engine, network, inputs, expected, self.target)
                if built.runner is None or built.reason:
                    return None
                runners.append(built.runner)
            return compare(runners[0], runners[1], inputs, seconds=4 * self.seconds)
        return None


def _nearest(flops: float, input_size: int) -> list[str]:
    """The published RegNetX and RegNetY, those nearest to an amount of flops first."""
    costs = {name: complexity(VARIANTS[name].config, input_size).flops for name in PLAIN}
    return sorted(costs, key=lambda name: abs(log(costs[name] / flops)))


def _pareto(rows: Sequence[Measured]) -> tuple[Measured, ...]:
    """Those that no other beats in both flops and latency, by latency."""
    kept: list[Measured] = []
    for row in sorted(rows, key=lambda row: (row.latency_ms, -row.flops)):
        if not kept or row.flops > kept[-1].flops:
            kept.append(row)
    return tuple(kept)
