"""CUDA graphs: the whole network as one launch."""

import torch
from torch import Tensor, nn

from regnet.engines.base import Runner, Target
from regnet.engines.transforms import folded, placed


class CUDAGraph:
    """Norms folded, captured once and replayed on static buffers."""

    name = "cuda_graph"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        return None if target.device.type == "cuda" else "for CUDA devices only"

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        model = placed(folded(model), target)
        static = example.to(dtype=target.dtype, memory_format=target.memory_format).clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.inference_mode():
            for _ in range(3):
                model(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            out = model(static)

        def run(x: Tensor) -> Tensor:
            static.copy_(x)
            graph.replay()
            answer: Tensor = out.float().clone()
            return answer

        return run
