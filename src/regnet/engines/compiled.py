"""Engines that compile a network into one program: torch.compile and AOTInductor."""

import os
import shutil
import sys
import tempfile
import time
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


def _compiler_obstacle(target: Target) -> str | None:
    """Return whether the C++ compiler that Inductor calls on a CPU is missing."""
    compiler = os.environ.get("CXX", "g++")
    if sys.platform == "linux" and target.device.type == "cpu" and not shutil.which(compiler):
        return f"needs a C++ compiler, and {compiler} is not installed"
    return half_obstacle(target)


class Compiled:
    """torch.compile, with the weights frozen as constants."""

    name = "compiled"
    compiles = True

    def obstacle(self, target: Target) -> str | None:
        return _compiler_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        run = casting(_compiled(placed(folded(model), target)), target)
        with _frozen(target):
            run(example)  # the first call compiles
        return run


class CompiledCUDAGraph(CUDAGraph):
    """torch.compile, captured once as a CUDA graph and replayed."""

    name = "compiled_cuda_graph"
    compiles = True

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        with _frozen(target):
            return super().build(model, example, target)

    def prepare(self, model: nn.Module, target: Target) -> Callable[[Tensor], Any]:
        return _compiled(placed(folded(model), target))


def _compiled(model: nn.Module) -> Callable[[Tensor], Any]:
    """Return the compiled model, as a function with a code object of its own.

    torch.compile caches compiled programs by code object, searches all of them at each call, and
    stops compiling after eight.
    """

    def call(x: Tensor) -> Any:
        return model(x)

    code = call.__code__.replace(co_name=f"call_{next(_numbers)}")
    function = FunctionType(code, globals(), closure=call.__closure__)
    return torch.compile(function, fullgraph=True, dynamic=False)


_numbers = count()


class AOTInductor:
    """A compiled package that runs without Python, made by torch.export and AOTInductor."""

    name = "aot_inductor"
    compiles = True

    def obstacle(self, target: Target) -> str | None:
        if target.device.type == "cuda":
            # The crash cannot be caught, and a compiled CUDA graph runs without Python as well.
            return "loading a package crashed the process on CUDA (torch 2.11, H200)"
        return _compiler_obstacle(target)

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
    """Return a runner of a file that `write_package` wrote."""
    index = target.device.index if target.device.index is not None else -1
    loaded = torch._inductor.aoti_load_package(str(path), device_index=index)
    # The program assumes the strides of its contiguous example, and does not check them.
    return inference(lambda x: loaded(x.contiguous()))


@contextmanager
def _frozen(target: Target) -> Iterator[None]:
    """Compile weights as constants and in the target's layout; restore the settings afterwards."""
    import torch._inductor.config as settings

    last = target.layout == "channels_last"
    # Unless forced, Inductor's heuristic turns some networks with groups back to NCHW.
    with settings.patch(freezing=True, layout_optimization=last, force_layout_optimization=last):
        yield


def least_seconds(model: nn.Module, example: Tensor, target: Target) -> float | None:
    """Return the seconds that a compiled network takes at least: its convolutions alone, in oneDNN.

    Compiled networks call oneDNN for their convolutions. Each convolution is timed with its weights
    in oneDNN's own order, as the compiler leaves them, and its shortest of several calls counts.
    None if the device is not a CPU, or oneDNN does not run one of the convolutions.
    """
    if target.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    seconds = 0.0
    known: dict[tuple[Any, ...], float] = {}

    def add(conv: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        nonlocal seconds
        settings = (conv.padding, conv.stride, conv.dilation, conv.groups)
        key = (tuple(inputs[0].shape), tuple(conv.weight.shape), settings)
        if key not in known:
            known[key] = _seconds_of(conv, inputs[0])
        seconds += known[key]

    network = placed(folded(model), target)
    convs = [module for module in network.modules() if type(module) is nn.Conv2d]
    hooks = [conv.register_forward_pre_hook(add) for conv in convs]
    x = example.to(dtype=target.dtype, memory_format=target.memory_format)
    try:
        with torch.inference_mode():
            network(x)
    except RuntimeError:  # a convolution that oneDNN does not support
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return seconds


def _seconds_of(conv: nn.Conv2d, x: Tensor) -> float:
    """Return the seconds of oneDNN's convolution, the shortest of five calls."""
    settings = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
    weight = torch.ops.mkldnn._reorder_convolution_weight(
        conv.weight.detach(), *settings, list(x.shape)
    )
    bias = None if conv.bias is None else conv.bias.detach()

    def call() -> Any:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *settings, "none", [], "")

    call()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
