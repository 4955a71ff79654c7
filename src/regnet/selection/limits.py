"""Limits on the cost of a network, measured costs, and the result of a search."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.engines.base import AnyPrecision
from regnet.errors import ConfigError, check_number
from regnet.timing import Comparison

DOUBTFUL: Final = 0.3
"""A median error of predictions above this one is reported before the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A network with its cost and its latency as measured on a device."""

    name: str = ""
    """Name of the variant; empty for a network that is not published."""
    config: RegNetConfig | AnyNetConfig
    flops: int
    params: int
    activations: int
    latency_ms: float
    """Median time of a call."""
    low_ms: float
    high_ms: float
    """The 95 % interval of the median is `low_ms` to `high_ms`."""
    memory_mb: float
    """Memory for weights and feature maps, computed as in `Limits`."""
    predicted_ms: float | None = None
    """The latency that was predicted before the network was measured."""
    worth: float | None = None
    """Flops of a typical published network that is predicted to be as good
    (`regnet.selection.prior`)."""
    problem: str | None = None
    """Why the times are unreliable, such as a busy machine; None if nothing was noticed."""
    reference_ms: tuple[float, float] | None = None
    """Shortest and longest time of a fixed piece of work, timed before, between and after the
    calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest cost that a network may have; None means no limit.

    Raises:
        ConfigError: no limit is set, or a limit is not a positive number.
    """

    flops: float | None = None
    params: float | None = None
    activations: float | None = None
    latency_ms: float | None = None
    """Median time of a call, that is, of a batch, in milliseconds."""
    memory_mb: float | None = None
    """Megabytes for the weights and the largest feature maps that are needed at the same time, as
    computed by `regnet.design.complexity.memory_bytes`. The memory that a library uses for
    itself is not included."""

    def __post_init__(self) -> None:
        if not self.given:
            raise ConfigError(
                "a search needs a limit: set flops, params, activations, latency_ms or memory_mb"
            )
        for name, value in self.given.items():
            check_number(name, value)
            if value <= 0:
                raise ConfigError(f"{name} must be a positive number, got {value!r}")

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def allow(self, network: Measured) -> bool:
        """Return whether a measured network is within all limits."""
        return all(getattr(network, name) <= most for name, most in self.given.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The result of a search."""

    best: Measured
    """The fastest of the networks within the limits that are predicted to be the best, measured
    again after it was chosen. If a published network is shown to be faster, and is predicted to be
    as good, it is that network, with its name."""
    pareto: tuple[Measured, ...]
    """Networks within the limits that no other one beats in both predicted quality and latency,
    sorted by latency."""
    published: tuple[Measured, ...]
    """The published RegNetX and RegNetY nearest in flops, including those beyond the limits."""
    rival: str | None
    """Name of the fastest published network that is predicted to be as good; None without one."""
    against_rival: Comparison | None
    """The rival's time over that of the network found: above 1, the network found is faster."""
    fit_error: float
    """Median relative error of the latency model on networks left out of its fit."""
    prediction_error: float | None
    """Median relative error of the predictions made for the finalists before measuring them."""
    engine: str
    precision: AnyPrecision
    layout: str
    batch_size: int
    image_size: int
    candidates: int
    """Number of networks that were sampled and ranked by the latency model."""
    measured: int
    """Number of networks that were measured, including published ones."""
    prior: str
    """The data that the predictions of quality come from, and how reliable they are."""
    environment: dict[str, Any]

    @property
    def doubts(self) -> tuple[str, ...]:
        """Reasons to doubt the answer; print them before it."""
        found = []
        rows = (self.best, *self.pareto, *self.published)
        if problem := next((row.problem for row in rows if row.problem), None):
            found.append(f"no claim: {problem}; search again on an idle machine")
        for error, of in (
            (self.fit_error, "networks left out of its fit"),
            (self.prediction_error, "the finalists"),
        ):
            if error is not None and error > DOUBTFUL:
                found.append(
                    f"weak: the latency model has a median error of {error:.0%} on {of}; the "
                    "search may have missed better networks, and more probes may help"
                )
                break
        return tuple(found)
