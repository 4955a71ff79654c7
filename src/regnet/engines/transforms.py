"""Rewrite networks for inference: the same function with fewer operations or better shapes."""

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from regnet.engines.base import Target
from regnet.errors import EngineError
from regnet.nn.blocks import Bottleneck
from regnet.nn.layers import SqueezeExcitation, StridedDepthwiseConv2d

Network = TypeVar("Network", bound=nn.Module)


def folded(model: Network) -> Network:
    """Return a copy in evaluation mode with batch norms folded into the preceding convolutions.

    A convolution or norm that does more than its class says, such as an adapter around it, a hook,
    or a parametrization, stays as it is.

    Raises:
        EngineError: a tensor is computed before each call, as by pruning, and cannot be copied.
    """
    for name, module in model.named_modules():
        if any(isinstance(value, Tensor) and value.grad_fn for value in vars(module).values()):
            raise EngineError(
                f"{name or type(model).__name__} computes its weight before each call; make the "
                "change permanent first, as torch.nn.utils.prune.remove does"
            )
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        for conv, norm in getattr(module, "conv_norm_pairs", ()):
            pair = getattr(module, conv), getattr(module, norm)
            if all(map(_is_plain, pair)):
                setattr(module, conv, fuse_conv_bn_eval(*pair))
                setattr(module, norm, nn.Identity())
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model


def _is_plain(module: nn.Module) -> bool:
    """Return whether this is a convolution or batch norm that does only what its class says."""
    hooks = (module._forward_pre_hooks, module._forward_hooks)
    return (
        type(module) in (nn.Conv2d, StridedDepthwiseConv2d, nn.BatchNorm2d)
        and not any(hooks)
        and "forward" not in vars(module)
    )


def placed(model: Network, target: Target) -> Network:
    """Convert a model to the target's type and layout, in place, and return it."""
    return model.to(target.dtype).to(memory_format=target.memory_format)  # type: ignore[call-overload,no-any-return]  # torch's stubs lack it


def padded_group_width(group_width: int) -> int:
    """Return the next power of two, for which libraries have kernels."""
    return 1 << (group_width - 1).bit_length()


def padded(model: Network) -> Network:
    """Return a folded copy whose group widths are padded with zeros to powers of two.

    The copy computes the same function. It has additional zero rows in the first 1x1 convolution,
    zero blocks in the 3x3 convolution, and zero columns in squeeze-excitation and the last 1x1
    convolution. ReLU and SiLU map 0 to 0, so the new channels stay zero.
    """
    model = folded(model)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            _pad(module)
    return model


def pays_to_pad(model: nn.Module) -> bool:
    """Return whether some group width is not a power of two."""
    return any(
        isinstance(module, Bottleneck)
        and module.conv2.conv.groups > 1
        and padded_group_width(module.conv2.conv.in_channels // module.conv2.conv.groups)
        != module.conv2.conv.in_channels // module.conv2.conv.groups
        for module in model.modules()
    )


def padded_if_it_pays(model: Network) -> Network:
    """Return a padded copy, as `padded` does.

    Raises:
        EngineError: all group widths are powers of two.
    """
    if not pays_to_pad(model):
        raise EngineError("no group width needs padding")
    return padded(model)


def _pad(block: Bottleneck) -> None:
    grouped = block.conv2.conv
    groups, old = grouped.groups, grouped.in_channels // grouped.groups
    new = padded_group_width(old)
    if new == old or groups == 1:
        return
    first, last = block.conv1.conv, block.conv3.conv
    block.conv1.conv = _conv(
        first, _spread(first.weight, groups, new), _spread(_bias(first), groups, new)
    )
    kernel = _spread(grouped.weight, groups, new)
    kernel = nn.functional.pad(kernel, (0, 0, 0, 0, 0, new - old))
    block.conv2.conv = _conv(grouped, kernel, _spread(_bias(grouped), groups, new))
    if isinstance(block.se, SqueezeExcitation):
        fc1, fc2 = block.se.fc1, block.se.fc2
        block.se.fc1 = _conv(fc1, _spread_inputs(fc1.weight, groups, new), _bias(fc1))
        block.se.fc2 = _conv(
            fc2, _spread(fc2.weight, groups, new), _spread(_bias(fc2), groups, new)
        )
    block.conv3.conv = _conv(last, _spread_inputs(last.weight, groups, new), _bias(last))


def _bias(conv: nn.Conv2d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def _spread(values: Tensor, groups: int, width: int) -> Tensor:
    """Widen output channels (groups * old, ...) to (groups * width, ...), padding each group."""
    parts = values.reshape(groups, -1, *values.shape[1:])
    out = values.new_zeros(groups, width, *values.shape[1:])
    out[:, : parts.shape[1]] = parts
    return out.flatten(0, 1)


def _spread_inputs(weight: Tensor, groups: int, width: int) -> Tensor:
    """Widen the input channels of a convolution's weight in the same manner."""
    return _spread(weight.transpose(0, 1), groups, width).transpose(0, 1).contiguous()


def _conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a copy of a convolution with other weights."""
    new = nn.Conv2d(
        weight.shape[1] * conv.groups,
        weight.shape[0],
        conv.kernel_size,  # type: ignore[arg-type]  # a pair
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        device="meta",
    )
    new.weight = nn.Parameter(weight.detach(), requires_grad=False)
    new.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return new
