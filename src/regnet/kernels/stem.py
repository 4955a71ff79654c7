"""The stem: 3x3 convolution of few channels, stride 2, with ReLU."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from regnet.kernels.launch import HAS_TRITON, blocks, fastest, power_of_two, runs_kernels


@dataclass(frozen=True, slots=True, eq=False)
class Stem:
    """A 3x3 convolution, padding 1, ready for the kernel."""

    weight: Tensor
    """(9 * width_in, width), float32; taps first, then channels."""
    bias: Tensor
    """(width,), float32."""
    stride: int

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "Stem":
        """From a layer with norms folded into it."""
        weight = layer.weight.detach().float().permute(2, 3, 1, 0).flatten(0, 2)
        bias = layer.bias if layer.bias is not None else weight.new_zeros(weight.shape[1])
        return cls(weight.contiguous(), bias.detach().float().contiguous(), layer.stride[0])


def stem(x: Tensor, layer: Stem) -> Tensor:
    """ReLU(convolution + bias): (N, H, W, width_in) to (N, H', W', width)."""
    if not runs_kernels(x):
        return reference(x, layer)
    images, height, width, channels = x.shape
    out_height, out_width = ((side - 1) // layer.stride + 1 for side in (height, width))
    rows, out_channels = images * out_height * out_width, len(layer.bias)
    out = x.new_empty((images, out_height, out_width, out_channels))

    def run(way: tuple[int, int]) -> None:
        pixels, warps = way
        _kernel[(blocks(rows, pixels),)](
            x, layer.weight, layer.bias, out, rows, height, width, out_height, out_width,
            STRIDE=layer.stride, WIDTH_IN=channels, WIDTH=out_channels,
            BLOCK_WIDTH=power_of_two(out_channels, least=16, most=1024), PIXELS=pixels,
            num_warps=warps, num_stages=1,
        )  # fmt: skip

    ways = [(128, 4), (64, 4), (128, 8)]
    run(fastest(("stem", tuple(x.shape), out_channels, layer.stride, x.dtype), ways, run, x))
    return out


def reference(x: Tensor, layer: Stem) -> Tensor:
    """The same in PyTorch."""
    weight = layer.weight.unflatten(0, (3, 3, x.shape[-1])).permute(3, 2, 0, 1)
    maps = functional.conv2d(x.permute(0, 3, 1, 2).float(), weight, layer.bias, layer.stride, 1)
    return maps.relu().permute(0, 2, 3, 1).contiguous().to(x.dtype)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["rows", "height", "width", "out_height", "out_width"])
    def _kernel(
        x, weight, bias, out, rows, height, width, out_height, out_width,
        STRIDE: tl.constexpr, WIDTH_IN: tl.constexpr, WIDTH: tl.constexpr,
        BLOCK_WIDTH: tl.constexpr, PIXELS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        left = row % out_width
        y = row // out_width % out_height
        image = (row // out_width // out_height).to(tl.int64)
        column = tl.arange(0, BLOCK_WIDTH)
        within = column < WIDTH
        total = tl.zeros((PIXELS, BLOCK_WIDTH), tl.float32)
        for tap in tl.static_range(9):
            down, right = y * STRIDE + tap // 3 - 1, left * STRIDE + tap % 3 - 1
            inside = (row < rows) & (down >= 0) & (down < height) & (right >= 0) & (right < width)
            at = x + ((image * height + down) * width + right) * WIDTH_IN
            for channel in tl.static_range(WIDTH_IN):
                # 27 products a pixel: too few for the matrix units, few enough without.
                value = tl.load(at + channel, mask=inside, other=0.0).to(tl.float32)
                factor = weight + (tap * WIDTH_IN + channel) * WIDTH + column
                total += value[:, None] * tl.load(factor, mask=within, other=0.0)[None, :]
        total += tl.load(bias + column, mask=within, other=0.0)[None, :]
        to = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        mask = (row < rows)[:, None] & within[None, :]
        tl.store(out + to, tl.maximum(total, 0.0).to(out.dtype.element_ty), mask=mask)
