"""How long published networks take here: measured once, kept on disk, predicted for the others."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from regnet import digest, documents
from regnet.design.complexity import complexity
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.design.widths import FloatArray
from regnet.documents import build
from regnet.engines.choices import cache_folder
from regnet.errors import RegNetError
from regnet.spaces.latency import LatencyModel

Network = tuple[str, int]
"""A variant, and the side of its images in pixels."""

_log = logging.getLogger(__name__)

FOLDER: Final = "timings"


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

    @property
    def network(self) -> Network:
        """The variant and the image size."""
        return self.variant, self.image_size


class Timings:
    """What was measured under the same conditions: device, threads, versions, batch size."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """Read what there is."""
        key = digest.of_bytes(repr(sorted(facts.items())).encode())[:32]
        self.path = cache_folder().with_name(FOLDER) / f"{key}.json"
        self.rows: dict[tuple[Network, str], Timing] = {}
        for row in _read(self.path):
            self.rows[row.network, row.engine] = row

    def add(self, row: Timing) -> None:
        """Keep a measurement; a cache that cannot be written is no failure."""
        self.rows[row.network, row.engine] = row
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            documents.write(self.path, {"rows": [asdict(r) for r in self.rows.values()]})
        except OSError as error:
            _log.warning("measured times are not saved: %s", error)

    def get(self, network: Network, engine: str) -> Timing | None:
        """A measurement; None where there is none."""
        return self.rows.get((network, engine))

    def on(self, engine: str) -> list[Timing]:
        """All of an engine."""
        return [row for row in self.rows.values() if row.engine == engine]

    def engines(self) -> set[str]:
        """Engines of which there are any."""
        return {row.engine for row in self.rows.values()}


def _read(path: Path) -> Iterable[Timing]:
    try:
        rows = documents.read(path, "measured times").get("rows")
        return [build(Timing, row) for row in rows or ()]
    except (OSError, RegNetError):
        return []


class Predictor:
    """The time of any network on an engine, from those that were measured."""

    def __init__(self, rows: Iterable[Timing], base: "Predictor | None" = None) -> None:
        """Fit.

        Args:
            rows: of one engine.
            base: the predictor of another engine, whose times tell most of what there is to tell,
                so that three rows are enough; None: the networks' cost tells.
        """
        self._rows, self._base = list(rows), base
        features = np.concatenate([self._features(row.network) for row in self._rows])
        self._model = LatencyModel(features, [row.latency_ms for row in self._rows])
        self.error = self._model.error
        """Median relative error on networks left out one at a time."""

    def __call__(self, network: Network) -> float:
        """Milliseconds: what was measured, or what is predicted."""
        known = next((r.latency_ms for r in self._rows if r.network == network), None)
        if known is not None:
            return known
        return float(self._model.predict(self._features(network))[0])

    def _features(self, network: Network) -> FloatArray:
        if self._base is None:
            return features_of(network)
        return np.log([[self._base(network)]])


@cache
def features_of(network: Network) -> FloatArray:
    """What the model sees of a network (1, k), logarithms."""
    variant, image_size = network
    config: AnyNetConfig | RegNetConfig = VARIANTS[variant].config
    cost = complexity(config, image_size)
    blocks = config.blocks()
    gates = 1 + sum(block.se_width > 0 for block in blocks)
    values = (cost.flops, cost.activations, cost.params, len(blocks), gates)
    return np.log(np.asarray([values], dtype=np.float64))
