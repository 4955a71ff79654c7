"""The protocol of an engine, and what all engines share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from regnet.engines.outputs import each, listed

Precision = Literal["fp32", "bf16", "fp16"]

AnyPrecision = Literal[Precision, "int8"]
"""With int8, for which real images are needed."""

Layout = Literal["channels_last", "contiguous"]
"""How feature maps lie in memory: pixel by pixel (NHWC), or channel by channel (NCHW)."""

Runner = Callable[[Tensor], Any]
"""Takes images as the model does, float32, of the shape that it was built for; gives what the model
gives, float32: a tensor, or a tuple of tensors (`regnet.engines.outputs`)."""

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

ELEMENT_BYTES: dict[AnyPrecision, int] = {
    **{name: dtype.itemsize for name, dtype in DTYPES.items()},
    "int8": 1,
}
"""Of a weight, or of a value of a feature map."""

TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
"""Largest norm(output - reference) / norm(reference) that each precision is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to build for."""

    device: torch.device
    precision: Precision = "fp32"
    layout: Layout = "channels_last"
    streams: int = 0
    """Pieces of a batch that are computed at once, each by its part of the threads
    (`regnet.engines.batches`); 0: all threads work on the whole batch."""

    @property
    def dtype(self) -> torch.dtype:
        """The type to compute in."""
        return DTYPES[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout in torch's words."""
        last = self.layout == "channels_last"
        return torch.channels_last if last else torch.contiguous_format


class Engine(Protocol):
    """One way to run a network."""

    name: str
    compiles: bool
    """Whether building takes a compiler, and so tens of seconds rather than a few."""

    def obstacle(self, target: Target) -> str | None:
        """Why it cannot be used here for this, in a few words; None if it can."""
        ...

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        """A runner of a model in evaluation mode for images like the example.

        The model is not changed. Whatever it raises counts as the engine's failure.
        """
        ...


def inference(call: Callable[[Tensor], Any]) -> Runner:
    """Return a runner that makes the call without gradients."""

    def run(x: Tensor) -> Any:
        with torch.inference_mode():
            return call(x)

    return run


def casting(call: Callable[[Tensor], Any], target: Target) -> Runner:
    """Return a runner of a program in the target's precision and layout: float32 in and out."""
    dtype, memory_format = target.dtype, target.memory_format
    return inference(
        lambda x: each(Tensor.float, call(x.to(dtype=dtype, memory_format=memory_format)))
    )


def tolerance(target: Target) -> float:
    """Largest relative error that a target is allowed."""
    if target.precision == "fp32" and target.device.type == "cuda":
        # Convolutions round to TF32 unless told otherwise, which has the mantissa of fp16.
        return TOLERANCES["fp16" if torch.backends.cudnn.allow_tf32 else "fp32"]
    return TOLERANCES[target.precision]


def relative_error(found: Any, expected: Any) -> float:
    """norm(found - expected) / norm(expected), in float64; the worst of several outputs."""
    pairs = zip(listed(found), listed(expected), strict=True)
    errors = [_relative_error(ours, theirs) for ours, theirs in pairs]
    return max(errors) if all(map(math.isfinite, errors)) else math.nan


def _relative_error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.nan
    expected = expected.cpu().double()  # not on the device: some have no float64
    return float((found.cpu().double() - expected).norm() / expected.norm().clamp_min(1e-12))


OWN_LAYOUT = "it chooses its own layout"
"""Obstacle of engines for which a target's layout means nothing, so that they run once."""


def half_obstacle(target: Target) -> str | None:
    """Why a precision is not worth trying on a device."""
    if target.precision == "fp32":
        return None
    if target.device.type == "cpu":
        if target.precision == "fp16":
            fast = torch.ops.mkldnn._is_mkldnn_fp16_supported()
            return None if fast else "this CPU has neither AMX-FP16 nor AVX512-FP16"
        # Without these instructions bf16 is emulated, slower than fp32.
        if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            return "this CPU has neither AMX nor AVX512-BF16"
    return None
