"""A network captured by torch.export: what exporters and ahead-of-time compilers start from."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from regnet.engines.base import Target
from regnet.engines.transforms import folded, placed


class Float32(nn.Module):
    """A network in another precision and layout that takes and gives float32, NCHW."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        super().__init__()
        self.model = placed(model, target)
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(dtype=self.target.dtype, memory_format=self.target.memory_format)
        out: Tensor = self.model(x)
        return out.float()


def capture(
    model: nn.Module, example: Tensor, target: Target, *, dynamic: bool = False
) -> ExportedProgram:
    """The folded network as a program: float32 (N, C, H, W) to float32.

    Args:
        model: it is not changed.
        example: images of the shape to capture for.
        target: precision and layout inside the program.
        dynamic: whether batch size, height and width may differ from the example's. Both sides must
            then be larger than what one pixel of the last feature map stands for.
    """
    if dynamic and (len(example) < 2 or min(example.shape[-2:]) < smallest_side(model)):
        count = max(2, len(example))
        size = [max(side, smallest_side(model)) for side in example.shape[-2:]]
        example = example.new_zeros(count, example.shape[1], *size)
    wrapped = Float32(folded(model), target).to(example.device)
    with torch.no_grad():
        return torch.export.export(
            wrapped, (example.contiguous(),), dynamic_shapes=dynamic_shapes(model, dynamic=dynamic)
        )


def dynamic_shapes(model: nn.Module, *, dynamic: bool = True) -> tuple[dict[int, Any]] | None:
    """What torch.export is told about images whose number and size may differ."""
    if not dynamic:
        return None
    # torch.export takes sizes of 1 for constants: a batch of one, a last map of one pixel.
    least = smallest_side(model)
    return ({0: Dim("batch"), 2: Dim("height", min=least), 3: Dim("width", min=least)},)


def smallest_side(model: nn.Module) -> int:
    """Pixels that the side of an image needs for a dynamic program."""
    stages: Any = getattr(model, "feature_info", None)
    return int(stages[-1]["reduction"]) + 1 if stages else 33
