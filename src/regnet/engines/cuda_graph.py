"""CUDA graphs: the whole network as one launch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regnet.engines.base import Runner, Target, inference
from regnet.engines.outputs import each
from regnet.engines.transforms import folded, padded_if_it_pays, placed


class CUDAGraph:
    """Norms folded, captured once and replayed on static buffers: not for two threads at once."""

    name = "cuda_graph"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        return None if target.device.type == "cuda" else "for CUDA devices only"

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        return captured(self.prepare(model, target), example, target)

    def prepare(self, model: nn.Module, target: Target) -> Callable[[Tensor], Any]:
        """What is captured."""
        return placed(folded(model), target)


class PaddedCUDAGraph(CUDAGraph):
    """The same, groups widened to powers of two."""

    name = "padded_cuda_graph"

    def prepare(self, model: nn.Module, target: Target) -> Callable[[Tensor], Any]:
        return placed(padded_if_it_pays(model), target)


def captured(call: Callable[[Tensor], Any], example: Tensor, target: Target) -> Runner:
    """A runner that replays what the call did for the example: float32 in and out.

    cuDNN tries its kernels first: a graph keeps the one that was chosen.
    """
    # Not under inference mode: what is captured there cannot be written to outside.
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        torch.cuda.device(target.device),
        _trying(),
    ):
        static = example.clone().to(dtype=target.dtype, memory_format=target.memory_format)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call(static)

    def run(x: Tensor) -> Any:
        static.copy_(x)
        graph.replay()
        return each(lambda output: output.float().clone(), out)

    # The graph reads the weights where they lay, and does not keep them.
    run.reads = call  # type: ignore[attr-defined]
    return inference(run)


@contextmanager
def _trying() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark = before
