"""`regnet export`: write a network as a file for another runtime."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regnet.cli.arguments import (
    AsJson,
    check_choice,
    check_outputs,
    find_images,
    refuse_given,
    split,
)
from regnet.cli.output import print_error, print_json, stderr, stdout
from regnet.errors import ConfigError


def command(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A variant, a checkpoint (variant.tag) or a folder.")
    ],
    path: Annotated[Path, typer.Argument(help="The file: .onnx, .xml (OpenVINO) or .pt2.")],
    *,
    format: Annotated[
        str | None,
        typer.Option(
            help="torch, onnx, openvino or aot_inductor. Default: by the ending of the file."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "fp32",
    images: Annotated[
        list[str] | None,
        typer.Option(help="For int8: image files or folders to calibrate with. Repeatable."),
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(help="For int8: share of the images that must keep their class.")
    ] = 0.9,
    data: Annotated[
        str | None,
        typer.Option(
            help="For int8: labelled images on which to check top-1, as "
            "`regnet evaluate` takes them."
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="With --data: largest loss of top-1, in points.", min=0)
    ] = 1.0,
    static: Annotated[bool, typer.Option("--static", help="Fix batch and image size.")] = False,
    dynamic: Annotated[
        str | None,
        typer.Option(
            help="Axes that stay free, separated by commas: batch,height,width. Default: all."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="With --static: images per call. Default: 1.", min=1)
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels. Default: the model's.", min=1)
    ] = None,
    input: Annotated[
        str,
        typer.Option(help="float32 (normalized images) or uint8 (pixels in, probabilities out)."),
    ] = "float32",
    example: Annotated[
        bool,
        typer.Option(
            "--example", help="Also write a script that serves an .onnx file with uint8 input."
        ),
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A file of weights for the variant.")
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Use random weights, to try out a runtime.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a network as a file for ONNX Runtime, OpenVINO or PyTorch, and check the file.

    Example: regnet export regnety_016.tv2_in1k regnety.onnx
    """
    from importlib import resources
    from typing import get_args

    import torch

    from regnet.atomic import write_bytes
    from regnet.data.sets import open_set
    from regnet.devices import core_count
    from regnet.engines.formats import FORMATS
    from regnet.engines.optimize import default_shape
    from regnet.engines.served import EXAMPLE, Input
    from regnet.evaluation.evaluate import evaluate
    from regnet.exporting import export
    from regnet.zoo.create import create

    check_outputs(path)
    check_choice(
        "precision", precision, dict.fromkeys(p for f in FORMATS.values() for p in f.precisions)
    )
    if dynamic is not None and static:
        raise ConfigError(
            "--static fixes every axis, --dynamic names the axes that stay free; give only one"
        )
    if batch_size is not None and not static and "batch" in (dynamic or "batch"):
        raise ConfigError(
            "--batch-size needs --static, or --dynamic without batch; other files take any batch"
        )
    check_choice("input", input, get_args(Input))
    if precision != "int8":
        refuse_given(context, ("max_drop", "min_agreement"), "limits int8; add --precision int8")
    elif data is None:
        refuse_given(context, ("max_drop",), "limits the loss of accuracy on --data; add --data")
    if random and checkpoint is not None:
        raise ConfigError("--random and --checkpoint both choose the weights; give only one")
    if data is not None and precision != "int8":
        raise ConfigError(
            "--data limits the accuracy loss of int8; add --precision int8 and --images"
        )
    script = path.with_name(f"{path.stem}_serve.py")
    if example and (input != "uint8" or path.suffix != ".onnx"):
        raise ConfigError(
            "--example serves an .onnx file that takes pixels; name the file .onnx and add "
            "--input uint8"
        )
    if example and script.exists():
        raise ConfigError(f"{script} exists already; remove it, or leave out --example")
    files: list[str] | None = None
    if images:
        files, failures = find_images(images)
        for failure in failures:
            print_error(failure)
        if failures:
            raise typer.Exit(1)
    labelled = open_set(data) if data is not None else None
    network = create(
        model, pretrained=not (random or checkpoint is not None), checkpoint_path=checkpoint
    )
    _, channels, *own = default_shape(network, "latency")
    size = (image_size, image_size) if image_size else own

    def top1(candidate: Any) -> float:
        assert labelled
        return evaluate(candidate, labelled, workers=core_count()).top1

    with stderr.status(f"exporting to {path}"):
        done = export(
            network,
            path,
            format=format,
            precision=precision,  # type: ignore[arg-type]  # checked above
            example=torch.zeros(batch_size or 1, channels, *size),
            dynamic=not static if dynamic is None else split(dynamic),
            input=input,  # type: ignore[arg-type]  # checked above
            images=files,
            min_agreement=min_agreement,
            top1=top1 if labelled else None,
            max_drop=max_drop,
            on_attempt=lambda why: stderr.print(f"{why}; trying more layers in float"),
        )
    if as_json:
        print_json(done)
    else:
        stdout.print(str(done))
    if example:
        write_bytes(script, resources.files("regnet.engines").joinpath(EXAMPLE).read_bytes())
        stderr.print(f"{script}: python {script} {path} photo.jpg")
