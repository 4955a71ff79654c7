"""Complexity by arithmetic: flops, parameters, activations, of one network or of a population.

Conventions are those of the paper's code (pycls, `models/blocks.py`): flops are multiply-adds of
convolutions and the classifier, a layer with bias adding one per output; activations are the
outputs of those layers, and of the ResNet stem's max pool; norms count as parameters only;
pooling, activation functions and additions count nothing.
"""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from regnet.design.blocks import (
    HALO_HEADS,
    HALO_WINDOW,
    NORM_GROUP_WIDTH,
    halo_key_width,
    has_projection,
    se_width,
)
from regnet.design.config import AnyNetConfig, ArchitectureConfig, RegNetConfig
from regnet.design.population import StagePopulation
from regnet.design.widths import IntArray, bottleneck_widths
from regnet.errors import ConfigError

Count = TypeVar("Count", int, IntArray)


@dataclass(frozen=True, slots=True, kw_only=True)
class Complexity(Generic[Count]):
    """What one image costs; whole numbers, or arrays of them for a population."""

    flops: Count
    """Multiply-adds."""
    params: Count
    """Trainable parameters; they do not depend on the image size."""
    activations: Count
    """Output elements of convolutions, the classifier, and a ResNet stem's max pool."""


def complexity(
    config: AnyNetConfig | RegNetConfig, input_size: int | tuple[int, int] = 224
) -> Complexity[int]:
    """Complexity of one network for an image of this size, a side or (height, width) in pixels."""
    anynet = config.anynet()
    tally = _Tally(anynet)
    height, width = _stem(tally, anynet, input_size)
    for block in anynet.blocks():
        area_in = height * width
        height, width = _reduce(height, block.stride), _reduce(width, block.stride)
        tally.block(
            width_in=block.width_in,
            width=block.width,
            inner=block.bottleneck_width,
            group_width=block.group_width,
            se_width=block.se_width,
            projects=block.shortcut == "projection",
            attention=block.attention,
            area_in=area_in,
            area=height * width,
        )
    tally.head(anynet.stages[-1].width, height * width)
    return Complexity(flops=tally.flops, params=tally.params, activations=tally.activations)


def population_complexity(
    population: StagePopulation,
    architecture: ArchitectureConfig,
    input_size: int | tuple[int, int] = 224,
) -> Complexity[IntArray]:
    """Complexity of every network of a population, as arrays (n,).

    Args:
        population: the stages of each network.
        architecture: what the networks share (stem, kind of block, head, classes), such as
            `ArchitectureConfig(se_ratio=0.25)`; of an AnyNet or a RegNet, its stages do not matter.
        input_size: side, or (height, width), of the image in pixels.

    Raises:
        ConfigError: the architecture is one that can be counted one network at a time only.
    """
    if (
        architecture.bottleneck_from != "output"
        or architecture.output_stride is not None
        or architecture.block == "normfree_bottleneck"
    ):
        raise ConfigError(
            "a population takes bottlenecks from the output width, and has no output_stride and "
            "no normfree_bottleneck; count such networks one at a time"
        )
    widths = (population.widths, bottleneck_widths(population.widths, population.bottleneck_ratios))
    if architecture.norm != "batch" and np.any(np.concatenate(widths) % NORM_GROUP_WIDTH):
        raise ConfigError(
            f"norm {architecture.norm!r} needs widths that are multiples of {NORM_GROUP_WIDTH}, "
            "and some of the population's are not"
        )
    tally = _Tally(architecture)
    height, width = _stem(tally, architecture, input_size)
    none = np.zeros(len(population), dtype=np.int64)
    width_in, area, last_width, last_area = (
        none + architecture.stem_width,
        height * width,
        none,
        none,
    )
    for stage, stride in enumerate(population.strides):
        depth, w = population.depths[:, stage], population.widths[:, stage]
        present = depth > 0
        inner = bottleneck_widths(w, population.bottleneck_ratios[:, stage])
        height, width = _reduce(height, stride), _reduce(width, stride)
        area_in, area = area, height * width
        changes_shape = present & ((w != width_in) | (stride != 1))
        first = (width_in, area_in, has_projection(architecture, changes_shape), present)
        others = (w, area, np.False_, depth - present)
        for block_width_in, block_area_in, projects, times in (first, others):
            tally.block(
                width_in=block_width_in,
                width=w,
                inner=inner,
                group_width=population.group_widths[:, stage],
                se_width=se_width(architecture, block_width_in, inner),
                projects=projects,
                area_in=block_area_in,
                area=area,
                times=times,
            )
        width_in = w
        last_width = np.where(present, w, last_width)
        last_area = np.where(present, area, last_area)
    tally.head(last_width, last_area)
    return Complexity(flops=tally.flops, params=tally.params, activations=tally.activations)


class _Tally:
    """A running sum over layers. Widths, areas and `times` are whole numbers or arrays of them."""

    def __init__(self, config: ArchitectureConfig) -> None:
        self.config = config
        self.flops: Any = 0
        self.params: Any = 0
        self.activations: Any = 0

    def conv(
        self,
        fan_in: Any,
        width: Any,
        area: Any,
        *,
        bias: bool = False,
        plain: bool = False,
        times: Any = 1,
    ) -> None:
        """A convolution with `fan_in` weights per output channel, on `area` output pixels.

        Those of norm-free networks have a bias and a gain, unless they are `plain`.
        """
        normfree = self.config.block == "normfree_bottleneck" and not plain
        weights = (fan_in + (bias or normfree)) * width * times
        self.params = self.params + weights + normfree * width * times  # a gain per channel
        self.flops = self.flops + weights * area
        self.activations = self.activations + width * area * times

    def norm(self, width: Any, *, activates: bool = True, times: Any = 1) -> None:
        """A norm's parameters; EvoNorm has a third per channel where it activates."""
        if self.config.block == "normfree_bottleneck":
            return
        per_channel = 3 if self.config.norm == "evonorm_s0a" and activates else 2
        self.params = self.params + per_channel * width * times

    def block(
        self,
        *,
        width_in: Any,
        width: Any,
        inner: Any,
        group_width: Any,
        se_width: Any,
        projects: Any,
        area_in: Any,
        area: Any,
        attention: bool = False,
        times: Any = 1,
    ) -> None:
        """One block, `times` over; `projects` says where a projection shortcut stands."""
        preact = self.config.block == "preact_bottleneck"
        if self.config.block in ("basic", "vanilla"):
            self.conv(9 * width_in, width, area, times=times)
            self.norm(width, times=times)
            self.conv(9 * width, width, area, times=times)
            self.norm(width, activates=False, times=times)
        else:
            self.conv(width_in, inner, area_in, times=times)
            self.norm(inner, times=times)
            if attention:
                self.attention(inner, area_in)
            else:
                self.conv(9 * group_width, inner, area, times=times)
            self.norm(inner, times=times)
            if self.config.se_ratio and not attention:
                self.conv(inner, se_width, 1, bias=True, plain=True, times=times)
                self.conv(se_width, inner, 1, bias=True, plain=True, times=times)
            self.conv(inner, width, area, times=times)
            self.norm(width_in if preact else width, activates=preact, times=times)
        self.conv(width_in, width, area, times=projects * times)
        if not preact:
            self.norm(width, activates=False, times=projects * times)

    def attention(self, width: int, area: int) -> None:
        """Halo attention: two convolutions and the positions; products of activations are free."""
        key_width = HALO_HEADS * halo_key_width(width)
        self.conv(width, key_width, area)
        self.conv(width, key_width + width, area)
        self.params = self.params + 2 * (2 * HALO_WINDOW - 1) * halo_key_width(width)

    def head(self, width_in: Any, area: Any) -> None:
        """The head convolution, if any, and the classifier, if any."""
        width = width_in
        if self.config.head_width:
            width = self.config.head_width
            self.conv(width_in, width, area)
            self.norm(width)
        if self.config.num_classes:
            self.conv(width, self.config.num_classes, 1, bias=True, plain=True)


def _stem(
    tally: _Tally, config: ArchitectureConfig, input_size: int | tuple[int, int]
) -> tuple[int, int]:
    """Count the stem; returns height and width after it."""
    height, width = input_size if isinstance(input_size, tuple) else (input_size, input_size)
    if height < 1 or width < 1:
        raise ConfigError(f"input_size must be at least 1 pixel each way, got {input_size!r}")
    width_in = config.in_chans
    for channels, stride in zip(config.stem_widths, config.stem_conv_strides, strict=True):
        height, width = _reduce(height, stride), _reduce(width, stride)
        tally.conv(config.stem_kernel_size**2 * width_in, channels, height * width)
        if config.block != "preact_bottleneck":
            tally.norm(channels)
        width_in = channels
    if config.stem == "resnet":
        height, width = _reduce(height, 2), _reduce(width, 2)
        tally.activations += width_in * height * width
    return height, width


def _reduce(size: int, stride: int) -> int:
    return (size - 1) // stride + 1
