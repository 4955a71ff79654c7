"""The protocol of an engine, and the types and functions that all engines share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from regnet.engines.outputs import each, listed

Precision = Literal["fp32", "bf16", "fp16"]

AnyPrecision = Literal[Precision, "int8"]
"""Any precision, including int8, which needs real images to be calibrated."""

Layout = Literal["channels_last", "contiguous"]
"""Order of feature maps in memory: pixel by pixel (NHWC), or channel by channel (NCHW)."""

Runner = Callable[[Tensor], Any]
"""Takes the model's images in float32, in the shape that it was built for, and returns the model's
outputs in float32: a tensor, or a tuple of tensors (`regnet.engines.outputs`)."""

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

ELEMENT_BYTES: dict[AnyPrecision, int] = {
    **{name: dtype.itemsize for name, dtype in DTYPES.items()},
    "int8": 1,
}
"""Bytes of one weight, or of one value of a feature map."""

TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
"""Largest norm(output - reference) / norm(reference) that is accepted in each precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The device, precision, memory layout and streams that an engine builds a runner for."""

    device: torch.device
    precision: Precision = "fp32"
    layout: Layout = "channels_last"
    streams: int = 0
    """Pieces of a batch that are computed at the same time, each by its share of the threads
    (`regnet.engines.batches`); 0: all threads work on the same batch."""

    @property
    def dtype(self) -> torch.dtype:
        """The torch type to compute in."""
        return DTYPES[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout as a memory format of torch."""
        last = self.layout == "channels_last"
        return torch.channels_last if last else torch.contiguous_format


class Engine(Protocol):
    """A method of running a network."""

    name: str
    compiles: bool
    """Whether building needs a compiler, and therefore tens of seconds rather than a few."""

    def obstacle(self, target: Target) -> str | None:
        """Return why the engine cannot serve a target here, in a few words; None if it can."""
        ...

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        """Return a runner of a model in evaluation mode for images of the example's shape.

        The model is not changed. Any exception counts as a failure of the engine.
        """
        ...


def inference(call: Callable[[Tensor], Any]) -> Runner:
    """Return a runner that calls a function in inference mode."""

    def run(x: Tensor) -> Any:
        with torch.inference_mode():
            return call(x)

    return run


def casting(call: Callable[[Tensor], Any], target: Target) -> Runner:
    """Return a float32 runner of a program that computes in the target's precision and layout."""
    dtype, memory_format = target.dtype, target.memory_format
    return inference(
        lambda x: each(Tensor.float, call(x.to(dtype=dtype, memory_format=memory_format)))
    )


def tolerance(target: Target) -> float:
    """Return the largest relative error that is accepted for a target."""
    if target.precision == "fp32" and target.device.type == "cuda":
        # By default convolutions round to TF32, whose mantissa is as long as that of fp16.
        return TOLERANCES["fp16" if torch.backends.cudnn.allow_tf32 else "fp32"]
    return TOLERANCES[target.precision]


def relative_error(found: Any, expected: Any) -> float:
    """Return norm(found - expected) / norm(expected) in float64; the largest of several outputs.

    NaN if their number or shapes differ, or if an error is not finite.
    """
    ours, theirs = listed(found), listed(expected)
    if len(ours) != len(theirs):
        return math.nan
    errors = [_relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]
    return max(errors) if all(map(math.isfinite, errors)) else math.nan


def _relative_error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.nan
    expected = expected.cpu().double()  # on the CPU, because some devices have no float64
    return float((found.cpu().double() - expected).norm() / expected.norm().clamp_min(1e-12))


OWN_LAYOUT = "it chooses its own layout"
"""Obstacle of engines that ignore a target's layout: they refuse one layout, and so run once."""


def half_obstacle(target: Target) -> str | None:
    """Return why a precision is not worth trying on a device; None if it is."""
    if target.precision == "fp32":
        return None
    if target.device.type == "cpu":
        if target.precision == "fp16":
            fast = torch.ops.mkldnn._is_mkldnn_fp16_supported()
            return None if fast else "this CPU has neither AMX-FP16 nor AVX512-FP16"
        # Without these instructions bf16 is emulated, which is slower than fp32.
        if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            return "this CPU has neither AMX nor AVX512-BF16"
    return None
