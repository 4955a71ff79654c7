"""Capture a network with torch.export, from which exporters and ahead-of-time compilers start."""

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
"""Axes of images (N, C, H, W) whose size may stay free in a program."""


_shared: ContextVar["Shared | None"] = ContextVar("shared", default=None)


@dataclass(slots=True, kw_only=True)
class Shared:
    """Programs and files that several engines start from; the first engine to need one makes it."""

    folder: Path
    """Folder of the files."""
    programs: dict[Any, ExportedProgram] = field(default_factory=dict)
    """Programs by the arguments of `capture`."""
    files: dict[int, Path] = field(default_factory=dict)
    """ONNX files by the id of their program."""


@contextmanager
def shared_programs() -> Iterator[None]:
    """Within this context, capture and export a network once; it must not change meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        token = _shared.set(Shared(folder=Path(folder)))
        try:
            yield
        finally:
            _shared.reset(token)


def shared() -> Shared | None:
    """Return what is shared within `shared_programs`; None outside of it."""
    return _shared.get()


class Float32(nn.Module):
    """A network in another precision and layout that takes and returns float32 in NCHW."""

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
    """Capture the folded network as a program that takes and returns float32.

    Args:
        model: the network, which is not changed. It takes images (N, C, H, W), or pixels if it is
            `Served`.
        example: images of the shape to capture for.
        target: precision and layout inside the program.
        free: names of the axes that may have other sizes than the example's (`AXES`). A free height
            or width must be larger than the reduction of the last feature map (`smallest_side`).
    """
    known = {} if (found := shared()) is None else found.programs
    key = (id(model), tuple(example.shape), target, tuple(free))
    if key in known:
        return known[key]
    # torch.export treats sizes of 1 as constants: a batch of one image, or a last feature map of
    # one pixel. The example gets larger free axes for the capture.
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
    """Return the argument `dynamic_shapes` of torch.export for the free axes."""
    least = smallest_side(model)
    dims = {"batch": Dim("batch"), "height": Dim("height", min=least)}
    dims["width"] = Dim("width", min=least)
    axes = axes_of(model).items()
    return ({axis: dims[name] for axis, name in axes if name in free},) if free else None


def axes_of(model: nn.Module) -> Mapping[int, str]:
    """Return the axes of a network's input whose size may stay free."""
    return PIXEL_AXES if isinstance(model, Served) else AXES


def smallest_side(model: nn.Module) -> int:
    """Return the least height and width, in pixels, of images for a program with free sides."""
    found = (getattr(module, "feature_info", None) for module in model.modules())
    stages: Any = next((info for info in found if info), None)
    # A network that does not say so is taken to reduce images by 32, as RegNets do.
    return int(stages[-1]["reduction"]) + 1 if stages else 33
