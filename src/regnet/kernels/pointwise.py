"""1x1 convolution, with what stands around it in a block: gate before, shortcut and ReLU behind."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regnet.kernels.launch import HAS_TRITON, blocks, fastest, power_of_two, runs_kernels

Activation = Literal["none", "relu", "sigmoid"]


@dataclass(frozen=True, slots=True, eq=False)
class Pointwise:
    """A 1x1 convolution, or a linear layer, ready for the kernel."""

    weight: Tensor
    """(width_in, width), half precision."""
    bias: Tensor
    """(width,), float32."""

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> "Pointwise":
        """From a layer with norms folded into it."""
        weight = layer.weight.detach().flatten(1).t()
        bias = layer.bias if layer.bias is not None else weight.new_zeros(weight.shape[1])
        return cls(weight.to(dtype).contiguous(), bias.detach().float().contiguous())


def pointwise(
    x: Tensor,
    layer: Pointwise,
    *,
    activation: Activation = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    projected: Tensor | None = None,
    projection: Pointwise | None = None,
    stride: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """activation((x * gate) @ weight + bias + residual or projection of every second pixel).

    Args:
        x: (N, H, W, width_in).
        layer: what to multiply with.
        activation: of the sum.
        gate: (N, width_in), float32; a factor per image and channel.
        residual: (N, H, W, width), added.
        projected: (N, H * stride or one less, ..., width_2), whose product with `projection` is
            added, instead of a residual.
        projection: a second layer, (width_2, width).
        stride: of the projection.
        dtype: of the result; None: that of x.

    Returns:
        (N, H, W, width).
    """
    if not runs_kernels(x):
        return reference(
            x, layer, activation=activation, gate=gate, residual=residual, projected=projected,
            projection=projection, stride=stride, dtype=dtype,
        )  # fmt: skip
    images, height, width_of_map, width_in = x.shape
    rows, width = images * height * width_of_map, layer.weight.shape[1]
    out = x.new_empty((images, height, width_of_map, width), dtype=dtype or x.dtype)
    second = projected if projected is not None else x
    again = projection or layer

    def run(way: tuple[int, int, int, int, int, bool]) -> None:
        block_rows, block_width, block_in, warps, stages, by_image = way
        pixels = height * width_of_map
        tiles = images * blocks(pixels, block_rows) if by_image else blocks(rows, block_rows)
        _kernel[(blocks(width, block_width) * tiles,)](
            x, layer.weight, layer.bias, out,
            gate if gate is not None else layer.bias,
            residual if residual is not None else x,
            second, again.weight,
            rows, pixels, width_in, width, second.shape[-1], width_of_map, *second.shape[1:3],
            WIDTHS_IN_8=width_in % 8 == 0 and second.shape[-1] % 8 == 0, WIDTH_IN_8=width % 8 == 0,
            GATED=gate is not None, RESIDUAL=residual is not None,
            PROJECTED=projected is not None, STRIDE=stride, ACTIVATION=activation,
            BY_IMAGE=by_image, BLOCK_ROWS=block_rows, BLOCK_WIDTH=block_width, BLOCK_IN=block_in,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip

    key = (
        "pointwise", tuple(x.shape), width, x.dtype, out.dtype, gate is not None,
        residual is not None, projected is not None and second.shape[-1], activation,
    )  # fmt: skip
    run(fastest(key, _ways(x, width, gated=gate is not None), run, x))
    return out


def _ways(x: Tensor, width: int, *, gated: bool) -> list[tuple[int, int, int, int, int, bool]]:
    """Rows, columns and depth of a block, warps, stages, and whether blocks end with images."""
    rows, pixels, width_in = x[..., 0].numel(), x[0, ..., 0].numel(), x.shape[-1]
    most = power_of_two(width, least=16, most=256)
    depth = power_of_two(width_in, least=16, most=64)
    if rows <= 1024:
        sizes = [(16, 32, 128, 4, 4), (32, 32, 64, 4, 4), (64, 64, 64, 4, 3)]
    elif rows <= 16384:
        sizes = [(64, 64, 64, 4, 4), (128, 128, 64, 8, 3), (32, 64, 64, 4, 4)]
    else:
        sizes = [
            (128, 64, 64, 4, 3), (128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (128, 128, 32, 4, 4),
        ]  # fmt: skip
    ways = []
    for block_rows, block_width, block_in, warps, stages in sizes:
        deep = (
            min(block_in, depth) if block_in <= 64 else power_of_two(width_in, least=16, most=128)
        )
        for by_image in (True, False) if gated else (False,):
            if by_image and blocks(pixels, block_rows) * block_rows > 1.35 * pixels:
                continue  # most of a block would lie behind the end of its image
            ways.append((block_rows, min(block_width, most), deep, warps, stages, by_image))
    return list(dict.fromkeys(ways))


def reference(
    x: Tensor,
    layer: Pointwise,
    *,
    activation: Activation = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    projected: Tensor | None = None,
    projection: Pointwise | None = None,
    stride: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The same in PyTorch."""
    rows = x.float()
    if gate is not None:
        rows = (rows * gate[:, None, None]).to(x.dtype).float()
    out = rows @ layer.weight.float() + layer.bias
    if residual is not None:
        out = out + residual.float()
    if projected is not None and projection is not None:
        out = out + projected[:, ::stride, ::stride].float() @ projection.weight.float()
    if activation != "none":
        out = out.relu() if activation == "relu" else out.sigmoid()
    return out.to(dtype or x.dtype)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _kernel(  # type: ignore[no-untyped-def]
        x, weight, bias, out, gate, residual, second, weight2,
        rows, pixels, width_in, width, width2, map_width, height2, map_width2,
        WIDTHS_IN_8: tl.constexpr, WIDTH_IN_8: tl.constexpr,
        GATED: tl.constexpr, RESIDUAL: tl.constexpr, PROJECTED: tl.constexpr,
        STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, BY_IMAGE: tl.constexpr,
        BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_IN: tl.constexpr,
    ):  # fmt: skip
        # Columns of blocks are numbered first: those that share rows run together, in the L2 cache.
        if WIDTHS_IN_8:  # tells the compiler that 16 bytes may be read at once
            width_in = width_in // 8 * 8
            width2 = width2 // 8 * 8
        if WIDTH_IN_8:
            width = width // 8 * 8
        columns = tl.cdiv(width, BLOCK_WIDTH)
        tile = tl.program_id(0) // columns
        if BY_IMAGE:
            tiles = tl.cdiv(pixels, BLOCK_ROWS)
            image = tile // tiles
            row = image * pixels + tile % tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            alive = row < (image + 1) * pixels
        else:
            image = 0
            row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            alive = row < rows
        column = tl.program_id(0) % columns * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        within = column < width
        start = row.to(tl.int64)
        depth = tl.arange(0, BLOCK_IN)
        total = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), tl.float32)
        for first in range(0, width_in, BLOCK_IN):
            k = first + depth
            deep = k < width_in
            mask = alive[:, None] & deep[None, :]
            a = tl.load(x + start[:, None] * width_in + k[None, :], mask=mask, other=0.0)
            if GATED:
                if BY_IMAGE:
                    factor = tl.load(gate + image * width_in + k, mask=deep, other=0.0)[None, :]
                else:
                    of = (row // pixels)[:, None] * width_in + k[None, :]
                    factor = tl.load(gate + of, mask=mask, other=0.0)
                a = (a.to(tl.float32) * factor).to(a.dtype)
            b = tl.load(
                weight + k[:, None] * width + column[None, :],
                mask=deep[:, None] & within[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(a, b, total)
        if PROJECTED:
            pixel = row % pixels
            y, across = pixel // map_width, pixel % map_width
            there = (row // pixels * height2 + y * STRIDE) * map_width2 + across * STRIDE
            start2 = there.to(tl.int64)
            for first in range(0, width2, BLOCK_IN):
                k = first + depth
                deep = k < width2
                a = tl.load(
                    second + start2[:, None] * width2 + k[None, :],
                    mask=alive[:, None] & deep[None, :], other=0.0,
                )  # fmt: skip
                b = tl.load(
                    weight2 + k[:, None] * width + column[None, :],
                    mask=deep[:, None] & within[None, :], other=0.0,
                )  # fmt: skip
                total = tl.dot(a, b, total)
        total += tl.load(bias + column, mask=within, other=0.0)[None, :]
        mask = alive[:, None] & within[None, :]
        to = start[:, None] * width + column[None, :]
        if RESIDUAL:
            total += tl.load(residual + to, mask=mask, other=0.0).to(tl.float32)
        if ACTIVATION == "relu":
            total = tl.maximum(total, 0.0)
        elif ACTIVATION == "sigmoid":
            total = tl.sigmoid(total)
        tl.store(out + to, total.to(out.dtype.element_ty), mask=mask)

else:
    _kernel: Any = None
