"""The paper's initialization (pycls, `models/blocks.py`)."""

from math import sqrt

from torch import nn

from regnet.nn.layers import EvoNormS0a, HaloPositions, ScaledStdConv2d


def init_weights(model: nn.Module) -> None:
    """Convolutions normal by fan-out, linear layers normal with 0.01, biases zero, norms fresh.

    The fan-out counts all output channels, whatever the number of groups. Every parameter and
    buffer is set, so that a model may come from memory that nobody has written. On the device
    "meta" there are no numbers to set.
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
    """Zero the scale of the last norm of every residual branch, so that blocks start as identities.

    Blocks without a shortcut keep theirs: they would pass nothing on.
    """
    for block in model.modules():
        if getattr(block, "downsample", None) is None:
            continue
        last = getattr(block, "conv3", None) or getattr(block, "conv2", None)
        weight = getattr(getattr(last, "bn", None), "weight", None)
        if weight is not None:
            nn.init.zeros_(weight)
