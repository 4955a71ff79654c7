"""ONNX Runtime, for CPUs and CUDA devices."""

import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from regnet.engines.base import Runner, Target
from regnet.engines.transforms import folded


class ONNXRuntime:
    """ONNX Runtime with its own graph optimizations, fp32."""

    name = "onnx_runtime"

    def obstacle(self, target: Target) -> str | None:
        if target.precision != "fp32":
            return "fp32 only"
        try:
            import onnxruntime
            import onnxscript  # noqa: F401 - torch's exporter needs it
        except ImportError:
            return "not installed: pip install 'regnet[onnx]'"
        if self._provider(target) not in onnxruntime.get_available_providers():
            return f"the installed onnxruntime has no {self._provider(target)}"
        return None

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "model.onnx"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logging.getLogger("torch.onnx").setLevel(logging.ERROR)
                torch.onnx.export(
                    folded(model), (example,), path, dynamo=True, verbose=False, external_data=False
                )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(
                path, options, providers=[self._provider(target)]
            )
        [name] = [value.name for value in session.get_inputs()]

        def run(x: Tensor) -> Tensor:
            [out] = session.run(None, {name: x.detach().cpu().contiguous().numpy()})
            return torch.from_numpy(out).to(x.device)

        return run

    @staticmethod
    def _provider(target: Target) -> str:
        cuda = target.device.type == "cuda"
        return "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
