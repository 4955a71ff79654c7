"""Repeat the paper's controlled comparison of families at a small scale; writes JSON.

    python benchmarks/families.py --data PATH/cifar10 --out benchmarks/results/families.json

The networks are a RegNetX, a RegNetY, a ResNet, a ResNeXt and an EfficientNet-style network of
about 12 million multiply-adds at 32x32 pixels. All have the same stem and strides, and are trained
on CIFAR-10 with the same recipe (`cifar`, shortened, without cutout) and three seeds. Runs that are
already in --out are not repeated, and interrupted runs in --runs are resumed. Afterwards the
latency of all networks is measured in one process.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import regnet
from regnet.atomic import write_bytes
from regnet.cli.train import epoch_line
from regnet.design.config import AnyNetConfig, RegNetConfig, StageConfig
from regnet.engines.base import Target
from regnet.engines.eager import Folded
from regnet.figures import check_plot_file, save_figure
from regnet.machine import environment
from regnet.timing import measure
from regnet.training.recipe import find_recipe

CPU = torch.device("cpu")
BATCHES = (1, 64)
RECIPE = find_recipe("cifar", epochs=10, warmup_epochs=1, cutout=0, clean_epochs=0, ema_alpha=0.0)

Config = AnyNetConfig | RegNetConfig


def _anynet(
    width: int, *, bottleneck_ratio: float, group_width: int | None, **kind: object
) -> Config:
    """Three stages of one, two and three blocks, whose widths double from stage to stage."""
    stages = tuple(
        StageConfig(
            depth=number,
            width=width << number - 1,
            bottleneck_ratio=bottleneck_ratio,
            group_width=group_width or round((width << number - 1) / bottleneck_ratio),
            stride=2,
        )
        for number in (1, 2, 3)
    )
    return AnyNetConfig(stages=stages, stem="cifar", stem_width=32, num_classes=10, **kind)


def _regnet(depth: int, **kind: float) -> Config:
    return RegNetConfig(
        depth=depth, w0=32, wa=12.0, wm=2.0, group_width=8, stem="cifar", stem_width=32,
        num_classes=10, **kind,
    )  # fmt: skip


FAMILIES: dict[str, Config] = {
    "RegNetX": _regnet(12),
    "RegNetY": _regnet(12, se_ratio=0.25),
    "ResNet": _anynet(72, bottleneck_ratio=4.0, group_width=None),
    "ResNeXt": _anynet(64, bottleneck_ratio=2.0, group_width=8),
    "EfficientNet-style": _anynet(
        24, bottleneck_ratio=0.25, group_width=1, block="linear_bottleneck", shortcut="none",
        se_ratio=0.25, activation="silu",
    ),
}  # fmt: skip


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Plot accuracy against flops, activations and latency; bars show the range over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for network in document["networks"]:
        found = [r["top1"] for r in document["runs"] if r["family"] == network["family"]]
        middle = statistics.mean(found)
        bars = [[middle - min(found)], [max(found) - middle]]
        costs = (network["flops"] / 1e6, network["activations"] / 1e6)
        for axes, cost in zip(panels, (*costs, network["latency_ms"]["1"]), strict=True):
            axes.errorbar([cost], [middle], bars, fmt="o", capsize=3, label=network["family"])
    words = ("flops, M", "activations, M", "ms per image, batch 1")
    for axes, word in zip(panels, words, strict=True):
        axes.set_xlabel(word)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("top-1, %")
    panels[0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def main() -> None:
    """Train the networks that are missing, then measure all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/families"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="draw accuracy against cost (.svg, .png, .pdf)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.plot:
        check_plot_file(args.plot)
    document: dict[str, object] = {"recipe": RECIPE.to_dict(), "runs": [], "networks": []}
    if args.out.exists():
        document = json.loads(args.out.read_text(encoding="utf-8"))
        if document["recipe"] != RECIPE.to_dict():
            parser.error(f"{args.out} was made with another recipe; pass another file as --out")

    def keep() -> None:
        write_bytes(args.out, json.dumps(document, indent=1, default=str).encode())

    done = {(run["family"], run["seed"]) for run in document["runs"]}
    # Train all families before the next seed, so that an unfinished document is a comparison too.
    for seed in range(args.seeds):
        for family, config in FAMILIES.items():
            if (family, seed) in done:
                continue
            out = args.runs / f"{family}-{seed}"
            options = regnet.TrainOptions(on_epoch=lambda row: print(epoch_line(row), flush=True))
            if (out / "run.json").exists():
                trained = regnet.resume(out, options=options)
            else:
                trained = regnet.train(
                    config, args.data, out, recipe=RECIPE, seed=seed, options=options
                )
            if trained.stopped_by is not None:
                parser.exit(1, f"stopped; run the same command to resume in {args.runs}\n")
            run = {
                "family": family,
                "seed": seed,
                "top1": trained.top1,
                "losses": [row["loss"] for row in trained.log],
                "top1s": [row["top1"] for row in trained.log],
                "seconds": sum(row["seconds"] for row in trained.log),
                "environment": environment(CPU),
            }
            document["runs"].append(run)
            print(
                json.dumps({k: run[k] for k in ("family", "seed", "top1", "seconds")}), flush=True
            )
            keep()
            shutil.rmtree(out)
    document["networks"] = []
    for family, config in FAMILIES.items():
        cost = regnet.complexity(config, 32)
        row = {"family": family, "config": config.to_dict(), "latency_ms": {}}
        row |= {name: getattr(cost, name) for name in ("flops", "params", "activations")}
        model = regnet.RegNet(config).eval()
        for batch in BATCHES:
            inputs = [torch.randn(batch, 3, 32, 32) for _ in range(3)]
            runner = Folded().build(model, inputs[0], Target(device=CPU))
            row["latency_ms"][str(batch)] = 1e3 * measure(runner, inputs, calls=200).median
        document["networks"].append(row)
    document["environment"] = environment(CPU)
    keep()
    if args.plot:
        draw(document, args.plot)


if __name__ == "__main__":
    main()
