"""OpenVINO, for CPUs."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from regnet.engines.base import OWN_LAYOUT, Runner, Target, half_obstacle
from regnet.engines.batches import Streams, piece_of
from regnet.engines.program import AXES, capture, shared
from regnet.quiet import imported, quiet


class OpenVINO:
    """OpenVINO's CPU plugin, with all threads on one request, or requests in parallel streams."""

    name = "openvino"
    compiles = False

    def obstacle(self, target: Target) -> str | None:
        if target.device.type != "cpu":
            return "for CPUs only"
        if target.layout == "contiguous":
            return OWN_LAYOUT
        if util.find_spec("openvino") is None:  # importing it takes a quarter of a second
            return "not installed: pip install 'regnet[openvino]'"
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        # The plugin chooses types and layouts itself, so it gets the network in float32 and NCHW.
        plain = Target(device=target.device, layout="contiguous")
        example = example[: piece_of(len(example), target.streams)]
        program = capture(model, example, plain)
        # If another engine has exported the network to ONNX, that file opens at once and runs as
        # fast as a converted program.
        path = others.files.get(id(program)) if (others := shared()) else None
        return run_openvino(path or convert(program, example), target, len(example))


def convert(
    program: ExportedProgram,
    example: Tensor | None = None,
    *,
    free: Sequence[str] = (),
    names: Sequence[str] = (),
    axes: Mapping[int, str] = AXES,
) -> Any:
    """Convert a program to an `openvino.Model`.

    Args:
        program: a captured network.
        example: images of the shape to convert for; None: images of any shape.
        free: names of the axes that may have other sizes than the example's.
        names: names for the outputs; empty: none.
        axes: names of the example's axes, by their numbers.
    """
    openvino = imported("openvino")
    with quiet("openvino"), torch.no_grad():  # torch warns about its own deprecated functions
        model = openvino.convert_model(program)
    if example is not None:
        # The converter leaves all sizes free, whatever the program says, which costs 5 % of the
        # time, so fixed sizes are set here.
        sizes = [-1 if axes.get(axis) in free else n for axis, n in enumerate(example.shape)]
        model.reshape(sizes)
    for output, name in zip(model.outputs, names, strict=bool(names)):
        output.get_tensor().set_names({name})
    return model


def write_openvino(
    model: Any, path: Path, metadata: Mapping[str, str], *, halves: bool = False
) -> None:
    """Write an `openvino.Model` as .xml and .bin files; `halves` saves the weights in fp16."""
    openvino = imported("openvino")
    for name, value in metadata.items():
        model.set_rt_info(value, [name])
    openvino.save_model(model, path, compress_to_fp16=halves)


@cache
def core() -> Any:
    """Return OpenVINO's runtime: one `Core` for this process, which is never deleted.

    On a CPU with AVX-512, a `Core` that compiles a network gives the thread a stack for signal
    handlers. When the `Core` is deleted it frees that stack, although the stack may still be in
    use: if a second `Core` was made meanwhile, or if another thread deletes the first one. Python's
    signal handlers use that stack, so the next signal ends the process without any message
    (OpenVINO 2026.4).
    """
    return imported("openvino").Core()


def run_openvino(model: Any | Path, target: Target, piece: int = 1) -> Runner:
    """Return a runner of an `openvino.Model` or a file; each stream computes `piece` images."""
    compiled = core().compile_model(
        model,
        "CPU",
        {
            **_hint(target),
            "INFERENCE_PRECISION_HINT": "bf16" if target.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        },
    )
    runners = [_runner(compiled) for _ in range(target.streams or 1)]
    return Streams(runners, piece) if target.streams else runners[0]


def _hint(target: Target) -> dict[str, Any]:
    if target.streams:
        return {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": target.streams}
    return {"PERFORMANCE_HINT": "LATENCY"}


def _runner(compiled: Any) -> Runner:
    request, count = compiled.create_infer_request(), len(compiled.outputs)

    def run(x: Tensor) -> Any:
        request.infer([x.detach().contiguous().numpy()], share_inputs=True)
        # A copy, because the request writes its next outputs into the same memory.
        tensors = [torch.from_numpy(request.get_output_tensor(n).data.copy()) for n in range(count)]
        return tensors[0] if count == 1 else tuple(tensors)

    return run
