"""Squeeze-excitation, computed from sums over parts of the feature maps."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from regnet.kernels.launch import (
    HAS_TRITON,
    Launch,
    blocks,
    fastest,
    power_of_two,
    runs_kernels,
)
from regnet.kernels.pointwise import Gate, Pointwise
from regnet.nn.layers import SqueezeExcitation

HIDDEN_BLOCK = 16
"""Hidden channels are padded with zeros to a multiple of this, so that reads are aligned."""


@dataclass(frozen=True, slots=True, eq=False)
class Squeeze:
    """The two layers of squeeze-excitation, prepared for the kernels."""

    first: Pointwise
    second: Pointwise

    @classmethod
    def of(cls, se: SqueezeExcitation, dtype: torch.dtype) -> "Squeeze":
        """Convert the module."""
        first, second = Pointwise.of(se.fc1, dtype), Pointwise.of(se.fc2, dtype)
        more = -len(first.bias) % HIDDEN_BLOCK
        return cls(
            Pointwise(
                functional.pad(first.weight, (0, more)), functional.pad(first.bias, (0, more))
            ),
            Pointwise(functional.pad(second.weight, (0, 0, 0, more)), second.bias),
        )


def gate(sums: Tensor, pixels: int, layers: Squeeze) -> Gate:
    """Return the gate sigmoid(second(ReLU(first(mean)))), whose second layer is not computed yet.

    Args:
        sums: (N, parts, width), float32: sums over the pixels of each part.
        pixels: number of pixels of a feature map.
        layers: both layers; the activation between them is ReLU.
    """
    return Gate(_hidden(sums, pixels, layers.first), layers.second)


def _hidden(sums: Tensor, pixels: int, layer: Pointwise) -> Tensor:
    if not runs_kernels(sums):
        return reference(sums, pixels, layer)
    images, parts, width_in = sums.shape
    width = len(layer.bias)
    out = layer.weight.new_empty((images, width))

    def launch(way: tuple[int, int, int]) -> Launch:
        block_images, block_width, block_in = way
        return Launch(
            kernel=_kernel,
            grid=(blocks(width, block_width), blocks(images, block_images)),
            args=(
                sums, layer.weight, layer.bias, out, images, parts, width_in, width, 1 / pixels
            ),
            constants={
                "BLOCK_IMAGES": block_images,
                "BLOCK_WIDTH": block_width,
                "BLOCK_IN": block_in,
                "PARTS": power_of_two(parts, least=1, most=8),
            },
            warps=4,
            stages=2,
        )  # fmt: skip

    deep = power_of_two(width_in, least=64, most=1024)
    ways = [(1, 16, min(deep, 512)), (1, 8, deep)] if images <= 32 else []
    if images > 4:
        ways += [(16, 16, 64), (16, power_of_two(width, least=16, most=64), 32)]
    key = "squeeze", tuple(sums.shape), width, out.dtype
    launch(fastest(key, ways, launch, sums))()
    return out


def reference(sums: Tensor, pixels: int, layer: Pointwise) -> Tensor:
    """Compute ReLU(mean @ weight + bias) in PyTorch: (N, width)."""
    mean = (sums.sum(1) / pixels).to(layer.weight.dtype).float()
    return (mean @ layer.weight.float() + layer.bias).relu().to(layer.weight.dtype)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["images", "parts", "width_in", "width", "scale"])
    def _kernel(
        sums, weight, bias, out, images, parts, width_in, width, scale,
        BLOCK_IMAGES: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_IN: tl.constexpr,
        PARTS: tl.constexpr,
    ):  # fmt: skip
        width = width // 16 * 16  # lets the compiler read aligned rows; see HIDDEN_BLOCK
        image = tl.program_id(1) * BLOCK_IMAGES + tl.arange(0, BLOCK_IMAGES)
        column = tl.program_id(0) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        alive, within = image < images, column < width
        total = tl.zeros((BLOCK_IMAGES, BLOCK_WIDTH), tl.float32)
        for first in range(0, width_in, BLOCK_IN):
            k = first + tl.arange(0, BLOCK_IN)
            deep = k < width_in
            added = tl.zeros((BLOCK_IMAGES, BLOCK_IN), tl.float32)
            for start in range(0, parts, PARTS):
                part = start + tl.arange(0, PARTS)
                row = image[:, None] * parts + part[None, :]
                some = alive[:, None] & (part < parts)[None, :]
                values = tl.load(
                    sums + row[:, :, None] * width_in + k[None, None, :],
                    mask=some[:, :, None] & deep[None, None, :], other=0.0,
                )  # fmt: skip
                added += tl.sum(values, 1)
            b = tl.load(
                weight + k[:, None] * width + column[None, :],
                mask=deep[:, None] & within[None, :], other=0.0,
            )  # fmt: skip
            if BLOCK_IMAGES == 1:  # the matrix units need 16 rows, of which 15 would be empty
                products = tl.reshape(added * scale, (BLOCK_IN, 1)) * b.to(tl.float32)
                total += tl.sum(products, 0)[None, :]
            else:
                total = tl.dot((added * scale).to(b.dtype), b, total)
        total += tl.load(bias + column, mask=within, other=0.0)[None, :]
        to = image[:, None] * width + column[None, :]
        mask = alive[:, None] & within[None, :]
        tl.store(out + to, tl.maximum(total, 0.0).to(out.dtype.element_ty), mask=mask)
