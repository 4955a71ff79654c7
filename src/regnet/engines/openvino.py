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
    """OpenVINO's CPU plugin: all threads on one request, or a stream of requests for each."""

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
        # The plugin chooses types and layouts itself: it gets the network as float32, NCHW.
        plain = Target(device=target.device, layout="contiguous")
        example = example[: piece_of(len(example), target.streams)]
        program = capture(model, example, plain)
        # Where another engine has exported it, that file opens at once, and runs as fast.
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
    """A program as an `openvino.Model`.

    Args:
        program: the program.
        example: images whose shape it is for; None: any.
        free: axes of that shape that stay free, of `regnet.engines.program.AXES`.
        names: of its outputs.
        axes: of the example, by their names.
    """
    openvino = imported("openvino")
    with quiet("openvino"), torch.no_grad():  # torch warns of its own deprecations
        model = openvino.convert_model(program)
    if example is not None:
        # Converted shapes are free, which costs 5 % of the time, whatever the program says.
        sizes = [-1 if axes.get(axis) in free else n for axis, n in enumerate(example.shape)]
        model.reshape(sizes)
    for output, name in zip(model.outputs, names, strict=bool(names)):
        output.get_tensor().set_names({name})
    return model


def write_openvino(
    model: Any, path: Path, metadata: Mapping[str, str], *, halves: bool = False
) -> None:
    """Write an `openvino.Model` as .xml and .bin; weights as fp16 if they shall be halves."""
    openvino = imported("openvino")
    for name, value in metadata.items():
        model.set_rt_info(value, [name])
    openvino.save_model(model, path, compress_to_fp16=halves)


@cache
def core() -> Any:
    """OpenVINO's runtime: one for this process, and until it ends.

    Where the CPU has AVX-512, a `Core` that compiles for it gives the thread a stack for signal
    handlers, and when it goes it frees that stack, though it may be in use: after a second `Core`
    began, or where another thread lets go of it. The next signal then ends the process, without a
    word (OpenVINO 2026.4). Python's handlers use that stack.
    """
    return imported("openvino").Core()


def run_openvino(model: Any | Path, target: Target, piece: int = 1) -> Runner:
    """A runner of an `openvino.Model`, or of a file; on streams, of pieces of so many images."""
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
        # The request's own memory holds the next answer too.
        tensors = [torch.from_numpy(request.get_output_tensor(n).data.copy()) for n in range(count)]
        return tensors[0] if count == 1 else tuple(tensors)

    return run
