"""Engines of eager PyTorch: the model as it is, with folded batch norms, or with padded groups."""

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
from regnet.nn.views import evaluation_view


class Eager:
    """The model as it is, in float32: the reference for all engines."""

    name = "eager"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        if target.layout == "contiguous":
            return OWN_LAYOUT
        return None if target.precision == "fp32" else "the reference is fp32"

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        # New modules that share the tensors, because the caller may go back to training the model.
        return inference(evaluation_view(model, always=True))


class Folded:
    """Batch norms, if any, folded into the convolutions, in the target's precision and layout."""

    name = "folded"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        return casting(placed(folded(model), target), target)


class Padded:
    """Batch norms folded, and group widths padded to powers of two."""

    name = "padded"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        return casting(placed(padded_if_it_pays(model), target), target)
