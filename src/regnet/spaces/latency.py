"""How long a network takes on a device, predicted from what it costs."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from regnet.design.complexity import complexity
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.widths import FloatArray
from regnet.spaces.sampling import Sample

_RIDGE: Final = 1e-2


class LatencyModel:
    """Latency as a product of powers of what networks cost, fitted to measurements.

    log t = a + sum of b_k log x_k over flops, parameters, activations, depth, group width of the
    last stage, and the first and last width, by ridge regression: few numbers, so that a few dozen
    measurements are enough.
    """

    FEATURES: Final = ("flops", "params", "activations", "depth", "group_width", "first", "last")

    def __init__(self, features: FloatArray, latencies: ArrayLike) -> None:
        """Fit.

        Args:
            features: of the measured networks (n, k), logarithms as `features_of` gives them.
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
        self.error = float(np.median(np.abs(np.expm1(-residuals))))
        """Median relative error on networks left out one at a time."""

    def predict(self, features: FloatArray) -> FloatArray:
        """Latencies of networks (n,), in the unit of those that were fitted."""
        x = np.column_stack([np.ones(len(features)), (features - self._mean) / self._scale])
        return np.asarray(np.exp(x @ self._weights), dtype=np.float64)


def features_of(networks: Sample) -> FloatArray:
    """What the model of latency sees (n, k), logarithms of its `FEATURES`."""
    stages, cost = networks.population, networks.complexity
    found: FloatArray = np.log(
        np.column_stack(
            [cost.flops, cost.params, cost.activations, stages.depths.sum(axis=1),
             stages.group_widths[:, -1], stages.widths[:, 0], stages.widths[:, -1]]
        )
    )  # fmt: skip
    return found


def features_of_config(config: AnyNetConfig | RegNetConfig, image_size: int) -> FloatArray:
    """The same of one network (1, k); sizes in pixels."""
    cost, stages = complexity(config, image_size), config.anynet().stages
    found: FloatArray = np.log(
        [[cost.flops, cost.params, cost.activations, sum(config.depths),
          stages[-1].group_width, config.widths[0], config.widths[-1]]]
    )  # fmt: skip
    return found
