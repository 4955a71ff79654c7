"""The paper's initialization (pycls, `models/blocks.py`)."""

from math import sqrt

from torch import nn


def init_weights(model: nn.Module) -> None:
    """Convolutions normal by fan-out, linear layers normal with 0.01, biases zero.

    The fan-out counts all output channels, whatever the number of groups. Norms keep PyTorch's
    scale of one and shift of zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
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
