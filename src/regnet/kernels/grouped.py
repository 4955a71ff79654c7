"""Grouped 3x3 convolution with ReLU, and the sums that squeeze-excitation needs, in one pass."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regnet.kernels.launch import HAS_TRITON, blocks, fastest, power_of_two, runs_kernels


@dataclass(frozen=True, slots=True, eq=False)
class Grouped:
    """A grouped 3x3 convolution, padding 1, ready for the kernel."""

    weight: Tensor
    """(width, group_width, 3, 3), half precision."""
    bias: Tensor
    """(width,), float32."""
    stride: int
    _packed: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: nn.Conv2d, dtype: torch.dtype) -> "Grouped":
        """From a layer with norms folded into it."""
        weight = layer.weight.detach()
        bias = layer.bias if layer.bias is not None else weight.new_zeros(len(weight))
        return cls(weight.to(dtype), bias.detach().float().contiguous(), layer.stride[0])

    @property
    def group_width(self) -> int:
        """Channels of a group."""
        return self.weight.shape[1]

    def packed(self, together: int, depth: int, width: int) -> Tensor:
        """(groups / together, 9, depth, width): `together` groups in one matrix per tap.

        They stand on its diagonal; the rest is zero, as is what is beyond them.
        """
        key = together, depth, width
        if key not in self._packed:
            g, channels = self.group_width, len(self.weight)
            matrices = self.weight.new_zeros(channels // g // together, 9, depth, width)
            # (groups, out, in, tap) to (groups / together, together, tap, in, out)
            taps = self.weight.reshape(-1, together, g, g, 9).permute(0, 1, 4, 3, 2)
            for place in range(together):
                at = slice(place * g, (place + 1) * g)
                matrices[:, :, at, at] = taps[:, place]
            self._packed[key] = matrices
        return self._packed[key]


def grouped(x: Tensor, layer: Grouped, *, squeeze: bool) -> tuple[Tensor, Tensor | None]:
    """ReLU(convolution + bias), and the sums over parts of it.

    Args:
        x: (N, H, W, width).
        layer: what to convolve with.
        squeeze: whether sums are wanted.

    Returns:
        (N, H', W', width); and where wanted (N, parts, width), float32: sums over the pixels of
        parts, which together are all pixels, always in the same order.
    """
    if not runs_kernels(x):
        return reference(x, layer, squeeze=squeeze)
    images, height, width, channels = x.shape
    out_height, out_width = ((side - 1) // layer.stride + 1 for side in (height, width))
    out = x.new_empty((images, out_height, out_width, channels))
    sums: list[Tensor] = []

    def run(way: "_Way") -> None:
        if way.tile_width:
            tile_height = way.pixels // way.tile_width
            parts = blocks(out_height, tile_height) * blocks(out_width, way.tile_width)
        else:
            parts = blocks(out_height * out_width, way.pixels)
        shape = (images, parts, channels) if squeeze else (1,)
        sums[:] = [x.new_empty(shape, dtype=torch.float32)]
        span = way.together * layer.group_width
        columns = blocks(span, way.block_width)
        deep = blocks(span, way.block_in)
        _kernel[(channels // span * columns, parts, images)](
            x, layer.packed(way.together, deep * way.block_in, columns * way.block_width),
            layer.bias, out, sums[0],
            height, width, out_height, out_width, channels, parts,
            STRIDE=layer.stride, SPAN=span, DEPTHS=deep, COLUMNS=columns,
            BLOCK_IN=way.block_in, BLOCK_WIDTH=way.block_width, PIXELS=way.pixels,
            TILE_WIDTH=way.tile_width, SQUEEZE=squeeze,
            num_warps=way.warps, num_stages=1,
        )  # fmt: skip

    key = ("grouped", tuple(x.shape), layer.group_width, layer.stride, x.dtype, squeeze)
    run(fastest(key, _ways(layer, channels, out_height, out_width), run, x))
    return out, sums[0] if squeeze else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How the kernel cuts its work."""

    together: int
    """Groups per block."""
    block_in: int
    block_width: int
    pixels: int
    """Of a block; they lie in rows of `tile_width`, or where that is 0 in a row after the other."""
    tile_width: int
    warps: int


def _ways(layer: Grouped, channels: int, height: int, width: int) -> list[_Way]:
    g, groups, large = layer.group_width, channels // layer.group_width, height * width >= 784
    together = [1]
    while together[-1] * 2 * g <= 64 and groups % (together[-1] * 2) == 0:
        together.append(together[-1] * 2)
    # Pixels, the width of their tile, warps.
    shapes = [(128, 0, 4), (64, 0, 4)]
    if large:
        shapes = [(128, 0, 4), (128, 8, 4), (128, 16, 4), (64, 8, 4)]
    if g > 48:
        shapes += [(128, 8 if large else 0, 8)]
    ways = []
    for count in together[-2:]:
        span = count * g
        block_width = power_of_two(span, least=16, most=64 if 128 < span <= 192 else 128)
        block_in = 32 if 64 < span <= 96 else power_of_two(span, least=16, most=64)
        ways += [
            _Way(
                together=count, block_in=block_in, block_width=block_width, pixels=pixels,
                tile_width=tile, warps=warps,
            )
            for pixels, tile, warps in shapes
        ]  # fmt: skip
    return ways


def reference(x: Tensor, layer: Grouped, *, squeeze: bool) -> tuple[Tensor, Tensor | None]:
    """The same in PyTorch, one part per image."""
    groups = x.shape[-1] // layer.group_width
    maps = functional.conv2d(
        x.permute(0, 3, 1, 2).float(), layer.weight.float(), layer.bias, layer.stride, 1,
        groups=groups,
    )  # fmt: skip
    out = maps.relu().permute(0, 2, 3, 1).contiguous()
    return out.to(x.dtype), out.sum((1, 2))[:, None] if squeeze else None


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _kernel(  # type: ignore[no-untyped-def]
        x, weight, bias, out, sums,
        height, width, out_height, out_width, channels, parts,
        STRIDE: tl.constexpr, SPAN: tl.constexpr, DEPTHS: tl.constexpr, COLUMNS: tl.constexpr,
        BLOCK_IN: tl.constexpr, BLOCK_WIDTH: tl.constexpr, PIXELS: tl.constexpr,
        TILE_WIDTH: tl.constexpr, SQUEEZE: tl.constexpr,
    ):  # fmt: skip
        channels = channels // 8 * 8  # tells the compiler that 16 bytes may be read at once
        span = tl.program_id(0) // COLUMNS
        part, image = tl.program_id(1), tl.program_id(2)
        pixel = tl.arange(0, PIXELS)
        if TILE_WIDTH:
            across = tl.cdiv(out_width, TILE_WIDTH)
            y = part // across * (PIXELS // TILE_WIDTH) + pixel // TILE_WIDTH
            left = part % across * TILE_WIDTH + pixel % TILE_WIDTH
        else:
            pixel += part * PIXELS
            y, left = pixel // out_width, pixel % out_width
        alive = (y < out_height) & (left < out_width)
        column = tl.program_id(0) % COLUMNS * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        depth = tl.arange(0, BLOCK_IN)
        source = x + image.to(tl.int64) * height * width * channels + span * SPAN
        matrices = weight + span * (9 * DEPTHS * BLOCK_IN * COLUMNS * BLOCK_WIDTH)
        total = tl.zeros((PIXELS, BLOCK_WIDTH), tl.float32)
        # No pipeline: its copies pass by the L1 cache, which holds eight of the nine reads.
        for tap in tl.static_range(9):
            down, right = y * STRIDE + tap // 3 - 1, left * STRIDE + tap % 3 - 1
            inside = alive & (down >= 0) & (down < height) & (right >= 0) & (right < width)
            at = (down * width + right) * channels
            for step in range(DEPTHS):
                k = step * BLOCK_IN + depth
                a = tl.load(
                    source + at[:, None] + k[None, :],
                    mask=inside[:, None] & (k < SPAN)[None, :], other=0.0,
                )  # fmt: skip
                row = tap * (DEPTHS * BLOCK_IN) + k
                b = tl.load(matrices + row[:, None] * (COLUMNS * BLOCK_WIDTH) + column[None, :])
                total = tl.dot(a, b, total)
        within = column < SPAN
        total += tl.load(bias + span * SPAN + column, mask=within, other=0.0)[None, :]
        total = tl.maximum(total, 0.0)
        to = image.to(tl.int64) * out_height * out_width * channels + span * SPAN
        mask = alive[:, None] & within[None, :]
        place = ((y * out_width + left) * channels)[:, None] + column[None, :]
        tl.store(out + to + place, total.to(out.dtype.element_ty), mask=mask)
        if SQUEEZE:
            added = tl.sum(tl.where(alive[:, None], total, 0.0), 0)
            base = (image * parts + part) * channels + span * SPAN
            tl.store(sums + base + column, added, mask=within)

else:
    _kernel: Any = None
