"""Predict the latency of a network on a device from what its layers cost."""

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
"""Of a network, sums over its layers: multiply-adds of dense convolutions and products; of grouped
ones, with groups no narrower than `NARROW`; output elements; the same where activations are not
ReLU; layers; parameters; and output elements where norms are not folded."""

NARROW: Final = 16
"""Channels of a group that a device works on at once: narrower groups take as long."""

UNITS: Final = np.array([1e9, 1e9, 1e6, 1e6, 1e1, 1e6, 1e6])
"""What the features are counted in, so that their costs are numbers of a size."""

_LITTLE: Final = 1e-4
"""Weight of what is known beforehand where that is nothing: so that costs are defined."""

_OTHERS: Final = 0.1
"""Weight of the costs on another engine, where these are known."""

_FLAT: Final = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModel:
    """Latency as a sum of costs, none negative, fitted to measurements by their relative errors.

    Few numbers, each with a meaning, so that ten measurements are enough, and it extrapolates.
    """

    costs: tuple[float, ...]
    """Milliseconds per unit of each of `FEATURES`."""
    error: float
    """Median relative error on networks left out one at a time."""
    of: str = ""
    """Of what it is: device, engine, batch."""

    @classmethod
    def fit(
        cls,
        features: FloatArray,
        latencies: ArrayLike,
        of: str = "",
        *,
        like: "LatencyModel | None" = None,
    ) -> "LatencyModel":
        """Fit.

        Args:
            features: of the measured networks (n, k), as `features_of_layers` gives them.
            latencies: theirs (n,).
            of: what was measured.
            like: the model of another engine: costs are its costs, times a factor, as far as
                measurements do not say otherwise; then three of them are enough.
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
        """Latencies of networks (n,), in the unit of those that were fitted."""
        return np.asarray(np.maximum(features @ np.asarray(self.costs), 1e-6), dtype=np.float64)


def _costs(features: FloatArray, times: FloatArray, known: FloatArray, weight: float) -> FloatArray:
    """Least squares of relative errors, no cost negative, drawn towards what is known before."""
    x = features / times[:, None]
    scale = np.sqrt((x**2).mean(axis=0)) + 1e-12
    x, ones = x / scale, np.ones(len(times))
    before = known * scale
    if before.any():  # by what factor this engine differs
        guess = x @ before
        before *= float(guess @ ones / (guess @ guess))
    square, goal = x.T @ x + weight * np.eye(len(scale)), x.T @ ones + weight * before
    return np.asarray(_nonnegative(square, goal) / scale)


def _nonnegative(square: FloatArray, goal: FloatArray) -> FloatArray:
    """The least of x' square x / 2 - goal' x without negative x (Lawson and Hanson 1974)."""
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
            # As far towards it as all stay positive; the first that does not is out.
            parts = np.full(len(goal), np.inf)
            parts[below] = found[below] / (found[below] - best[below])
            first = int(parts.argmin())
            found = found + parts[first] * (best - found)
            used &= found > _FLAT
            used[first] = False
            found[~used] = 0
    return found


def features_of_layers(layers: Iterable[Layer], shared: ArchitectureConfig) -> FloatArray:
    """What the model sees of networks (n, k), in `UNITS`.

    Args:
        layers: of one network, or of a population.
        shared: what decides beside the layers: kinds of activation and of norm.
    """
    dense: FloatArray = np.zeros(1)
    grouped, outputs, count, params = np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1)
    for layer in layers:
        outputs = outputs + layer.activations
        params = params + layer.params
        dense = dense + layer.products * np.asarray(layer.times)
        if layer.kind == "conv":
            width_in, fan_in = np.asarray(layer.width_in), np.asarray(layer.fan_in)
            whole = (fan_in == width_in) | (fan_in >= 9 * width_in)
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
    """The same of one network (1, k); sizes in pixels."""
    return features_of_layers(network_layers(config.anynet(), image_size), config)
