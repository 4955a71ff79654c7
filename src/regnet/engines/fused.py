"""The engine of this library's Triton kernels, captured as a CUDA graph."""

from importlib import util

import torch
from torch import Tensor, nn

from regnet.engines.base import OWN_LAYOUT, Runner, Target
from regnet.engines.cuda_graph import CUDAGraph, captured
from regnet.engines.transforms import folded


class Fused(CUDAGraph):
    """RegNetX and RegNetY on the kernels of `regnet.kernels`."""

    name = "fused"
    compiles = True

    def obstacle(self, target: Target) -> str | None:
        if util.find_spec("triton") is None:
            return "needs Triton, which comes with torch for CUDA"
        if target.precision == "fp32":
            return "for half precision only"
        return OWN_LAYOUT if target.layout == "contiguous" else super().obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        # Imported here, because these modules import Triton, which takes time.
        from regnet.kernels.launch import prepare
        from regnet.kernels.network import fused, plan
        from regnet.kernels.stem import stem

        plain = folded(model)
        capability = torch.cuda.get_device_capability(target.device)
        # As Triton describes a device: backend, compute capability, threads of a warp.
        architecture = ("cuda", 10 * capability[0] + capability[1], 32)
        prepare(plan(plain, target.dtype, example.shape), architecture)
        network = fused(plain, target.dtype)
        return captured(
            network.trunk,
            example,
            target,
            # The stem reads the caller's images itself, which saves a copy of them.
            first=lambda images, out: stem(images, network.stem, out),
        )
