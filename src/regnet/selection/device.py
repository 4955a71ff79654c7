"""Measure networks on a device, and fit a model of their latency to a few of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final, Protocol

import numpy as np
import torch

from regnet.bench.document import Case, Row
from regnet.bench.runner import Bench
from regnet.design.complexity import memory_bytes
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.devices import find_device
from regnet.engines.base import ELEMENT_BYTES, AnyPrecision, Layout, Precision, Runner, Target
from regnet.engines.check import INPUT_SETS, answers, build_checked
from regnet.engines.int8 import build_untrained_int8, check_installed
from regnet.engines.optimize import ENGINES, Report, find_engine, optimize
from regnet.errors import ConfigError, EngineError, in_one_line
from regnet.machine import device_name, environment
from regnet.nn.model import AnyNet
from regnet.selection.limits import Measured
from regnet.spaces.latency import LatencyModel, features_of_config
from regnet.spaces.paper import search_space
from regnet.spaces.sampling import Sample, sample, sample_by_flops
from regnet.spaces.space import Space
from regnet.timing import Comparison, compare
from regnet.zoo.create import create

_log = logging.getLogger(__name__)

Config = AnyNetConfig | RegNetConfig

INT8_ENGINE: Final = "openvino"
"""The engine that runs networks in int8."""

LEARNED_ENGINE: Final = "folded"
"""Engine that `learn` measures: PyTorch with folded norms, which every device has."""

LEARNED_FLOPS: Final = (50e6, 4e9)
"""Range of the flops of the networks that `learn` measures, at 224 pixels."""

LEARNED_PARTS: Final = 6
"""Number of ranges into which `learn` splits the flops, equally on a logarithmic scale. Each range
gives the same number of networks."""

LEARNED_SECONDS: Final = 0.2
"""Seconds of the counted calls of each network that `learn` measures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How networks are measured."""

    device: torch.device
    engine: str
    precision: AnyPrecision = "fp32"
    """OpenVINO runs int8, whichever engine is named."""
    layout: Layout = "channels_last"
    batch_size: int = 1
    image_size: int = 224

    @property
    def in_int8(self) -> bool:
        """Whether networks are quantized before they are timed."""
        return self.precision == "int8"

    @property
    def built_for(self) -> Precision:
        """The precision that a network is built in; for int8 it is then quantized."""
        return "fp32" if self.precision == "int8" else self.precision

    @property
    def target(self) -> Target:
        """The target that the engine builds a network for."""
        return Target(device=self.device, precision=self.built_for, layout=self.layout)


class Meter(Protocol):
    """Measures the latency of networks."""

    conditions: Conditions
    problem: str | None
    """Why the last network that failed could not be measured; None if no network failed."""

    def measure(self, config: Config, name: str = "") -> Measured | None:
        """Measure a network; return None if it cannot run here."""
        ...

    def compare(self, a: Config, b: Config) -> Comparison | None:
        """Time two networks in alternation; return None if they cannot run together."""
        ...

    @property
    def environment(self) -> dict[str, Any]:
        """The machine and the versions of packages, as a reader needs them; JSON-serializable."""
        ...


class DeviceMeter:
    """Measures networks on a device of this machine, in the same manner as the benchmark."""

    def __init__(self, conditions: Conditions, *, seconds: float, calls: int = 200) -> None:
        """Prepare the benchmark of a device.

        Args:
            conditions: how to measure.
            seconds: duration of the counted calls of a network. Reaching a steady state takes at
                most as long again.
            calls: largest number of counted calls.
        """
        self.conditions, self.seconds = conditions, seconds
        self.problem: str | None = None
        self._bench = Bench(conditions.device, seconds, calls)

    def measure(self, config: Config, name: str = "") -> Measured | None:
        """See `Meter.measure`."""
        c, row = self.conditions, self.row(config)
        if row.latency_ms is None or row.low_ms is None or row.high_ms is None:
            self.problem = row.reason
            return None
        memory = memory_bytes(
            config,
            c.image_size,
            batch_size=c.batch_size,
            element_bytes=ELEMENT_BYTES[c.precision],
        )
        return Measured(
            name=name,
            config=config,
            flops=row.flops,
            params=row.params,
            activations=row.activations,
            latency_ms=row.latency_ms,
            low_ms=row.low_ms,
            high_ms=row.high_ms,
            memory_mb=memory / 1e6,
            problem=row.problem,
            reference_ms=row.reference_ms,
        )

    def row(self, model: Config | str) -> Row:
        """Return the benchmark's row of a network: a config, or a name that the benchmark knows."""
        c = self.conditions
        return self._bench.alone(
            Case(
                model=model,
                batch_size=c.batch_size,
                precision=c.built_for,
                layout=c.layout,
                engine=c.engine,
                image_size=c.image_size,
            ),
            build_untrained_int8 if c.in_int8 else None,
        )

    def compare(self, a: Config, b: Config) -> Comparison | None:
        """See `Meter.compare`."""
        c = self.conditions
        runners: list[Runner] = []
        shape = (c.batch_size, a.in_chans, c.image_size, c.image_size)
        rng = torch.Generator().manual_seed(0)
        inputs = [torch.randn(shape, generator=rng).to(c.device) for _ in range(INPUT_SETS)]
        try:
            for config in (a, b):
                with torch.random.fork_rng(devices=[]):
                    network: AnyNet = create(config).eval().to(c.device)
                if c.in_int8:
                    runners.append(build_untrained_int8(network, inputs[0], c.target))
                    continue
                expected = answers(network, inputs)
                built = build_checked(find_engine(c.engine), network, inputs, expected, c.target)
                if built.runner is None or built.reason:
                    return None
                runners.append(built.runner)
            return compare(runners[0], runners[1], inputs, seconds=4 * self.seconds)
        except RuntimeError as error:
            # Each network may fit into memory alone, but not both: then they are not compared.
            _log.warning("two networks were not compared: %s", in_one_line(error, most=200))
        return None

    @property
    def environment(self) -> dict[str, Any]:
        """See `Meter.environment`."""
        return environment(self.conditions.device)


def check_engine(conditions: Conditions) -> None:
    """Raise an error if an engine cannot be used under these conditions.

    Raises:
        ConfigError: there is no such engine, or it does not compute in int8.
        EngineError: the engine cannot be used on this device or in this precision.
        MissingExtraError: int8 needs packages that are not installed.
    """
    engine = conditions.engine
    if conditions.in_int8:
        check_installed(conditions.device)
        if engine not in ("auto", INT8_ENGINE):
            raise ConfigError(f"int8 runs on {INT8_ENGINE}, not on {engine}; leave --engine out")
    elif engine != "auto" and (obstacle := find_engine(engine).obstacle(conditions.target)):
        raise EngineError(f"{engine} cannot be used here: {obstacle}")


def race(
    config: Config, conditions: Conditions, engines: Sequence[str], *, seconds: float
) -> Report:
    """Time one network on several engines in alternation.

    Raises:
        EngineError: none of the engines can run the network here.
    """
    c = conditions
    example = torch.zeros(c.batch_size, config.in_chans, c.image_size, c.image_size)
    network: AnyNet = create(config).eval().to(c.device)
    return optimize(
        network,
        example.to(c.device),
        precision=c.built_for,
        engines=engines,
        seconds=seconds,
        refresh=True,
        progress=False,
    ).report


def fastest_engine(config: Config, conditions: Conditions, *, seconds: float) -> Conditions:
    """Return the conditions with the engine and the layout that are fastest for one network.

    Engines that need a compiler are not tried.

    Raises:
        EngineError: no engine computes in this precision here.
    """
    c = conditions
    if c.in_int8:
        return replace(c, engine=INT8_ENGINE)
    usable = [engine.name for engine in ENGINES if not engine.compiles]
    ran = [
        row
        for row in race(config, conditions, usable, seconds=seconds).candidates
        if row.precision == c.precision and row.latency_ms is not None
    ]
    if not ran:
        raise EngineError(f"no engine computes in {c.precision} here; use another precision")
    winner = min(ran, key=lambda row: row.latency_ms or inf)
    return replace(c, engine=winner.engine, layout=winner.layout)


@dataclass(frozen=True, slots=True)
class Learned:
    """The latency models of RegNets on a device, at one image size."""

    image_size: int
    models: dict[bool, LatencyModel]
    """The model of networks without squeeze-excitation (False) and of those with it (True)."""

    def predict(self, config: RegNetConfig) -> float:
        """Return the predicted latency of a batch of one, in milliseconds."""
        model = self.models[config.se_ratio > 0]
        return float(model.predict(features_of_config(config, self.image_size))[0])

    def error(self, config: RegNetConfig) -> float:
        """Return the median relative error of that model on networks left out of its fit."""
        return self.models[config.se_ratio > 0].error


def learn(
    image_size: int,
    *,
    probes: int = 24,
    on_step: Callable[[int, int], None] = lambda _done, _all: None,
) -> Learned:
    """Measure random RegNets of all sizes on the CPU, and fit a latency model to them.

    Args:
        image_size: side of the images in pixels.
        probes: number of networks to measure, half of them with squeeze-excitation.
        on_step: called with the number of networks measured so far, and their total.

    Raises:
        EngineError: PyTorch cannot run one of them here.
    """
    conditions = Conditions(
        device=torch.device("cpu"), engine=LEARNED_ENGINE, image_size=image_size
    )
    meter = DeviceMeter(conditions, seconds=LEARNED_SECONDS, calls=50)
    area = (image_size / 224) ** 2
    least, most = LEARNED_FLOPS
    edges = np.geomspace(least * area, most * area, LEARNED_PARTS + 1).tolist()
    models, done = {}, 0
    for name in ("regnetx", "regnety"):
        space = replace(search_space(name), image_size=image_size)
        networks = sample_by_flops(space, edges, max(1, probes // (2 * LEARNED_PARTS)))
        models[name == "regnety"] = _fitted(networks, meter, lambda n: on_step(n, probes), done)
        done += len(networks)
    return Learned(image_size, models)


def learn_latency(
    space: Space,
    *,
    device: torch.device | str = "cpu",
    engine: str = LEARNED_ENGINE,
    batch_size: int = 1,
    probes: int = 24,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda _done, _all: None,
) -> LatencyModel:
    """Measure networks of a space, of all its sizes, and fit a latency model to them.

    The model makes latency a metric: `space.restrict(latency_ms=(None, 5), device=model)`.

    Args:
        space: a space of RegNets or AnyNets, with its image size.
        device: the device that the networks run on.
        engine: the engine of `regnet.engines` that runs them.
        batch_size: images per call.
        probes: number of networks to measure, at least 8.
        seed: seed of the sample.
        on_step: called with the number of networks measured so far, and their total.

    Returns:
        A model that predicts the latency of a call in milliseconds, with its median error.

    Raises:
        ConfigError: an option is not valid, or the space has too few networks.
        EngineError: the engine cannot run these networks here.
    """
    if probes < 8:
        raise ConfigError(f"probes must be at least 8, got {probes}")
    conditions = Conditions(
        device=find_device(device),
        engine=engine,
        batch_size=batch_size,
        image_size=space.image_size,
    )
    check_engine(conditions)
    drawn = sample(space, 10 * probes, seed)
    order = np.argsort(drawn.metric("flops"), kind="stable")
    # Ten times as many networks are sampled, and every tenth by flops is measured.
    networks = drawn.take(order[5::10])
    meter = DeviceMeter(conditions, seconds=LEARNED_SECONDS, calls=50)
    of = (
        f"{engine}, batch {batch_size}, {space.image_size} pixels, {device_name(conditions.device)}"
    )
    return _fitted(networks, meter, lambda n: on_step(n, probes), of=of)


def _fitted(
    networks: Sample, meter: DeviceMeter, told: Callable[[int], None], done: int = 0, of: str = ""
) -> LatencyModel:
    """Measure networks, and fit a latency model to them.

    Raises:
        EngineError: one of them cannot run here.
    """
    latencies = []
    for number, config in enumerate(networks.configs, done):
        told(number)
        row = meter.measure(config)
        if row is None:
            raise EngineError(f"{meter.conditions.engine} cannot run here: {meter.problem}")
        latencies.append(row.latency_ms)
    told(done + len(networks))
    return LatencyModel.fit(networks.latency_features, latencies, of)
