"""Predict from its structure how good a network is, as learned from trained populations.

The result is a prior, not a measurement. It is a ridge regression of the logarithm of the error on
features of its structure: depth, shares of stages, ratios of widths, group widths over widths,
bottleneck ratios, and parameters and activations per flop. `scripts/fit_prior.py` fits it to
networks of about equal flops. The decrease of the error with flops is taken from the published
RegNetX on ImageNet. The effect of the structure is scaled down to the size that it has there,
because published networks differ little beyond what their flops explain. For flops, images and
image sizes other than those of the fit, the prior extrapolates. `Prior.evidence` has the rank
correlations for networks that were left out of the fit, and for published ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np

from regnet import documents
from regnet.design.complexity import Complexity, complexity
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.population import StagePopulation
from regnet.design.widths import FloatArray
from regnet.spaces.sampling import Sample

FILE: Final = "prior.json"

FEATURES: Final = (
    "depth",
    "depth_squared",
    "depth_place",
    "depth_last",
    "flops_place",
    "flops_last",
    "width_ratio",
    "width_falls",
    "group_share",
    "bottleneck",
    "params",
    "activations",
)
"""Features that the prior uses; `features_of_stages` computes them."""

TYPICAL_DEPTH: Final = 16.0
"""Number of blocks from which the feature `depth_squared` measures the distance."""


def features_of_stages(stages: StagePopulation, cost: Complexity[Any]) -> FloatArray:
    """Return the features (n, k) of n networks that have the same number of stages.

    In the order of `FEATURES`:

    - the logarithm of the depth, and its squared distance from that of `TYPICAL_DEPTH`;
    - the mean position of the blocks (0: all in the first stage, 1: all in the last), and the share
      of the blocks in the last stage; the same two for the flops;
    - the mean logarithm of the factor by which widths grow from stage to stage, and the sum of the
      logarithms of those factors where widths fall;
    - the mean over blocks of the logarithm of the group width over the width inside the bottleneck,
      and the same mean for the bottleneck ratio;
    - the logarithm of the parameters per flop, and of the activations per square root of the flops.
    """
    depths, widths = stages.depths.astype(float), stages.widths.astype(float)
    groups, ratios = stages.group_widths.astype(float), stages.bottleneck_ratios
    count = depths.shape[1]
    place = np.linspace(0, 1, count) if count > 1 else np.zeros(1)
    inside = widths / ratios
    side = np.cumprod([1.0, *(1 / stride for stride in stages.strides[1:])])
    flops = depths * (2 * widths * inside + 9 * inside * groups) * side**2
    blocks, of_depth = depths.sum(1), depths / depths.sum(1, keepdims=True)
    of_flops = flops / flops.sum(1, keepdims=True)
    steps = np.diff(np.log(widths), axis=1) if count > 1 else np.zeros((len(depths), 1))
    return np.column_stack(
        [
            np.log(blocks),
            np.log(blocks / TYPICAL_DEPTH) ** 2,
            of_depth @ place,
            of_depth[:, -1],
            of_flops @ place,
            of_flops[:, -1],
            steps.mean(1),
            np.minimum(steps, 0).sum(1),
            (of_depth * np.log(groups / inside)).sum(1),
            (of_depth * np.log(ratios)).sum(1),
            np.log(np.asarray(cost.params) / np.asarray(cost.flops)),
            np.log(np.asarray(cost.activations) / np.sqrt(np.asarray(cost.flops))),
        ]
    )


def stages_of(config: AnyNetConfig | RegNetConfig) -> StagePopulation:
    """Return one network as a population."""
    stages = config.anynet().stages
    return StagePopulation(
        depths=np.array([[stage.depth for stage in stages]]),
        widths=np.array([[stage.width for stage in stages]]),
        group_widths=np.array([[stage.group_width for stage in stages]]),
        bottleneck_ratios=np.array([[stage.bottleneck_ratio for stage in stages]]),
        strides=tuple(stage.stride for stage in stages),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Predicts how much the structure of a network raises or lowers its error."""

    weights: tuple[float, ...]
    """Change of the logarithm of the error per unit of each of `FEATURES`."""
    center: tuple[float, ...]
    """Value of each feature for published networks, at which it changes nothing."""
    flops_exponent: float
    """The error is proportional to the flops to this power, which is negative. It comes from the
    published RegNetX on ImageNet."""
    evidence: Mapping[str, Any]
    """The data of the fit, and how well the prior ranked networks that were left out of it."""

    def worth(self, stages: StagePopulation, cost: Complexity[Any]) -> FloatArray:
        """Return the flops (n,) of typical published networks that are predicted to be as good."""
        effect = (features_of_stages(stages, cost) - np.array(self.center)) @ np.array(self.weights)
        return np.asarray(
            np.asarray(cost.flops, dtype=float) * np.exp(effect / self.flops_exponent)
        )

    def worth_of(self, networks: Sample) -> FloatArray:
        """Return the same for sampled networks (n,)."""
        return self.worth(networks.population, networks.complexity)

    def worth_of_config(self, config: AnyNetConfig | RegNetConfig, image_size: int) -> float:
        """Return the same for one network, at an image size in pixels."""
        return float(self.worth(stages_of(config), complexity(config, image_size))[0])

    def __str__(self) -> str:
        e = self.evidence
        return (
            f"a prior fitted to {e['networks']} networks of {len(e['spaces'])} spaces on "
            f"{e['images']}, at {e['flops']}: its rank correlation with errors is "
            f"{e['left_out_network']:.2f} for networks that are left out, "
            f"{e['left_out_space']:.2f} for spaces that are left out, "
            f"and {e['published']['rank_correlation']:.2f} for published ones on ImageNet, beyond "
            "what their flops explain; elsewhere it extrapolates"
        )


@cache
def prior() -> Prior:
    """Return the prior that is part of this package."""
    with resources.as_file(resources.files("regnet.selection") / FILE) as path:
        return documents.build(Prior, documents.read(path, "a prior"))
