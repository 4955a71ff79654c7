"""Tables about training networks and populations of them."""

import statistics
from collections.abc import Iterator
from typing import Final

from .markdown import Document, Tables, origin, table


def train(document: Document) -> Iterator[str]:
    """Training throughput beside a textbook's loop."""
    rows = [
        [name, f"{speed:.0f}", f"{document['over_textbook'][name]:.2f}"]
        for name, speed in document["images_per_second"].items()
    ]
    yield from table(["loop", "images/s", "over the textbook's"], rows)
    yield ""
    yield (
        f"{document['model']} on CIFAR-10, batches of {document['batch_size']}. {origin(document)}."
    )


def finetune(document: Document) -> Iterator[str]:
    """The recipe against others."""
    ways = list(dict.fromkeys(row["way"] for row in document["rows"]))
    rows = []
    for name in dict.fromkeys(row["set"] for row in document["rows"]):
        cells = []
        for way in ways:
            runs = [r["top1"] for r in document["rows"] if (r["set"], r["way"]) == (name, way)]
            cell = f"{sum(runs) / len(runs):.1f}"
            for found in document["differences"]:
                if (found["set"], found["over"]) == (name, way):
                    cell += (
                        f" ({found['points']:+.1f}; {found['low']:+.1f} to {found['high']:+.1f})"
                    )
            cells.append(cell)
        rows.append([name, *cells])
    yield from table(["top-1, %", *ways], rows)
    yield ""
    seeds = len({row["seed"] for row in document["rows"]})
    yield (
        f"Means of {seeds} seeds. shapes: synthetic images of six classes; photos: real photos of "
        "many objects, divided into two arbitrary classes (chance: 50 %). The brackets show by how "
        f"many points `finetune` is better, with the 95 % interval of paired differences. "
        f"{origin(document)}."
    )


def families(document: Document) -> Iterator[str]:
    """The paper's comparison in miniature."""
    rows = []
    for network in document["networks"]:
        found = [r["top1"] for r in document["runs"] if r["family"] == network["family"]]
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        rows.append(
            [
                network["family"],
                f"{network['flops'] / 1e6:.1f}",
                f"{network['params'] / 1e6:.2f}",
                f"{network['activations'] / 1e6:.3f}",
                *(f"{ms:.2f}" for ms in network["latency_ms"].values()),
                f"{statistics.mean(found):.2f}{spread}",
                f"{len(found)}",
            ]
        )
    batches = [f"ms, batch {batch}" for batch in document["networks"][0]["latency_ms"]]
    yield from table(
        ["", "flops, M", "params, M", "activations, M", *batches, "top-1, %", "seeds"], rows
    )
    yield ""
    yield (
        f"{document['recipe']['epochs']} epochs of CIFAR-10 (JPEG); mean ± standard deviation "
        f"over seeds; latency in float32 on eager PyTorch with folded norms. {origin(document)}."
    )


def sampling(document: Document) -> Iterator[str]:
    """How long it takes to sample a population."""
    rows = [
        [f"`{name}`", f"{document['combinations'][name]:.1e}", f"{1e3 * seconds:.0f}"]
        for name, seconds in document["median_seconds"].items()
    ]
    yield from table(["space", "combinations", "ms to sample"], rows)
    yield ""
    flops = document["flops"] / 1e6
    yield (
        f"{document['networks']} networks of {0.9 * flops:.0f} to {flops:.0f} million "
        f"multiply-adds, on one core. {origin(document)}."
    )


def population(document: Document) -> Iterator[str]:
    """What would make populations train faster on a CPU."""
    rows = []
    for change, median in document["medians"].items():
        ratios = [row[change] for row in document["rows"] if change in row]
        first = statistics.median(
            row[f"{change}, first"] for row in document["rows"] if change in row
        )
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([change, f"{median:.2f}", spread, str(len(ratios)), f"{first:.1f}"])
    yield from table(
        ["change", "times as fast, median", "over networks", "networks", "first 3 steps, s"], rows
    )
    yield ""
    yield (
        "Random networks of AnyNetX_A and RegNetX with three stages, 3.6 to 4.0 million "
        "multiply-adds at 32 pixels, batch 128, one thread, timed with and without the change in "
        f"alternation. Without it, training reached {document['images_per_second']:.0f} images/s "
        f"(median). {origin(document)}."
    )


EPOCH: Final = {"CIFAR-10, 20,000 images": (20_000, 3.8e6), "ImageNet": (1_281_167, 400e6)}
"""Images of an epoch, and multiply-adds of a network, of studies whose cost is told."""


def population_cost(document: Document) -> Iterator[str]:
    """How long studies take on CPUs, from the speed that was measured."""
    speed = document["images_per_second"]
    first = "torch.compile, first"
    compiling = statistics.median(row[first] for row in document["rows"] if first in row)
    network = 8 * 20_000 / speed
    yield (
        f"Eight epochs of 20,000 images take {network:.0f} s. `torch.compile` would save "
        f"{network * (1 - 1 / document['medians']['torch.compile']):.0f} s of them, and compiling "
        f"a network takes {compiling:.0f} s even from a warm cache, so we left it out. More "
        "machines do help: networks are independent of each other, and `--executor ray` gives one "
        "to each free core."
    )
    yield ""
    measured = EPOCH["CIFAR-10, 20,000 images"][1]
    rows = []
    for name, models, epochs in (
        ("CIFAR-10, 20,000 images", 64, 8),
        ("CIFAR-10, 20,000 images", 500, 8),
        ("ImageNet", 500, 10),
    ):
        images, flops = EPOCH[name]
        hours = 6 * models * epochs * images / (speed * measured / flops) / 3600
        rows.append(
            [
                f"6 spaces of {models} networks, {epochs} epochs of {name}",
                f"{flops / 1e6:.3g}",
                f"{hours:,.0f}",
                *(f"{hours / cores:,.1f}" for cores in (64, 640)),
            ]
        )
    yield from table(
        ["study", "multiply-adds, M", "hours on one core", "on 64 cores", "on 640 cores"], rows
    )
    yield ""
    yield (
        f"Computed from {speed:.0f} images/s of a core at {measured / 1e6:.1f} million "
        "multiply-adds, as measured above, in proportion to the multiply-adds. The last row has "
        "the paper's size, for which you would use GPUs."
    )


TABLES: Tables = {
    "train.json": (train,),
    "finetune.json": (finetune,),
    "families.json": (families,),
    "sampling.json": (sampling,),
    "population.json": (population, population_cost),
}
