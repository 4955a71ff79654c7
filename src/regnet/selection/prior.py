"""Predict how good a network is from its structure, as learned from trained populations.

A prior, not a measurement: ridge regression of the logarithm of the error on what has no scale
(shares of stages, ratios of widths, group widths over widths, parameters and activations per flop),
fitted by `scripts/fit_prior.py` to networks of about equal flops. How the error falls with flops is
that of the published RegNetX on ImageNet, and the effect of structure is scaled down to what is
seen there: published networks differ little beyond what their flops explain. At other flops, other
images and other sizes than those of its fit it extrapolates; `Prior.evidence` says how well it
ranked networks that its fit did not see, and published ones.
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
"""What the prior sees; see `features_of_stages`."""


TYPICAL_DEPTH: Final = 16.0


def features_of_stages(stages: StagePopulation, cost: Complexity[Any]) -> FloatArray:
    """What the prior sees of networks with as many stages each (n, k).

    Logarithm of the depth, and the square of how far that is from a typical one; where in the
    network its blocks and its flops lie (0: all in the first stage, 1: in the last), and the share
    of both in the last stage; by what factor widths grow from stage to stage, and whether they fall
    anywhere; logarithms of group width over width within the bottleneck, and of the bottleneck
    ratio, means over blocks; logarithms of parameters per flop, and of activations per root of a
    flop.
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
    """One network as a population."""
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
    """Predicts by how much the structure of a network raises or lowers its error."""

    weights: tuple[float, ...]
    """Change of the logarithm of the error per unit of each of `FEATURES`."""
    center: tuple[float, ...]
    """Of each feature: that of published networks, of which it says nothing."""
    flops_exponent: float
    """The error falls with flops to this power, which is negative: published RegNetX on
    ImageNet."""
    evidence: Mapping[str, Any]
    """What it was fitted to, and how well it ranked what it was not fitted to."""

    def worth(self, stages: StagePopulation, cost: Complexity[Any]) -> FloatArray:
        """The flops of an ordinary published network that is predicted to be as good (n,)."""
        effect = (features_of_stages(stages, cost) - np.array(self.center)) @ np.array(self.weights)
        return np.asarray(
            np.asarray(cost.flops, dtype=float) * np.exp(effect / self.flops_exponent)
        )

    def worth_of(self, networks: Sample) -> FloatArray:
        """The same of sampled networks (n,)."""
        return self.worth(networks.population, networks.complexity)

    def worth_of_config(self, config: AnyNetConfig | RegNetConfig, image_size: int) -> float:
        """The same of one network at a size of images in pixels."""
        return float(self.worth(stages_of(config), complexity(config, image_size))[0])

    def __str__(self) -> str:
        e = self.evidence
        return (
            f"a prior from {e['networks']} networks of {len(e['spaces'])} spaces on {e['images']}, "
            f"at {e['flops']}: its rank correlation with errors is {e['left_out_network']:.2f} for "
            f"networks that are left out, {e['left_out_space']:.2f} for spaces that are left out, "
            f"and {e['published']['rank_correlation']:.2f} for published ones on ImageNet, beyond "
            "what their flops explain; elsewhere it extrapolates"
        )


@cache
def prior() -> Prior:
    """The prior that comes with this package."""
    with resources.as_file(resources.files("regnet.selection") / FILE) as path:
        return documents.build(Prior, documents.read(path, "a prior"))
