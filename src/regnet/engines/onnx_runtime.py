"""ONNX Runtime, for CPUs and CUDA devices."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from regnet.engines.base import OWN_LAYOUT, Runner, Target
from regnet.engines.program import capture
from regnet.quiet import quiet

LARGEST: Final = 1_900_000_000
"""Bytes of weights that fit into one file: its format ends at two gigabytes."""


class ONNXRuntime:
    """ONNX Runtime with its own graph optimizations, fp32."""

    name = "onnx_runtime"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        if target.precision != "fp32":
            return "fp32 only"
        if target.layout == "contiguous":
            return OWN_LAYOUT
        try:
            import onnxruntime
            import onnxscript  # noqa: F401 - torch's exporter needs it
        except ImportError:
            return "not installed: pip install 'regnet[onnx]'"
        if _provider(target) not in onnxruntime.get_available_providers():
            return f"the installed onnxruntime has no {_provider(target)}"
        return None

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        plain = Target(device=target.device, layout="contiguous")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(capture(model, example, plain), path)
            return load_onnx(path, target)


def write_onnx(
    program: ExportedProgram, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a program as ONNX; input `images`, output `logits`.

    Weights are inside, or in a `.data` file beside it where one file cannot hold them.
    """
    with quiet("torch.onnx"):
        written = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"]
        )
    if written is None:
        raise RuntimeError("torch.onnx.export gave nothing")
    written.model.metadata_props.update(metadata or {})
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    written.save(path, external_data=weights > LARGEST)


def load_onnx(path: Path, target: Target) -> Runner:
    """A runner of such a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    provider = _provider(target)
    where = {"device_id": target.device.index or 0} if target.device.type == "cuda" else {}
    session = onnxruntime.InferenceSession(path, options, providers=[(provider, where)])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} does not load here; onnxruntime would use the CPU")
    [name] = [value.name for value in session.get_inputs()]

    def run(x: Tensor) -> Tensor:
        [out] = session.run(None, {name: x.detach().cpu().contiguous().numpy()})
        return torch.from_numpy(out).to(x.device)

    return run


def _provider(target: Target) -> str:
    cuda = target.device.type == "cuda"
    return "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
