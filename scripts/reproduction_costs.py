"""Estimate the GPU hours of the paper's experiments from measured training speed; writes JSON.

    python scripts/reproduction_costs.py --out benchmarks/results/reproduce.json
    python scripts/reproduction_costs.py --images-per-second 2400 --model regnetx_004

The first command uses the training times that the paper measured: 100 epochs of each network on 8
V100 GPUs (figures 15 and 16, tables 3 and 4). The second command scales these times to your own
GPU, for which you pass the images per second that `regnet train` printed for one network. A network
that the paper did not time is taken to train as fast as a RegNetX with the same number of
multiply-adds; between two measured sizes the time is interpolated by a power law.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from regnet.atomic import write_bytes
from regnet.errors import ConfigError

GPUS: Final = 8
EPOCHS: Final = 100
IMAGES: Final = 1_281_167
"""Training images of ImageNet-1k."""

GFLOPS: Final = (0.2, 0.4, 0.6, 0.8, 1.6, 3.2, 4.0, 6.4, 8.0, 12.0, 16.0, 32.0)
REGNETX: Final = (2.8, 3.9, 4.4, 5.7, 8.7, 14.3, 17.1, 23.5, 22.6, 32.9, 39.7, 76.9)
REGNETY: Final = (3.1, 5.1, 5.2, 6.0, 10.1, 16.5, 16.8, 26.1, 28.1, 36.0, 45.6, 76.0)
RESNETS: Final = (12.2, 18.0, 20.4, 31.8, 29.2, 45.7)
EFFICIENTNETS: Final = (11.7, 15.6, 18.4, 32.1, 65.1, 135.1)
"""Hours on 8 V100 for 100 epochs: figures 15 and 16 in the order of `GFLOPS`, and the rows of
tables 3 and 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The networks that are trained for a figure or a table, and what that costs."""

    figures: str
    what: str
    networks: int
    epochs: int
    gpu_hours: float


def hours(gflops: float, epochs: int) -> float:
    """Hours on one V100 to train a RegNetX with `gflops` billion multiply-adds."""
    eight = np.exp(np.interp(np.log(gflops), np.log(GFLOPS), np.log(REGNETX)))
    return float(eight) * GPUS * epochs / EPOCHS


def population(figures: str, what: str, networks: int, epochs: int, *gflops: float) -> Experiment:
    """The cost of populations of `networks` networks, one population for each value of `gflops`."""
    total = sum(networks * hours(each, epochs) for each in gflops)
    return Experiment(
        figures=figures,
        what=what,
        networks=networks * len(gflops),
        epochs=epochs,
        gpu_hours=total,
    )


def final(figures: str, what: str, runs: int, *measured: float) -> Experiment:
    """The cost of networks that the paper timed, each trained `runs` times."""
    return Experiment(
        figures=figures,
        what=what,
        networks=runs * len(measured),
        epochs=EPOCHS,
        gpu_hours=runs * sum(measured) * GPUS,
    )


EXPERIMENTS: Final = (
    population("2, 5", "AnyNetX_A, B, C", 1500, 10, 0.4),
    population("7", "AnyNetX_D, E, and four other orders", 3000, 10, 0.4),
    population("9", "RegNetX and RegNetX with w_m = 2", 1000, 10, 0.4),
    population("10", "three spaces with five stages, and with three other blocks", 1200, 10, 0.4),
    population("10", "three spaces at 800 MF", 300, 10, 0.8),
    population("10", "three spaces, 50 epochs", 300, 50, 0.4),
    population("11, 12", "RegNetX at seven sizes", 100, 25, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8),
    population("13", "RegNetX, constrained, at three sizes", 100, 25, 0.4, 0.8, 3.2),
    population("14", "bottleneck, depthwise, resolution, squeeze-excitation", 500, 25, 0.4),
    population("21", "learning rate and weight decay", 100, 10, 0.4),
    final("15, 17", "RegNetX, 25 candidates at each of twelve sizes", 25 + 5, *REGNETX),
    final("16, 18", "RegNetY, likewise", 25 + 5, *REGNETY),
    final("table 3", "six ResNe(X)ts, five times", 5, *RESNETS),
    final("table 4", "EfficientNet-B0 to B5, five times", 5, *EFFICIENTNETS),
)  # fmt: skip
"""At each size of figures 15 and 16, 25 candidates are trained, and the best one five times more.
The paper does not state the size of the populations of figures 10, 13, 14 and 21; they are
counted with 100 networks each, the size that its section 4 uses."""


def factor(images_per_second: float, model: str) -> float:
    """Ratio of the training time on a GPU with this speed to the time on one V100.

    Raises:
        ConfigError: the paper did not time this network.
    """
    family, _, size = model.partition("_")
    sizes = {f"{round(each * 10):03d}": at for at, each in enumerate(GFLOPS)}
    times = {"regnetx": REGNETX, "regnety": REGNETY}.get(family)
    if times is None or size not in sizes:
        raise ConfigError(f"--model must be one of regnetx_002 to regnety_320, got {model!r}")
    of_paper = IMAGES * EPOCHS / (times[sizes[size]] * GPUS * 3600)
    return of_paper / images_per_second


def main() -> None:
    """Write the cost of every experiment."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images-per-second", type=float, help="training speed of one GPU")
    parser.add_argument("--model", default="regnetx_004", help="network that was timed")
    parser.add_argument("--out", type=Path, help="JSON file; default: standard output")
    args = parser.parse_args()
    speed = factor(args.images_per_second, args.model) if args.images_per_second else 1.0
    found = [replace(each, gpu_hours=each.gpu_hours * speed) for each in EXPERIMENTS]
    document = {
        "gpu": "your GPU" if args.images_per_second else "V100",
        "source": f"{args.images_per_second:g} images per second with {args.model}"
        if args.images_per_second
        else "the paper's figures 15 and 16, tables 3 and 4",
        "experiments": [asdict(each) for each in found],
        "gpu_hours": sum(each.gpu_hours for each in found),
    }
    text = json.dumps(document, indent=1) + "\n"
    if args.out:
        write_bytes(args.out, text.encode())
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
