"""Compare the training throughput of our loop and of a textbook loop on CIFAR-10; writes JSON.

    python benchmarks/train.py --data PATH/cifar10 --out benchmarks/results/train.json

The textbook loop has a Dataset that crops, flips and normalizes each image, a DataLoader with one
worker per core, float32 in the contiguous layout, and SGD. Ours is the recipe `cifar`, and the same
recipe in float32 to show how much of the gain comes from the precision. All loops train the same
network with the same batch size. They alternate, for some steps each, over several rounds.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import regnet
from regnet.atomic import write_bytes
from regnet.data.sets import ImageSet, open_set
from regnet.engines.base import Precision
from regnet.machine import environment
from regnet.process_group import Group
from regnet.training.recipe import find_recipe
from regnet.training.run import Run
from regnet.training.session import Options, Session

MODEL = "regnety_cifar"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Textbook(Dataset[Any]):
    """Images that are decoded once; each access crops, flips and normalizes one of them."""

    def __init__(self, images: ImageSet) -> None:
        self.images = [images.open(index) for index in range(len(images))]
        self.labels = images.labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        data = torch.frombuffer(bytearray(self.images[index].tobytes()), dtype=torch.uint8)
        x = data.view(32, 32, 3).permute(2, 0, 1).float() / 255
        x = nn.functional.pad(x, (4, 4, 4, 4))
        top, left = random.randrange(9), random.randrange(9)
        x = x[:, top : top + 32, left : left + 32]
        if random.random() < 0.5:
            x = x.flip(2)
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        return (x - mean) / std, self.labels[index]


def textbook(images: ImageSet, batch_size: int) -> Callable[[int], None]:
    """Return a function that trains a number of steps."""
    loader = DataLoader(
        Textbook(images),
        batch_size=batch_size,
        shuffle=True,
        num_workers=len(os.sched_getaffinity(0)),
        drop_last=True,
    )
    model = regnet.create(MODEL).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def steps(count: int) -> None:
        for _ in range(count):
            x, y = next(batches)
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return steps


def ours(data: str, batch_size: int, precision: Precision) -> Callable[[int], None]:
    """Return a function that trains a number of steps."""
    recipe = find_recipe("cifar", batch_size=batch_size, precision=precision)
    run = Run(model=MODEL, recipe=recipe, train=data, val=None)
    session = Session(run, Group(rank=0, size=1, device=torch.device("cpu")), Options())
    session.network.train()

    def endless() -> Iterator[Any]:
        while True:
            yield from session.input.batches(0)

    batches = endless()

    def steps(count: int) -> None:
        for _ in range(count):
            passes = [next(batches)]
            session.step(passes)
            session.check_finite(passes, Path())

    return steps


def main() -> None:
    """Measure the loops in alternation, and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="steps of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = str(args.data)
    loops = {
        "textbook": textbook(open_set(data, "train"), args.batch_size),
        "ours, fp32": ours(data, args.batch_size, "fp32"),
        "ours": ours(data, args.batch_size, "bf16"),
    }
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(args.rounds + 1):
        order = list(loops) if number % 2 else list(reversed(loops))
        for name in order:
            # Steps that do not count: they use up the batches that workers have prepared, and
            # replace what the other loops left in the caches.
            loops[name](8)
            start = time.perf_counter()
            loops[name](args.steps)
            if number:  # the first round warms up
                speeds[name].append(args.steps * args.batch_size / (time.perf_counter() - start))
    ratios = {
        name: [a / b for a, b in zip(speeds[name], speeds["textbook"], strict=True)]
        for name in loops
    }
    document = {
        "environment": environment(torch.device("cpu")),
        "model": MODEL,
        "batch_size": args.batch_size,
        "images_per_second": {n: statistics.median(values) for n, values in speeds.items()},
        "over_textbook": {n: statistics.median(values) for n, values in ratios.items()},
        "samples": speeds,
    }
    shown = {k: document[k] for k in ("images_per_second", "over_textbook")}
    print(json.dumps(shown, indent=1))
    if args.out:
        write_bytes(args.out, json.dumps(document, indent=1, default=str).encode())


if __name__ == "__main__":
    main()
