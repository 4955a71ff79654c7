"""Train the checkpoint that ships with the package: a small RegNetY on CIFAR-10.

    python scripts/train_embedded.py --data PATH/cifar10 --out runs/embedded

reads {train,test}.parquet (columns `img`, `label`, as in the public `uoft-cs/cifar10`), prints
one JSON line per epoch, keeps a checkpoint in --out to resume from, and ends with the files in
weights/: fp16 weights, table row and model card. Needs pyarrow beside the package.
"""

import argparse
import hashlib
import io
import json
import math
import shutil
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from regnet.design.complexity import complexity
from regnet.design.variants import VARIANTS
from regnet.nn.model import AnyNet
from regnet.weights.catalog import label_sets
from regnet.weights.files import read_tensors
from regnet.weights.loading import load_tensors

VARIANT, TAG = "regnety_cifar", "cifar10"
CONFIG = VARIANTS[VARIANT].config
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
LABELS = label_sets()["cifar-10"]
EMA_DECAY = 0.998
CUTOUT = 10
CLEAN_EPOCHS = 8
"""The last epochs of the first cycle see whole images."""
RESTART_LR = 0.05
GOAL = 90.0
WEIGHTS = Path(__file__).parents[1] / "weights"

RECIPE = (
    "SGD with Nesterov momentum 0.9, peak lr {lr}, 2 epochs of warm-up, cosine, weight decay 5e-4 "
    "(not on norms and biases), label smoothing 0.1, random crop, flip and cutout of {cutout} "
    "pixels (not in the last {clean} epochs), moving average of the weights, bf16 autocast; then a "
    "restart of {restart} epochs from lr {restart_lr}, with cutout"
)

CARD = """---
license: apache-2.0
library_name: regnet
pipeline_tag: image-classification
datasets: [uoft-cs/cifar10]
---
# {id}

A small RegNetY with a CIFAR stem ({flops:.1f} M multiply-adds at 32x32, {params:.2f} M
parameters, {size:.2f} MB in fp16): the checkpoint that comes with the package, so that a first
prediction needs no network.

| | |
| --- | --- |
| top-1 on the {images:,} test images of {dataset} | **{top1:.2f} %** |
| classes | {classes} |
| trained | {date}, torch {torch}, two CPU cores |
| recipe | {epochs} epochs, batch {batch}, {recipe} |
| SHA-256 | `{sha256}` |

"CIFAR-10 (JPEG)" is the data set with images stored as JPEG, quality 75; accuracies are a little
lower than on the originals. The accuracy is that of the published fp16 file, computed in float32.

Made by

    {command}

It knows ten classes and sees 32x32 pixels: a demonstration, not a product.
"""


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), normalized, and labels (N,)."""
    table = pq.read_table(path)
    pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["img"].to_pylist()]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (images - mean) / std, torch.tensor(table["label"].to_pylist())


def augment(images: Tensor, rng: torch.Generator, *, cutout: bool) -> Tensor:
    """Random crop after padding by 4 pixels, flip, and perhaps cutout, drawn per image."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    top, left = torch.randint(0, 9, (2, count, 1), generator=rng)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    flip = torch.rand(count, 1, generator=rng) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )
    if not cutout:
        return cropped
    # The square's center may be any pixel, so at a border a part of it is cut off; 0 is the mean.
    y, x = torch.randint(0, height, (2, count, 1), generator=rng) - CUTOUT // 2
    in_rows = (torch.arange(height) >= y) & (torch.arange(height) < y + CUTOUT)
    in_columns = (torch.arange(width) >= x) & (torch.arange(width) < x + CUTOUT)
    hidden = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return cropped.masked_fill(hidden, 0)


def half_cosine(done: float) -> float:
    """From 1 to 0, for `done` from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * done))


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent, in float32."""
    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return 100 * hits / len(labels)


def main() -> None:
    """Train, or resume, and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=56)
    parser.add_argument("--restart-epochs", type=int, default=11)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    train_images, train_labels = read(args.data / "train.parquet")
    test_images, test_labels = read(args.data / "test.parquet")
    torch.manual_seed(args.seed)
    model = AnyNet(CONFIG).to(memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True)
    steps = len(train_labels) // args.batch_size
    warmup, first, second = 2 * steps, args.epochs * steps, args.restart_epochs * steps

    def factor(t: int) -> float:
        if t >= first:
            return RESTART_LR / args.lr * half_cosine((t - first) / max(second, 1))
        return min((t + 1) / warmup, half_cosine(max(t - warmup, 0) / (first - warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    state = {"model": model, "average": average, "optimizer": optimizer, "scheduler": scheduler}
    start, checkpoint = 0, args.out / "last.pt"
    options = {
        "epochs": args.epochs,
        "restart_epochs": args.restart_epochs,
        "batch_size": args.batch_size,
        "lr": args.lr,
        "seed": args.seed,
    }
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if (earlier := saved.pop("options")) != options:
            parser.error(f"{checkpoint} was trained with {earlier}; use these, or another --out")
        start = saved.pop("epoch")
        for name, value in saved.items():
            state[name].load_state_dict(value)

    for epoch in range(start, args.epochs + args.restart_epochs):
        began, losses = time.monotonic(), []
        rng = torch.Generator().manual_seed(
            1000 * args.seed + epoch
        )  # so that a resumed run is the same
        model.train()
        for batch in torch.randperm(len(train_labels), generator=rng)[
            : steps * args.batch_size
        ].split(args.batch_size):
            images = augment(
                train_images[batch],
                rng,
                cutout=not args.epochs - CLEAN_EPOCHS <= epoch < args.epochs,
            ).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images)
            loss = nn.functional.cross_entropy(
                logits.float(), train_labels[batch], label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            average.update_parameters(model)
            losses.append(loss.item())
        row = {
            "epoch": epoch + 1,
            "loss": round(sum(losses) / len(losses), 4),
            "top1": accuracy(average.module, test_images, test_labels),
            "seconds": round(time.monotonic() - began, 1),
        }
        print(json.dumps(row), flush=True)
        temporary = checkpoint.with_suffix(".tmp")
        parts = {name: part.state_dict() for name, part in state.items()}
        torch.save({"epoch": epoch + 1, "options": options} | parts, temporary)
        temporary.replace(checkpoint)

    publish(average.module, test_images, test_labels, args)


def publish(model: nn.Module, images: Tensor, labels: Tensor, args: argparse.Namespace) -> None:
    """Write fp16 weights, table row and model card, with the measured accuracy of that file.

    Weights short of the goal stay in --out: nothing that is published gets worse.
    """
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    candidate = args.out / f"{VARIANT}.{TAG}.safetensors"
    save_file(tensors, candidate, metadata={"format": "pt"})
    published = AnyNet(CONFIG)
    load_tensors(published, read_tensors(candidate), source=str(candidate))
    top1 = accuracy(published, images, labels)
    if top1 < GOAL or len(labels) != 10_000:
        sys.exit(
            f"{candidate}: {top1:.2f} % of {len(labels)} images, not published: below {GOAL} %"
        )
    path = WEIGHTS / candidate.name
    shutil.copyfile(candidate, path)
    cost = complexity(CONFIG, 32)
    command = (
        "python scripts/train_embedded.py --data cifar10 --out runs/embedded "
        f"--epochs {args.epochs} --restart-epochs {args.restart_epochs} "
        f"--batch-size {args.batch_size} --lr {args.lr} --seed {args.seed}"
    )
    row = {
        "variant": VARIANT,
        "tag": TAG,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size": path.stat().st_size,
        "format": "timm",
        "license": "apache-2.0",
        "num_classes": CONFIG.num_classes,
        "labels": "cifar-10",
        "preprocess": {"size": [32, 32], "crop_pct": 1.0, "mean": MEAN, "std": STD},
        "metrics": [{"dataset": "cifar-10-jpeg", "top1": top1, "image_size": 32, "crop_pct": 1.0}],
        "metrics_source": "scripts/train_embedded.py",
        "command": command,
    }
    (WEIGHTS / "embedded.json").write_text(f"[\n{json.dumps(row)}\n]\n", encoding="utf-8")
    card = CARD.format(
        sha256=row["sha256"],
        command=command,
        dataset="CIFAR-10 (JPEG)",
        id=f"{VARIANT}.{TAG}",
        top1=top1,
        images=len(labels),
        flops=cost.flops / 1e6,
        params=cost.params / 1e6,
        size=path.stat().st_size / 1e6,
        date=datetime.now(timezone.utc).date(),
        torch=torch.__version__,
        classes=", ".join(LABELS),
        batch=args.batch_size,
        epochs=args.epochs,
        recipe=RECIPE.format(
            lr=args.lr,
            cutout=CUTOUT,
            clean=CLEAN_EPOCHS,
            restart=args.restart_epochs,
            restart_lr=RESTART_LR,
        ),
    )
    (WEIGHTS / f"{VARIANT}.{TAG}.md").write_text(card, encoding="utf-8")
    print(json.dumps({"top1": top1, "file": str(path)}))


if __name__ == "__main__":
    main()
