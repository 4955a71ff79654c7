"""Weights and feature maps as int8, with ranges seen on real images: OpenVINO's way and torch's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from regnet.errors import MissingExtraError
from regnet.quiet import quiet


def quantize_openvino(model: Any, batches: Sequence[Tensor]) -> Any:
    """An int8 copy of an `openvino.Model`, by NNCF: mixed preset, fast bias correction.

    Raises:
        MissingExtraError: nncf is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError(_MISSING.format("nncf")) from error
    with quiet("nncf"):
        return nncf.quantize(
            model,
            nncf.Dataset([batch.numpy() for batch in batches]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
        )


def quantize_program(
    program: ExportedProgram, batches: Sequence[Tensor], shapes: tuple[dict[int, Any]] | None
) -> ExportedProgram:
    """An int8 program for x86 CPUs, by torchao's PT2E and its quantizer for Inductor.

    Raises:
        MissingExtraError: torchao is not installed.
    """
    try:
        with quiet("torchao"):
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError as error:
        raise MissingExtraError(_MISSING.format("torchao")) from error
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad(), quiet("torchao"):
        prepared = prepare_pt2e(program.module(), quantizer)
        for batch in batches:
            prepared(batch)
        examples: Any = program.example_inputs
        return torch.export.export(convert_pt2e(prepared), examples[0], dynamic_shapes=shapes)


_MISSING = "int8 needs {0}, which is not installed; pip install 'regnet[int8]'"
