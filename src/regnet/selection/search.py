"""Search for a RegNet that is as good as a latency and other limits allow on a device.

The search samples thousands of networks of the paper's constrained space and measures a few dozen
of them on the device. A latency model that is fitted to these predicts the others, and the most
promising networks are measured, too. Accuracy is not measured. Within that space networks with more
flops are taken to be better, and among networks of equal flops a prior predicts which structures
are better (`regnet.selection.prior`). `regnet.studies.search` trains the candidates instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, log
from typing import Any, Final

import numpy as np
import torch

from regnet.design.complexity import complexity, population_memory_bytes
from regnet.design.config import RegNetConfig
from regnet.design.variants import PLAIN, VARIANTS
from regnet.design.widths import FloatArray
from regnet.devices import find_device
from regnet.engines.base import ELEMENT_BYTES, AnyPrecision
from regnet.errors import ConfigError, EngineError, check_number, check_whole, unknown
from regnet.selection.device import (
    Conditions,
    DeviceMeter,
    Meter,
    check_engine,
    fastest_engine,
)
from regnet.selection.limits import Found, Limits, Measured
from regnet.selection.prior import prior
from regnet.spaces.latency import LatencyModel
from regnet.spaces.paper import search_space
from regnet.spaces.sampling import BoolArray, Sample, sample, sample_by_flops
from regnet.spaces.space import Space

CANDIDATES: Final = 3000
"""Number of networks that are sampled and ranked by the latency model."""

PARTS: Final = 12
"""Number of ranges of flops, equal on a logarithmic scale, with the same number of candidates."""

NEAR: Final = 0.05
"""Networks are taken as equally good if their worth is within this fraction of the best one's."""

EQUAL: Final = 0.1
"""Two networks are taken as equally good if their worth differs by at most this fraction."""

MOST_FLOPS: Final = 32e9
"""Largest flops of candidates if flops are not limited: those of RegNetY-32GF at 224 pixels."""

SCOUTS: Final = 2000
"""Number of networks that are sampled to find the smallest flops of a space."""

ROUNDS: Final = 3
"""Largest number of times that finalists are chosen while none of them is within the limits."""

RIVALS: Final = 6
"""Number of published networks that are measured besides the one found."""

OnStep = Callable[[str, int, int], None]


def search(
    limits: Limits,
    *,
    space: Space | str = "regnety",
    device: torch.device | str = "cpu",
    engine: str = "auto",
    precision: AnyPrecision = "fp32",
    batch_size: int = 1,
    image_size: int = 224,
    probes: int = 24,
    finalists: int = 6,
    seconds: float = 1.0,
    seed: int = 0,
    on_step: OnStep | None = None,
    meter: Meter | None = None,
) -> Found:
    """Search for a RegNet that is as good as the limits allow on a device.

    Args:
        limits: the largest cost that the network may have.
        space: the space to search: "regnety", "regnetx" (without squeeze-excitation), or a space of
            RegNets that has the classes, channels, stem and number of stages you need.
        device: the device that the network will run on.
        engine: the engine of `regnet.engines` that will run it. "auto": the engine that is fastest
            for a network of about that size, among those that need no compiler.
        precision: the precision to compute in. "int8": quantized, run by OpenVINO on CPUs.
        batch_size: images per call.
        image_size: side of the images in pixels.
        probes: number of networks that are measured to fit the latency model.
        finalists: number of the most promising networks that are measured.
        seconds: duration of a measurement; becoming steady takes at most as long again.
        seed: seed of the sample.
        on_step: called with the current step, the number of its parts done, and their total.
        meter: measures networks, in place of `device`, `engine` and `seconds`.

    Returns:
        The network found, the Pareto set, the nearest published networks, and the errors of the
        predictions.

    Raises:
        ConfigError: no network is within the limits, or an option is not valid.
        EngineError: the engine cannot run these networks here.
    """
    candidates, space = _begin(
        limits,
        space=space,
        device=device,
        engine=engine,
        precision=precision,
        batch_size=batch_size,
        image_size=image_size,
        probes=probes,
        finalists=finalists,
        seconds=seconds,
        seed=seed,
        on_step=on_step,
        meter=meter,
    )
    winner = candidates.winner(finalists)
    published = _published(winner.flops, space, candidates.meter, candidates.tell)
    return _found(candidates, winner, published)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contenders:
    """Measured networks within limits that are worth training, and published ones to compare."""

    candidates: tuple[Measured, ...]
    published: tuple[Measured, ...]
    engine: str
    precision: AnyPrecision
    batch_size: int
    image_size: int
    environment: dict[str, Any]


def contenders(
    limits: Limits, count: int, *, rivals: int = RIVALS // 2, **options: Any
) -> Contenders:
    """Choose networks within limits that the prior expects to be good, and measure them.

    Args:
        limits: the largest cost that the networks may have.
        count: number of networks; fewer are returned if not as many are found within the limits.
        rivals: largest number of published networks, those of the largest worth within the limits.
        options: the options of `search`, except for `finalists`.

    Raises:
        ConfigError: no network is within the limits, or an option is not valid.
        EngineError: the engine cannot run these networks here.
    """
    candidates, space = _begin(limits, finalists=1, **options)
    rows = candidates.contenders(count)
    middle = float(np.median([row.flops for row in rows]))
    published = _published(middle, space, candidates.meter, candidates.tell)
    within = sorted(filter(limits.allow, published), key=lambda row: -(row.worth or 0))
    c = candidates.meter.conditions
    return Contenders(
        candidates=tuple(rows),
        published=tuple(within[:rivals]),
        engine=c.engine,
        precision=c.precision,
        batch_size=c.batch_size,
        image_size=c.image_size,
        environment=candidates.meter.environment,
    )


def _begin(
    limits: Limits,
    *,
    space: Space | str = "regnety",
    device: torch.device | str = "cpu",
    engine: str = "auto",
    precision: AnyPrecision = "fp32",
    batch_size: int = 1,
    image_size: int = 224,
    probes: int = 24,
    finalists: int,
    seconds: float = 1.0,
    seed: int = 0,
    on_step: OnStep | None = None,
    meter: Meter | None = None,
) -> tuple["_Candidates", Space]:
    """Sample candidates, and measure enough of them to predict the latency of the others."""
    check_number("seconds", seconds, least=0)
    _check_options(
        precision=precision,
        batch_size=batch_size,
        image_size=image_size,
        probes=probes,
        finalists=finalists,
        seed=seed,
    )
    space = search_space(space) if isinstance(space, str) else space
    space = replace(space, image_size=image_size)
    if space.family != "regnet":
        raise ConfigError(
            f"a search needs a space of RegNets, got {space.name} of the family {space.family}"
        )
    conditions = Conditions(
        device=find_device(device),
        engine=engine,
        precision=precision,
        batch_size=batch_size,
        image_size=image_size,
    )
    # The engine is checked, and candidates within the limits are sampled, before anything is
    # measured, so that an error in either is reported at once.
    if meter is None:
        check_engine(conditions)
    tell = on_step or (lambda _what, _done, _total: None)
    rng = np.random.default_rng(seed)
    networks = sample_candidates(limits, space, conditions, rng)
    if meter is None:
        if engine == "auto":
            tell("engines", 0, 1)
            flops = np.sort(networks.metric("flops"))
            middle = limits.flops or float(flops[0] * flops[-1]) ** 0.5
            typical = int(np.argmin(np.abs(np.log(networks.metric("flops") / middle))))
            conditions = fastest_engine(networks.config(typical), conditions, seconds=seconds)
            tell("engines", 1, 1)
        meter = DeviceMeter(conditions, seconds=seconds)
    candidates = _Candidates(networks, meter, limits, rng, tell)
    candidates.probe(candidates.spread(probes - probes // 2))
    candidates.probe(candidates.near_the_limit(probes // 2))
    return candidates, space


def _check_options(*, precision: str, **numbers: int) -> None:
    if precision not in ELEMENT_BYTES:
        raise ConfigError(unknown("precision", precision, ELEMENT_BYTES))
    least = {"batch_size": 1, "image_size": 1, "probes": 8, "finalists": 1, "seed": 0}
    for name, value in numbers.items():
        check_whole(name, value, least=least[name])


def flops_range(limits: Limits, space: Space, seed: int = 0) -> tuple[float, float]:
    """Return the smallest and the largest flops of the networks that a search samples.

    Raises:
        ConfigError: the smallest network of the space has more flops than allowed.
    """
    if limits.flops is not None and list(limits.given) == ["flops"]:
        return (1 - EQUAL) * limits.flops, limits.flops
    # If another limit is the tighter one, smaller networks are needed to satisfy it.
    low = float(sample(space, SCOUTS, seed).metric("flops").min())
    high = limits.flops or MOST_FLOPS * _part_of_224(space)
    if low >= high:
        raise ConfigError(
            f"the smallest network of {space.name} at {space.image_size} pixels has about "
            f"{low / 1e6:.3g} M flops, more than {high / 1e6:.3g} M; allow more flops"
        )
    return low, high


def sample_candidates(
    limits: Limits, space: Space, conditions: Conditions, rng: np.random.Generator
) -> Sample:
    """Sample networks within all limits except the latency, equally many from each range of flops.

    Raises:
        ConfigError: no network of the space is within these limits.
    """

    def fits_memory(networks: Sample) -> BoolArray:
        needed = population_memory_bytes(
            networks.population,
            networks.space.architecture,
            networks.image_sizes,
            params=networks.metric("params").astype(np.int64),
            batch_size=conditions.batch_size,
            element_bytes=ELEMENT_BYTES[conditions.precision],
        )
        return np.asarray(needed <= 1e6 * (limits.memory_mb or inf))

    space = space.restrict(params=(None, limits.params), activations=(None, limits.activations))
    if limits.memory_mb is not None:
        space = space.where(f"memory up to {limits.memory_mb:g} MB", fits_memory)
    edges = np.geomspace(*flops_range(limits, space), PARTS + 1)
    return sample_by_flops(space, edges.tolist(), CANDIDATES // PARTS, rng)


class _Candidates:
    """Sampled networks, and their measurements so far."""

    def __init__(
        self,
        networks: Sample,
        meter: Meter,
        limits: Limits,
        rng: np.random.Generator,
        tell: OnStep,
    ) -> None:
        self.networks, self.meter, self.limits = networks, meter, limits
        self.rng, self.tell = rng, tell
        self.flops = networks.metric("flops")
        self.worth = prior().worth_of(networks)
        self.features = networks.latency_features
        self.measured: dict[int, Measured | None] = {}
        """Measurements by the index of the candidate; None if it could not be measured."""
        self.guesses: dict[int, float] = {}
        """Predicted milliseconds of the finalists, by the index of the candidate."""

    @property
    def rows(self) -> list[Measured]:
        """The measurements that succeeded."""
        return [row for row in self.measured.values() if row]

    @property
    def model(self) -> LatencyModel:
        """The latency model, fitted to all measurements so far."""
        known = {at: row.latency_ms for at, row in self.measured.items() if row}
        return LatencyModel.fit(self.features[list(known)], list(known.values()))

    @property
    def prediction_error(self) -> float | None:
        """Median relative error of the predictions for the finalists."""
        errors = [
            abs(guess / row.latency_ms - 1)
            for at, guess in self.guesses.items()
            if (row := self.measured[at])
        ]
        return float(np.median(errors)) if errors else None

    def spread(self, count: int) -> list[int]:
        """Choose one candidate from each of `count` parts of the sample, the smallest first."""
        parts = np.array_split(np.argsort(self.flops), min(count, len(self.flops)))
        return [int(self.rng.choice(part)) for part in parts]

    def near_the_limit(self, count: int) -> list[int]:
        """Choose candidates that resemble the answer: nearly as good as the latency limit allows.

        Their predicted latency is at most 1.15 times the limit, and their worth at least 0.7 times
        that of the 20th best of these.
        """
        left = self._left()
        within = self._fast_enough(self.model.predict(self.features), 1.15) & left
        most = np.sort(self.worth[within])[-min(int(within.sum()), 20)] if within.any() else 0.0
        near = np.flatnonzero(within & (self.worth >= 0.7 * most))
        if not len(near):
            near = np.flatnonzero(left)
        return [int(at) for at in self.rng.permutation(near)[:count]]

    def probe(self, which: Sequence[int]) -> None:
        """Measure candidates in order; stop after one that is far above the latency limit."""
        slow = 4 * (self.limits.latency_ms or inf)
        for number, at in enumerate(which):
            self.tell("probes", number, len(which))
            row = self._measure_one(at)
            if row and row.latency_ms > slow and len(self.rows) >= 4:
                break
        self.tell("probes", len(which), len(which))
        if not self.rows:
            engine = self.meter.conditions.engine
            raise EngineError(f"{engine} cannot run any of the networks: {self.meter.problem}")

    def winner(self, finalists: int) -> Measured:
        """Measure finalists, choose the best of them, and return its second measurement.

        Raises:
            ConfigError: none of the measured networks is within the limits.
        """
        for _ in range(ROUNDS):
            predicted = self.model.predict(self.features)
            chosen = self._promising(predicted, finalists)
            self.guesses.update({at: float(predicted[at]) for at in chosen})
            rows = self._measure("finalists", chosen)
            if any(row and self.limits.allow(row) for row in rows) or not chosen:
                break
        confirmed: set[int] = set()
        while True:
            within = {
                at: row for at, row in self.measured.items() if row and self.limits.allow(row)
            }
            if not within:
                raise ConfigError(self._nothing())
            most = max(self.worth[at] for at in within)
            good = [at for at in within if self.worth[at] >= (1 - NEAR) * most]
            good.sort(key=lambda at: within[at].latency_ms)
            if good[0] in confirmed:
                return within[good[0]]
            # The fastest of several measurements is partly luck; a second one has no such bias.
            again = [at for at in good[:3] if at not in confirmed]
            self._measure("finalists again", again)
            confirmed.update(again)

    def contenders(self, count: int) -> list[Measured]:
        """Measure random networks of the best quarter of those predicted to be fast enough.

        Raises:
            ConfigError: none of the measured networks is within the limits.
        """
        tried = 0
        while (got := len(self._within())) < count and tried < 3 * count:
            predicted = self.model.predict(self.features)
            allowed = np.flatnonzero(self._fast_enough(predicted, 1.0) & self._left())
            if not len(allowed):
                break
            better = allowed[self.worth[allowed] >= np.quantile(self.worth[allowed], 0.75)]
            chosen = self.rng.permutation(better)[: count - got]
            self._measure("candidates", [int(at) for at in chosen])
            tried += len(chosen)
        within = sorted(self._within(), key=lambda row: -(row.worth or 0))
        if not within:
            raise ConfigError(self._nothing())
        return within[:count]

    def _within(self) -> list[Measured]:
        return [row for row in self.rows if self.limits.allow(row)]

    def _promising(self, predicted: FloatArray, count: int) -> list[int]:
        """Choose `count` networks that are predicted to be fast enough.

        The first are those of about the best worth, in the order of their predicted latency. The
        others follow by worth.
        """
        left = self._left()
        allowed = self._fast_enough(predicted, 1 / (1 + self.model.error)) & left
        if allowed.sum() < count:  # Add those that are predicted to be the fastest.
            order = np.argsort(np.where(left, predicted, inf))
            allowed |= np.isin(np.arange(len(predicted)), order[:count]) & left
        # The mean of the best 20 sets the mark, so that a single optimistic prediction does not.
        best = np.sort(self.worth[allowed])[-min(int(allowed.sum()), 20) :].mean()
        good = allowed & (self.worth >= (1 - NEAR) * best)
        ranked = np.argsort(np.where(good, predicted, inf), kind="stable")[: int(good.sum())]
        more = np.flatnonzero(allowed & ~good)
        more = more[np.argsort(-self.worth[more])]
        return [int(at) for at in (*ranked, *more)][:count]

    def _fast_enough(self, predicted: FloatArray, margin: float) -> BoolArray:
        return np.asarray(predicted <= margin * (self.limits.latency_ms or inf))

    def _left(self) -> BoolArray:
        """Return which candidates have not been measured."""
        left = np.ones(len(self.flops), dtype=np.bool_)
        left[list(self.measured)] = False
        return left

    def _measure(self, what: str, which: Sequence[int]) -> list[Measured | None]:
        rows = []
        for number, at in enumerate(which):
            self.tell(what, number, len(which))
            rows.append(self._measure_one(at))
        self.tell(what, len(which), len(which))
        return rows

    def _measure_one(self, at: int) -> Measured | None:
        row = self.meter.measure(self.networks.config(at))
        if row and at in self.guesses:
            row = replace(row, predicted_ms=self.guesses[at])
        row = row and replace(row, worth=float(self.worth[at]))
        self.measured[at] = row
        return row

    def _nothing(self) -> str:
        """Return the error that no network is within the limits; it names the fastest network."""
        predicted = np.where(self._left(), self.model.predict(self.features), inf)
        self._measure("the fastest", [int(at) for at in np.argsort(predicted)[:3]])
        fastest = min(self.rows, key=lambda row: row.latency_ms)
        return (
            f"no network is within the limits: the fastest network of this space takes "
            f"{fastest.latency_ms:.2f} ms here, with {fastest.flops / 1e6:.3g} M flops "
            f"({len(self.rows)} networks were measured); raise the limits"
        )


def _part_of_224(space: Space) -> float:
    """Approximate flops of a space's networks relative to 224 pixels and the stem for ImageNet."""
    # The stem for CIFAR has stride 1 instead of 2, so all feature maps are four times as large.
    larger = 4.0 if space.architecture.stem == "cifar" else 1.0
    return larger * (space.image_size / 224) ** 2


def published_like(space: Space) -> dict[str, RegNetConfig]:
    """Return the published RegNetX and RegNetY with the classes, channels and stem of a space."""
    shape = space.architecture
    found = {}
    for name in PLAIN:
        config = VARIANTS[name].config
        assert isinstance(config, RegNetConfig)
        found[name] = replace(
            config,
            num_classes=shape.num_classes,
            in_chans=shape.in_chans,
            stem=shape.stem,
            stem_width=shape.stem_width,
        )
    return found


def _published(flops: float, space: Space, meter: Meter, tell: OnStep) -> tuple[Measured, ...]:
    """Measure the published networks nearest to a number of flops, the nearest first."""
    size = meter.conditions.image_size
    configs = published_like(space)
    names = nearest_published(flops, configs, size)[:RIVALS]
    rows = []
    for number, name in enumerate(names):
        tell("published networks", number, len(names))
        row = meter.measure(configs[name], name)
        rows.append(row and replace(row, worth=prior().worth_of_config(configs[name], size)))
    tell("published networks", len(names), len(names))
    return tuple(sorted(filter(None, rows), key=lambda row: abs(log(row.flops / flops))))


def _found(candidates: _Candidates, winner: Measured, published: tuple[Measured, ...]) -> Found:
    """Time the winner against its published rival, and return the result of the search."""
    meter, limits = candidates.meter, candidates.limits
    rival = min(
        (row for row in published if _worth(row) >= (1 - EQUAL) * _worth(winner)),
        key=lambda row: row.latency_ms,
        default=None,
    )
    against = meter.compare(winner.config, rival.config) if rival else None
    best = winner
    if rival and against and limits.allow(rival):
        faster = against.differs and against.median < 1
        slower = against.differs and against.median > 1
        if faster or (_worth(rival) > (1 + EQUAL) * _worth(winner) and not slower):
            best = rival
    rows, conditions = candidates.rows, meter.conditions
    within = [row for row in (*rows, winner, *published) if limits.allow(row)]
    return Found(
        best=best,
        pareto=pareto(within),
        published=published,
        rival=rival.name if rival else None,
        against_rival=against,
        fit_error=candidates.model.error,
        prediction_error=candidates.prediction_error,
        engine=conditions.engine,
        precision=conditions.precision,
        layout=conditions.layout,
        batch_size=conditions.batch_size,
        image_size=conditions.image_size,
        candidates=len(candidates.networks),
        measured=len(rows) + len(published),
        prior=str(prior()),
        environment=meter.environment,
    )


def _worth(row: Measured) -> float:
    """Return the worth of a network; for one that the prior cannot judge, its flops."""
    return row.flops if row.worth is None else row.worth


def nearest_published(
    flops: float, configs: Mapping[str, RegNetConfig], image_size: int
) -> list[str]:
    """Return the names of networks by the distance of their flops from `flops`, nearest first."""
    costs = {name: complexity(config, image_size).flops for name, config in configs.items()}
    return sorted(costs, key=lambda name: abs(log(costs[name] / flops)))


def pareto(rows: Sequence[Measured]) -> tuple[Measured, ...]:
    """Return the networks that no other one beats in both worth and latency, by latency."""
    front: list[Measured] = []
    for row in sorted(rows, key=lambda row: (row.latency_ms, -_worth(row))):
        if not front or _worth(row) > _worth(front[-1]):
            front.append(row)
    return tuple(front)
