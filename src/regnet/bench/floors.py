"""The least time that a network can take, as a sum over its layers.

A layer takes at least the longer of two times: its bytes divided by the bandwidth, and its
operations divided by the peak. Bandwidth and peak are measured. There are two floors. "epilogue"
assumes that batch norms are folded, and that bias, activation and residual are part of the
convolutions. "fused" assumes that squeeze-excitation is part of them as well. A measured time below
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
"""Kinds of layers that are separate kernels in "epilogue", and part of other kernels in "fused"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The bandwidth and the peak of a machine, as measured on it."""

    bytes_per_second: float
    """Bytes read and written by a copy."""
    flops_per_second: float
    """Operations of a product of matrices of random numbers; a multiply-add counts as two."""


def measure_ceilings(device: torch.device, precision: Precision) -> Ceilings:
    """Measure how fast a device copies and multiplies random numbers, as the best of 7 tries."""
    dtype = DTYPES[precision]
    large = device.type != "cpu"
    rng = torch.Generator(device).manual_seed(0)
    count = (1 << 28) if large else (1 << 25)
    source = torch.randn(count, device=device, generator=rng).to(dtype)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device)
    side = 8192 if large else 1536
    a, b = (torch.randn(side, side, device=device, generator=rng).to(dtype) for _ in range(2))
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        multiply = _best(lambda: a @ b, device)  # in TF32 if convolutions are
    finally:
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
    """The least seconds for one batch."""

    epilogue: float
    fused: float


def floor(
    layers: Iterable[Layer], batch_size: int, ceilings: Ceilings, *, element_bytes: int
) -> Floor:
    """Return the floors of one network.

    Args:
        layers: layers of the network, for one image of the size in question.
        batch_size: number of images.
        ceilings: what the machine can do in the same precision.
        element_bytes: bytes of one number: 4 for float32, 2 for half precision.
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
    """Count the elements of feature maps that a layer reads and writes for one image."""
    read = int(layer.width_in * layer.area_in)
    if layer.kind == "squeeze":
        return read  # it writes only one number per channel
    if layer.kind == "excite":
        return int(2 * layer.width * layer.area_in)  # it reads and writes the map it scales
    return read + int(layer.width * layer.area + layer.added)
