"""The least time that a network can take: bytes over bandwidth or operations over peak, by layer.

Bandwidth and peak are measured; the rest is arithmetic on the config, for two ways to run it.
"epilogue": norms folded, bias, activation and residual part of the convolutions. "fused":
squeeze-excitation part of them too. A measured time below "fused" would be an error of the
measurement.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.engines.base import DTYPES, Precision
from regnet.nn.efficientnet import EfficientNetSize
from regnet.timing import time_call


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What a machine can do, as measured on it."""

    bytes_per_second: float
    """Copying, reads and writes both counted."""
    flops_per_second: float
    """Multiplying matrices of random numbers; a multiply-add is two."""


def measure_ceilings(device: torch.device, precision: Precision) -> Ceilings:
    """How fast this device copies and multiplies; the best of some tries, random numbers."""
    dtype = DTYPES[precision]
    large = device.type != "cpu"
    source = torch.randn((1 << 28) if large else (1 << 25), device=device).to(dtype)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device)
    side = 8192 if large else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    multiply = _best(lambda: a @ b, device)  # rounded as convolutions are
    matmul.allow_tf32 = before
    return Ceilings(
        bytes_per_second=2 * source.nbytes / copy, flops_per_second=2 * side**3 / multiply
    )


def _best(call: Any, device: torch.device) -> float:
    marker = torch.empty(0, device=device)
    call()
    return min(time_call(lambda _: call(), marker) for _ in range(7))


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Seconds for one batch."""

    epilogue: float
    fused: float


def floor(
    network: AnyNetConfig | RegNetConfig | EfficientNetSize,
    input_size: int,
    batch_size: int,
    ceilings: Ceilings,
    *,
    element_bytes: int,
) -> Floor:
    """The floors of one network.

    Args:
        network: its config.
        input_size: side of the images in pixels.
        batch_size: number of images.
        ceilings: of the machine, in the same precision.
        element_bytes: 4 for fp32, 2 for halves.
    """
    epilogue = fused = 0.0
    kernels = (
        _efficientnet_kernels(network, input_size)
        if isinstance(network, EfficientNetSize)
        else _kernels(network.anynet(), input_size)
    )
    for elements, weights, macs, in_fused in kernels:
        moved = (elements * batch_size + weights) * element_bytes
        seconds = max(
            moved / ceilings.bytes_per_second, 2 * macs * batch_size / ceilings.flops_per_second
        )
        epilogue += seconds
        fused += seconds if in_fused else 0
    return Floor(epilogue=epilogue, fused=fused)


Kernel = tuple[int, int, int, bool]
"""Elements read and written per image, weights, multiply-adds, and whether "fused" has it."""


def _conv(fan_in: int, width_in: int, width: int, area_in: int, area: int, more: int = 0) -> Kernel:
    elements = width_in * area_in + width * area + more
    return elements, fan_in * width, fan_in * width * area, True


def _squeeze_excitation(width: int, se_width: int, area: int) -> Iterator[Kernel]:
    """Read to squeeze, read and written to gate."""
    yield width * area, 2 * width * se_width, 2 * width * se_width, False
    yield 2 * width * area, 0, 0, False


def _efficientnet_kernels(network: EfficientNetSize, input_size: int) -> Iterator[Kernel]:
    area_in, side = input_size**2, (input_size - 1) // 2 + 1
    yield _conv(27, 3, network.stem_width, area_in, side**2)
    width_in = network.stem_width
    for number, (depth, width, kernel_size, stride) in enumerate(network.stages()):
        for index in range(depth):
            inner = width_in * (6 if number else 1)
            step = stride if index == 0 else 1
            area_in, side = side**2, (side - 1) // step + 1
            if number:
                yield _conv(width_in, width_in, inner, area_in, area_in)
            yield _conv(kernel_size**2, inner, inner, area_in, side**2)
            yield from _squeeze_excitation(inner, width_in // 4, side**2)
            residual = width * side**2 if step == 1 and width == width_in else 0
            yield _conv(inner, inner, width, side**2, side**2, residual)
            width_in = width
    yield _conv(width_in, width_in, network.head_width, side**2, side**2)
    yield _conv(network.head_width, network.head_width, 1000, side**2, 1)


def _kernels(config: AnyNetConfig, input_size: int) -> Iterator[Kernel]:
    side, width_in = input_size, config.in_chans
    for width, stride in zip(config.stem_widths, config.stem_conv_strides, strict=True):
        area_in, side = side**2, (side - 1) // stride + 1
        fan_in = config.stem_kernel_size**2 * width_in
        yield _conv(fan_in, width_in, width, area_in, side**2)
        width_in = width
    if config.stem == "resnet":
        area_in, side = side**2, (side - 1) // 2 + 1
        yield width_in * (area_in + side**2), 0, 0, True
    for block in config.blocks():
        area_in, side = side**2, (side - 1) // block.stride + 1
        area, inner, shortcut = side**2, block.bottleneck_width, block.width * side**2
        residual = 0 if block.shortcut == "none" else shortcut
        if config.block in ("basic", "vanilla"):
            yield _conv(9 * block.width_in, block.width_in, block.width, area_in, area)
            yield _conv(9 * block.width, block.width, block.width, area, area, residual)
        else:
            yield _conv(block.width_in, block.width_in, inner, area_in, area_in)
            yield _conv(9 * block.group_width, inner, inner, area_in, area)
            if block.se_width:
                yield from _squeeze_excitation(inner, block.se_width, area)
            yield _conv(inner, inner, block.width, area, area, residual)
        if block.shortcut == "projection":
            # Of the input, a strided projection reads every second row and column only.
            yield _conv(block.width_in, block.width_in, block.width, area, area)
    if config.head_width:
        yield _conv(
            config.stages[-1].width, config.stages[-1].width, config.head_width, side**2, side**2
        )
    if config.num_classes:
        features = config.num_features
        yield _conv(features, features, config.num_classes, side**2, 1)
