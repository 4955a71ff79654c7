"""1x1 convolution, fused with the gate before it and with the shortcut and the ReLU after it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import torch
from torch import Tensor, nn

from regnet.kernels.launch import (
    HAS_TRITON,
    Launch,
    Work,
    blocks,
    fastest,
    power_of_two,
    runs_kernels,
)

Activation = Literal["none", "relu", "sigmoid"]

FEW_IMAGES: Final = 4
"""A block with rows of up to this many images loads their gates once, and each row selects its own.
With more images, each row reads its gate from memory."""

FEW_ROWS: Final = 1024
"""Pixels of all images up to which saving a launch outweighs computing the gate in every block."""

NARROW: Final = 336
"""Channels up to which each block may compute all factors of its image."""

SMALL_MAP: Final = 49
"""Pixels per feature map up to which the block of a single image would be mostly empty."""


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A 1x1 convolution, or a linear layer, prepared for the kernel."""

    weight: Tensor
    """(width_in, width), half precision."""
    bias: Tensor
    """(width,), float32."""

    @cached_property
    def half_bias(self) -> Tensor:
        """The bias in half precision, because cuBLASLt needs it in the type of the matrices."""
        return self.bias.to(self.weight.dtype)

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> "Pointwise":
        """Convert a layer into which the norm is folded."""
        weight = layer.weight.detach().flatten(1).t()
        bias = layer.bias if layer.bias is not None else weight.new_zeros(weight.shape[1])
        return cls(weight.to(dtype).contiguous(), bias.detach().float().contiguous())


@dataclass(frozen=True, eq=False)
class Gate:
    """Factors per image and channel, sigmoid(hidden @ weight + bias), that are not computed yet."""

    hidden: Tensor
    """(N, hidden channels), half precision."""
    layer: Pointwise

    def reference(self) -> Tensor:
        """Compute the factors in PyTorch: (N, width)."""
        factors = (self.hidden.float() @ self.layer.weight.float() + self.layer.bias).sigmoid()
        return factors.to(self.hidden.dtype)


def pointwise(
    x: Tensor,
    layer: Pointwise,
    *,
    activation: Activation = "none",
    gate: Gate | Tensor | None = None,
    residual: Tensor | None = None,
    projected: Tensor | None = None,
    projection: Pointwise | None = None,
    stride: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute activation((x * gate) @ weight + bias + shortcut).

    The shortcut is nothing, the residual, or the product of every `stride`-th pixel of `projected`
    with `projection`.

    Args:
        x: (N, H, W, width_in).
        layer: weight and bias.
        activation: activation of the sum.
        gate: a factor per image and channel: (N, width_in), of the type of x, or a `Gate`.
        residual: (N, H, W, width), which is added.
        projected: (N, H2, W2, width_2), with H = ceil(H2 / stride).
        projection: a layer (width_2, width), of which only the weight is used.
        stride: stride of the projection.
        dtype: type of the result; None: that of x.

    Returns:
        (N, H, W, width).
    """
    if not runs_kernels(x):
        return reference(
            x, layer, activation=activation, gate=gate, residual=residual, projected=projected,
            projection=projection, stride=stride, dtype=dtype,
        )  # fmt: skip
    launch, out = _chosen(
        x, layer, activation=activation, gate=gate, residual=residual, projected=projected,
        projection=projection, stride=stride, dtype=dtype,
    )  # fmt: skip
    launch()
    return out


def _chosen(
    x: Tensor,
    layer: Pointwise,
    *,
    activation: Activation,
    gate: Gate | Tensor | None = None,
    residual: Tensor | None = None,
    projected: Tensor | None = None,
    projection: Pointwise | None = None,
    stride: int = 1,
    dtype: torch.dtype | None = None,
) -> tuple[Callable[[], object], Tensor]:
    """Return the call that computes the result in the fastest way, and the tensor it writes to."""
    images, height, width_of_map, width_in = x.shape
    rows, width = images * height * width_of_map, layer.weight.shape[1]
    out = x.new_empty((images, height, width_of_map, width), dtype=dtype or x.dtype)
    second = projected if projected is not None else x
    again = projection or layer
    pixels = height * width_of_map
    own = gate if isinstance(gate, Gate) else None
    before: tuple[Callable[[], object], ...] = ()
    if own is not None:  # most ways need the factors, which another launch computes before
        first, factors = _chosen(own.hidden[:, None, None], own.layer, activation="sigmoid")
        before, gate = (first,), factors[:, 0, 0]

    def launch(way: _Way | None) -> Callable[[], object]:
        if way is None:  # cuBLASLt computes the product, the bias and ReLU
            return lambda: torch._addmm_activation(
                layer.half_bias, x.view(rows, width_in), layer.weight, out=out.view(rows, width)
            )
        one, gates = isinstance(way, _OneImage), isinstance(way, _OwnGate)
        tiles = images * blocks(pixels, way.rows) if one else blocks(rows, way.rows)
        columns = blocks(width, way.width)
        touched = 1 if one else min((way.rows - 2) // pixels + 2, images)
        gating = "none"
        if gate is not None:
            gating = "one" if touched == 1 else "few" if touched <= FEW_IMAGES else "each"
        if gates:
            gating = "own"
        deep = [blocks(width_in, way.depth), blocks(second.shape[-1], way.depth)]
        depth = way.depth * (sum(deep) if projected is not None else deep[0])
        hidden = own.hidden.shape[1] if own else 0
        written = out.numel() * out.element_size()
        added = residual.numel() * residual.element_size() if residual is not None else 0
        read = x.numel() + layer.weight.numel()
        if projected is not None:
            read += rows * second.shape[-1] + again.weight.numel()
        return Launch(
            kernel=_kernel,
            grid=(columns * tiles,),
            args=(
                x, layer.weight, layer.bias, out,
                gate if gate is not None else x,
                residual if residual is not None else x,
                second, again.weight,
                *((own.hidden, own.layer.weight, own.layer.bias) if gates and own else (x, x, x)),
                rows, pixels, width_in, width, second.shape[-1], width_of_map, *second.shape[1:3],
                hidden,
            ),
            constants={
                "WIDTHS_IN_8": width_in % 8 == 0 and second.shape[-1] % 8 == 0,
                "WIDTH_IN_8": width % 8 == 0,
                "GATING": gating,
                "IMAGES": touched if gating == "few" else 1,
                "ONE_IMAGE": one,
                "RESIDUAL": residual is not None,
                "PROJECTED": projected is not None,
                "STRIDE": stride,
                "ACTIVATION": activation,
                "BLOCK_ROWS": way.rows,
                "BLOCK_WIDTH": way.width,
                "BLOCK_IN": way.depth,
                "BLOCK_HIDDEN": power_of_two(hidden, least=16, most=1024) if gates else 0,
            },
            before=() if gates else before,
            warps=way.warps,
            stages=way.stages,
            work=Work(
                memory=2 * read + written + added,
                cache=columns * tiles * 2 * depth * (way.rows + way.width + gates * hidden)
                + written + added,
                products=columns * tiles * depth * way.rows * way.width,
            ),
        )  # fmt: skip

    key = (
        "pointwise", tuple(x.shape), tuple(second.shape), width, x.dtype, out.dtype, activation,
        gate is not None, residual is not None, projected is not None, stride,
        own is not None and own.hidden.shape[1],
    )  # fmt: skip
    ways: list[_Way | None] = [*_ways(rows, width_in, width)]
    if gate is not None and pixels > SMALL_MAP:
        ways += _one_image_ways(pixels, width_in, width)
    if own is not None and rows <= FEW_ROWS and width_in <= NARROW:
        ways += [
            _OwnGate(
                rows=way.rows, width=way.width, depth=way.depth, warps=way.warps, stages=way.stages
            )
            for way in _ways(rows, width_in, width)
        ]
    usual = gate is None and residual is None and projected is None
    if activation == "relu" and usual and out.dtype == x.dtype and (x.is_cuda or x.is_meta):
        ways.append(None)
    return launch(fastest(key, ways, launch, x)), out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """Rows, columns and depth of the product that a block computes, and how it is compiled."""

    rows: int
    width: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _OneImage(_Way):
    """All rows of a block belong to one image; some may be beyond its last pixel.

    The gate is then the same for all rows, so that the operand goes from registers to the matrix
    units. Choosing among the gates of several images sends it through shared memory again.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class _OwnGate(_OneImage):
    """Each block computes the factors of its image itself, which saves the launch for the gate."""


def _ways(rows: int, width_in: int, width: int) -> list[_Way]:
    if rows <= FEW_ROWS:
        sizes = [(16, 32, 128, 4, 4), (16, 64, 128, 4, 3), (32, 32, 64, 4, 4), (64, 64, 64, 4, 3)]
    elif rows <= 8192:
        sizes = [(64, 64, 64, 4, 4), (128, 128, 64, 8, 3), (32, 64, 64, 4, 4), (64, 128, 64, 4, 3)]
    else:
        sizes = [
            (128, 64, 32, 4, 4), (128, 128, 64, 8, 3), (128, 128, 32, 4, 4), (64, 128, 64, 4, 3),
            (128, 256, 64, 8, 3), (64, 256, 32, 4, 3),
        ]  # fmt: skip
    most, deepest = (power_of_two(size, least=16, most=256) for size in (width, width_in))
    ways = [
        _Way(
            rows=block, width=min(columns, most), depth=min(depth, deepest), warps=warps,
            stages=stages,
        )
        for block, columns, depth, warps, stages in sizes
    ]  # fmt: skip
    return list(dict.fromkeys(ways))


def _one_image_ways(pixels: int, width_in: int, width: int) -> list[_OneImage]:
    sizes = [(64, 128, 32, 4, 4), (64, 64, 64, 4, 4)]
    if pixels >= 784:
        sizes.append((128, 128, 64, 8, 3))
    most, deepest = (power_of_two(size, least=16, most=256) for size in (width, width_in))
    ways = [
        _OneImage(
            rows=block, width=min(columns, most), depth=min(depth, deepest), warps=warps,
            stages=stages,
        )
        for block, columns, depth, warps, stages in sizes
    ]  # fmt: skip
    return list(dict.fromkeys(ways))


def reference(
    x: Tensor,
    layer: Pointwise,
    *,
    activation: Activation = "none",
    gate: Gate | Tensor | None = None,
    residual: Tensor | None = None,
    projected: Tensor | None = None,
    projection: Pointwise | None = None,
    stride: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute `pointwise` in PyTorch."""
    rows = x.float()
    if isinstance(gate, Gate):
        gate = gate.reference()
    if gate is not None:
        rows = (rows * gate.float()[:, None, None]).to(x.dtype).float()
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

    @triton.jit(do_not_specialize=[
        "rows", "pixels", "width_in", "width", "width2", "map_width", "height2", "map_width2",
        "hidden_width",
    ])  # fmt: skip
    def _kernel(
        x, weight, bias, out, gate, residual, second, weight2, hidden, gate_weight, gate_bias,
        rows, pixels, width_in, width, width2, map_width, height2, map_width2, hidden_width,
        WIDTHS_IN_8: tl.constexpr, WIDTH_IN_8: tl.constexpr,
        GATING: tl.constexpr, IMAGES: tl.constexpr, ONE_IMAGE: tl.constexpr,
        RESIDUAL: tl.constexpr, PROJECTED: tl.constexpr,
        STRIDE: tl.constexpr, ACTIVATION: tl.constexpr,
        BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_IN: tl.constexpr,
        BLOCK_HIDDEN: tl.constexpr,
    ):  # fmt: skip
        if WIDTHS_IN_8:  # multiples of 8 let the compiler read 16 bytes at once
            width_in = width_in // 8 * 8
            width2 = width2 // 8 * 8
        if WIDTH_IN_8:
            width = width // 8 * 8
        # Blocks that share rows are neighbors, so that they find the rows in the L2 cache.
        columns = tl.cdiv(width, BLOCK_WIDTH)
        tile = tl.program_id(0) // columns
        if ONE_IMAGE:
            per_image = tl.cdiv(pixels, BLOCK_ROWS)
            image = tile // per_image
            inner = tile % per_image * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            alive = inner < pixels
            row = image * pixels + inner
        else:
            row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            alive = row < rows
            image = tile * BLOCK_ROWS // pixels
        of = row // pixels - image
        column = tl.program_id(0) % columns * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        within = column < width
        start = row.to(tl.int64)
        depth = tl.arange(0, BLOCK_IN)
        mask = alive[:, None] & within[None, :]
        to = start[:, None] * width + column[None, :]
        if RESIDUAL and ONE_IMAGE:  # loaded early, the residual arrives during the products
            early = tl.load(residual + to, mask=mask, other=0.0)
        if GATING == "own":
            unit = tl.arange(0, BLOCK_HIDDEN)
            used = unit < hidden_width
            squeezed = tl.load(hidden + image * hidden_width + unit, mask=used, other=0.0)
        total = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), tl.float32)
        for first in range(0, width_in, BLOCK_IN):
            k = first + depth
            deep = k < width_in
            there = alive[:, None] & deep[None, :]
            a = tl.load(x + start[:, None] * width_in + k[None, :], mask=there, other=0.0)
            if GATING == "one":
                a = a * tl.load(gate + image * width_in + k, mask=deep, other=0.0)[None, :]
            elif GATING == "own":
                factor = tl.load(
                    gate_weight + unit[:, None] * width_in + k[None, :],
                    mask=used[:, None] & deep[None, :], other=0.0,
                ).to(tl.float32) * squeezed.to(tl.float32)[:, None]  # fmt: skip
                factor = tl.sum(factor, 0) + tl.load(gate_bias + k, mask=deep, other=0.0)
                a = a * tl.sigmoid(factor).to(a.dtype)[None, :]
            elif GATING == "each":
                at = (row // pixels)[:, None] * width_in + k[None, :]
                a = a * tl.load(gate + at, mask=there, other=0.0)
            elif GATING == "few":
                # The rows of a block belong to IMAGES consecutive images.
                factor = tl.load(gate + image * width_in + k, mask=deep, other=0.0)[None, :]
                for number in tl.static_range(1, IMAGES):
                    limit = tl.where((image + number) * pixels < rows, width_in, 0)
                    at = gate + (image + number) * width_in + k
                    other = tl.load(at, mask=k < limit, other=0.0)[None, :]
                    factor = tl.where(of[:, None] == number, other, factor)
                a = a * factor
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
        if RESIDUAL and ONE_IMAGE:
            total += early.to(tl.float32)
        elif RESIDUAL:
            total += tl.load(residual + to, mask=mask, other=0.0).to(tl.float32)
        if ACTIVATION == "relu":
            total = tl.maximum(total, 0.0)
        elif ACTIVATION == "sigmoid":
            total = tl.sigmoid(total)
        tl.store(out + to, total.to(out.dtype.element_ty), mask=mask)
