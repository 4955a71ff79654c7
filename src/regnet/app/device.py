"""Latency of a RegNet on this device, predicted from some that were measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from regnet.bench.document import Case
from regnet.bench.runner import Bench
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.errors import EngineError
from regnet.studies.latency import LatencyModel, features_of, features_of_config
from regnet.studies.sampling import sample_by_flops
from regnet.studies.search import search_space

ENGINE: Final = "folded"
"""PyTorch with batch norms folded into convolutions: there is no device without it."""

_FLOPS: Final = (50e6, 4e9)
_PARTS: Final = 6
_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Device:
    """What was learned of a device at one image size."""

    input_size: int
    models: dict[bool, LatencyModel]
    """Without squeeze-excitation, and with it."""

    def predict(self, config: RegNetConfig) -> float:
        """Milliseconds of a batch of one."""
        model = self.models[config.se_ratio > 0]
        return float(model.predict(features_of_config(config, self.input_size))[0])

    def error(self, config: RegNetConfig) -> float:
        """Median relative error of predictions for networks like it, each left out in turn."""
        return self.models[config.se_ratio > 0].error


def learn(
    input_size: int,
    *,
    probes: int = 24,
    on_step: Callable[[int, int], None] = lambda _done, _all: None,
) -> Device:
    """Measure random RegNets of all sizes, half of them with squeeze-excitation.

    Args:
        input_size: side of the images in pixels.
        probes: networks to measure.
        on_step: told how many of how many are measured.

    Raises:
        EngineError: PyTorch runs none of them here.
    """
    bench = Bench(torch.device("cpu"), _SECONDS, calls=50)
    area = (input_size / 224) ** 2
    edges = np.geomspace(_FLOPS[0] * area, _FLOPS[1] * area, _PARTS + 1).tolist()
    models, done = {}, 0
    for name in ("regnetx", "regnety"):
        space = replace(search_space(name), input_size=input_size)
        networks = sample_by_flops(space, edges, max(1, probes // (2 * _PARTS)))
        features, latencies = [], []
        for number, row_of_features in enumerate(features_of(networks)):
            on_step(done, probes)
            milliseconds = _measured(bench, networks.config(number), input_size)
            features.append(row_of_features)
            latencies.append(milliseconds)
            done += 1
        models[name == "regnety"] = LatencyModel(np.array(features), latencies)
    return Device(input_size, models)


def _measured(bench: Bench, config: AnyNetConfig | RegNetConfig, input_size: int) -> float:
    row = bench.row_of(config, Case(model="", engine=ENGINE, input_size=input_size))
    if row.latency_ms is None:
        raise EngineError(f"{ENGINE} does not run here: {row.reason}")
    return row.latency_ms
