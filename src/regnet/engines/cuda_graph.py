"""Engines that capture a network as a CUDA graph, which launches all its kernels at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from regnet.engines.base import Runner, Target, inference
from regnet.engines.outputs import each
from regnet.engines.transforms import folded, padded_if_it_pays, placed


class CUDAGraph:
    """Batch norms folded; the network is captured once and replayed on static buffers."""

    name = "cuda_graph"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        return None if target.device.type == "cuda" else "for CUDA devices only"

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        return captured(self.prepare(model, target), example, target)

    def prepare(self, model: nn.Module, target: Target) -> Callable[[Tensor], Any]:
        """Return the function that is captured."""
        return placed(folded(model), target)


class PaddedCUDAGraph(CUDAGraph):
    """A CUDA graph of the network with group widths padded to powers of two."""

    name = "padded_cuda_graph"

    def prepare(self, model: nn.Module, target: Target) -> Callable[[Tensor], Any]:
        return placed(padded_if_it_pays(model), target)


def captured(
    call: Callable[[Tensor], Any],
    example: Tensor,
    target: Target,
    first: Callable[[Tensor, Tensor | None], Tensor] | None = None,
) -> Runner:
    """Return a runner that replays the kernels of a call; it takes and returns float32.

    cuDNN tries its kernels before the capture, because a graph always replays the kernel that was
    chosen then. Calls of the runner on several CUDA streams, or from several threads, wait for each
    other, because they share its buffers.

    Args:
        call: the function to capture.
        example: images (N, C, H, W).
        target: device, precision and layout.
        first: a function that runs before the graph and is not captured, because it reads the
            caller's images. It writes into its second argument, or into new memory if that is None.
    """
    device = target.device

    def enter(images: Tensor, out: Tensor | None = None) -> Tensor:
        if first is not None:
            return first(images, out)
        if out is not None:
            return out.copy_(images)
        return images.clone().to(dtype=target.dtype, memory_format=target.memory_format)

    # Not in inference mode, because its tensors cannot be written to outside of it.
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        torch.cuda.device(device),
        _trying(),
    ):
        static = enter(example)
        # PyTorch's notes on CUDA graphs require some calls on a side stream before the capture.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = call(static)
    lock, free = Lock(), torch.cuda.Event()

    def run(x: Tensor) -> Any:
        with lock, torch.cuda.device(device):
            free.wait()  # until the last call, perhaps on another stream, has read the buffers
            enter(x, static)
            graph.replay()
            answer = each(lambda output: output.float().clone(), out)
            free.record()
        return answer

    # The graph reads the weights from memory that it does not own, so they are kept alive here.
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
