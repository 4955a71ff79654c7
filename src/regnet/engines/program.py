"""Capture a network with torch.export, as the start for exporters and ahead-of-time compilers."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from regnet.engines.base import Target
from regnet.engines.outputs import each
from regnet.engines.served import PIXEL_AXES, Served
from regnet.engines.transforms import folded, placed

AXES: Final[Mapping[int, str]] = {0: "batch", 2: "height", 3: "width"}
"""Axes of images that may stay free in a program."""


_shared: ContextVar["Shared | None"] = ContextVar("shared", default=None)


@dataclass(slots=True, kw_only=True)
class Shared:
    """What several engines start from, made for the first that asks."""

    folder: Path
    """For files."""
    programs: dict[Any, ExportedProgram] = field(default_factory=dict)
    files: dict[int, Path] = field(default_factory=dict)
    """ONNX files by the id of their program."""


@contextmanager
def shared_programs() -> Iterator[None]:
    """Inside, a network is captured and exported once; it must not change meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        token = _shared.set(Shared(folder=Path(folder)))
        try:
            yield
        finally:
            _shared.reset(token)


def shared() -> Shared | None:
    """What is shared, inside of `shared_programs`; else None."""
    return _shared.get()


class Float32(nn.Module):
    """A network in another precision and layout that takes and gives float32, NCHW."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        super().__init__()
        self.model = placed(model, target)
        self.target = target

    def forward(self, images: Tensor) -> Any:
        x = images.to(dtype=self.target.dtype, memory_format=self.target.memory_format)
        return each(Tensor.float, self.model(x))


def capture(
    model: nn.Module, example: Tensor, target: Target, *, free: Collection[str] = ()
) -> ExportedProgram:
    """The folded network as a program: float32 (N, C, H, W) to float32.

    Args:
        model: it is not changed; `Served` takes pixels instead.
        example: images of the shape to capture for.
        target: precision and layout inside the program.
        free: axes that may have other sizes than the example's, of `AXES`. Free sides must be
            larger than what one pixel of the last feature map stands for.
    """
    known = {} if (found := shared()) is None else found.programs
    key = (id(model), tuple(example.shape), target, tuple(free))
    if key in known:
        return known[key]
    # torch.export takes sizes of 1 for constants: a batch of one, a last map of one pixel.
    least = {"batch": 2, "height": smallest_side(model), "width": smallest_side(model)}
    axes = axes_of(model)
    sizes = [
        max(size, least[axes[axis]]) if axes.get(axis) in free else size
        for axis, size in enumerate(example.shape)
    ]
    if sizes != list(example.shape):
        example = example.new_zeros(sizes)
    wrapped = Float32(folded(model), target).to(example.device)
    with torch.no_grad():
        program = torch.export.export(
            wrapped, (example.contiguous(),), dynamic_shapes=dynamic_shapes(model, free)
        )
    known[key] = program
    return program


def dynamic_shapes(model: nn.Module, free: Collection[str]) -> tuple[dict[int, Any]] | None:
    """What torch.export is told about axes whose size may differ."""
    least = smallest_side(model)
    dims = {"batch": Dim("batch"), "height": Dim("height", min=least)}
    dims["width"] = Dim("width", min=least)
    axes = axes_of(model).items()
    return ({axis: dims[name] for axis, name in axes if name in free},) if free else None


def axes_of(model: nn.Module) -> Mapping[int, str]:
    """Axes of a network's input that may stay free."""
    return PIXEL_AXES if isinstance(model, Served) else AXES


def smallest_side(model: nn.Module) -> int:
    """Pixels that the side of an image needs for a dynamic program."""
    found = (getattr(module, "feature_info", None) for module in model.modules())
    stages: Any = next((info for info in found if info), None)
    return int(stages[-1]["reduction"]) + 1 if stages else 33
