"""PyTorch as it is, and with what costs nothing: folded norms, channels last, padded groups."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from regnet.engines.base import DTYPES, Runner, Target, half_obstacle
from regnet.engines.transforms import channels_last, folded, padded, pays_to_pad


class Eager:
    """The model as it is: the reference, and always in the race."""

    name = "eager"

    def obstacle(self, target: Target) -> str | None:
        return None if target.precision == "fp32" else "the reference is fp32"

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        return inference(model.eval())


class ChannelsLast:
    """Norms folded, memory by pixels."""

    name = "channels_last"

    def obstacle(self, target: Target) -> str | None:
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        return _prepared(folded(model), target)


class Padded:
    """Norms folded, memory by pixels, groups widened to powers of two."""

    name = "padded"

    def obstacle(self, target: Target) -> str | None:
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        if not pays_to_pad(model):
            raise ValueError("all group widths are powers of two")
        return _prepared(padded(model), target)


def inference(call: Callable[[Tensor], Tensor]) -> Runner:
    """The call without gradients."""

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return call(x)

    return run


def casting(call: Callable[[Tensor], Tensor], target: Target) -> Runner:
    """A runner of a program in the target's precision, channels last: float32 in and out."""
    dtype = DTYPES[target.precision]
    return inference(lambda x: call(x.to(dtype=dtype, memory_format=torch.channels_last)).float())


def _prepared(model: nn.Module, target: Target) -> Runner:
    return casting(channels_last(model, DTYPES[target.precision]), target)
