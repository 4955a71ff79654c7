"""A RegNet for a device: as much network as a latency and other limits allow.

Networks of the paper's constrained space are sampled by the thousand, a few dozen are measured on
this device, a model of latency fitted to those predicts the others, and the most promising are
measured too. Accuracy is not predicted: within that space networks of equal flops are about equally
good (Radosavovic et al. 2020, section 4), so that flops stand for it.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike

from regnet.bench.document import Case, Row
from regnet.bench.runner import run as measure_cases
from regnet.design.complexity import complexity
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.design.widths import FloatArray
from regnet.engines.base import DTYPES, Precision, Target
from regnet.engines.check import INPUT_SETS, answers, build_checked
from regnet.engines.optimize import ENGINES, find_engine, optimize
from regnet.errors import ConfigError, EngineError
from regnet.machine import environment
from regnet.nn.model import AnyNet
from regnet.studies.distributions import Distribution
from regnet.studies.sampling import BoolArray, Sample, joined, sample
from regnet.studies.space import SPACES, Space
from regnet.timing import Comparison, compare
from regnet.zoo.create import create

CANDIDATES: Final = 3000
"""Networks sampled, and ranked by the model of latency."""

EQUAL: Final = 0.1
"""Networks whose flops differ by no more than this part count as equally large."""

LEAST_FLOPS: Final = 50e6
MOST_FLOPS: Final = 32e9
"""Range of the search where flops are not limited, from RegNetX-200MF's quarter to RegNetY-32GF."""

_RIDGE: Final = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a network may cost; None: any amount."""

    flops: float | None = None
    params: float | None = None
    activations: float | None = None
    latency_ms: float | None = None
    """Of a batch, the median."""
    memory_mb: float | None = None
    """By which a process grows from building the network to its last call."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if not given:
            raise ConfigError("a search needs a limit: flops, params, latency, ...")
        for name, value in given.items():
            if not value > 0:
                raise ConfigError(f"{name} must be positive, got {value!r}")


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
    peak_bytes: int | None
    predicted_ms: float | None = None
    """Before it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to."""

    best: Measured
    """The fastest of the largest networks within the limits."""
    pareto: tuple[Measured, ...]
    """Measured networks within the limits of which none is both larger and faster."""
    published: tuple[Measured, ...]
    """The published RegNets nearest to the best in flops."""
    rival: str | None
    """The fastest published RegNet of equal flops."""
    against_rival: Comparison | None
    """Its time over the best's, measured in turn: above 1, the best is faster."""
    fit_error: float
    """Median relative error of the model of latency on networks left out of its fit."""
    prediction_error: float
    """Median relative error of what it predicted for the finalists, before they were measured."""
    engine: str
    precision: Precision
    batch_size: int
    candidates: int
    measured: int
    environment: dict[str, Any]


class LatencyModel:
    """Latency as a product of powers of what networks cost, fitted to measurements.

    log t = a + sum of b_k log x_k over flops, parameters, activations, depth, group width and first
    width, by ridge regression: few numbers, so that a few dozen measurements are enough.
    """

    FEATURES: Final = ("flops", "params", "activations", "d", "g", "w1", "w4")

    def __init__(self, features: FloatArray, latencies: ArrayLike) -> None:
        """Fit.

        Args:
            features: of the measured networks (n, k), as `features_of` gives them.
            latencies: theirs (n,).
        """
        logs = np.log(np.asarray(latencies, dtype=np.float64))
        self._mean, self._scale = features.mean(axis=0), features.std(axis=0) + 1e-9
        x = np.column_stack([np.ones(len(logs)), (features - self._mean) / self._scale])
        penalty = _RIDGE * len(logs) * np.eye(x.shape[1])
        penalty[0, 0] = 0
        inverse = np.linalg.inv(x.T @ x + penalty)
        self._weights = inverse @ x.T @ logs
        # Leaving one out of a linear fit changes its residual by 1 / (1 - leverage).
        leverage = np.einsum("ij,jk,ik->i", x, inverse, x)
        residuals = (logs - x @ self._weights) / np.maximum(1 - leverage, 1e-3)
        self.error = float(np.median(np.abs(np.expm1(residuals))))
        """Median relative error on networks left out one at a time."""

    def predict(self, features: FloatArray) -> FloatArray:
        """Latencies of networks (n,), in the unit of those that were fitted."""
        x = np.column_stack([np.ones(len(features)), (features - self._mean) / self._scale])
        return np.asarray(np.exp(x @ self._weights), dtype=np.float64)


def features_of(networks: Sample) -> FloatArray:
    """What the model of latency sees (n, k)."""
    return np.log(np.column_stack([networks.metric(name) for name in LatencyModel.FEATURES]))


def search_space(name: str = "regnety") -> Space:
    """Where to look: what the paper found, with group widths up to 128 that suit hardware.

    b = 1, 12 to 28 blocks, wm of 2 or more, parameters and activations as the best networks of the
    same flops have them (section 4; limits as in `space.constrained`), group widths as in pycls:
    powers of two and multiples of 8.

    Raises:
        ConfigError: it is no RegNet space that has one image size.
    """
    if name not in ("regnetx", "regnety"):
        raise ConfigError(f"a search looks in regnetx or regnety; got {name!r}")
    space = SPACES[name]
    group_width = Distribution(kind="power2_or_log_uniform", low=8, high=128, quantum=8)
    wider = replace(
        space,
        name=f"{name}_search",
        parameters={
            **space.parameters,
            "b": Distribution(kind="values", values=(1.0,)),
            "g": group_width,
        },
    ).restrict(d=(12, 28), wm=(2.0, None))
    return wider.where("the paper's limits of parameters and activations", _paper_limits)


def _paper_limits(networks: Sample) -> BoolArray:
    """At each network's own flops, at 224 pixels with 1000 classes."""
    giga = networks.metric("flops") / 1e9
    few = networks.metric("params") <= 3.0e6 + 5.5e6 * giga
    return few & (networks.metric("activations") <= 6.5e6 * np.sqrt(giga))


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
        space: where to look; None: `search_space()`, which has squeeze-excitation.
        device: where it will run.
        engine: that of `regnet.engines` to run it with; `auto`: the fastest for a published RegNet
            of about that size, of those that need no compiler.
        precision: to compute in.
        batch_size: images per call.
        input_size: side of the images in pixels.
        probes: networks measured to fit the model of latency, the published ones apart.
        finalists: of the networks that it prefers, how many are measured.
        seconds: for the calls of a measurement that count, and as long again to get steady.
        seed: of the sample.
        on_step: told what is done, how many of how many.

    Raises:
        ConfigError: no network is within the limits.
        EngineError: the engine cannot run these networks here.
    """
    if precision not in DTYPES:
        raise ConfigError(f"precision must be one of {', '.join(DTYPES)}; got {precision!r}")
    looks = _Search(
        limits,
        space=replace(space or search_space(), input_size=input_size),
        target=Target(device=torch.device(device), precision=precision),
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
        self.engine = ""

    def run(self, engine: str, *, probes: int, finalists: int) -> Found:
        candidates = self._candidates()
        features = features_of(candidates)
        flops = candidates.metric("flops")
        size = float(self.limits.flops or np.median(flops))
        if engine == "auto":
            self._choose_engine(size)
        else:
            self.engine = find_engine(engine).name

        published = self._published(size)
        chosen = self._spread(flops, probes)
        rows = self._measure("probes", [candidates.config(at) for at in chosen])
        kept = [at for at, row in zip(chosen, rows, strict=True) if row is not None]
        model = LatencyModel(features[kept], [row.latency_ms for row in rows if row is not None])
        predicted = model.predict(features)

        best = self._promising(predicted, flops, finalists, known=kept)
        final = self._measure("finalists", [candidates.config(at) for at in best], predicted[best])
        errors = [
            abs(row.predicted_ms / row.latency_ms - 1)
            for row in final
            if row is not None and row.predicted_ms
        ]
        rivals = self._measure("published", [VARIANTS[name].config for name in published])
        named = [
            replace(row, name=name)
            for name, row in zip(published, rivals, strict=True)
            if row is not None
        ]
        measured = [row for row in (*rows, *final, *named) if row is not None]
        winner = self._best(measured)
        near = sorted(named, key=lambda row: abs(np.log(row.flops / winner.flops)))
        equal = [
            row for row in near if abs(row.flops / winner.flops - 1) <= EQUAL and row != winner
        ]
        rival = min(equal, key=lambda row: row.latency_ms, default=None)
        return Found(
            best=winner,
            pareto=_pareto([row for row in measured if self._within(row)]),
            published=tuple(near),
            rival=rival.name if rival else None,
            against_rival=self._compared(winner, rival) if rival else None,
            fit_error=model.error,
            prediction_error=float(np.median(errors)) if errors else inf,
            engine=self.engine,
            precision=self.target.precision,
            batch_size=self.batch_size,
            candidates=len(candidates),
            measured=len(measured),
            environment=environment(self.target.device),
        )

    def _candidates(self) -> Sample:
        """Networks within all limits that arithmetic knows; half of them as large as may be."""
        limits = self.limits
        most = limits.flops or MOST_FLOPS
        space = self.space.restrict(
            params=(None, limits.params), activations=(None, limits.activations)
        )
        if limits.flops is None:
            return sample(space.restrict(flops=(LEAST_FLOPS, most)), CANDIDATES, self.rng)
        large = space.restrict(flops=((1 - EQUAL) * most, most))
        if limits.latency_ms is None:
            return sample(large, CANDIDATES, self.rng)
        # Where the latency turns out to be the tighter limit, smaller ones are needed.
        small = space.restrict(flops=(most / 8, (1 - EQUAL) * most))
        halves = [sample(part, CANDIDATES // 2, self.rng) for part in (large, small)]
        return joined(halves)

    def _spread(self, flops: FloatArray, count: int) -> list[int]:
        """Networks of all sizes: one of each part of the sample, sorted by flops."""
        order = np.argsort(flops)
        parts = np.array_split(order, min(count, len(order)))
        return [int(self.rng.choice(part)) for part in parts]

    def _promising(
        self, predicted: FloatArray, flops: FloatArray, count: int, known: Sequence[int]
    ) -> list[int]:
        """The largest that are predicted to be fast enough, and of those the fastest."""
        allowed = predicted <= (self.limits.latency_ms or inf)
        if not allowed.any():
            allowed = predicted <= np.sort(predicted)[min(count, len(predicted) - 1)]
        large = allowed & (flops >= (1 - EQUAL) * flops[allowed].max())
        large[list(known)] = False
        order = np.argsort(np.where(large, predicted, inf), kind="stable")
        return [int(at) for at in order[: min(count, int(large.sum()))]]

    def _published(self, size: float) -> list[str]:
        """Published RegNetX and RegNetY of about this size."""
        input_size = self.space.input_size
        costs = {
            name: complexity(variant.config, input_size).flops
            for name, variant in VARIANTS.items()
            if variant.family in ("regnetx", "regnety") and variant.input_size == 224
        }
        return sorted(costs, key=lambda name: abs(np.log(costs[name] / size)))[:6]

    def _choose_engine(self, size: float) -> None:
        """Take the fastest engine and layout for a published network of about this size."""
        self.tell("engines", 0, 1)
        network = create(self._published(size)[0]).eval().to(self.target.device)
        example = torch.randn(
            self.batch_size, 3, self.space.input_size, self.space.input_size,
            device=self.target.device,
        )  # fmt: skip
        usable = [engine.name for engine in ENGINES if not engine.compiles]
        found = optimize(
            network, example, precision=self.target.precision, engines=usable, seconds=self.seconds
        )
        self.tell("engines", 1, 1)
        self.engine = found.report.winner.engine
        self.target = replace(self.target, layout=found.report.winner.layout)

    def _measure(
        self,
        what: str,
        configs: Sequence[RegNetConfig | AnyNetConfig],
        predicted: FloatArray | None = None,
    ) -> list[Measured | None]:
        """Each by the benchmark's own measurement; None where an engine cannot run it."""
        rows: list[Row] = []

        def heard(row: Row) -> None:
            rows.append(row)
            self.tell(what, len(rows), len(configs))

        self.tell(what, 0, len(configs))
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.json" for number in range(len(configs))]
            for path, config in zip(paths, configs, strict=True):
                path.write_text(config.to_json(), encoding="utf-8")
            cases = [
                Case(
                    model=str(path),
                    batch_size=self.batch_size,
                    precision=self.target.precision,
                    layout=self.target.layout,
                    engine=self.engine,
                    input_size=self.space.input_size,
                )
                for path in paths
            ]
            document = measure_cases(
                cases, device=self.target.device, seconds=self.seconds, on_row=heard
            )
        if not document.complete:
            raise KeyboardInterrupt
        if configs and not any(row.latency_ms for row in rows):
            raise EngineError(f"{self.engine} runs none of the networks: {rows[0].reason}")
        told = [None] * len(configs) if predicted is None else predicted.tolist()
        return [
            _measured(config, row, guess)
            for config, row, guess in zip(configs, rows, told, strict=True)
        ]

    def _within(self, row: Measured) -> bool:
        limits = self.limits
        memory = None if row.peak_bytes is None else row.peak_bytes / 1e6
        pairs = (
            (row.flops, limits.flops), (row.params, limits.params),
            (row.activations, limits.activations), (row.latency_ms, limits.latency_ms),
            (memory, limits.memory_mb),
        )  # fmt: skip
        return all(most is None or value is None or value <= most for value, most in pairs)

    def _best(self, measured: Sequence[Measured]) -> Measured:
        within = [row for row in measured if self._within(row)]
        if not within:
            fastest = min(measured, key=lambda row: row.latency_ms)
            raise ConfigError(
                f"none of {len(measured)} measured networks is within the limits; the fastest "
                f"takes {fastest.latency_ms:.2f} ms with {fastest.flops / 1e6:.0f} M flops; allow "
                "more, or fewer flops"
            )
        most = max(row.flops for row in within)
        large = [row for row in within if row.flops >= (1 - EQUAL) * most]
        return min(large, key=lambda row: row.latency_ms)

    def _compared(self, best: Measured, rival: Measured) -> Comparison:
        """Both in turn, so that whatever else the machine does meets both."""
        size = self.space.input_size
        inputs = [
            torch.randn(self.batch_size, 3, size, size).to(self.target.device)
            for _ in range(INPUT_SETS)
        ]
        runners = []
        for row in (best, rival):
            network: AnyNet = create(row.config).eval().to(self.target.device)
            built = build_checked(
                find_engine(self.engine), network, inputs, answers(network, inputs), self.target
            )
            if built.runner is None:
                raise EngineError(f"{self.engine} no longer runs a network: {built.reason}")
            runners.append(built.runner)
        return compare(runners[0], runners[1], inputs, seconds=4 * self.seconds)


def _measured(
    config: RegNetConfig | AnyNetConfig, row: Row, predicted: float | None
) -> Measured | None:
    if row.latency_ms is None or row.low_ms is None or row.high_ms is None:
        return None
    return Measured(
        name="",
        config=config,
        flops=row.flops,
        params=row.params,
        activations=row.activations,
        latency_ms=row.latency_ms,
        low_ms=row.low_ms,
        high_ms=row.high_ms,
        peak_bytes=row.peak_bytes,
        predicted_ms=predicted,
    )


def _pareto(rows: Sequence[Measured]) -> tuple[Measured, ...]:
    """Those that no other beats in both flops and latency, by latency."""
    kept: list[Measured] = []
    for row in sorted(rows, key=lambda row: (row.latency_ms, -row.flops)):
        if not kept or row.flops > kept[-1].flops:
            kept.append(row)
    return tuple(kept)
