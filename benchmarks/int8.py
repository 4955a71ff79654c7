"""Int8 regnety_016 on real images: agreement with fp32, accuracy, and speed: JSON.

    python -m benchmarks.int8 --data PATH/cifar10 --out benchmarks/results/int8.json

The network is trained here for some minutes (CIFAR-10, upscaled to 64 pixels, at the end to 224),
kept in --weights; calibrated on training images; judged on test images that it never saw. Needs
pyarrow beside the package, nncf for OpenVINO and torchao for PyTorch.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from scripts.train_embedded import augment, half_cosine, read
from torch import Tensor, nn

import regnet
from regnet.atomic import write_bytes
from regnet.engines.base import Runner, Target
from regnet.engines.compiled import AOTInductor
from regnet.engines.openvino import OpenVINO
from regnet.exporting import FORMATS
from regnet.machine import environment
from regnet.nn.model import AnyNet
from regnet.timing import compare

VARIANT = "regnety_016"
STAGES = (
    # pixels, images per step, steps, peak learning rate
    (64, 64, 800, 0.05),
    (224, 32, 60, 0.01),
)
SIZE = 224
CALIBRATION = 400
CPU = torch.device("cpu")


def upscale(images: Tensor, size: int) -> Tensor:
    """Bilinear, to size x size pixels, channels last."""
    larger = nn.functional.interpolate(images, size=(size, size), mode="bilinear")
    return larger.to(memory_format=torch.channels_last)


def train(model: AnyNet, images: Tensor, labels: Tensor) -> None:
    """SGD in bf16, one cycle per image size."""
    rng = torch.Generator().manual_seed(0)
    model.to(memory_format=torch.channels_last).train()
    for size, batch, steps, lr in STAGES:
        optimizer = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        warmup, start = steps // 10, time.monotonic()
        for step in range(steps):
            peak = min((step + 1) / warmup, half_cosine(max(step - warmup, 0) / (steps - warmup)))
            for group in optimizer.param_groups:
                group["lr"] = lr * peak
            chosen = torch.randint(len(labels), (batch,), generator=rng)
            x = upscale(augment(images[chosen], rng, cutout=False), size)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(x)
            loss = nn.functional.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 100 == 0:
                row = {"size": size, "step": step, "loss": round(loss.item(), 3)}
                print(json.dumps(row | {"seconds": round(time.monotonic() - start)}), flush=True)
    model.eval()


def answers(runner: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
    """Logits of small images, upscaled, a multiple of the batch."""
    pieces = images[: len(images) // batch * batch].split(batch)
    with torch.inference_mode():
        return torch.cat([runner(upscale(piece, SIZE).contiguous()) for piece in pieces])


def quantized(model: AnyNet, images: Tensor, batch: int) -> dict[str, tuple[object, Runner]]:
    """Both ways to int8, with the report of the export."""
    found = {}
    chosen = upscale(images[:CALIBRATION], SIZE)
    for name in ("openvino", "aot_inductor"):
        form = FORMATS[name]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{form.suffix}"
            done = regnet.export(
                model,
                path,
                format=name,
                precision="int8",
                example=chosen[:batch],
                dynamic=False,
                images=chosen,
                min_agreement=0.0,  # whatever comes out is told
            )
            found[name] = asdict(done) | {"path": path.name}, form.load(path, Target(device=CPU))
    return found


def main() -> None:
    """Train if need be, quantize, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path("runs/int8/weights.safetensors"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    train_images, train_labels = read(args.data / "train.parquet")
    torch.manual_seed(0)
    if args.weights.exists():
        model = regnet.create(VARIANT, num_classes=10, checkpoint_path=args.weights)
    else:
        model = regnet.create(VARIANT, num_classes=10)
        train(model, train_images, train_labels)
        args.weights.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, args.weights)
    model.eval()

    images, labels = read(args.data / "test.parquet")
    images, labels = images[: args.images], labels[: args.images]
    document: dict[str, object] = {"environment": environment(CPU), "variant": VARIANT, "rows": []}
    wide = OpenVINO().build(model, torch.zeros(16, 3, SIZE, SIZE), Target(device=CPU))
    reference = answers(wide, images, 16)
    hits = (reference.argmax(1) == labels[: len(reference)]).float().mean()
    document |= {"images": len(reference), "top1_fp32": hits.item()}
    for batch in (1, 16):
        example = torch.zeros(batch, 3, SIZE, SIZE)
        rng = torch.Generator().manual_seed(0)
        inputs = [torch.randn(example.shape, generator=rng) for _ in range(3)]
        peers = {
            f"{engine.name} {precision}": engine.build(
                model, example, Target(device=CPU, precision=precision)
            )
            for engine in (OpenVINO(), AOTInductor())
            for precision in ("fp32", "bf16")
        }
        for name, (done, runner) in quantized(model, train_images, batch).items():
            row = {"engine": name, "batch_size": batch, "export": done, "against": {}}
            if batch == 16:
                found = answers(runner, images, batch)
                top1 = (found.argmax(1) == labels[: len(found)]).float().mean().item()
                agreement = (found.argmax(1) == reference.argmax(1)).float().mean().item()
                row |= {"top1_int8": top1, "agreement": agreement}
            for label, peer in peers.items():
                if not label.startswith(name):
                    continue
                speed = compare(runner, peer, inputs, pairs=30, seconds=4)
                row["against"][label] = {
                    "ratio": speed.median,
                    "low": speed.low,
                    "high": speed.high,
                    "verdict": speed.verdict("int8", label),
                }
            document["rows"].append(row)
            print(json.dumps({k: v for k, v in row.items() if k != "export"}), flush=True)
    if args.out:
        write_bytes(args.out, json.dumps(document, indent=1, default=str).encode())


if __name__ == "__main__":
    main()
