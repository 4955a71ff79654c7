"""Complexity by arithmetic: flops, parameters and activations of one network or of a population.

The conventions are those of the paper's code (pycls, `models/blocks.py`): flops are multiply-adds
of convolutions and the classifier, and a layer with a bias adds one per output. Activations are the
outputs of those layers and of the ResNet stem's max pool. Norms count as parameters only. Pooling,
activation functions and additions count nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from regnet.design.config import AnyNetConfig, ArchitectureConfig, RegNetConfig
from regnet.design.layers import ImageSize, Layer, network_layers, population_layers
from regnet.design.population import StagePopulation
from regnet.design.widths import IntArray, bottleneck_widths

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


def complexity(config: AnyNetConfig | RegNetConfig, image_size: ImageSize = 224) -> Complexity[int]:
    """Return the complexity of one network for an image of this size.

    Args:
        config: the network.
        image_size: side, or (height, width), of the image in pixels.

    Raises:
        ConfigError: the image has no pixels.
    """
    return total(network_layers(config.anynet(), image_size))


def population_complexity(
    population: StagePopulation, architecture: ArchitectureConfig, image_size: ImageSize = 224
) -> Complexity[IntArray]:
    """Return the complexity of every network of a population, as arrays (n,).

    Args:
        population: the stages of each network.
        architecture: what the networks share (stem, kind of block, head, classes), such as
            `ArchitectureConfig(se_ratio=0.25)`. The stages of an AnyNet or a RegNet are ignored.
        image_size: side, or (height, width), of the image in pixels.

    Raises:
        ConfigError: the architecture is one that can only be counted one network at a time.
    """
    return total(population_layers(population, architecture, image_size))


def total(layers: Iterable[Layer]) -> Complexity[Any]:
    """Return the sums over layers."""
    flops: Any = 0
    params: Any = 0
    activations: Any = 0
    for layer in layers:
        flops = flops + layer.flops
        params = params + layer.params
        activations = activations + layer.activations
    return Complexity(flops=flops, params=params, activations=activations)


def memory_bytes(
    config: AnyNetConfig | RegNetConfig,
    image_size: int,
    *,
    batch_size: int,
    element_bytes: int,
) -> int:
    """Return the bytes that inference needs at least: the weights, and the maps of one block.

    The first block of a stage needs the most maps at once: its input, which the shortcut waits for,
    the bottleneck at the size of the input, and the bottleneck after the stride. What a library
    takes for itself comes on top.

    Args:
        config: the network.
        image_size: side of the images in pixels.
        batch_size: images per call.
        element_bytes: size of one number, 4 in fp32.
    """
    stages = config.anynet().stages
    maps = _largest_maps(
        config,
        image_size,
        [(s.width, s.width / s.bottleneck_ratio, s.stride) for s in stages],
    )
    return int(element_bytes * (complexity(config, image_size).params + batch_size * maps))


def population_memory_bytes(
    population: StagePopulation,
    architecture: ArchitectureConfig,
    image_sizes: int | IntArray,
    *,
    params: IntArray,
    batch_size: int,
    element_bytes: int,
) -> IntArray:
    """Return `memory_bytes` of every network of a population (n,), given their parameters."""
    inner = bottleneck_widths(population.widths, population.bottleneck_ratios)
    stages = zip(population.widths.T, inner.T, population.strides, strict=True)
    maps = _largest_maps(architecture, image_sizes, list(stages))
    return np.asarray(element_bytes * (params + batch_size * maps), dtype=np.int64)


def _largest_maps(
    stem: ArchitectureConfig, image_size: Any, stages: Iterable[tuple[Any, Any, int]]
) -> Any:
    """Elements of the maps that are needed at once; stages are width, bottleneck width, stride."""
    side = np.ceil(image_size / stem.stem_stride)
    width, most = stem.stem_width, stem.stem_width * side**2
    for width_out, inner, stride in stages:
        after = np.ceil(side / stride)
        needed = (width + inner) * side**2 + inner * after**2
        width, side, most = width_out, after, np.maximum(most, needed)
    return most
