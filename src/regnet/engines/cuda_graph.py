"""CUDA graphs: the whole network as one launch."""

import torch
from torch import Tensor, nn

from regnet.engines.base import Runner, Target
from regnet.engines.eager import inference
from regnet.engines.transforms import folded, placed


class CUDAGraph:
    """Norms folded, captured once and replayed on static buffers: not for two threads at once."""

    name = "cuda_graph"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        return None if target.device.type == "cuda" else "for CUDA devices only"

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        return captured(placed(folded(model), target), example, target)


def captured(model: nn.Module, example: Tensor, target: Target) -> Runner:
    """A runner that replays what the model did for the example: float32 in and out."""
    # Not under inference mode: what is captured there cannot be written to outside.
    with torch.inference_mode(mode=False), torch.no_grad(), torch.cuda.device(target.device):
        static = example.clone().to(dtype=target.dtype, memory_format=target.memory_format)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                model(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(static)

    def run(x: Tensor) -> Tensor:
        static.copy_(x)
        graph.replay()
        answer: Tensor = out.float().clone()
        return answer

    return inference(run)
