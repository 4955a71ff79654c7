"""The layers that blocks are made of.

Child names (`conv`, `bn`, `fc1`, `fc2`) are the checkpoint format of the Hub and stay.
"""

import torch
from torch import Tensor, nn

from regnet.design.blocks import NORM_GROUP_WIDTH
from regnet.design.config import Activation, Norm


def conv2d(
    width_in: int,
    width: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """A convolution padded so that stride 1 keeps height and width."""
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(width_in, width, kernel_size, stride, padding, dilation, groups, bias=bias)


def activation_layer(activation: Activation | None, *, inplace: bool = True) -> nn.Module:
    """The activation; None gives the identity. In place only where no one else reads the input."""
    if activation is None:
        return nn.Identity()
    return {"relu": nn.ReLU, "silu": nn.SiLU}[activation](inplace=inplace)


def norm_activation(
    norm: Norm, width: int, activation: Activation | None
) -> tuple[nn.Module, nn.Module]:
    """The norm and the activation after it; EvoNorm has the activation inside."""
    if norm == "evonorm_s0a":
        return EvoNormS0a(width, activate=activation is not None), nn.Identity()
    if norm == "group":
        return nn.GroupNorm(width // NORM_GROUP_WIDTH, width), activation_layer(activation)
    return nn.BatchNorm2d(width), activation_layer(activation)


class ConvNormAct(nn.Module):
    """Convolution without bias, norm, activation: (N, width_in, H, W) to (N, width, H', W')."""

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel_size: int = 1,
        *,
        norm: Norm,
        activation: Activation | None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = conv2d(
            width_in, width, kernel_size, stride=stride, dilation=dilation, groups=groups
        )
        self.bn, self.act = norm_activation(norm, width, activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class EvoNormS0a(nn.Module):
    """EvoNorm-S0, affine: x * sigmoid(v * x) / std, scaled and shifted per channel.

    The standard deviation is that of groups of 16 channels, with epsilon 1e-3 under the root, as in
    timm's `EvoNorm2dS0a`. Without activation only the division remains, and there is no v.
    """

    def __init__(self, width: int, *, activate: bool, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.v = nn.Parameter(torch.empty(width)) if activate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale and v of one, shift of zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        if self.v is not None:
            nn.init.ones_(self.v)

    def forward(self, x: Tensor) -> Tensor:
        # Sums over whole feature maps leave the range of half precision.
        half = x.dtype in (torch.float16, torch.bfloat16)
        wide = x.float() if half else x
        grouped: Tensor = wide.unflatten(1, (-1, NORM_GROUP_WIDTH))  # type: ignore[no-untyped-call]
        variance = grouped.var(dim=(2, 3, 4), correction=0, keepdim=True)
        std = (variance + self.eps).sqrt().expand_as(grouped).flatten(1, 2).to(x.dtype)
        if self.v is not None:
            x = x * (x * self.v[:, None, None]).sigmoid()
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        return x / std * scale + shift


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the means of all channels (Hu et al. 2018)."""

    def __init__(self, width: int, se_width: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = conv2d(width, se_width, 1, bias=True)
        self.act = activation_layer(activation)
        self.fc2 = conv2d(se_width, width, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        gate: Tensor = self.fc2(self.act(self.fc1(squeezed))).sigmoid()
        return x * gate


class AvgPool2x2(nn.Module):
    """Average of 2x2 pixels that loses no row or column.

    With stride 2, an odd last row or column is averaged alone, which repeating it gives;
    `ceil_mode` would do the same, but ties an exported program to even or odd sizes. With stride 1,
    a row and a column of zeros keep the size, as timm has it where the stride became dilation.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        mode = "replicate" if self.stride == 2 else "constant"
        return nn.functional.avg_pool2d(
            nn.functional.pad(x, (0, 1, 0, 1), mode=mode), 2, self.stride
        )

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class DropPath(nn.Module):
    """Drops whole residual branches per sample while training; the rest is scaled up to match."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
