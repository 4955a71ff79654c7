"""List the layers of a network in order, each with its widths, areas and number of weights.

Complexity (`regnet.design.complexity`) and the floors of the benchmark (`regnet.bench.floors`) are
sums over these layers. The same code lists the layers of one network, with integers, and of a
population, with arrays (n,) of integers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from regnet.design.blocks import (
    HALO_HEADS,
    HALO_WINDOW,
    NORM_GROUP_WIDTH,
    halo_key_width,
    has_projection,
    se_width,
)
from regnet.design.config import AnyNetConfig, ArchitectureConfig
from regnet.design.population import StagePopulation
from regnet.design.widths import IntArray, bottleneck_widths
from regnet.errors import ConfigError, check_whole

ImageSize = int | Sequence[int]
"""Side of a square image, or (height, width), in pixels."""

Kind = Literal["conv", "pool", "squeeze", "excite", "attention", "norm"]
"""The kind of layer.

`conv` is a convolution, or the classifier together with the global pool before it. `pool` is the
max pool of a ResNet stem. `squeeze` and `excite` are the two layers of squeeze-excitation, together
with the feature maps that they average and scale. `attention` is the products of halo attention.
`norm` counts only parameters, because inference folds it into a convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, or several equal ones. Widths are in channels, areas in pixels of one image."""

    kind: Kind
    width_in: Any = 0
    width: Any = 0
    area_in: Any = 0
    area: Any = 0
    fan_in: Any = 0
    """Weights per output channel."""
    grouped: Any = False
    """Whether a convolution has several groups."""
    bias: bool = False
    other_params: Any = 0
    """Parameters other than weights and biases: those of norms, gains and relative positions."""
    added: Any = 0
    """Elements of a shortcut that are added to the output."""
    products: Any = 0
    """Multiply-adds between activations, which the paper's flops do not include."""
    times: Any = 1
    """How many of these layers there are."""

    @property
    def params(self) -> Any:
        """Trainable parameters."""
        return ((self.fan_in + self.bias) * self.width + self.other_params) * self.times

    @property
    def flops(self) -> Any:
        """Multiply-adds of weights and activations; a bias counts as one per output (pycls)."""
        return (self.fan_in + self.bias) * self.width * self.area * self.times

    @property
    def activations(self) -> Any:
        """Output elements of convolutions and, as in pycls, of the stem's max pool."""
        if self.kind in ("norm", "attention"):
            return 0
        return self.width * self.area * self.times


def inner_widths(population: StagePopulation, architecture: ArchitectureConfig) -> IntArray:
    """Return the widths inside the blocks of each stage, an array (n, stages).

    Basic and vanilla blocks have no bottleneck, whatever their ratio is.
    """
    if architecture.block in ("basic", "vanilla"):
        return population.widths
    return bottleneck_widths(population.widths, population.bottleneck_ratios)


def network_layers(config: AnyNetConfig, image_size: ImageSize) -> Iterator[Layer]:
    """Yield the layers of one network for one image.

    Args:
        config: the network.
        image_size: side, or (height, width), of the image in pixels.

    Raises:
        ConfigError: a side of the image is less than one pixel.
    """
    height, width = _sides(image_size)
    yield from _stem(config, height, width)
    height, width = (_reduced(side, config.stem_stride) for side in (height, width))
    for block in config.blocks():
        area_in = height * width
        height, width = _reduced(height, block.stride), _reduced(width, block.stride)
        yield from _block(
            config,
            width_in=block.width_in,
            width=block.width,
            inner=block.bottleneck_width,
            group_width=block.group_width,
            se_width=block.se_width,
            projects=block.shortcut == "projection",
            adds=block.shortcut != "none",
            attention=block.attention,
            area_in=area_in,
            area=height * width,
        )
    yield from _head(config, config.stages[-1].width, height * width)


def population_layers(
    population: StagePopulation, architecture: ArchitectureConfig, image_size: ImageSize
) -> Iterator[Layer]:
    """Yield the layers of all networks of a population at once, with arrays (n,) of numbers.

    A network that lacks a layer has 0 as its `times`.

    Args:
        population: the stages of each network.
        architecture: what all networks share.
        image_size: side, or (height, width), of the image in pixels.

    Raises:
        ConfigError: the architecture has an option that only `network_layers` supports, a width
            does not suit the norm, or a side of the image is less than one pixel.
    """
    if (
        architecture.bottleneck_from != "output"
        or architecture.output_stride is not None
        or architecture.block == "normfree_bottleneck"
    ):
        raise ConfigError(
            "a population cannot have bottleneck_from='input', an output_stride or a "
            "normfree_bottleneck; count such networks one at a time, with complexity"
        )
    inner = inner_widths(population, architecture)
    if architecture.norm != "batch" and np.any(
        np.concatenate((population.widths, inner)) % NORM_GROUP_WIDTH
    ):
        raise ConfigError(
            f"norm {architecture.norm!r} needs widths that are multiples of {NORM_GROUP_WIDTH}, "
            "but some widths of the population are not; use norm 'batch'"
        )
    height, width = _sides(image_size)
    yield from _stem(architecture, height, width)
    height, width = (_reduced(side, architecture.stem_stride) for side in (height, width))
    none = np.zeros(len(population), dtype=np.int64)
    width_in, area = none + architecture.stem_width, height * width
    last_width = last_area = none
    for stage, stride in enumerate(population.strides):
        depth, w, bottleneck = (
            values[:, stage] for values in (population.depths, population.widths, inner)
        )
        present = depth > 0
        height, width = _reduced(height, stride), _reduced(width, stride)
        area_in, area = area, height * width
        changes_shape = present & ((w != width_in) | (stride != 1))
        first = (width_in, area_in, has_projection(architecture, changes_shape), present)
        others = (w, area, np.False_, depth - present)
        for block_width_in, block_area_in, projects, times in (first, others):
            yield from _block(
                architecture,
                width_in=block_width_in,
                width=w,
                inner=bottleneck,
                group_width=population.group_widths[:, stage],
                se_width=se_width(architecture, block_width_in, bottleneck),
                projects=projects,
                area_in=block_area_in,
                area=area,
                times=times,
            )
        width_in = w
        last_width = np.where(present, w, last_width)
        last_area = np.where(present, area, last_area)
    yield from _head(architecture, last_width, last_area)


def _stem(config: ArchitectureConfig, height: int, width: int) -> Iterator[Layer]:
    width_in = config.in_chans
    for channels, stride in zip(config.stem_widths, config.stem_conv_strides, strict=True):
        area_in = height * width
        height, width = _reduced(height, stride), _reduced(width, stride)
        fan_in = config.stem_kernel_size**2 * width_in
        yield _conv(config, fan_in, width_in, channels, area_in, height * width)
        if config.block != "preact_bottleneck":
            yield from _norm(config, channels)
        width_in = channels
    if config.stem == "resnet":
        area_in, area = height * width, _reduced(height, 2) * _reduced(width, 2)
        yield Layer(kind="pool", width_in=width_in, width=width_in, area_in=area_in, area=area)


def _block(
    config: ArchitectureConfig,
    *,
    width_in: Any,
    width: Any,
    inner: Any,
    group_width: Any,
    se_width: Any,
    projects: Any,
    area_in: Any,
    area: Any,
    adds: bool = False,
    attention: bool = False,
    times: Any = 1,
) -> Iterator[Layer]:
    """Yield the layers of a block; `projects` says whether its shortcut has a convolution."""
    preact = config.block == "preact_bottleneck"
    added = width * area if adds else 0
    if config.block in ("basic", "vanilla"):
        yield _conv(config, 9 * width_in, width_in, width, area_in, area, times=times)
        yield from _norm(config, width, times=times)
        yield _conv(config, 9 * width, width, width, area, area, added=added, times=times)
        yield from _norm(config, width, activates=False, times=times)
    else:
        yield _conv(config, width_in, width_in, inner, area_in, area_in, times=times)
        yield from _norm(config, inner, times=times)
        if attention:
            yield from _attention(config, inner, area_in, area)
        else:
            yield _conv(
                config, 9 * group_width, inner, inner, area_in, area, times=times,
                grouped=group_width < inner,
            )  # fmt: skip
        yield from _norm(config, inner, times=times)
        if config.se_ratio and not attention:
            yield from squeeze_excitation(inner, se_width, area, times)
        yield _conv(config, inner, inner, width, area, area, added=added, times=times)
        yield from _norm(config, width_in if preact else width, activates=preact, times=times)
    # A strided 1x1 projection reads only every second row and column of its input, so that its
    # input counts with the area of its output.
    yield _conv(config, width_in, width_in, width, area, area, times=projects * times)
    if not preact:
        yield from _norm(config, width, activates=False, times=projects * times)


def _conv(
    config: ArchitectureConfig,
    fan_in: Any,
    width_in: Any,
    width: Any,
    area_in: Any,
    area: Any,
    *,
    added: Any = 0,
    times: Any = 1,
    grouped: Any = False,
) -> Layer:
    """Return a convolution; in norm-free networks it has a bias and a gain per output channel."""
    normfree = config.block == "normfree_bottleneck"
    return Layer(
        kind="conv",
        width_in=width_in,
        width=width,
        area_in=area_in,
        area=area,
        fan_in=fan_in,
        grouped=grouped,
        bias=normfree,
        other_params=normfree * width,
        added=added,
        times=times,
    )


def _norm(
    config: ArchitectureConfig, width: Any, *, activates: bool = True, times: Any = 1
) -> Iterator[Layer]:
    """Yield a norm: a scale and a shift per channel, and in an EvoNorm that activates a third."""
    if config.block == "normfree_bottleneck":
        return
    per_channel = 3 if config.norm == "evonorm_s0a" and activates else 2
    yield Layer(kind="norm", width=width, other_params=per_channel * width, times=times)


def squeeze_excitation(width: Any, se_width: Any, area: Any, times: Any = 1) -> Iterator[Layer]:
    """Yield the two layers of squeeze-excitation on feature maps of this width and area.

    Args:
        width: channels of the feature maps.
        se_width: width between the two layers, in channels.
        area: pixels of one feature map.
        times: number of such blocks.
    """
    yield Layer(
        kind="squeeze",
        width_in=width,
        width=se_width,
        area_in=area,
        area=1,
        fan_in=width,
        bias=True,
        times=times,
    )
    yield Layer(
        kind="excite",
        width_in=se_width,
        width=width,
        area_in=area,
        area=1,
        fan_in=se_width,
        bias=True,
        times=times,
    )


def _attention(config: ArchitectureConfig, width: Any, area_in: Any, area: Any) -> Iterator[Layer]:
    """Yield halo attention: convolutions for queries, keys and values, then their products."""
    key_width = halo_key_width(width)
    keys = HALO_HEADS * key_width
    yield _conv(config, width, width, keys, area_in, area_in)
    yield _conv(config, width, width, keys + width, area_in, area_in)
    yield Layer(
        kind="attention",
        width_in=2 * keys + width,
        width=width,
        area_in=area_in,
        area=area,
        other_params=2 * (2 * HALO_WINDOW - 1) * key_width,
        products=area_in * HALO_WINDOW**2 * (keys + width),
    )


def _head(config: ArchitectureConfig, width_in: Any, area: Any) -> Iterator[Layer]:
    """Yield the head convolution and the classifier, if the network has them."""
    width = width_in
    if config.head_width:
        width = config.head_width
        yield _conv(config, width_in, width_in, width, area, area)
        yield from _norm(config, width)
    if config.num_classes:
        yield classifier(width, config.num_classes, area)


def classifier(width: Any, num_classes: int, area: Any) -> Layer:
    """Return the linear layer that follows the global pool.

    Args:
        width: channels of the feature maps before the pool.
        num_classes: outputs of the layer.
        area: pixels of one feature map before the pool.
    """
    return Layer(
        kind="conv",
        width_in=width,
        width=num_classes,
        area_in=area,
        area=1,
        fan_in=width,
        bias=True,
    )


def _sides(image_size: ImageSize) -> tuple[int, int]:
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(sides) != 2 or isinstance(image_size, str):
        raise ConfigError(f"image_size must be a side or (height, width), got {image_size!r}")
    height, width = (check_whole("image_size", side, least=1) for side in sides)
    return height, width


def _reduced(side: int, stride: int) -> int:
    return (side - 1) // stride + 1
