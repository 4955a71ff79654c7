"""PyTorch as it is, and with folded norms, another layout or padded groups."""

from torch import Tensor, nn

from regnet.engines.base import (
    OWN_LAYOUT,
    Runner,
    Target,
    casting,
    half_obstacle,
    inference,
)
from regnet.engines.transforms import folded, padded_if_it_pays, placed
from regnet.nn.model import evaluation_view


class Eager:
    """The model as it is: the reference, and always in the race."""

    name = "eager"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        if target.layout == "contiguous":
            return OWN_LAYOUT
        return None if target.precision == "fp32" else "the reference is fp32"

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        # Modules of its own, since the caller's may go back to training; the tensors are shared.
        return inference(evaluation_view(model, always=True))


class Folded:
    """Norms folded into the convolutions, where there are any, and the target's layout."""

    name = "folded"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        return casting(placed(folded(model), target), target)


class Padded:
    """Norms folded, groups widened to powers of two."""

    name = "padded"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        return casting(placed(padded_if_it_pays(model), target), target)
