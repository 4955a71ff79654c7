"""torch.compile and AOTInductor: one program for the whole network, with frozen weights."""

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


def least_seconds(model: nn.Module, example: Tensor, target: Target) -> float | None:
    """What a compiled network takes at least: its convolutions alone, by the library it calls.

    Each is timed with its weights in the library's own order, as the compiler leaves them; the
    shortest of some calls counts. None where that library does not run them.
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
    except RuntimeError:  # a convolution that it does not take
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return seconds


def _seconds_of(conv: nn.Conv2d, x: Tensor) -> float:
    """The shortest of some calls of oneDNN's convolution."""
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
