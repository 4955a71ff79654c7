"""Compile kernels for an H200 and report the resources that they need; writes JSON.

    python benchmarks/gpu/resources.py --out benchmarks/results/gpu_resources.json

No GPU is needed. For each layer of each network, and for each kind of way, old and new, there is a
row for the way that is predicted to be the fastest. It has the registers, the shared memory, the
spills, the number of places where the kernel waits for products, and the milliseconds that
`regnet.kernels.launch.predicted` estimates.
"""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any, Final

import torch
from common import network

from regnet.atomic import write_bytes
from regnet.engines.transforms import folded
from regnet.kernels.binary import compile_all
from regnet.kernels.launch import PROCESSORS, Launch, predicted
from regnet.kernels.network import plan
from regnet.machine import environment

NEW: Final = ("_chain", "_matrix", "one image")


def kind(launch: Launch) -> str:
    """Return the kind of the way that a launch uses."""
    return "one image" if launch.constants.get("ONE_IMAGE") else str(launch.kernel.fn.__name__)


def layer(launch: Launch) -> str:
    """Describe the layer that a launch computes: shapes, stride and fused operations."""
    x, out = launch.args[0], launch.args[3]
    constants = launch.constants
    options = [
        word
        for name, word in (
            ("RESIDUAL", "residual"), ("PROJECTED", "projection"), ("SQUEEZE", "sums")
        )
        if constants.get(name)
    ]  # fmt: skip
    options += ["gate"] if constants.get("GATING", "none") != "none" else []
    stride = f", stride {constants['STRIDE']}" if constants.get("STRIDE") else ""
    words = f", {' '.join(options)}" if options else ""
    return f"{list(x.shape)} to {list(out.shape)}{stride}{words}"


def main() -> None:
    """Compile everything, and write a row for each layer and kind of way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["regnety_016", "regnetx_032"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    document: dict[str, Any] = {
        "environment": environment(torch.device("cpu")), "batch_size": args.batch_size,
        "rows": [], "networks": [],
    }  # fmt: skip
    for name in args.models:
        model = folded(network(name, dry=False))
        choices = plan(model, torch.float16, (args.batch_size, 3, 224, 224))
        needs = compile_all(one.binary for ways in choices for one in ways)
        times: Counter[tuple[str, str]] = Counter()
        best: dict[tuple[str, str], dict[str, tuple[float, Launch]]] = {}
        total = {"old": 0.0, "all": 0.0}
        for ways in choices:
            found: dict[str, tuple[float, Launch]] = {}
            for one in ways:
                seconds = predicted(one, needs[one.binary], PROCESSORS)
                if seconds < found.get(kind(one), (inf, one))[0]:
                    found[kind(one)] = seconds, one
            key = str(ways[0].kernel.fn.__module__).rpartition(".")[2], layer(ways[0])
            times[key] += 1
            best[key] = found
            total["old"] += min(s for k, (s, _) in found.items() if k not in NEW)
            total["all"] += min(s for s, _ in found.values())
        for (module, words), found in best.items():
            for what, (seconds, one) in found.items():
                resources = needs[one.binary]
                assert resources is not None, "a way without resources has no finite prediction"
                document["rows"].append(
                    {
                        "model": name, "kernel": module, "layer": words, "way": what,
                        "new": what in NEW, "times": times[module, words],
                        "predicted_ms": 1e3 * seconds, **asdict(resources),
                        "blocks": resources.blocks_per_multiprocessor(32 * one.warps),
                        "constants": one.constants, "warps": one.warps, "stages": one.stages,
                    }
                )  # fmt: skip
        document["networks"].append(
            {
                "model": name,
                **{f"{k}_ms": 1e3 * v for k, v in total.items()},
                "binaries": len(needs),
            }
        )
        print(json.dumps(document["networks"][-1]), flush=True)
        write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
