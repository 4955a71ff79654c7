"""Initialization of the paper's networks (pycls, `models/blocks.py`)."""

from math import sqrt

from torch import nn

from regnet.nn.layers import EvoNormS0a, HaloPositions, ScaledStdConv2d


def init_weights(model: nn.Module) -> None:
    """Initialize every parameter and buffer of a model as pycls does.

    The weights of convolutions are normal with standard deviation sqrt(2 / fan-out), those of
    linear layers normal with standard deviation 0.01. Biases are zero, and norms are reset. The
    fan-out counts all output channels, regardless of the number of groups. Because every tensor is
    set, the model may be built on uninitialized memory. A model on the device "meta" has no values
    and is left unchanged.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=sqrt(2 / fan_out))
            if isinstance(module, ScaledStdConv2d):
                module.reset_gain()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, EvoNormS0a)):
                module.reset_parameters()
            elif isinstance(module, HaloPositions):
                module.reset_positions()
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def zero_last_norms(model: nn.Module) -> None:
    """Zero the last norm of every residual branch, so that each block starts as its shortcut.

    Only the scale is set to zero. Blocks without a shortcut are left unchanged, because their
    output would be zero.
    """
    for block in model.modules():
        if getattr(block, "downsample", None) is None:
            continue
        last = getattr(block, "conv3", None) or getattr(block, "conv2", None)
        weight = getattr(getattr(last, "bn", None), "weight", None)
        if weight is not None:
            nn.init.zeros_(weight)
