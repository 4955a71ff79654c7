"""Grouped 3x3 convolution with ReLU, and the sums that squeeze-excitation needs, in one pass."""

from dataclasses import dataclass, field

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

    def run(way: "_Tiles | _Sweep") -> None:
        span = way.together * layer.group_width
        columns, deep = blocks(span, way.block_width), blocks(span, way.block_in)
        packed = layer.packed(way.together, deep * way.block_in, columns * way.block_width)
        parts = way.parts(out_height, out_width)
        added = x.new_empty((images, parts, channels) if squeeze else 1, dtype=torch.float32)
        sums[:] = [added]
        sizes = (height, width, out_height, out_width, channels)
        if isinstance(way, _Tiles):
            _tiles[(channels // span * columns, parts, images)](
                x, packed, layer.bias, out, added, *sizes, parts,
                STRIDE=layer.stride, SPAN=span, DEPTHS=deep, COLUMNS=columns,
                BLOCK_IN=way.block_in, BLOCK_WIDTH=way.block_width, PIXELS=way.pixels,
                TILE_WIDTH=way.tile_width, SQUEEZE=squeeze,
                num_warps=way.warps, num_stages=1,
            )  # fmt: skip
        else:
            together = way.pixels // way.row(out_width)
            _sweep[(channels // span * columns, parts, blocks(images, together))](
                x, packed, layer.bias, out, added, *sizes, images, way.rows,
                STRIDE=layer.stride, SPAN=span, COLUMNS=columns, BLOCK_IN=way.block_in,
                BLOCK_WIDTH=way.block_width, PIXELS=way.pixels, ROW=way.row(out_width),
                SQUEEZE=squeeze, STAGES=way.stages,
                num_warps=way.warps, num_stages=way.stages,
            )  # fmt: skip

    key = ("grouped", tuple(x.shape), layer.group_width, layer.stride, x.dtype, squeeze)
    run(fastest(key, _ways(x, layer, out_height, out_width), run, x))
    return out, sums[0] if squeeze else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """Each block computes a tile of pixels of an image, and reads the pixels of each tap anew."""

    together: int
    """Groups per block."""
    block_in: int
    block_width: int
    pixels: int
    """Of a tile; they lie in rows of `tile_width`, or where that is 0 in a row after the other."""
    tile_width: int
    warps: int

    def parts(self, height: int, width: int) -> int:
        """Tiles of an image."""
        if not self.tile_width:
            return blocks(height * width, self.pixels)
        return blocks(height, self.pixels // self.tile_width) * blocks(width, self.tile_width)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """Each block goes down some rows of some images: what it reads of a row serves three rows."""

    together: int
    block_in: int
    block_width: int
    pixels: int
    """That are computed at once: rows of `row` pixels of as many images."""
    rows: int
    """That a block goes down."""
    stages: int
    warps: int

    def row(self, width: int) -> int:
        """Pixels of a row in a block, some of them perhaps beyond its end."""
        return power_of_two(width, least=8, most=self.pixels)

    def parts(self, height: int, width: int) -> int:
        """Blocks of an image."""
        return blocks(height, self.rows) * blocks(width, self.row(width))


def _ways(x: Tensor, layer: Grouped, height: int, width: int) -> list[_Tiles | _Sweep]:
    images, channels, g = len(x), x.shape[-1], layer.group_width
    groups, large = channels // g, height * width >= 784
    together = [1]
    while together[-1] * 2 * g <= 32 and groups % (together[-1] * 2) == 0:
        together.append(together[-1] * 2)
    ways: list[_Tiles | _Sweep] = []
    for count in together[-2:]:
        span = count * g
        if span <= 64:
            size = power_of_two(span, least=16, most=64)
            row = power_of_two(width, least=8, most=64)
            for stages, narrow in ((1, False), (3, False), *([(3, True)] if size == 64 else [])):
                walks = groups // count * blocks(width, row) * blocks(images, 64 // row)
                walks *= 2 if narrow else 1
                ways += [
                    _Sweep(
                        together=count, block_in=size, block_width=32 if narrow else size,
                        pixels=64, rows=rows, stages=stages, warps=4,
                    )
                    for rows in sorted({_rows(height, walks, x, per) for per in (2, 6, 16)})
                ]  # fmt: skip
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


def _rows(height: int, walks: int, x: Tensor, per_processor: int) -> int:
    """Rows of a walk, so that each multiprocessor has some blocks to work on."""
    if not x.is_cuda:
        return 2
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    parts = min(max(1, round(per_processor * processors / walks)), height)
    return blocks(height, parts)


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
        channels = channels // 8 * 8  # tells the compiler that 16 bytes may be read at once
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
            # A row of the input is the last of three for `now`, the middle one for `after`.
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
