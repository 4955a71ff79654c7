"""Times of published networks on this machine: measured once, saved, predicted for the others."""

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
    """A network on an engine, measured here."""

    variant: str
    image_size: int
    engine: str
    latency_ms: float
    """Median of a call."""
    low_ms: float
    high_ms: float
    """95 % interval of the median."""
    reference_ms: tuple[float, float] | None = None
    """Least and most of a fixed piece of work before, between and after its calls."""
    raced: bool = False
    """Whether it was timed in turn with other engines."""

    @property
    def network(self) -> Network:
        """The variant and the image size."""
        return self.variant, self.image_size


class Timings:
    """What was measured under the same conditions: device, threads, versions, batch size."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """Read what there is."""
        self._facts = dict(facts)
        self._key = digest.of_json({"timings": facts})[:32]
        self.rows: dict[tuple[Network, str], Timing] = {}
        with suppress(ConfigError):  # of another version
            for row in recall(self._key) or ():
                found = build(Timing, row)
                self.rows[found.network, found.engine] = found
        self._lasting = dict(self.rows)

    def add(self, row: Timing, *, lasting: bool = True) -> None:
        """Keep a measurement; on disk too, unless it means too little to answer other questions."""
        self.rows[row.network, row.engine] = row
        if lasting:
            self._lasting[row.network, row.engine] = row
            remember(self._key, [asdict(r) for r in self._lasting.values()])

    def answers(self, question: Mapping[str, Any]) -> bool:
        """Whether a question was answered by what is on disk."""
        return recall(self._key_of(question)) is not None

    def answered(self, question: Mapping[str, Any]) -> None:
        """A question is answered: asked again, it needs no further measurement."""
        remember(self._key_of(question), [dict(question)])

    def _key_of(self, question: Mapping[str, Any]) -> str:
        return digest.of_json({"timings": self._facts, "question": question})[:32]

    def get(self, network: Network, engine: str) -> Timing | None:
        """A measurement; None where there is none."""
        return self.rows.get((network, engine))

    def on(self, engine: str) -> list[Timing]:
        """All RegNets of an engine."""
        rows = self.rows.values()
        return [row for row in rows if row.engine == engine and row.variant in VARIANTS]

    def fastest(self) -> dict[Network, float]:
        """Milliseconds of each network on the engine that is the fastest for it."""
        found: dict[Network, float] = {}
        for row in self.rows.values():
            found[row.network] = min(row.latency_ms, found.get(row.network, inf))
        return found


def timings_here(device: torch.device, batch_size: int) -> Timings:
    """What was measured on this machine, with this number of threads and these versions."""
    return Timings({**what_decides_speed(device), "batch_size": batch_size})


class Predictor:
    """The time of any network on an engine, from those that were measured."""

    def __init__(self, rows: Iterable[Timing], base: "Predictor | None" = None) -> None:
        """Fit.

        Args:
            rows: of one engine.
            base: the predictor of another engine, whose costs tell most of what there is to tell,
                so that three rows are enough.
        """
        self._rows = list(rows)
        features = np.concatenate([features_of(row.network) for row in self._rows])
        times = [row.latency_ms for row in self._rows]
        like = None if base is None else base.model
        self.model: LatencyModel = LatencyModel.fit(features, times, like=like)
        self.count = len(self._rows)
        self.error = self.model.error
        """Median relative error on networks left out one at a time."""

    def __call__(self, network: Network) -> float:
        """Milliseconds: what was measured, or what is predicted."""
        known = next((r.latency_ms for r in self._rows if r.network == network), None)
        if known is not None:
            return known
        return float(self.model.predict(features_of(network))[0])


@cache
def cost_of(network: Network) -> Complexity[int]:
    """What a network costs at its image size; many questions ask it of the same networks."""
    variant, image_size = network
    return complexity(VARIANTS[variant].config, image_size)


@cache
def is_plain(network: Network) -> bool:
    """Whether its activations are ReLU: others cost eager execution much more than compilers."""
    return VARIANTS[network[0]].config.activation == "relu"


@cache
def features_of(network: Network) -> FloatArray:
    """What the model of latency sees of a network (1, k)."""
    variant, image_size = network
    return features_of_config(VARIANTS[variant].config, image_size)
