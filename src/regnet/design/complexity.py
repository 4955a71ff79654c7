"""Count the flops, parameters and activations of one network, or of a population, by arithmetic.

The conventions are those of the paper's code (pycls, `models/blocks.py`). Flops are the
multiply-adds of convolutions and of the classifier; a bias counts as one per output. Activations
are the outputs of those layers and of the ResNet stem's max pool. Norms count only as parameters.
Pooling, activation functions and additions are not counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from regnet.design.config import AnyNetConfig, ArchitectureConfig, RegNetConfig
from regnet.design.layers import (
    ImageSize,
    Layer,
    inner_widths,
    network_layers,
    population_layers,
)
from regnet.design.population import StagePopulation
from regnet.design.widths import IntArray
from regnet.errors import ConfigError

Count = TypeVar("Count", int, IntArray)


@dataclass(frozen=True, slots=True, kw_only=True)
class Complexity(Generic[Count]):
    """Complexity of a network for one image: integers, or arrays (n,) for a population."""

    flops: Count
    """Multiply-adds for one image."""
    params: Count
    """Trainable parameters; their number does not depend on the image size."""
    activations: Count
    """Output elements of the convolutions, the classifier, and a ResNet stem's max pool."""


def complexity(config: AnyNetConfig | RegNetConfig, image_size: ImageSize = 224) -> Complexity[int]:
    """Return the multiply-adds, parameters and activations of one network for one image.

    Args:
        config: the network.
        image_size: side, or (height, width), of the image in pixels.

    Raises:
        ConfigError: a side of the image is less than one pixel, or the first argument is no config.
    """
    if not hasattr(config, "anynet"):
        raise ConfigError(
            "complexity takes a config, such as model.config or regnet.info(name).config; got "
            f"{type(config).__name__}"
        )
    return total(network_layers(config.anynet(), image_size))


def population_complexity(
    population: StagePopulation, architecture: ArchitectureConfig, image_size: ImageSize = 224
) -> Complexity[IntArray]:
    """Return the complexity of every network of a population, as arrays (n,).

    Args:
        population: the stages of each network.
        architecture: what all networks share (stem, kind of block, head, classes), such as
            `ArchitectureConfig(se_ratio=0.25)`. The stages of an AnyNet or a RegNet are ignored.
        image_size: side, or (height, width), of the image in pixels.

    Raises:
        ConfigError: the architecture has an option that only `complexity` counts, one network at a
            time, a width does not suit the norm, or a side of the image is less than one pixel.
    """
    return total(population_layers(population, architecture, image_size))


def total(layers: Iterable[Layer]) -> Complexity[Any]:
    """Return the complexity of a sequence of layers: the sums over them."""
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
    """Return the least memory that inference needs: the weights, and the feature maps of one block.

    The first block of a stage holds the most feature maps at once: its input, which the shortcut
    still needs, the bottleneck at the resolution of the input, and the bottleneck after the stride.
    Memory that libraries allocate for themselves is not included.

    Args:
        config: the network.
        image_size: side of the images in pixels.
        batch_size: images per call.
        element_bytes: bytes per number; 4 in fp32.

    Returns:
        A number of bytes.
    """
    first = [block for block in config.anynet().blocks() if block.index == 1]
    maps = _largest_maps(
        config, image_size, [(b.width, b.bottleneck_width, b.stride) for b in first]
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
    """Return `memory_bytes` of every network of a population, as an array (n,).

    Args:
        population: the stages of each network.
        architecture: what all networks share; its stem and its kind of block matter here.
        image_sizes: side of the images in pixels: one number, or an array (n,).
        params: number of parameters of each network, an array (n,).
        batch_size: images per call.
        element_bytes: bytes per number; 4 in fp32.
    """
    inner = inner_widths(population, architecture)
    stages = zip(population.widths.T, inner.T, population.strides, strict=True)
    maps = _largest_maps(architecture, image_sizes, list(stages))
    return np.asarray(element_bytes * (params + batch_size * maps), dtype=np.int64)


def _largest_maps(
    stem: ArchitectureConfig, image_size: Any, stages: Iterable[tuple[Any, Any, int]]
) -> Any:
    """Return the most elements of feature maps that one image needs at the same time.

    Each stage is given as its width, its bottleneck width, and its stride.
    """
    side = np.ceil(image_size / stem.stem_stride)
    width, most = stem.stem_width, stem.stem_width * side**2
    for width_out, inner, stride in stages:
        after = np.ceil(side / stride)
        needed = (width + inner) * side**2 + inner * after**2
        width, side, most = width_out, after, np.maximum(most, needed)
    return most
