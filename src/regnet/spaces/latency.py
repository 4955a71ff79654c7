"""Predict the latency of a network on a device from the costs of its layers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from regnet.design.config import AnyNetConfig, ArchitectureConfig, RegNetConfig
from regnet.design.layers import Layer, network_layers
from regnet.design.widths import FloatArray

FEATURES: Final = (
    "dense", "grouped", "activations", "smooth", "layers", "params", "unfolded",
)  # fmt: skip
"""The features of a network, each a sum over its layers.

`dense` is the multiply-adds of dense convolutions and of products between activations. `grouped` is
the multiply-adds of grouped convolutions, where a group counts as at least `NARROW` channels wide.
`activations` is the output elements, and `smooth` the same if the activation is not ReLU. `layers`
is the number of layers, and `params` that of parameters. `unfolded` is the output elements again if
norms cannot be folded into convolutions."""

NARROW: Final = 16
"""Channels of a group that a device processes at once; a narrower group takes as much time."""

UNITS: Final = np.array([1e9, 1e9, 1e6, 1e6, 1e1, 1e6, 1e6])
"""The units of the features, chosen so that their costs have similar magnitudes."""

_LITTLE: Final = 1e-4
"""Weight per measurement that pulls costs to zero if no other engine's costs are known.

It is small, and makes the costs well defined if the measurements alone do not determine them."""

_OTHERS: Final = 0.1
"""Weight that pulls costs to those on another engine, if these are known."""

_FLAT: Final = 1e-10
"""Slopes and costs up to this value count as zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModel:
    """A model of latency as a sum of nonnegative costs, fitted to the relative error.

    It has few parameters, each with a meaning, so that ten measurements are enough to fit it, and
    it extrapolates.
    """

    costs: tuple[float, ...]
    """Milliseconds per unit of each of `FEATURES`."""
    error: float
    """Median relative error on measured networks, each left out of the fit in turn; 1 if only one
    network was measured."""
    of: str = ""
    """What the model describes: device, engine, batch size."""

    @classmethod
    def fit(
        cls,
        features: FloatArray,
        latencies: ArrayLike,
        of: str = "",
        *,
        like: "LatencyModel | None" = None,
    ) -> "LatencyModel":
        """Fit a model to measured networks.

        Args:
            features: features of the measured networks, (n, k), from `features_of_layers`.
            latencies: their latencies in milliseconds, (n,).
            of: what was measured: device, engine, batch size.
            like: the model of another engine. The fit is pulled towards its costs, times a factor,
                and departs from them as far as the measurements require; then three measurements
                are enough.
        """
        times = np.asarray(latencies, dtype=np.float64)
        known = np.zeros(len(UNITS)) if like is None else np.asarray(like.costs)
        weight = _LITTLE * len(times) if like is None else _OTHERS
        costs = _costs(features, times, known, weight)
        off = [
            abs(features[n] @ _costs(features[rest], times[rest], known, weight) / times[n] - 1)
            for n in range(len(times))
            for rest in [np.arange(len(times)) != n]
            if len(times) > 1
        ]
        error = float(np.median(off)) if off else 1.0
        return cls(costs=tuple(costs.tolist()), error=error, of=of)

    def predict(self, features: FloatArray) -> FloatArray:
        """Return the latencies of networks, (n,), in milliseconds.

        Args:
            features: features of the networks, (n, k), from `features_of_layers`.
        """
        return np.asarray(np.maximum(features @ np.asarray(self.costs), 1e-6), dtype=np.float64)


def _costs(features: FloatArray, times: FloatArray, known: FloatArray, weight: float) -> FloatArray:
    """Return the nonnegative costs with the least squared relative errors, pulled to known ones."""
    x = features / times[:, None]
    scale = np.sqrt((x**2).mean(axis=0)) + 1e-12
    x, ones = x / scale, np.ones(len(times))
    before = known * scale
    if before.any():  # scale the known costs by the factor that fits this engine best
        guess = x @ before
        before *= float(guess @ ones / (guess @ guess))
    square, goal = x.T @ x + weight * np.eye(len(scale)), x.T @ ones + weight * before
    return np.asarray(_nonnegative(square, goal) / scale)


def _nonnegative(square: FloatArray, goal: FloatArray) -> FloatArray:
    """Minimize x' square x / 2 - goal' x over nonnegative x (Lawson and Hanson 1974)."""
    found, used = np.zeros(len(goal)), np.zeros(len(goal), dtype=np.bool_)
    for _ in range(10 * len(goal)):
        slope = np.where(used, -np.inf, goal - square @ found)
        if slope.max() <= _FLAT:
            break
        used[slope.argmax()] = True
        while True:
            best = np.zeros(len(goal))
            best[used] = np.linalg.solve(square[np.ix_(used, used)], goal[used])
            below = used & (best <= 0)
            if not below.any():
                found = best
                break
            # Move towards the solution until the first variable becomes zero, and remove it.
            parts = np.full(len(goal), np.inf)
            parts[below] = found[below] / (found[below] - best[below])
            first = int(parts.argmin())
            found = found + parts[first] * (best - found)
            used &= found > _FLAT
            used[first] = False
            found[~used] = 0
    return found


def features_of_layers(layers: Iterable[Layer], shared: ArchitectureConfig) -> FloatArray:
    """Return the `FEATURES` of networks, (n, k), in `UNITS`.

    Args:
        layers: the layers of one network, or of a population.
        shared: the architecture of the networks, which says how they activate and normalize.
    """
    dense: FloatArray = np.zeros(1)
    grouped, outputs, count, params = np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1)
    for layer in layers:
        outputs = outputs + layer.activations
        params = params + layer.params
        dense = dense + layer.products * np.asarray(layer.times)
        if layer.kind == "conv":
            fan_in, whole = np.asarray(layer.fan_in), ~np.asarray(layer.grouped, dtype=bool)
            padded = 9 * np.maximum(fan_in / 9, NARROW) * layer.width * layer.area * layer.times
            dense = dense + np.where(whole, layer.flops, 0)
            grouped = grouped + np.where(whole, 0, padded)
        if layer.kind in ("conv", "squeeze", "excite"):
            count = count + np.where(np.asarray(layer.area) > 0, layer.times, 0)
    unfolded = shared.norm != "batch" or shared.block == "normfree_bottleneck"
    smooth = shared.activation != "relu"
    columns = (dense, grouped, outputs, smooth * outputs, count, params, unfolded * outputs)
    rows = np.broadcast_arrays(*columns)
    found: FloatArray = np.column_stack(rows).astype(np.float64) / UNITS
    return found


def features_of_config(config: AnyNetConfig | RegNetConfig, image_size: int) -> FloatArray:
    """Return the `FEATURES` of one network, (1, k), in `UNITS`.

    Args:
        config: the network.
        image_size: side of the images in pixels.
    """
    return features_of_layers(network_layers(config.anynet(), image_size), config)
