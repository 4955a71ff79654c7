"""Int8 regnety_016 on real images: agreement with fp32, accuracy, and speed: JSON.

    python -m benchmarks.int8 --data PATH/cifar10 --out benchmarks/results/int8.json

The network is trained here for some minutes (CIFAR-10, upscaled to 64 pixels, at the end to 224),
kept in --weights; calibrated on training images; judged on test images that it never saw. Needs
pyarrow beside the package, nncf for OpenVINO and torchao for PyTorch.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from scripts.train_embedded import augment, half_cosine, read
from torch import Tensor, nn

import regnet
from regnet.nn.model import AnyNet

VARIANT = "regnety_016"
STAGES = (
    # pixels, images per step, steps, peak learning rate
    (64, 64, 3000, 0.1),
    (224, 32, 200, 0.01),
)
SIZE = 224


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

    train_images, train_labels = read(args.data / "train.parquet")
    torch.manual_seed(0)
    model = regnet.create(VARIANT, num_classes=10)
    if args.weights.exists():
        model = regnet.create(VARIANT, num_classes=10, checkpoint_path=args.weights)
    else:
        train(model, train_images, train_labels)
        args.weights.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, args.weights)


if __name__ == "__main__":
    main()
