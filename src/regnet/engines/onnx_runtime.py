"""ONNX Runtime, for CPUs and CUDA devices."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from regnet.engines.base import OWN_LAYOUT, Runner, Target
from regnet.engines.batches import Streams, piece_of
from regnet.engines.program import AXES, capture, shared
from regnet.quiet import quiet

LARGEST: Final = 1_900_000_000
"""Most bytes of weights for a single file, whose format is limited to two gigabytes."""


class ONNXRuntime:
    """ONNX Runtime with its own graph optimizations, in float32."""

    name = "onnx_runtime"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        if target.precision != "fp32":
            return "fp32 only"
        if target.layout == "contiguous":
            return OWN_LAYOUT
        try:
            import onnxruntime
        except ImportError:
            onnxruntime = None
        # torch's exporter needs onnxscript, which takes seconds to import.
        if onnxruntime is None or util.find_spec("onnxscript") is None:
            return "not installed: pip install 'regnet[onnx]'"
        if _provider(target) not in onnxruntime.get_available_providers():
            return f"the installed onnxruntime has no {_provider(target)}"
        return None

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        plain = Target(device=target.device, layout="contiguous")
        piece = piece_of(len(example), target.streams)
        program = capture(model, example[:piece], plain)
        if others := shared():
            path = others.folder / f"{id(program)}.onnx"
            write_onnx(program, path, names=_numbered(program))
            others.files[id(program)] = path
            return load_onnx(path, target, piece)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(program, path, names=_numbered(program))
            return load_onnx(path, target, piece)


def write_onnx(
    program: ExportedProgram,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    names: Sequence[str] = ("logits",),
    axes: Mapping[int, str] = AXES,
) -> None:
    """Write a program as ONNX, with an input called `images` and outputs with the given names.

    The weights are in the file, or in a `.data` file beside it if a single file cannot hold them.
    """
    with quiet("torch.onnx"):
        written = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["images"], output_names=list(names)
        )
    if written is None:
        raise RuntimeError("torch.onnx.export returned no program")
    _name_axes(written.model.graph, axes)
    written.model.metadata_props.update(metadata or {})
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    written.save(path, external_data=weights > LARGEST)


def _name_axes(graph: Any, axes: Mapping[int, str]) -> None:
    """Give the free axes of the images readable names, in every shape that mentions them."""
    from onnx_ir import Shape  # a package that torch's exporter depends on

    [images] = graph.inputs
    names = {
        str(size): axes[axis] for axis, size in enumerate(images.shape) if not isinstance(size, int)
    }
    if not names:
        return
    symbol = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    values = [images, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else str(size) for size in value.shape]
            value.shape = Shape(
                size if isinstance(size, int) else symbol.sub(lambda m: names[m[0]], size)
                for size in sizes
            )


def _numbered(program: ExportedProgram) -> list[str]:
    """Return names for outputs that are never looked up by name."""
    return [f"output_{number}" for number in range(len(program.graph_signature.user_outputs))]


def load_onnx(path: Path, target: Target, piece: int = 1) -> Runner:
    """Return a runner of an ONNX file; each stream computes pieces of `piece` images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, torch.get_num_threads() // (target.streams or 1))
    options.log_severity_level = 3
    provider = _provider(target)
    where = {"device_id": target.device.index or 0} if target.device.type == "cuda" else {}
    session = onnxruntime.InferenceSession(path, options, providers=[(provider, where)])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} cannot be loaded; onnxruntime would use the CPU instead")
    [name] = [value.name for value in session.get_inputs()]

    def run(x: Tensor) -> Any:
        outputs = session.run(None, {name: x.detach().cpu().contiguous().numpy()})
        tensors = [torch.from_numpy(output).to(x.device) for output in outputs]
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    # All streams share a session, which several threads may run at the same time.
    return Streams([run] * target.streams, piece) if target.streams else run


def _provider(target: Target) -> str:
    cuda = target.device.type == "cuda"
    return "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
