"""torch.compile and AOTInductor: one program for the whole network, weights frozen into it."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from regnet.engines.base import Runner, Target, casting, half_obstacle, inference
from regnet.engines.cuda_graph import CUDAGraph
from regnet.engines.program import capture
from regnet.engines.transforms import folded, placed


class Compiled:
    """torch.compile with frozen weights."""

    name = "compiled"
    compiles = True

    def obstacle(self, target: Target) -> str | None:
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        run = casting(_compiled(placed(folded(model), target)), target)
        with _frozen(target):
            run(example)  # compiles
        return run


class CompiledCUDAGraph(CUDAGraph):
    """The same, captured once and replayed."""

    name = "compiled_cuda_graph"
    compiles = True

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        with _frozen(target):
            return super().build(model, example, target)

    def prepare(self, model: nn.Module, target: Target) -> Callable[[Tensor], Any]:
        return _compiled(placed(folded(model), target))


def _compiled(model: nn.Module) -> Callable[[Tensor], Any]:
    """The model compiled, as a function that shares its code with no other.

    torch.compile keeps what it compiled by code object, looks through all of it at each call, and
    stops at eight.
    """

    def call(x: Tensor) -> Any:
        return model(x)

    code = call.__code__.replace(co_name=f"call_{next(_numbers)}")
    function = FunctionType(code, globals(), closure=call.__closure__)
    return torch.compile(function, fullgraph=True, dynamic=False)


_numbers = count()


class AOTInductor:
    """A compiled package without Python in the loop: torch.export and AOTInductor."""

    name = "aot_inductor"
    compiles = True

    def obstacle(self, target: Target) -> str | None:
        if target.device.type == "cuda":
            # Nothing can catch that, and a compiled CUDA graph leaves Python out as well.
            return "loading a package crashed the process on CUDA (torch 2.11, H200)"
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt2"
            write_package(capture(model, example, target), path, target)
            return load_package(path, target)


def write_package(
    program: ExportedProgram,
    path: Path,
    target: Target,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Compile a program into a file that runs on this kind of device without Python."""
    options = {"aot_inductor.metadata": dict(metadata)} if metadata else None
    with torch.no_grad(), _frozen(target):
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=options
        )


def load_package(path: Path, target: Target) -> Runner:
    """A runner of such a file."""
    index = target.device.index if target.device.index is not None else -1
    loaded = torch._inductor.aoti_load_package(str(path), device_index=index)
    # The program takes the strides of its example for granted, and does not look.
    return inference(lambda x: loaded(x.contiguous()))


@contextmanager
def _frozen(target: Target) -> Iterator[None]:
    """Weights become constants, the target's layout stays; settings are restored afterwards."""
    import torch._inductor.config as settings

    last = target.layout == "channels_last"
    # Left alone, a heuristic turns some grouped networks back to NCHW.
    with settings.patch(freezing=True, layout_optimization=last, force_layout_optimization=last):
        yield
