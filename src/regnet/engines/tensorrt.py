"""TensorRT, for NVIDIA GPUs, by Torch-TensorRT."""

import inspect

import torch
from torch import Tensor, nn

from regnet.engines.base import OWN_LAYOUT, Runner, Target, inference
from regnet.engines.program import capture


class TensorRT:
    """TensorRT, with its own kernels and layouts.

    The program is captured in its final precision, because TensorRT 11 takes types from the network
    and not from flags.
    """

    name = "tensorrt"
    compiles = True

    def obstacle(self, target: Target) -> str | None:
        if target.device.type != "cuda":
            return "for CUDA devices only"
        if target.layout == "contiguous":
            return OWN_LAYOUT
        try:
            import torch_tensorrt  # noqa: F401 - only to see whether it is installed
        except ImportError:
            return "not installed: pip install torch-tensorrt, with the minor version of torch"
        return None

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        import torch_tensorrt

        plain = Target(device=target.device, precision=target.precision, layout="contiguous")
        program = capture(model, example, plain)
        with torch.no_grad():
            compile_program = torch_tensorrt.dynamo.compile
            known = inspect.signature(compile_program).parameters
            # Older versions take types from flags unless this option is set.
            typing = {"use_explicit_typing": True} if "use_explicit_typing" in known else {}
            compiled = compile_program(program, inputs=[example.contiguous()], **typing)
        return inference(lambda x: compiled(x.contiguous()))
