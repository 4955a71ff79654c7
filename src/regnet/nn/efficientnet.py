"""EfficientNet B0 to B7, which the RegNet paper compares with, as a baseline for measurements only.

The networks follow Tan and Le 2019 as implemented in the paper's code (pycls, `models/effnet.py`),
which pads symmetrically. Module names are timm's, so that the Hub's weights load, except those
whose names begin with tf_.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

from torch import Tensor, nn

from regnet.design.layers import Layer, classifier, squeeze_excitation

# The seven stages of B0 (Tan and Le 2019, table 1).
_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
_WIDTHS = (16, 24, 40, 80, 112, 192, 320)
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientNetSize:
    """One size of EfficientNet: B0 scaled in width, depth and resolution."""

    name: str
    width: float
    depth: float
    image_size: int

    @property
    def stem_width(self) -> int:
        """Output channels of the stem."""
        return _scaled(32, self.width)

    @property
    def head_width(self) -> int:
        """Channels before the classifier."""
        return _scaled(1280, self.width)

    def stages(self) -> tuple[tuple[int, int, int, int], ...]:
        """Return depth, width, kernel size and stride of each stage."""
        depths = (ceil(d * self.depth) for d in _DEPTHS)
        widths = (_scaled(w, self.width) for w in _WIDTHS)
        return tuple(zip(depths, widths, _KERNELS, _STRIDES, strict=True))

    def layers(self, image_size: int) -> Iterator[Layer]:
        """Yield every layer of the network for one square image of `image_size` pixels a side."""
        area_in, side = image_size**2, (image_size - 1) // 2 + 1
        yield from _conv_norm(9 * 3, 3, self.stem_width, area_in, side**2)
        width_in = self.stem_width
        for number, (depth, width, kernel_size, stride) in enumerate(self.stages()):
            for index in range(depth):
                inner, step = width_in * (6 if number else 1), stride if index == 0 else 1
                area_in, side = side**2, (side - 1) // step + 1
                if number:
                    yield from _conv_norm(width_in, width_in, inner, area_in, area_in)
                yield from _conv_norm(kernel_size**2, inner, inner, area_in, side**2)
                yield from squeeze_excitation(inner, width_in // 4, side**2)
                added = width * side**2 if step == 1 and width == width_in else 0
                yield from _conv_norm(inner, inner, width, side**2, side**2, added)
                width_in = width
        yield from _conv_norm(width_in, width_in, self.head_width, side**2, side**2)
        yield classifier(self.head_width, 1000, side**2)


def _conv_norm(
    fan_in: int, width_in: int, width: int, area_in: int, area: int, added: int = 0
) -> Iterator[Layer]:
    yield Layer(
        kind="conv",
        width_in=width_in,
        width=width,
        area_in=area_in,
        area=area,
        fan_in=fan_in,
        grouped=fan_in < width_in,
        added=added,
    )
    yield Layer(kind="norm", width=width, other_params=2 * width)


def _scaled(width: int, factor: float) -> int:
    """Scale a width and round it to the nearest multiple of 8, but never below 90 % of it."""
    scaled = width * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


EFFICIENTNETS: Final[Mapping[str, EfficientNetSize]] = {
    f"efficientnet_b{number}": EfficientNetSize(
        name=f"efficientnet_b{number}", width=width, depth=depth, image_size=size
    )
    for number, (width, depth, size) in enumerate(
        (
            (1.0, 1.0, 224),
            (1.0, 1.1, 240),
            (1.1, 1.2, 260),
            (1.2, 1.4, 300),
            (1.4, 1.8, 380),
            (1.6, 2.2, 456),
            (1.8, 2.6, 528),
            (2.0, 3.1, 600),
        )
    )
}


class EfficientNet(nn.Module):
    """An EfficientNet, from images (N, 3, H, W) to logits (N, num_classes)."""

    conv_norm_pairs = (("conv_stem", "bn1"), ("conv_head", "bn2"))
    """Names of each convolution and of the norm that follows it, for folding."""

    def __init__(self, size: EfficientNetSize, num_classes: int = 1000) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv_stem = _conv(3, size.stem_width, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(size.stem_width)
        self.act = nn.SiLU(inplace=True)
        stages, width_in = [], size.stem_width
        for number, (depth, width, kernel_size, stride) in enumerate(size.stages()):
            blocks = []
            for index in range(depth):
                expansion = 6 if number else 1
                step = stride if index == 0 else 1
                blocks.append(MBConv(width_in, width, kernel_size, step, expansion))
                width_in = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _conv(width_in, size.head_width, 1)
        self.bn2 = nn.BatchNorm2d(size.head_width)
        self.classifier = nn.Linear(size.head_width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        x = self.act(self.bn2(self.conv_head(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1 expansion if any, depthwise, squeeze-excitation, linear 1x1."""

    def __init__(
        self, width_in: int, width: int, kernel_size: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = width_in * expansion
        self.residual = stride == 1 and width_in == width
        self.act = nn.SiLU(inplace=True)
        self.expands = expansion > 1
        self.conv_norm_pairs = (
            (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
            if self.expands
            else (("conv_dw", "bn1"), ("conv_pw", "bn2"))
        )
        if self.expands:
            self.conv_pw = _conv(width_in, inner, 1)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv_dw = _conv(inner, inner, kernel_size, stride=stride, groups=inner)
            self.bn2 = nn.BatchNorm2d(inner)
            self.se = SqueezeExcite(inner, width_in // 4)
            self.conv_pwl = _conv(inner, width, 1)
            self.bn3 = nn.BatchNorm2d(width)
        else:  # without an expansion, timm's numbers start at the depthwise convolution
            self.conv_dw = _conv(inner, inner, kernel_size, stride=stride, groups=inner)
            self.bn1 = nn.BatchNorm2d(inner)
            self.se = SqueezeExcite(inner, width_in // 4)
            self.conv_pw = _conv(inner, width, 1)
            self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.expands:
            out = self.act(self.bn1(self.conv_pw(x)))
            out = self.se(self.act(self.bn2(self.conv_dw(out))))
            out = self.bn3(self.conv_pwl(out))
        else:
            out = self.se(self.act(self.bn1(self.conv_dw(x))))
            out = self.bn2(self.conv_pw(out))
        summed: Tensor = out + x if self.residual else out
        return summed


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all channels."""

    def __init__(self, width: int, se_width: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(width, se_width, 1)
        self.act = nn.SiLU(inplace=True)
        self.conv_expand = nn.Conv2d(se_width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        gate: Tensor = self.conv_expand(self.act(self.conv_reduce(squeezed))).sigmoid()
        return x * gate


def _conv(
    width_in: int, width: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = kernel_size // 2
    return nn.Conv2d(width_in, width, kernel_size, stride, padding, groups=groups, bias=False)
