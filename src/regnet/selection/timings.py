"""Save the measured latencies of published networks, and predict those of the others."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from math import inf
from typing import Any

import numpy as np
import torch

from regnet import digest
from regnet.design.complexity import Complexity, complexity
from regnet.design.variants import VARIANTS
from regnet.design.widths import FloatArray
from regnet.documents import build
from regnet.engines.choices import recall, remember
from regnet.errors import ConfigError
from regnet.machine import what_decides_speed
from regnet.spaces.latency import LatencyModel, features_of_config

Network = tuple[str, int]
"""A variant, and the side of its images in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The measured latency of a network on an engine of this machine."""

    variant: str
    image_size: int
    engine: str
    latency_ms: float
    """Median time of a call."""
    low_ms: float
    high_ms: float
    """The 95 % interval of the median is `low_ms` to `high_ms`."""
    reference_ms: tuple[float, float] | None = None
    """Shortest and longest time of a fixed piece of work, timed before, between and after the
    calls."""
    raced: bool = False
    """Whether the network was timed on several engines in alternation."""

    @property
    def network(self) -> Network:
        """The variant and the image size."""
        return self.variant, self.image_size


class Timings:
    """All measurements with the same device, threads, versions and batch size."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """Read the saved measurements.

        Args:
            facts: the conditions that decide the latency, JSON-serializable.
        """
        self._facts = dict(facts)
        self._key = digest.of_json({"timings": facts})[:32]
        self.rows: dict[tuple[Network, str], Timing] = {}
        with suppress(ConfigError):  # Rows that another version of regnet saved are ignored.
            for row in recall(self._key) or ():
                found = build(Timing, row)
                self.rows[found.network, found.engine] = found
        self._lasting = dict(self.rows)

    def add(self, row: Timing, *, lasting: bool = True) -> None:
        """Add a measurement; save it on disk if it is reliable (`lasting`)."""
        self.rows[row.network, row.engine] = row
        if lasting:
            self._lasting[row.network, row.engine] = row
            remember(self._key, [asdict(r) for r in self._lasting.values()])

    def answers(self, question: Mapping[str, Any]) -> bool:
        """Return whether the measurements on disk answer a question completely."""
        return recall(self._key_of(question)) is not None

    def answered(self, question: Mapping[str, Any]) -> None:
        """Record that a question is answered, and needs no more measurements if it is repeated."""
        remember(self._key_of(question), [dict(question)])

    def _key_of(self, question: Mapping[str, Any]) -> str:
        return digest.of_json({"timings": self._facts, "question": question})[:32]

    def get(self, network: Network, engine: str) -> Timing | None:
        """Return the measurement of a network on an engine; None if there is none."""
        return self.rows.get((network, engine))

    def on(self, engine: str) -> list[Timing]:
        """Return the measurements of all RegNets on an engine."""
        rows = self.rows.values()
        return [row for row in rows if row.engine == engine and row.variant in VARIANTS]

    def fastest(self) -> dict[Network, float]:
        """Return the milliseconds of each network on its fastest engine."""
        found: dict[Network, float] = {}
        for row in self.rows.values():
            found[row.network] = min(row.latency_ms, found.get(row.network, inf))
        return found


def timings_here(device: torch.device, batch_size: int) -> Timings:
    """Read the measurements made on this machine with these threads and versions."""
    return Timings({**what_decides_speed(device), "batch_size": batch_size})


class Predictor:
    """Predicts the latency of any network on an engine from measured ones."""

    def __init__(self, rows: Iterable[Timing], base: "Predictor | None" = None) -> None:
        """Fit the latency model.

        Args:
            rows: measurements on one engine.
            base: the predictor of another engine. Its costs are scaled to `rows`, of which three
                are then enough.
        """
        self._rows = list(rows)
        features = np.concatenate([features_of(row.network) for row in self._rows])
        times = [row.latency_ms for row in self._rows]
        like = None if base is None else base.model
        self.model: LatencyModel = LatencyModel.fit(features, times, like=like)
        self.count = len(self._rows)
        self.error = self.model.error
        """Median relative error on networks that are left out of the fit, one at a time."""

    def __call__(self, network: Network) -> float:
        """Return the measured latency of a network, or else the predicted one, in milliseconds."""
        known = next((r.latency_ms for r in self._rows if r.network == network), None)
        if known is not None:
            return known
        return float(self.model.predict(features_of(network))[0])


@cache
def cost_of(network: Network) -> Complexity[int]:
    """Return the complexity of a network at its image size; cached, because calls repeat."""
    variant, image_size = network
    return complexity(VARIANTS[variant].config, image_size)


@cache
def is_plain(network: Network) -> bool:
    """Return whether the activations of a network are ReLU.

    Other activations slow eager execution down much more than compiled engines.
    """
    return VARIANTS[network[0]].config.activation == "relu"


@cache
def features_of(network: Network) -> FloatArray:
    """Return the features (1, k) that the latency model uses for a network."""
    variant, image_size = network
    return features_of_config(VARIANTS[variant].config, image_size)
