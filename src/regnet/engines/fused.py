"""Own kernels, captured once and replayed."""

from collections.abc import Callable
from importlib import util
from typing import Any

from torch import Tensor, nn

from regnet.engines.base import OWN_LAYOUT, Target
from regnet.engines.cuda_graph import CUDAGraph
from regnet.engines.transforms import folded


class Fused(CUDAGraph):
    """RegNetX and RegNetY by the kernels of `regnet.kernels`."""

    name = "fused"
    compiles = True

    def obstacle(self, target: Target) -> str | None:
        if util.find_spec("triton") is None:
            return "needs Triton, which comes with torch for CUDA"
        if target.precision == "fp32":
            return "for half precision only"
        return OWN_LAYOUT if target.layout == "contiguous" else super().obstacle(target)

    def prepare(self, model: nn.Module, target: Target) -> Callable[[Tensor], Any]:
        from regnet.kernels.network import fused  # with it comes Triton, which takes time to import

        return fused(folded(model), target.dtype)
