"""The least time that a network can take: bytes over bandwidth or operations over peak, by layer.

Bandwidth and peak are measured; the rest is arithmetic on the layers of the network. There are two
floors. "epilogue" assumes that norms are folded, and that bias, activation and residual are part of
the convolutions. "fused" assumes that squeeze-excitation is part of them too. A measured time below
"fused" would be an error of the measurement.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch

from regnet.design.layers import Layer
from regnet.engines.base import DTYPES, Precision
from regnet.timing import time_call

_SEPARATE: Final = ("squeeze", "excite")
"""Kinds of layers that are kernels of their own in "epilogue", and part of others in "fused"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What a machine can do, as measured on it."""

    bytes_per_second: float
    """Copying, reads and writes both counted."""
    flops_per_second: float
    """Multiplying matrices of random numbers; a multiply-add is two."""


def measure_ceilings(device: torch.device, precision: Precision) -> Ceilings:
    """Measure how fast this device copies and multiplies random numbers; the best of 7 tries."""
    dtype = DTYPES[precision]
    large = device.type != "cpu"
    source = torch.randn((1 << 28) if large else (1 << 25), device=device).to(dtype)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device)
    side = 8192 if large else 1536
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    multiply = _best(lambda: a @ b, device)  # rounded as convolutions are
    matmul.allow_tf32 = before
    return Ceilings(
        bytes_per_second=2 * source.nbytes / copy, flops_per_second=2 * side**3 / multiply
    )


def _best(call: Callable[[], Any], device: torch.device) -> float:
    marker = torch.empty(0, device=device)
    call()
    return min(time_call(lambda _: call(), marker) for _ in range(7))


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Seconds for one batch."""

    epilogue: float
    fused: float


def floor(
    layers: Iterable[Layer], batch_size: int, ceilings: Ceilings, *, element_bytes: int
) -> Floor:
    """Return the floors of one network.

    Args:
        layers: of the network, for one image of the size in question.
        batch_size: number of images.
        ceilings: of the machine, in the same precision.
        element_bytes: size of one number: 4 for fp32, 2 for halves.
    """
    epilogue = fused = 0.0
    for layer in layers:
        if layer.kind == "norm":
            continue  # folded into a convolution
        moved = (_elements(layer) * batch_size + layer.fan_in * layer.width) * element_bytes
        macs = (layer.fan_in * layer.width * layer.area + layer.products) * batch_size
        seconds = layer.times * max(
            moved / ceilings.bytes_per_second, 2 * macs / ceilings.flops_per_second
        )
        epilogue += seconds
        fused += 0 if layer.kind in _SEPARATE else seconds
    return Floor(epilogue=epilogue, fused=fused)


def _elements(layer: Layer) -> int:
    """Elements of feature maps that a layer reads and writes, for one image."""
    read = int(layer.width_in * layer.area_in)
    if layer.kind == "squeeze":
        return read  # what it writes is one number per channel
    if layer.kind == "excite":
        return int(2 * layer.width * layer.area_in)  # the map that is scaled, read and written
    return read + int(layer.width * layer.area + layer.added)
