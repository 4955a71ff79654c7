"""Int8 regnety_016 on real images: agreement with fp32, accuracy, and speed: JSON.

    python benchmarks/int8.py --data PATH/cifar10 --out benchmarks/results/int8.json

The network is trained here for some minutes in --run (CIFAR-10, scaled up to 64 pixels), calibrated
on training images, and judged at that size on test images that it never saw; speed is that of
images of 224 pixels. Needs pyarrow beside the package, nncf for OpenVINO and torchao for PyTorch.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

import regnet
from regnet.atomic import write_bytes
from regnet.cli.train import epoch_line
from regnet.data.sets import ImageSet, open_set
from regnet.engines.base import Runner, Target
from regnet.engines.compiled import AOTInductor
from regnet.engines.openvino import OpenVINO
from regnet.exporting import FORMATS
from regnet.machine import environment
from regnet.nn.model import AnyNet
from regnet.timing import compare
from regnet.training.recipe import Recipe

VARIANT = "regnety_016"
SIZE, SPEED_SIZE = 64, 224
RECIPE = Recipe(
    epochs=2, batch_size=64, lr=0.1, lr_per="step", warmup_epochs=1, weight_decay=5e-4,
    norm_weight_decay=0.0, image_size=SIZE, min_area=0.35, lighting=0.0, precise_bn=2048,
    precision="bf16",
)  # fmt: skip
CALIBRATION = 400
CPU = torch.device("cpu")


def tensors(images: ImageSet, count: int, size: int) -> Tensor:
    """The first images of a set, scaled up."""
    look = regnet.Preprocess(size=(size, size), crop_pct=1.0, interpolation="bilinear")
    return torch.stack([look(images.open(index)) for index in range(count)])


def answers(runner: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
    """Logits of a multiple of the batch."""
    pieces = images[: len(images) // batch * batch].split(batch)
    with torch.inference_mode():
        return torch.cat([runner(piece) for piece in pieces])


def quantized(
    model: AnyNet, name: str, images: Tensor, batch: int
) -> tuple[dict[str, object], Runner]:
    """One way to int8, with the report of the export."""
    form = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{form.suffix}"
        done = regnet.export(
            model,
            path,
            format=name,
            precision="int8",
            example=images[:batch],
            dynamic=False,
            images=images,
            min_agreement=0.0,  # whatever comes out is told
        )
        return asdict(done) | {"path": path.name}, form.load(path, Target(device=CPU))


def main() -> None:
    """Train if need be, quantize, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/int8"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    train_set, test_set = (open_set(args.data, split) for split in ("train", "val"))
    if not (args.run / "model").exists():
        options = regnet.TrainOptions(on_epoch=lambda row: print(epoch_line(row), flush=True))
        if (args.run / "run.json").exists():
            regnet.resume(args.run, options=options)
        else:
            train_file = args.data / "train.parquet"
            regnet.train(VARIANT, train_file, args.run, recipe=RECIPE, options=options)
    model = regnet.create(f"local-dir:{args.run / 'model'}", pretrained=True).eval()

    images, labels = tensors(test_set, args.images, SIZE), torch.from_numpy(test_set.labels)
    calibration = {size: tensors(train_set, CALIBRATION, size) for size in (SIZE, SPEED_SIZE)}
    reference = answers(OpenVINO().build(model, images[:16], Target(device=CPU)), images, 16)
    labels = labels[: len(reference)]
    document: dict[str, object] = {
        "environment": environment(CPU),
        "variant": VARIANT,
        "image_size": SIZE,
        "speed_image_size": SPEED_SIZE,
        "images": len(reference),
        "top1_fp32": (reference.argmax(1) == labels).float().mean().item(),
        "rows": [],
    }
    for engine in (OpenVINO(), AOTInductor()):
        done, runner = quantized(model, engine.name, calibration[SIZE], 16)
        found = answers(runner, images, 16)
        row = {
            "engine": engine.name,
            "export": done,
            "top1_int8": (found.argmax(1) == labels).float().mean().item(),
            "agreement": (found.argmax(1) == reference.argmax(1)).float().mean().item(),
            "speed": [],
        }
        for batch in (1, 16):
            _, runner = quantized(model, engine.name, calibration[SPEED_SIZE], batch)
            rng = torch.Generator().manual_seed(0)
            shape = (batch, 3, SPEED_SIZE, SPEED_SIZE)
            inputs = [torch.randn(shape, generator=rng) for _ in range(3)]
            for precision in ("fp32", "bf16"):
                peer = engine.build(model, inputs[0], Target(device=CPU, precision=precision))
                speed = compare(runner, peer, inputs, pairs=30, seconds=4)
                row["speed"].append(
                    {
                        "batch_size": batch,
                        "over": precision,
                        "ratio": speed.median,
                        "low": speed.low,
                        "high": speed.high,
                        "verdict": speed.verdict("int8", precision),
                    }
                )
        document["rows"].append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "export"}), flush=True)
    if args.out:
        write_bytes(args.out, json.dumps(document, indent=1, default=str).encode())


if __name__ == "__main__":
    main()
