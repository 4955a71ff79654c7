"""The stem: a 3x3 convolution with ReLU, which reads the caller's images without a copy."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from regnet.kernels.launch import (
    HAS_TRITON,
    Launch,
    Work,
    blocks,
    fastest,
    power_of_two,
    runs_kernels,
)

MOST_TAPS: Final = 128
"""Maximum of products per pixel on the matrix units; more would need too many registers."""


@dataclass(frozen=True, slots=True, eq=False)
class Stem:
    """A 3x3 convolution with padding 1, prepared for the kernels."""

    weight: Tensor
    """(9 * width_in, width), float32; rows are ordered by tap, then by channel."""
    matrix: Tensor
    """(K, columns), half precision; rows are ordered by channel, then by tap, and both sizes are
    padded with zeros to powers of two."""
    bias: Tensor
    """(width,), float32."""
    stride: int

    @classmethod
    def of(cls, layer: nn.Conv2d, dtype: torch.dtype) -> "Stem":
        """Convert a layer into which the norm is folded."""
        weight = layer.weight.detach().float()
        width, channels = weight.shape[:2]
        bias = layer.bias if layer.bias is not None else weight.new_zeros(width)
        depth = power_of_two(9 * channels, least=16, most=1 << 16)
        matrix = weight.new_zeros(depth, power_of_two(width, least=16, most=1024))
        matrix[: 9 * channels, :width] = weight.flatten(1).t()
        return cls(
            weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(),
            matrix.to(dtype),
            bias.detach().float().contiguous(),
            layer.stride[0],
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the result, to which images are rounded."""
        return self.matrix.dtype


def stem(images: Tensor, layer: Stem, out: Tensor | None = None) -> Tensor:
    """Compute ReLU(convolution + bias).

    Args:
        images: (N, width_in, H, W), of any floating-point type, as NCHW or as NHWC in memory. They
            are rounded to the type of the layer.
        layer: the convolution.
        out: tensor to write the result to; None: a new one.

    Returns:
        (N, H', W', width), of the type of the layer.
    """
    count, channels, height, width = images.shape
    out_height, out_width = ((side - 1) // layer.stride + 1 for side in (height, width))
    rows, out_channels = count * out_height * out_width, len(layer.bias)
    if not runs_kernels(images):
        found = reference(images, layer)
        return found if out is None else out.copy_(found)
    last = not images.is_contiguous()
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    if out is None:
        shape = count, out_height, out_width, out_channels
        out = images.new_empty(shape, dtype=layer.dtype)

    def launch(way: _Scalar | _Matrix) -> Launch:
        matrix = isinstance(way, _Matrix)
        taps, columns = layer.matrix.shape
        read = rows * 9 * channels * images.element_size()
        written = rows * out_channels * layer.dtype.itemsize
        return Launch(
            kernel=_matrix if matrix else _scalar,
            grid=(blocks(rows, way.pixels),),
            args=(
                images, layer.matrix if matrix else layer.weight, layer.bias, out,
                rows, height, width, out_height, out_width,
            ),
            constants={
                "STRIDE": layer.stride,
                "WIDTH_IN": channels,
                "WIDTH": out_channels,
                "BLOCK_WIDTH": columns,
                "PIXELS": way.pixels,
                "CHANNELS_LAST": last,
                **({"TAPS": taps} if matrix else {}),
            },
            warps=way.warps,
            stages=1,
            work=Work(
                memory=images.numel() * images.element_size() + written,
                cache=read + written,
                products=rows * taps * columns if matrix else 0,
            ),
        )  # fmt: skip

    ways: list[_Scalar | _Matrix] = [_Scalar(128, 4), _Scalar(64, 4), _Scalar(128, 8)]
    if len(layer.matrix) <= MOST_TAPS:
        ways = [_Matrix(128, 4), _Matrix(64, 4), _Matrix(128, 8), *ways]
    key = "stem", tuple(images.shape), images.dtype, last, out_channels, layer.stride, layer.dtype
    launch(fastest(key, ways, launch, images))()
    return out


@dataclass(frozen=True, slots=True)
class _Scalar:
    """Compute each product separately, in float32."""

    pixels: int
    warps: int


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Compute all taps of a block of pixels as one product on the matrix units."""

    pixels: int
    warps: int


def reference(images: Tensor, layer: Stem) -> Tensor:
    """Compute `stem` in PyTorch."""
    weight = layer.weight.unflatten(0, (3, 3, images.shape[1])).permute(3, 2, 0, 1)
    rounded = images.to(layer.dtype).float()
    maps = functional.conv2d(rounded, weight, layer.bias, layer.stride, 1)
    return maps.relu().permute(0, 2, 3, 1).contiguous().to(layer.dtype)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["rows", "height", "width", "out_height", "out_width"])
    def _scalar(
        x, weight, bias, out, rows, height, width, out_height, out_width,
        STRIDE: tl.constexpr, WIDTH_IN: tl.constexpr, WIDTH: tl.constexpr,
        BLOCK_WIDTH: tl.constexpr, PIXELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        left = row % out_width
        y = row // out_width % out_height
        image = (row // out_width // out_height).to(tl.int64) * (height * width * WIDTH_IN)
        column = tl.arange(0, BLOCK_WIDTH)
        within = column < WIDTH
        total = tl.zeros((PIXELS, BLOCK_WIDTH), tl.float32)
        for tap in tl.static_range(9):
            down, right = y * STRIDE + tap // 3 - 1, left * STRIDE + tap % 3 - 1
            inside = (row < rows) & (down >= 0) & (down < height) & (right >= 0) & (right < width)
            pixel = down * width + right
            for channel in tl.static_range(WIDTH_IN):
                if CHANNELS_LAST:
                    at = x + image + (pixel * WIDTH_IN + channel)
                else:
                    at = x + image + (channel * (height * width) + pixel)
                value = tl.load(at, mask=inside, other=0.0).to(out.dtype.element_ty)
                factor = weight + (tap * WIDTH_IN + channel) * WIDTH + column
                factor = tl.load(factor, mask=within, other=0.0)[None, :]
                total += value.to(tl.float32)[:, None] * factor
        total += tl.load(bias + column, mask=within, other=0.0)[None, :]
        to = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        mask = (row < rows)[:, None] & within[None, :]
        tl.store(out + to, tl.maximum(total, 0.0).to(out.dtype.element_ty), mask=mask)

    @triton.jit(do_not_specialize=["rows", "height", "width", "out_height", "out_width"])
    def _matrix(
        x, weight, bias, out, rows, height, width, out_height, out_width,
        STRIDE: tl.constexpr, WIDTH_IN: tl.constexpr, WIDTH: tl.constexpr,
        BLOCK_WIDTH: tl.constexpr, PIXELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
        TAPS: tl.constexpr,
    ):  # fmt: skip
        # Pixels lie along the second axis, so that neighboring threads read neighboring pixels.
        row = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        left = (row % out_width)[None, :]
        y = (row // out_width % out_height)[None, :]
        image = (row // out_width // out_height).to(tl.int64)[None, :]
        k = tl.arange(0, TAPS)[:, None]
        channel, tap = k // 9, k % 9
        down, right = y * STRIDE - 1 + tap // 3, left * STRIDE - 1 + tap % 3
        inside = (
            (row < rows)[None, :] & (k < 9 * WIDTH_IN) & (down >= 0) & (down < height)
            & (right >= 0) & (right < width)
        )  # fmt: skip
        at = x + image * (height * width * WIDTH_IN)
        if CHANNELS_LAST:
            at += (down * width + right) * WIDTH_IN + channel
        else:
            at += channel * (height * width) + down * width + right
        a = tl.load(at, mask=inside, other=0.0).to(out.dtype.element_ty)
        column = tl.arange(0, BLOCK_WIDTH)
        b = tl.load(weight + tl.arange(0, TAPS)[:, None] * BLOCK_WIDTH + column[None, :])
        within = column < WIDTH
        total = tl.dot(tl.trans(a), b)
        total += tl.load(bias + column, mask=within, other=0.0)[None, :]
        to = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        mask = (row < rows)[:, None] & within[None, :]
        tl.store(out + to, tl.maximum(total, 0.0).to(out.dtype.element_ty), mask=mask)
