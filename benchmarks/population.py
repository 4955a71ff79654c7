"""Measure whether some changes make populations train faster on a CPU; writes JSON.

    python benchmarks/population.py --data PATH/cifar10 --out benchmarks/results/population.json

Random networks of AnyNetX_A and RegNetX are trained for some steps without and with each change, in
alternation (A B B A). The networks have three stages and 3.6 to 4.0 million multiply-adds at 32
pixels, and train on one thread, as in a study. A change that gives at least 1.1 times as many
images per second is considered worth its code.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from regnet.atomic import write_bytes
from regnet.machine import environment
from regnet.process_group import Group
from regnet.spaces import find_space, sample
from regnet.training.recipe import find_recipe
from regnet.training.run import Run
from regnet.training.session import Options, Session

CPU = torch.device("cpu")
STEPS = 3
Steps = Callable[[], None]


def sessions(config: Any, data: str, **options: Any) -> Session:
    """Return a training session of one network with the recipe of the study of the space order."""
    recipe = find_recipe(
        "cifar", precision="fp32", cutout=0, clean_epochs=0, ema_alpha=0.0, label_smoothing=0.0
    )
    run = Run(model=config, recipe=recipe, train=data, val=None, train_images=2000, num_classes=10)
    session = Session(run, Group(rank=0, size=1, device=CPU), Options(**options))
    session.network.train()
    return session


def steps_of(session: Session) -> Steps:
    """Return a function that trains `STEPS` steps."""

    def endless() -> Iterator[Any]:
        while True:
            yield from session.input.batches(0)

    batches = endless()

    def steps() -> None:
        for _ in range(STEPS):
            session.step([next(batches)])

    return steps


def fused(config: Any, data: str) -> Steps:
    """Use PyTorch's fused SGD, which updates all tensors in one kernel."""
    session = sessions(config, data)
    old = session.state.optimizer
    session.state.optimizer = torch.optim.SGD(
        old.param_groups, lr=0.1, momentum=0.9, nesterov=True, fused=True
    )
    return steps_of(session)


def denormals(config: Any, data: str) -> Steps:
    """Flush denormal numbers to zero."""
    steps = steps_of(sessions(config, data))

    def flushed() -> None:
        torch.set_flush_denormal(True)
        try:
            steps()
        finally:
            torch.set_flush_denormal(False)

    return flushed


def compiled(config: Any, data: str) -> Steps:
    """Compile the network with torch.compile."""
    return steps_of(sessions(config, data, compile=True))


CHANGES: dict[str, Callable[[Any, str], Steps]] = {
    "fused SGD": fused,
    "denormals flushed": denormals,
    "torch.compile": compiled,
}


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain of a change."""

    ratio: float
    """Time of the steps without the change over the time with it, median of the pairs."""
    first: float
    """Seconds of the first steps with the change."""
    speed: float
    """Images per second without the change, median."""


def gain(before: Steps, after: Steps, pairs: int) -> Gain:
    """Time steps without and with a change, in alternation."""
    before()
    began = time.monotonic()
    after()
    first = time.monotonic() - began

    def seconds(steps: Steps) -> float:
        start = time.monotonic()
        steps()
        return time.monotonic() - start

    found, plain = [], []
    for _ in range(pairs):
        a, b, c, d = seconds(before), seconds(after), seconds(after), seconds(before)
        found.append((a + d) / (b + c))
        plain += [a, d]
    images = STEPS * find_recipe("cifar").batch_size
    return Gain(statistics.median(found), first, images / statistics.median(plain))


def main() -> None:
    """Measure all changes on each network, and write the document after each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--compiled", type=int, default=2, help="number to try with torch.compile")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    spaces = ("anynetx_a", "regnetx")
    for name in spaces:
        space = find_space(name)
        shape = replace(space.architecture, stem="cifar", stem_width=16, num_classes=10)
        part = replace(space, num_stages=3, architecture=shape, image_size=32).restrict(
            flops=(3.6e6, 4.0e6)
        )
        for number, config in enumerate(sample(part, args.networks // len(spaces), 7).configs):
            row: dict[str, Any] = {"space": name, "network": config.to_dict()}
            before = steps_of(sessions(config, args.data))
            for change, make in CHANGES.items():
                if change == "torch.compile" and number >= args.compiled // len(spaces):
                    continue
                with contextlib.suppress(RuntimeError):
                    found = gain(before, make(config, args.data), args.pairs)
                    row |= {change: found.ratio, f"{change}, first": found.first}
                    row.setdefault("images_per_second", found.speed)
            rows.append(row)
            print(json.dumps({**row, "network": "..."}), flush=True)
            medians = {
                change: statistics.median(r[change] for r in rows if change in r)
                for change in CHANGES
                if any(change in r for r in rows)
            }
            speed = statistics.median(r["images_per_second"] for r in rows)
            document = {
                "environment": environment(CPU),
                "medians": medians,
                "images_per_second": speed,
                "rows": rows,
            }
            write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
