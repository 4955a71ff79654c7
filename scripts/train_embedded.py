"""Train the checkpoint that ships with the package: a small RegNetY on CIFAR-10.

    python scripts/train_embedded.py --data PATH/cifar10 --out runs/embedded

reads {train,test}.parquet (columns `img`, `label`, as in the public `uoft-cs/cifar10`), writes one JSON
line per epoch and a checkpoint to resume from, and ends with model.safetensors (fp16) and its
measured accuracy. Needs pyarrow beside the package.
"""

import argparse
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from regnet.design.config import RegNetConfig
from regnet.nn.model import AnyNet

CONFIG = RegNetConfig(
    depth=7,
    w0=64,
    wa=24.0,
    wm=2.0,
    group_width=16,
    se_ratio=0.25,
    stem="cifar",
    num_classes=10,
)
MEAN = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
STD = torch.tensor([0.2470, 0.2435, 0.2616])[:, None, None]
EMA_DECAY = 0.998


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), normalized, and labels (N,)."""
    table = pq.read_table(path)
    pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["img"].to_pylist()]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return (images - MEAN) / STD, torch.tensor(table["label"].to_pylist())


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Random crop after padding by 4 pixels, and random flip, drawn per image."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    top, left = torch.randint(0, 9, (2, count, 1), generator=rng)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    flip = torch.rand(count, 1, generator=rng) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
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
    warmup, total = 2 * steps, args.epochs * steps
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min((t + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(t - warmup, 0) / (total - warmup)))),
    )
    state = {"model": model, "average": average, "optimizer": optimizer, "scheduler": scheduler}
    start, checkpoint = 0, args.out / "last.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        start = saved.pop("epoch")
        for name, value in saved.items():
            state[name].load_state_dict(value)

    for epoch in range(start, args.epochs):
        began, losses = time.monotonic(), []
        rng = torch.Generator().manual_seed(1000 * args.seed + epoch)  # so that a resumed run is the same
        model.train()
        for batch in torch.randperm(len(train_labels), generator=rng)[: steps * args.batch_size].split(
            args.batch_size
        ):
            images = augment(train_images[batch], rng).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images)
            loss = nn.functional.cross_entropy(logits.float(), train_labels[batch], label_smoothing=0.1)
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
        torch.save({"epoch": epoch + 1} | {k: v.state_dict() for k, v in state.items()}, temporary)
        temporary.replace(checkpoint)

    half = {k: v.half() if v.is_floating_point() else v for k, v in average.module.state_dict().items()}
    save_file({k: v.contiguous() for k, v in half.items()}, args.out / "model.safetensors")
    exported = AnyNet(CONFIG)
    exported.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in load_file(args.out / "model.safetensors").items()}
    )
    result = {"top1": accuracy(exported, test_images, test_labels), "images": len(test_labels)}
    print(json.dumps(result))
    (args.out / "result.json").write_text(json.dumps(result | {"args": {k: str(v) for k, v in vars(args).items()}}))


if __name__ == "__main__":
    main()
