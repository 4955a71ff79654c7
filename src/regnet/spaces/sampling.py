"""Sample networks from a design space, thousands at a time, as arrays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from regnet.design.complexity import Complexity, population_complexity
from regnet.design.config import AnyNetConfig, ArchitectureConfig, RegNetConfig, StageConfig
from regnet.design.layers import population_layers
from regnet.design.population import StagePopulation, regnet_population
from regnet.design.widths import (
    FloatArray,
    IntArray,
    linear_widths,
    round_to_groups,
    width_exponents,
)
from regnet.errors import ConfigError, check_whole
from regnet.spaces.latency import FEATURES, features_of_layers
from regnet.spaces.space import COMPLEXITY, LATENCY, Space

_CHUNK: Final = 16_384
"""Networks drawn at once: a constant, so that more networks of a seed begin with the same ones."""

PATIENCE: Final = 2_000_000
"""Draws after which sampling stops: in `sample` those in a row without a new network, in
`sample_by_flops` all of them."""

ORDERED: Final = 50_000_000
"""Draws after which it is an error that the stages of some networks are still not in order."""

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """n networks of a space, as arrays."""

    space: Space
    parameters: Mapping[str, FloatArray]
    """The drawn values of each parameter of the space: (n,), or (n, s) if drawn for every stage."""
    population: StagePopulation
    """The stages of the networks, which follow from the parameters."""
    complexity: Complexity[IntArray]
    """The complexity of each network at its own image size."""

    def __len__(self) -> int:
        """Number of networks."""
        return len(self.population)

    def take(self, which: BoolArray | IntArray | slice) -> "Sample":
        """Return some of the networks, selected by indices, a mask or a slice."""
        return Sample(
            space=self.space,
            parameters={name: found[which] for name, found in self.parameters.items()},
            population=self.population.take(which),
            complexity=Complexity(
                **{name: getattr(self.complexity, name)[which] for name in COMPLEXITY}
            ),
        )

    @property
    def image_sizes(self) -> IntArray:
        """Side of each network's images, in pixels."""
        return _image_sizes(self.space, self.parameters, len(self))

    def metric(self, name: str) -> FloatArray:
        """Return a metric of every network, an array (n,), by its name in `Space.metric_names`.

        `d` is the number of blocks. `d1`, `w1` and so on are depths and widths of the stages after
        rounding. Other parameters are as drawn.
        """
        if name in COMPLEXITY:
            return np.asarray(getattr(self.complexity, name), dtype=np.float64)
        if name == LATENCY and self.space.latency:
            return self.space.latency.predict(self.latency_features)
        if name == "d":
            return np.asarray(self.population.depths.sum(axis=1), dtype=np.float64)
        if name in self.parameters:
            return self.parameters[name]
        if name in ("b", "g"):
            return self.parameters[f"{name}_i"][:, 0]
        letter, stage = name[0], int(name[1:]) - 1
        if letter in "bg":
            return self.parameters[f"{letter}_i"][:, stage]
        built = self.population.depths if letter == "d" else self.population.widths
        return np.asarray(built[:, stage], dtype=np.float64)

    @property
    def latency_features(self) -> FloatArray:
        """`regnet.spaces.latency.FEATURES` of every network, for a latency model, (n, k)."""
        sizes, shared = self.image_sizes, self.space.architecture
        found = np.empty((len(self), len(FEATURES)))
        for size in np.unique(sizes):
            there = sizes == size
            layers = population_layers(self.population.take(there), shared, int(size))
            found[there] = features_of_layers(layers, shared)
        return found

    @property
    def metrics(self) -> dict[str, FloatArray]:
        """All metrics of the space, by name."""
        return {name: self.metric(name) for name in self.space.metric_names}

    def config(self, index: int) -> AnyNetConfig | RegNetConfig:
        """Return the config of one network."""
        shared = {
            field.name: getattr(self.space.architecture, field.name)
            for field in fields(ArchitectureConfig)
        }
        if self.space.family == "regnet":
            drawn = {name: found[index].item() for name, found in self.parameters.items()}
            return RegNetConfig(
                depth=round(drawn["d"]),
                w0=round(drawn["w0"]),
                wa=drawn["wa"],
                wm=drawn["wm"],
                group_width=round(drawn["g"]),
                bottleneck_ratio=drawn["b"],
                **shared,
            )
        stages = self.population
        return AnyNetConfig(
            stages=tuple(
                StageConfig(
                    depth=stages.depths[index, stage].item(),
                    width=stages.widths[index, stage].item(),
                    group_width=stages.group_widths[index, stage].item(),
                    bottleneck_ratio=stages.bottleneck_ratios[index, stage].item(),
                    stride=stride,
                )
                for stage, stride in enumerate(stages.strides)
            ),
            **shared,
        )

    @property
    def configs(self) -> tuple[AnyNetConfig | RegNetConfig, ...]:
        """The configs of all networks."""
        return tuple(self.config(index) for index in range(len(self)))


def sample(space: Space, count: int, rng: np.random.Generator | int = 0) -> Sample:
    """Draw networks from a space, each at most once, until there are enough.

    Args:
        space: the space; its limits and predicates apply.
        count: number of networks to return.
        rng: the source of randomness, or a seed. The first n networks of a seed are the same for
            every `count`.

    Raises:
        ConfigError: the space is custom, `count` is less than 1, or the space has too few networks;
            the message then says how many draws each condition excludes.
    """
    count = check_whole("count", count, least=1)
    _check_built_in(space)
    draws = _Draws(space, np.random.default_rng(rng))
    kept: list[Sample] = []
    last = 0
    while len(draws.seen) < count:
        if draws.drawn - last >= PATIENCE:
            raise ConfigError(draws.told())
        if len(new := draws.next()):
            last = draws.drawn
        kept.append(new)
    return joined(kept).take(slice(count))


def _check_built_in(space: Space) -> None:
    if space.custom:
        raise ConfigError(f"{space.name} is custom; sample it with regnet.studies.sample_networks")


def sample_by_flops(
    space: Space, edges: Sequence[float], each: int, rng: np.random.Generator | int = 0
) -> Sample:
    """Draw networks until every range of flops has enough, or for at most `PATIENCE` draws.

    Args:
        space: the space; its limits and predicates apply.
        edges: the edges of the ranges of flops, ascending; n + 1 edges make n ranges.
        each: number of networks to draw in each range. Ranges where networks are rare may get
            fewer.
        rng: the source of randomness, or a seed.

    Raises:
        ConfigError: the space is custom, or no network was found in any range.
    """
    _check_built_in(space)
    draws = _Draws(space.restrict(flops=(edges[0], edges[-1])), np.random.default_rng(rng))
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    kept: list[Sample] = []
    while draws.drawn < PATIENCE and counts.min() < each:
        new = draws.next()
        which = np.clip(np.searchsorted(edges, new.metric("flops")) - 1, 0, len(counts) - 1)
        # The position of each network among all those of its range, so that a range accepts only
        # its first `each` networks.
        place = [counts[k] + (which[:at] == k).sum() for at, k in enumerate(which)]
        room = np.array(place, dtype=np.int64) < each
        kept.append(new.take(room))
        counts += np.bincount(which[room], minlength=len(counts))
    if not counts.any():
        raise ConfigError(draws.told())
    return joined(kept)


class _Draws:
    """Draws from a space in chunks: its networks, each once, and counts of what excluded others."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self.space, self.rng = space, rng
        self.conditions = _conditions(space)
        self.seen: set[bytes] = set()
        self.excluded: dict[str, int] = {}
        self.drawn = self.right = 0

    def next(self) -> Sample:
        """Draw the next chunk, and return its networks that are in the space and new."""
        found = draw(self.space, _CHUNK, self.rng)
        self.drawn, self.right = self.drawn + _CHUNK, self.right + len(found)
        fits = np.ones(len(found), dtype=np.bool_)
        for name, passes in self.conditions.items():
            good = passes(found)
            self.excluded[name] = self.excluded.get(name, 0) + int((~good).sum())
            fits &= good
        found = found.take(fits)
        return found.take(_first_seen(found, self.seen))

    def told(self) -> str:
        """Return the error message for a space with too few networks."""
        text = (
            f"{self.space.name}: only {len(self.seen)} networks were found in {self.drawn:,} "
            f"draws; ask for fewer networks, or widen its ranges: {self.drawn - self.right:,} "
            f"draws do not have {self.space.num_stages} stages"
        )
        most = sorted(self.excluded.items(), key=lambda item: -item[1])
        reasons = ", ".join(f"{number:,} fail {name}" for name, number in most if number)
        if not self.right:
            return text
        if any(name.startswith(("flops", "activations")) for name in self.excluded):
            reasons = reasons and f"{reasons}, at {self.space.image_size} pixels"
        return f"{text}, and of the {self.right:,} others {reasons or 'all were drawn before'}"


def _first_seen(found: Sample, seen: set[bytes]) -> IntArray:
    """Return the indices of networks that were not drawn before, and add them to `seen`."""
    rows = np.column_stack(list(found.parameters.values()))
    new = []
    for index, row in enumerate(rows):
        key = row.tobytes()
        if key not in seen:
            seen.add(key)
            new.append(index)
    return np.asarray(new, dtype=np.int64)


def _conditions(space: Space) -> dict[str, Callable[[Sample], BoolArray]]:
    """Return the limits and predicates of a space, by what messages call them."""
    found: dict[str, Callable[[Sample], BoolArray]] = {}
    for name, (low, high) in space.limits.items():
        least, most = -np.inf if low is None else low, np.inf if high is None else high

        def inside(
            sample: Sample, name: str = name, least: float = least, most: float = most
        ) -> BoolArray:
            values = sample.metric(name)
            return (values >= least) & (values <= most)

        found[_words(name, low, high)] = inside
    return found | dict(space.predicates)


def _words(name: str, low: float | None, high: float | None) -> str:
    """Return a limit in the words of a message."""
    if low == high:
        return f"{name} of {low:g}"
    ends = [f"from {low:g}"] if low is not None else []
    return " ".join([name, *ends, *([f"up to {high:g}"] if high is not None else [])])


def draw(space: Space, count: int, rng: np.random.Generator) -> Sample:
    """Draw networks of a space without regard to its limits.

    Args:
        space: the space.
        count: number of draws. Those with another number of stages than the space has are left
            out, so that fewer networks may be returned.
        rng: the source of randomness.
    """
    if space.family == "regnet":
        parameters, population = _regnets(space, count, rng)
    else:
        parameters, population = _anynets(space, count, rng)
    sizes = _image_sizes(space, parameters, len(population))
    return Sample(
        space=space,
        parameters=parameters,
        population=population,
        complexity=_complexity(population, space.architecture, sizes),
    )


def _image_sizes(space: Space, parameters: Mapping[str, FloatArray], count: int) -> IntArray:
    drawn = parameters.get("r")
    return np.full(count, space.image_size) if drawn is None else drawn.astype(np.int64)


def _anynets(
    space: Space, count: int, rng: np.random.Generator
) -> tuple[dict[str, FloatArray], StagePopulation]:
    parameters = {
        name: distribution.draw(rng, count) if name == "r" else _by_stage(space, name, count, rng)
        for name, distribution in space.parameters.items()
    }
    ratios = parameters["b_i"]
    widths, groups = round_to_groups(
        parameters["w_i"].astype(np.int64), parameters["g_i"], ratios, "half_even"
    )
    return parameters, StagePopulation(
        depths=parameters["d_i"].astype(np.int64),
        widths=widths,
        group_widths=groups,
        bottleneck_ratios=ratios,
        strides=(2,) * space.num_stages,
    )


def _by_stage(space: Space, name: str, count: int, rng: np.random.Generator) -> FloatArray:
    """Draw a parameter for every stage, (count, s), in its relation between the stages."""
    distribution, relation = space.parameters[name], space.relations.get(name, "free")
    shape = (count, space.num_stages)
    if relation == "equal":
        return np.broadcast_to(distribution.draw(rng, (count, 1)), shape)
    found = distribution.draw(rng, shape)
    if relation == "free":
        return found
    if space.ordering == "sorting":
        found = np.sort(found, axis=1)
    else:
        drawn = 0
        while not (ordered := (np.diff(found, axis=1) >= 0).all(axis=1)).all():
            if drawn > ORDERED:
                raise ConfigError(
                    f"{name} of {space.name} is hardly ever drawn in order in "
                    f'{space.num_stages} stages; use ordering="sorting", or fewer stages'
                )
            missing = int((~ordered).sum())
            found[~ordered] = distribution.draw(rng, (missing, space.num_stages))
            drawn += missing
    return found if relation == "increasing" else found[:, ::-1]


def _regnets(
    space: Space, count: int, rng: np.random.Generator
) -> tuple[dict[str, FloatArray], StagePopulation]:
    """Draw RegNets, and return those with the required number of stages.

    These are the ones whose line neither skips a quantization level nor has two levels that round
    to the same width.
    """
    parameters = {
        name: distribution.draw(rng, count) for name, distribution in space.parameters.items()
    }
    d, w0, wa, wm = (parameters[name] for name in ("d", "w0", "wa", "wm"))
    # The line never falls, so its last block has the highest level. Checking that level first
    # leaves few networks to expand into stages.
    levels = np.rint(width_exponents(linear_widths(w0, wa, d - 1), w0, wm)) + 1
    likely = np.flatnonzero(levels == space.num_stages)
    parameters = {name: found[likely] for name, found in parameters.items()}
    population = regnet_population(
        w0=parameters["w0"].astype(np.int64),
        wa=parameters["wa"],
        wm=parameters["wm"],
        depth=parameters["d"].astype(np.int64),
        group_width=parameters["g"].astype(np.int64),
        bottleneck_ratio=parameters["b"],
    )
    stages, right = space.num_stages, population.num_stages == space.num_stages

    def columns(values: Any) -> Any:
        """Cut or pad to the number of stages: all draws may have fewer, and some may have more."""
        return np.pad(values[:, :stages], ((0, 0), (0, max(0, stages - values.shape[1]))))[right]

    return {name: found[right] for name, found in parameters.items()}, StagePopulation(
        depths=columns(population.depths),
        widths=columns(population.widths),
        group_widths=columns(population.group_widths),
        bottleneck_ratios=columns(population.bottleneck_ratios),
        strides=(2,) * stages,
    )


def _complexity(
    population: StagePopulation, architecture: ArchitectureConfig, sizes: IntArray
) -> Complexity[IntArray]:
    """Count the complexity of each network at its own image size."""
    totals = {name: np.zeros(len(population), dtype=np.int64) for name in COMPLEXITY}
    for size in np.unique(sizes):
        there = sizes == size
        some = population if there.all() else population.take(there)
        found = population_complexity(some, architecture, int(size))
        for name, total in totals.items():
            total[there] = getattr(found, name)
    return Complexity(**totals)


def joined(samples: Sequence[Sample]) -> Sample:
    """Join samples of one space, or of parts of it; the result has the space of the first."""
    first = samples[0]
    return Sample(
        space=first.space,
        parameters={
            name: np.concatenate([found.parameters[name] for found in samples])
            for name in first.parameters
        },
        population=StagePopulation.joined([found.population for found in samples]),
        complexity=Complexity(
            **{
                name: np.concatenate([getattr(found.complexity, name) for found in samples])
                for name in COMPLEXITY
            }
        ),
    )
