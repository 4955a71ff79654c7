"""Limits on the cost of a network, measured costs, and the result of a search."""

from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Final

from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.engines.base import AnyPrecision
from regnet.errors import ConfigError
from regnet.timing import Comparison

DOUBTFUL: Final = 0.3
"""A median error of predictions that is larger is said before the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A network, measured on a device."""

    name: str = ""
    """Name of the variant; empty for a network that has none."""
    config: RegNetConfig | AnyNetConfig
    flops: int
    params: int
    activations: int
    latency_ms: float
    """Median of a call."""
    low_ms: float
    high_ms: float
    """95 % interval of the median."""
    memory_mb: float
    """As in `Limits`."""
    predicted_ms: float | None = None
    """The latency that was predicted before it was measured."""
    worth: float | None = None
    """Flops of an ordinary network that is predicted to be as good (`regnet.selection.prior`)."""
    problem: str | None = None
    """Why the times mean little, such as a busy machine; None where nothing is known."""
    reference_ms: tuple[float, float] | None = None
    """Least and most of a fixed piece of work before, between and after its calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that a network may cost; None: any amount."""

    flops: float | None = None
    params: float | None = None
    activations: float | None = None
    latency_ms: float | None = None
    """Median of a call, that is, of a batch."""
    memory_mb: float | None = None
    """Weights, and the largest feature maps that are needed at once, by arithmetic
    (`regnet.design.complexity.memory_bytes`). What a library takes for itself comes on top."""

    def __post_init__(self) -> None:
        if not self.given:
            raise ConfigError("a search needs a limit: flops, params, activations, latency, memory")
        for name, value in self.given.items():
            if not 0 < value < inf:
                raise ConfigError(f"{name} must be a positive number, got {value!r}")

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def allow(self, network: Measured) -> bool:
        """Return whether a network is within all limits."""
        return all(getattr(network, name) <= most for name, most in self.given.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to."""

    best: Measured
    """The fastest of the networks within the limits that are predicted to be the best, as measured
    again after it was chosen; or a published network, by its name, where that is shown to be faster
    and predicted to be as good."""
    pareto: tuple[Measured, ...]
    """Networks within the limits of which none is both predicted better and faster, by latency."""
    published: tuple[Measured, ...]
    """The published RegNetX and RegNetY nearest in flops, within the limits or not."""
    rival: str | None
    """The fastest published network that is predicted to be as good; None where there is none."""
    against_rival: Comparison | None
    """The rival's time over the time of the network found: above 1, the latter is faster."""
    fit_error: float
    """Median relative error of the latency model on networks left out of its fit."""
    prediction_error: float | None
    """Median relative error of its predictions for the finalists, before they were measured."""
    engine: str
    precision: AnyPrecision
    layout: str
    batch_size: int
    image_size: int
    candidates: int
    """Networks that were sampled and ranked by the latency model."""
    measured: int
    prior: str
    """What the predictions of quality rest on."""
    environment: dict[str, Any]

    @property
    def doubts(self) -> tuple[str, ...]:
        """What weakens the answer, to be said before it."""
        found = []
        rows = (self.best, *self.pareto, *self.published)
        if problem := next((row.problem for row in rows if row.problem), None):
            found.append(f"no claim: {problem}; search again when it is quiet")
        for error, of in (
            (self.fit_error, "networks left out of its fit"),
            (self.prediction_error, "the finalists"),
        ):
            if error is not None and error > DOUBTFUL:
                found.append(
                    f"weak: the model of latency is off by {error:.0%} (median of {of}); better "
                    "networks may have been missed, and more probes may help"
                )
                break
        return tuple(found)
