"""Kinds of exported files: what each can hold, and how it is written and read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from regnet.engines.base import AnyPrecision, Engine, Runner, Target, inference
from regnet.engines.compiled import load_package, write_package
from regnet.engines.int8 import quantize_openvino, quantize_program, weights_of
from regnet.engines.onnx_runtime import ONNXRuntime, load_onnx, write_onnx
from regnet.engines.openvino import OpenVINO, convert, run_openvino, write_openvino
from regnet.engines.program import axes_of, capture, dynamic_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A network to write to a file, and what the file should be like."""

    model: nn.Module
    example: Tensor
    """Images or pixels, as the file takes them."""
    target: Target
    int8: bool
    free: tuple[str, ...]
    """Names of the axes whose size is free."""
    outputs: tuple[str, ...]
    """Names of the outputs."""
    calibration: Sequence[Tensor]
    metadata: Mapping[str, str]
    floats: tuple[str, ...] = ()
    """Names of the layers that an int8 file leaves in float."""

    def program(self, *, portable: bool = True) -> ExportedProgram:
        """Capture the network; a portable program leaves memory layouts to its runtime."""
        target = self.target
        if portable or self.int8:
            target = Target(device=target.device, precision=target.precision, layout="contiguous")
        program = capture(self.model, self.example, target, free=self.free)
        if not self.int8:
            return program
        shapes = dynamic_shapes(self.model, self.free)
        names = [f"model.{name}" for name in self.floats]  # `capture` wraps the network
        return quantize_program(program, self.calibration, shapes, names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of exported file."""

    name: str
    suffix: str
    precisions: tuple[AnyPrecision, ...]
    write: Callable[[Work, Path], None]
    load: Callable[[Path, Target], Runner]
    runtime: Engine | None = None
    """The engine that reads the file, if it needs a package; None if torch reads the file."""
    portable: bool = True
    """Whether the file runs on any device, or only on the kind of device that the model was on."""
    pixels: bool = False
    """Whether the file may take pixels (`regnet.engines.served`)."""


def _write_torch(work: Work, path: Path) -> None:
    extra: dict[str, Any] = dict(work.metadata)
    torch.export.save(work.program(), path, extra_files=extra)


def _load_torch(path: Path, target: Target) -> Runner:
    return inference(torch.export.load(path).module())


def _write_openvino(work: Work, path: Path) -> None:
    plain = Target(device=work.target.device, layout="contiguous")
    program = capture(work.model, work.example, plain, free=work.free)
    model = convert(
        program, work.example, free=work.free, names=work.outputs, axes=axes_of(work.model)
    )
    if work.int8:
        keep = weights_of(work.model, work.floats)
        model = quantize_openvino(model, work.calibration, keep)
    write_openvino(model, path, work.metadata, halves=work.target.precision == "fp16")


FORMATS: Final[Mapping[str, Format]] = {
    row.name: row
    for row in (
        Format(
            name="torch",
            suffix=".pt2",
            precisions=("fp32", "bf16", "fp16", "int8"),
            write=_write_torch,
            load=_load_torch,
        ),
        Format(
            name="onnx",
            suffix=".onnx",
            precisions=("fp32", "fp16"),
            write=lambda work, path: write_onnx(
                work.program(), path, work.metadata, work.outputs, axes_of(work.model)
            ),
            pixels=True,
            load=load_onnx,
            runtime=ONNXRuntime(),
        ),
        Format(
            name="openvino",
            suffix=".xml",
            precisions=("fp32", "fp16", "int8"),
            write=_write_openvino,
            pixels=True,
            load=run_openvino,
            runtime=OpenVINO(),
        ),
        Format(
            name="aot_inductor",
            suffix=".pt2",
            precisions=("fp32", "bf16", "fp16", "int8"),
            write=lambda work, path: write_package(
                work.program(portable=False), path, work.target, work.metadata
            ),
            load=load_package,
            portable=False,
        ),
    )
}
"""Kinds of files that `export` writes, by name. If a suffix fits several, the first is meant."""
