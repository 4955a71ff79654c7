"""Grouped 3x3 convolution with ReLU, and the sums for squeeze-excitation, in one pass."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

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
    processors,
    runs_kernels,
)

SLOTS: Final = {1: 4, 2: 2}
"""By stride: slots for rows of the result among the columns of the product in `_chain`."""


@dataclass(frozen=True, slots=True, eq=False)
class Grouped:
    """A grouped 3x3 convolution with padding 1, prepared for the kernels."""

    weight: Tensor
    """(width, group_width, 3, 3), half precision."""
    bias: Tensor
    """(width,), float32."""
    stride: int
    _packed: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: nn.Conv2d, dtype: torch.dtype) -> "Grouped":
        """Convert a layer into which the norm is folded."""
        weight = layer.weight.detach()
        bias = layer.bias if layer.bias is not None else weight.new_zeros(len(weight))
        return cls(weight.to(dtype), bias.detach().float().contiguous(), layer.stride[0])

    @property
    def group_width(self) -> int:
        """Channels per group."""
        return self.weight.shape[1]

    def packed(self, together: int, depth: int, width: int) -> Tensor:
        """Return matrices (groups / together, 9, depth, width): `together` groups in one per tap.

        The groups are blocks on the diagonal of the matrix, and the rest of it is zero.
        """
        key = together, depth, width
        if key not in self._packed:
            self._packed[key] = self._matrices(together, depth, width)
        return self._packed[key]

    def chained(self, together: int, slot: int, depth: int) -> Tensor:
        """Return matrices (groups / together, depth, slots * slot) that contain all taps.

        A step of `_chain` reads one row of the input (stride 1) or two (stride 2). The rows of the
        matrix are the left, middle and right pixels of the input, each with the channels of
        `together` groups. The columns are the rows of the result that these pixels contribute to,
        each in a slot of `slot` columns: with stride 1 the row below, the same row, the row above
        and an empty slot; with stride 2 the same row and the row below.
        """
        key = together, slot, depth, self.stride
        if key not in self._packed:
            span = together * self.group_width
            taps = self._matrices(together, span, span).unflatten(1, (3, 3))
            slots = SLOTS[self.stride]
            matrices = taps.new_zeros(len(taps), depth, slots * slot)
            # Each entry: row of the input, slot, and the row of taps that connects the two.
            joints = [(0, 0, 0), (0, 1, 1), (0, 2, 2)]
            if self.stride == 2:
                joints = [(0, 0, 1), (1, 0, 2), (1, 1, 0)]
            for row, place, down in joints:
                for right in range(3):
                    start = (3 * row + right) * span
                    at = slice(start, start + span), slice(place * slot, place * slot + span)
                    matrices[:, at[0], at[1]] = taps[:, down, right]
            self._packed[key] = matrices
        return self._packed[key]

    def _matrices(self, together: int, depth: int, width: int) -> Tensor:
        g, channels = self.group_width, len(self.weight)
        matrices = self.weight.new_zeros(channels // g // together, 9, depth, width)
        # (groups, out, in, tap) to (groups / together, together, tap, in, out)
        taps = self.weight.reshape(-1, together, g, g, 9).permute(0, 1, 4, 3, 2)
        for place in range(together):
            at = slice(place * g, (place + 1) * g)
            matrices[:, :, at, at] = taps[:, place]
        return matrices

    def keep(self, packed: Tensor, before: Collection[tuple[int, ...]]) -> None:
        """Delete matrices that were packed only for timing.

        Args:
            packed: the matrices of the chosen way, which stay.
            before: keys of matrices that existed before the timing, which stay as well.
        """
        for key in [key for key in self._packed if key not in before]:
            if self._packed[key] is not packed:
                del self._packed[key]


def grouped(x: Tensor, layer: Grouped, *, squeeze: bool) -> tuple[Tensor, Tensor | None]:
    """Compute ReLU(convolution + bias), and sums over parts of the result.

    Args:
        x: (N, H, W, width).
        layer: the convolution.
        squeeze: whether to compute the sums.

    Returns:
        The result (N, H', W', width); and with `squeeze` the sums (N, parts, width) in float32,
        otherwise None. The parts together contain every pixel once. The order of the additions is
        fixed, so that every call returns the same bits.
    """
    if not runs_kernels(x):
        return reference(x, layer, squeeze=squeeze)
    images, height, width, channels = x.shape
    out_height, out_width = ((side - 1) // layer.stride + 1 for side in (height, width))
    out = x.new_empty((images, out_height, out_width, channels))
    sizes = _Sizes(
        images=images, height=out_height, width=out_width, channels=channels,
        group_width=layer.group_width, stride=layer.stride,
    )  # fmt: skip

    def launch(way: _Way) -> Launch:
        parts, grid = way.parts(sizes), way.grid(sizes)
        added = x.new_empty((images, parts, channels) if squeeze else 1, dtype=torch.float32)
        count = grid[0] * grid[1] * grid[2]
        return Launch(
            kernel=way.kernel,
            grid=grid,
            args=(
                x, way.packed(layer), layer.bias, out, added,
                height, width, out_height, out_width, channels, *way.numbers(sizes),
            ),
            constants={
                "STRIDE": layer.stride, "SPAN": way.together * layer.group_width,
                "PIXELS": way.pixels, "SQUEEZE": squeeze, **way.constants(sizes),
            },
            warps=way.warps,
            stages=way.stages,
            work=Work(
                memory=2 * (x.numel() + out.numel() + layer.weight.numel()),
                cache=2 * (count * way.read(sizes) + out.numel()),
                products=count * way.products(sizes),
            ),
        )  # fmt: skip

    key = ("grouped", tuple(x.shape), layer.group_width, layer.stride, x.dtype, squeeze)
    before = set(layer._packed)
    chosen = launch(fastest(key, _ways(x, sizes), launch, x))
    layer.keep(chosen.args[1], before)
    chosen()
    return out, chosen.args[4] if squeeze else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """The sizes of a call; height and width are those of the result."""

    images: int
    height: int
    width: int
    channels: int
    group_width: int
    stride: int


class _Way(Protocol):
    """A way of running the convolution."""

    @property
    def together(self) -> int:
        """Groups per block."""
        ...

    @property
    def pixels(self) -> int:
        """Pixels that a block computes at the same time."""
        ...

    @property
    def warps(self) -> int:
        """Warps per block."""
        ...

    @property
    def stages(self) -> int:
        """Stages of the compiler's pipeline."""
        ...

    @property
    def kernel(self) -> Any:
        """The Triton function."""
        ...

    def parts(self, s: _Sizes) -> int:
        """Return the number of parts of an image, each of which has sums of its own."""
        ...

    def grid(self, s: _Sizes) -> tuple[int, int, int]:
        """Return the number of blocks along each axis of the grid."""
        ...

    def packed(self, layer: Grouped) -> Tensor:
        """Return the weights in the layout that the kernel reads."""
        ...

    def numbers(self, s: _Sizes) -> tuple[int, ...]:
        """Return the arguments of the kernel after the sizes."""
        ...

    def constants(self, s: _Sizes) -> dict[str, Any]:
        """Return the compile-time constants that only this kernel has."""
        ...

    def read(self, s: _Sizes) -> int:
        """Return how many values a block reads."""
        ...

    def products(self, s: _Sizes) -> int:
        """Return the multiply-adds of a block."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """Each block computes a tile of pixels of one image, and reads its input again for each tap."""

    together: int
    block_in: int
    block_width: int
    pixels: int
    """Pixels of the tile, in rows of `tile_width`; consecutive pixels of the image if that is 0."""
    tile_width: int
    warps: int
    stages: int = 1

    @property
    def kernel(self) -> Any:
        return _tiles

    def parts(self, s: _Sizes) -> int:
        if not self.tile_width:
            return blocks(s.height * s.width, self.pixels)
        tall = self.pixels // self.tile_width
        return blocks(s.height, tall) * blocks(s.width, self.tile_width)

    def grid(self, s: _Sizes) -> tuple[int, int, int]:
        _, columns = self._blocks(s.group_width)
        return s.channels // (self.together * s.group_width) * columns, self.parts(s), s.images

    def packed(self, layer: Grouped) -> Tensor:
        deep, columns = self._blocks(layer.group_width)
        return layer.packed(self.together, deep * self.block_in, columns * self.block_width)

    def numbers(self, s: _Sizes) -> tuple[int, ...]:
        return (self.parts(s),)

    def constants(self, s: _Sizes) -> dict[str, Any]:
        deep, columns = self._blocks(s.group_width)
        return {
            "DEPTHS": deep, "COLUMNS": columns, "BLOCK_IN": self.block_in,
            "BLOCK_WIDTH": self.block_width, "TILE_WIDTH": self.tile_width,
        }  # fmt: skip

    def read(self, s: _Sizes) -> int:
        deep, _ = self._blocks(s.group_width)
        return 9 * deep * self.block_in * (self.pixels + self.block_width)

    def products(self, s: _Sizes) -> int:
        deep, _ = self._blocks(s.group_width)
        return 9 * deep * self.block_in * self.pixels * self.block_width

    def _blocks(self, group_width: int) -> tuple[int, int]:
        span = self.together * group_width
        return blocks(span, self.block_in), blocks(span, self.block_width)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    """Each block moves down the rows of some images; a row is read once for up to three results."""

    together: int
    pixels: int
    """Pixels of a step: one row of `row` pixels from each of `pixels / row` images."""
    rows: int
    """Rows of the result that a block computes."""
    stages: int
    warps: int

    def row(self, s: _Sizes) -> int:
        """Return the pixels of a row in a block; some may be beyond the end of the row."""
        return power_of_two(s.width, least=8, most=self.pixels)

    def parts(self, s: _Sizes) -> int:
        return blocks(s.height, self.rows) * blocks(s.width, self.row(s))

    def numbers(self, s: _Sizes) -> tuple[int, ...]:
        return s.images, self.rows

    def _grid(self, s: _Sizes, columns: int) -> tuple[int, int, int]:
        spans = s.channels // (self.together * s.group_width)
        return spans * columns, self.parts(s), blocks(s.images, self.pixels // self.row(s))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep(_Walk):
    """Compute one product for each of the nine taps, whose weights stay in shared memory."""

    block_in: int
    block_width: int

    @property
    def kernel(self) -> Any:
        return _sweep

    def grid(self, s: _Sizes) -> tuple[int, int, int]:
        return self._grid(s, self._columns(s.group_width))

    def packed(self, layer: Grouped) -> Tensor:
        columns = self._columns(layer.group_width)
        return layer.packed(self.together, self.block_in, columns * self.block_width)

    def constants(self, s: _Sizes) -> dict[str, Any]:
        return {
            "COLUMNS": self._columns(s.group_width), "BLOCK_IN": self.block_in,
            "BLOCK_WIDTH": self.block_width, "ROW": self.row(s), "STAGES": self.stages,
        }  # fmt: skip

    def read(self, s: _Sizes) -> int:
        rows = self.rows + 2 if s.stride == 1 else 2 * self.rows + 1
        return self.block_in * (3 * rows * self.pixels + 9 * self.block_width)

    def products(self, s: _Sizes) -> int:
        rows = self.rows + (2 if s.stride == 1 else 0)
        return 9 * rows * self.pixels * self.block_in * self.block_width

    def _columns(self, group_width: int) -> int:
        return blocks(self.together * group_width, self.block_width)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain(_Walk):
    """Compute one product for all taps of a row: one wait, where `_Sweep` waits for each tap."""

    slot: int
    """Columns of the product for the channels of one row of the result."""
    depth: int
    """Depth of the product."""
    more: int
    """Depth of a second product that is added, because two powers of two may fit more closely than
    one; 0: none."""

    @property
    def kernel(self) -> Any:
        return _chain

    def grid(self, s: _Sizes) -> tuple[int, int, int]:
        return self._grid(s, 1)

    def packed(self, layer: Grouped) -> Tensor:
        return layer.chained(self.together, self.slot, self.depth + self.more)

    def constants(self, s: _Sizes) -> dict[str, Any]:
        return {
            "SLOT": self.slot, "DEPTH": self.depth, "MORE": self.more, "ROW": self.row(s),
            "STAGES": self.stages,
        }  # fmt: skip

    def read(self, s: _Sizes) -> int:
        deep = self.depth + self.more
        return deep * (self._steps(s) * self.pixels + SLOTS[s.stride] * self.slot)

    def products(self, s: _Sizes) -> int:
        columns = SLOTS[s.stride] * self.slot
        return self._steps(s) * self.pixels * (self.depth + self.more) * columns

    def _steps(self, s: _Sizes) -> int:
        return self.rows + (2 if s.stride == 1 else 1)


def _ways(x: Tensor, s: _Sizes) -> list[_Way]:
    g = s.group_width
    groups, large = s.channels // g, s.height * s.width >= 784
    together = [1]
    while together[-1] * 2 * g <= 32 and groups % (together[-1] * 2) == 0:
        together.append(together[-1] * 2)
    ways: list[_Way] = []
    for count in together[-2:]:
        span = count * g
        if span <= 64:
            ways += [*_chains(x, s, count), *_sweeps(x, s, count)]
        block_width = power_of_two(span, least=16, most=64 if 128 < span <= 192 else 128)
        block_in = 32 if 64 < span <= 96 else power_of_two(span, least=16, most=64)
        tiles = [(128, 16 if large else 0, 4), (64, 8 if large else 0, 4)]
        ways += [
            _Tiles(
                together=count, block_in=block_in, block_width=block_width, pixels=pixels,
                tile_width=tile, warps=warps,
            )
            for pixels, tile, warps in [*tiles, *([(128, 0, 8)] if g > 64 else [])]
        ]  # fmt: skip
    return ways


def _sweeps(x: Tensor, s: _Sizes, together: int) -> list[_Sweep]:
    size = power_of_two(together * s.group_width, least=16, most=64)
    ways = []
    for stages, narrow in ((1, False), (3, False), *([(3, True)] if size == 64 else [])):
        ways += [
            _Sweep(
                together=together, block_in=size, block_width=32 if narrow else size, pixels=64,
                rows=rows, stages=stages, warps=4,
            )
            for rows in _rows(x, s, together, columns=2 if narrow else 1)
        ]  # fmt: skip
    return ways


def _chains(x: Tensor, s: _Sizes, together: int) -> list[_Chain]:
    span = together * s.group_width
    deep = 3 * span * s.stride
    whole = power_of_two(deep, least=16, most=512)
    half = whole // 2
    cuts = [(whole, 0)]
    if half >= 16 and half + (more := power_of_two(deep - half, least=16, most=half)) < whole:
        cuts.insert(0, (half, more))
    slot = power_of_two(span, least=16, most=64)
    return [
        _Chain(
            together=together, pixels=64, rows=rows, stages=3, warps=4 if slot <= 32 else 8,
            slot=slot, depth=depth, more=more,
        )
        for depth, more in cuts
        for rows in _rows(x, s, together)
    ]  # fmt: skip


def _rows(x: Tensor, s: _Sizes, together: int, columns: int = 1) -> list[int]:
    """Return numbers of rows for which each multiprocessor has about 2, 6 or 16 blocks.

    A block computes 64 pixels at the same time.
    """
    if not (x.is_cuda or x.is_meta):
        return [2]
    row = power_of_two(s.width, least=8, most=64)
    walks = s.channels // s.group_width // together * columns
    walks *= blocks(s.width, row) * blocks(s.images, 64 // row)
    parts = [max(1, round(per * processors(x) / walks)) for per in (2, 6, 16)]
    return sorted({blocks(s.height, min(count, s.height)) for count in parts})


def reference(x: Tensor, layer: Grouped, *, squeeze: bool) -> tuple[Tensor, Tensor | None]:
    """Compute `grouped` in PyTorch, with one part per image."""
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

    @triton.jit(
        do_not_specialize=["height", "width", "out_height", "out_width", "channels", "parts"]
    )
    def _tiles(
        x, weight, bias, out, sums,
        height, width, out_height, out_width, channels, parts,
        STRIDE: tl.constexpr, SPAN: tl.constexpr, DEPTHS: tl.constexpr, COLUMNS: tl.constexpr,
        BLOCK_IN: tl.constexpr, BLOCK_WIDTH: tl.constexpr, PIXELS: tl.constexpr,
        TILE_WIDTH: tl.constexpr, SQUEEZE: tl.constexpr,
    ):  # fmt: skip
        channels = channels // 8 * 8  # lets the compiler read 16 bytes at once
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
        # Without a pipeline, because its copies bypass the L1 cache, which serves eight of the nine
        # reads of a pixel.
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

    @triton.jit(do_not_specialize=[
        "height", "width", "out_height", "out_width", "channels", "images", "rows"
    ])  # fmt: skip
    def _sweep(
        x, weight, bias, out, sums,
        height, width, out_height, out_width, channels, images, rows,
        STRIDE: tl.constexpr, SPAN: tl.constexpr, COLUMNS: tl.constexpr,
        BLOCK_IN: tl.constexpr, BLOCK_WIDTH: tl.constexpr, PIXELS: tl.constexpr,
        ROW: tl.constexpr, SQUEEZE: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        channels = channels // 8 * 8  # lets the compiler read 16 bytes at once
        TOGETHER: tl.constexpr = PIXELS // ROW
        span = tl.program_id(0) // COLUMNS
        across = tl.cdiv(out_width, ROW)
        part = tl.program_id(1)
        pixel = tl.arange(0, PIXELS)
        image = tl.program_id(2) * TOGETHER + pixel // ROW
        left = part % across * ROW + pixel % ROW
        alive = (image < images) & (left < out_width)
        first = part // across * rows
        last = tl.minimum(first + rows, out_height)
        column = tl.program_id(0) % COLUMNS * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        k = tl.arange(0, BLOCK_IN)
        source = (
            x + (image.to(tl.int64) * (height * width * channels) + span * SPAN)[:, None]
            + k[None, :]
        )  # fmt: skip
        matrix = (
            weight + span * (9 * BLOCK_IN * COLUMNS * BLOCK_WIDTH)
            + k[:, None] * (COLUMNS * BLOCK_WIDTH) + column[None, :]
        )  # fmt: skip
        SIZE: tl.constexpr = BLOCK_IN * COLUMNS * BLOCK_WIDTH
        # The weights of all taps stay in shared memory.
        top0, top1, top2 = tl.load(matrix), tl.load(matrix + SIZE), tl.load(matrix + 2 * SIZE)
        mid0, mid1, mid2 = (
            tl.load(matrix + 3 * SIZE), tl.load(matrix + 4 * SIZE), tl.load(matrix + 5 * SIZE)
        )  # fmt: skip
        low0, low1, low2 = (
            tl.load(matrix + 6 * SIZE), tl.load(matrix + 7 * SIZE), tl.load(matrix + 8 * SIZE)
        )  # fmt: skip
        x0, x1, x2 = left * STRIDE - 1, left * STRIDE, left * STRIDE + 1
        in0 = (alive & (x0 >= 0))[:, None]
        in1 = (alive & (x1 < width))[:, None]
        in2 = (alive & (x2 < width))[:, None]
        at0, at1, at2 = (
            source + (x0 * channels)[:, None], source + (x1 * channels)[:, None],
            source + (x2 * channels)[:, None],
        )  # fmt: skip
        within = column < SPAN
        shift = tl.load(bias + span * SPAN + column, mask=within, other=0.0)[None, :]
        target = (
            out + image.to(tl.int64)[:, None] * (out_height * out_width * channels)
            + (left * channels + span * SPAN)[:, None] + column[None, :]
        )  # fmt: skip
        kept = alive[:, None] & within[None, :]
        total = tl.zeros((PIXELS, BLOCK_WIDTH), tl.float32)
        now = tl.zeros((PIXELS, BLOCK_WIDTH), tl.float32)
        after = tl.zeros((PIXELS, BLOCK_WIDTH), tl.float32)
        later = tl.zeros((PIXELS, BLOCK_WIDTH), tl.float32)
        if STRIDE == 1:
            # A row of the input is the last of the three for the result row `now`, the middle one
            # for `after`, and the first one for `later`.
            for row in tl.range(first - 1, last + 1, num_stages=STAGES):
                some = (k < tl.where(row < 0, 0, tl.where(row < height, SPAN, 0)))[None, :]
                down = row * width * channels
                a = tl.load(at0 + down, mask=in0 & some, other=0.0)
                later = tl.dot(a, top0, later)
                after = tl.dot(a, mid0, after)
                now = tl.dot(a, low0, now)
                a = tl.load(at1 + down, mask=in1 & some, other=0.0)
                later = tl.dot(a, top1, later)
                after = tl.dot(a, mid1, after)
                now = tl.dot(a, low1, now)
                a = tl.load(at2 + down, mask=in2 & some, other=0.0)
                later = tl.dot(a, top2, later)
                after = tl.dot(a, mid2, after)
                now = tl.dot(a, low2, now)
                whole = kept & (left < tl.where(row > first, out_width, 0))[:, None]
                now = tl.maximum(now + shift, 0.0)
                if SQUEEZE:
                    total += tl.where(whole, now, 0.0)
                tl.store(
                    target + (row - 1) * out_width * channels, now.to(out.dtype.element_ty),
                    mask=whole,
                )  # fmt: skip
                now = after
                after = later
                later = tl.zeros((PIXELS, BLOCK_WIDTH), tl.float32)
        else:
            down = (first * 2 - 1) * width * channels
            some = (k < tl.where(first > 0, SPAN, 0))[None, :]
            a = tl.load(at0 + down, mask=in0 & some, other=0.0)
            now = tl.dot(a, top0, now)
            a = tl.load(at1 + down, mask=in1 & some, other=0.0)
            now = tl.dot(a, top1, now)
            a = tl.load(at2 + down, mask=in2 & some, other=0.0)
            now = tl.dot(a, top2, now)
            for y in tl.range(first, last, num_stages=STAGES):
                down = y * 2 * width * channels
                some = (k < SPAN)[None, :]
                a = tl.load(at0 + down, mask=in0 & some, other=0.0)
                now = tl.dot(a, mid0, now)
                a = tl.load(at1 + down, mask=in1 & some, other=0.0)
                now = tl.dot(a, mid1, now)
                a = tl.load(at2 + down, mask=in2 & some, other=0.0)
                now = tl.dot(a, mid2, now)
                some = (k < tl.where(y * 2 + 1 < height, SPAN, 0))[None, :]
                down += width * channels
                a = tl.load(at0 + down, mask=in0 & some, other=0.0)
                now = tl.dot(a, low0, now)
                after = tl.dot(a, top0, after)
                a = tl.load(at1 + down, mask=in1 & some, other=0.0)
                now = tl.dot(a, low1, now)
                after = tl.dot(a, top1, after)
                a = tl.load(at2 + down, mask=in2 & some, other=0.0)
                now = tl.dot(a, low2, now)
                after = tl.dot(a, top2, after)
                now = tl.maximum(now + shift, 0.0)
                if SQUEEZE:
                    total += tl.where(kept, now, 0.0)
                tl.store(target + y * out_width * channels, now.to(out.dtype.element_ty), mask=kept)
                now = after
                after = tl.zeros((PIXELS, BLOCK_WIDTH), tl.float32)
        if SQUEEZE:
            added = tl.sum(tl.reshape(total, (TOGETHER, ROW, BLOCK_WIDTH)), 1)
            owner = tl.program_id(2) * TOGETHER + tl.arange(0, TOGETHER)
            base = (owner * tl.num_programs(1) + part) * channels + span * SPAN
            tl.store(
                sums + base[:, None] + column[None, :], added,
                mask=(owner < images)[:, None] & within[None, :],
            )  # fmt: skip

    @triton.jit
    def _pixels_of(
        base, k, left, alive, width, channels,
        STRIDE: tl.constexpr, SPAN: tl.constexpr,
    ):  # fmt: skip
        # Column k of the operand is a channel of the left, middle or right pixel in a row of the
        # input.
        side = k // SPAN % 3
        across = (left * STRIDE)[:, None] + (side - 1)[None, :]
        down = k // (3 * SPAN)
        at = base + (down[None, :] * width + across) * channels + (k % SPAN)[None, :]
        inside = (
            alive[:, None] & (across >= 0) & (across < width) & (k < 3 * SPAN * STRIDE)[None, :]
        )  # fmt: skip
        return at, inside, down[None, :]

    @triton.jit(do_not_specialize=[
        "height", "width", "out_height", "out_width", "channels", "images", "rows"
    ])  # fmt: skip
    def _chain(
        x, weight, bias, out, sums,
        height, width, out_height, out_width, channels, images, rows,
        STRIDE: tl.constexpr, SPAN: tl.constexpr, SLOT: tl.constexpr,
        DEPTH: tl.constexpr, MORE: tl.constexpr, PIXELS: tl.constexpr, ROW: tl.constexpr,
        SQUEEZE: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        channels = channels // 8 * 8  # lets the compiler read 16 bytes at once
        TOGETHER: tl.constexpr = PIXELS // ROW
        COLUMNS: tl.constexpr = 4 * SLOT if STRIDE == 1 else 2 * SLOT
        span = tl.program_id(0)
        across = tl.cdiv(out_width, ROW)
        part = tl.program_id(1)
        pixel = tl.arange(0, PIXELS)
        image = tl.program_id(2) * TOGETHER + pixel // ROW
        left = part % across * ROW + pixel % ROW
        alive = (image < images) & (left < out_width)
        first = part // across * rows
        last = tl.minimum(first + rows, out_height)
        base = x + (image.to(tl.int64) * (height * width * channels) + span * SPAN)[:, None]
        n = tl.arange(0, COLUMNS)
        k = tl.arange(0, DEPTH)
        matrix = weight + span * ((DEPTH + MORE) * COLUMNS) + n[None, :]
        b = tl.load(matrix + k[:, None] * COLUMNS)
        at, inside, deep = _pixels_of(base, k, left, alive, width, channels, STRIDE, SPAN)
        if MORE:
            k2 = DEPTH + tl.arange(0, MORE)
            b2 = tl.load(matrix + k2[:, None] * COLUMNS)
            at2, inside2, deep2 = _pixels_of(base, k2, left, alive, width, channels, STRIDE, SPAN)
        column = tl.arange(0, SLOT)
        within = column < SPAN
        shift = tl.load(bias + span * SPAN + column, mask=within, other=0.0)[None, :]
        target = (
            out + image.to(tl.int64)[:, None] * (out_height * out_width * channels)
            + (left * channels + span * SPAN)[:, None] + column[None, :]
        )  # fmt: skip
        kept = alive[:, None] & within[None, :]
        total = tl.zeros((PIXELS, SLOT), tl.float32)
        now = tl.zeros((PIXELS, SLOT), tl.float32)
        after = tl.zeros((PIXELS, SLOT), tl.float32)
        # The first steps also accumulate rows above the first one, which are not stored.
        for step in tl.range(first - 1, last + 2 - STRIDE, num_stages=STAGES):
            row = step * STRIDE
            down = row * width * channels
            there = inside & (row + deep >= 0) & (row + deep < height)
            p = tl.dot(tl.load(at + down, mask=there, other=0.0), b)
            if MORE:
                there = inside2 & (row + deep2 >= 0) & (row + deep2 < height)
                p = tl.dot(tl.load(at2 + down, mask=there, other=0.0), b2, p)
            if STRIDE == 1:
                # The slots are the row below, this row, the row above, and an empty one.
                slots = tl.permute(tl.reshape(p, (PIXELS, 2, 2, SLOT)), (0, 3, 1, 2))
                even, odd = tl.split(slots)
                below, above = tl.split(even)
                same, _empty = tl.split(odd)
                done = tl.maximum(now + above + shift, 0.0)
                y = step - 1
                now = after + same
                after = below
            else:
                same, below = tl.split(tl.permute(tl.reshape(p, (PIXELS, 2, SLOT)), (0, 2, 1)))
                done = tl.maximum(now + same + shift, 0.0)
                y = step
                now = below
            whole = kept & (left < tl.where(y >= first, out_width, 0))[:, None]
            if SQUEEZE:
                total += tl.where(whole, done, 0.0)
            tl.store(target + y * out_width * channels, done.to(out.dtype.element_ty), mask=whole)
        if SQUEEZE:
            added = tl.sum(tl.reshape(total, (TOGETHER, ROW, SLOT)), 1)
            owner = tl.program_id(2) * TOGETHER + tl.arange(0, TOGETHER)
            to = (owner * tl.num_programs(1) + part) * channels + span * SPAN
            tl.store(
                sums + to[:, None] + column[None, :], added,
                mask=(owner < images)[:, None] & within[None, :],
            )  # fmt: skip
