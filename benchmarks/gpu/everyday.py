"""Time what users do on a GPU: optimize, choose, and predict a folder; writes JSON."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Rows, arguments, device, images, network
from PIL import Image

import regnet


def optimized(where: torch.device, *, dry: bool) -> dict[str, Any]:
    """Race the engines that need no compiler on one network."""
    model = network("regnety_016", dry=dry).to(where)
    example = images(1 if dry else 64, 17 if dry else 224, where, 1)[0]
    engines = ["eager", "folded"] if dry else ["folded", "cuda_graph", "fused"]
    precision = "fp32" if dry else "fp16"
    fast = regnet.optimize(
        model, example, precision=precision, engines=engines, seconds=0.2, refresh=True,
        progress=False,
    )  # fmt: skip
    return {"winner": str(fast.report.winner), "all": [asdict(c) for c in fast.report.candidates]}


def chosen(where: torch.device, *, dry: bool) -> dict[str, Any]:
    """Choose a published network within a latency limit."""
    found = regnet.choose(
        latency_ms=500 if dry else 1.0,
        device=where,
        license="commercial",
        models="regnetx_002*" if dry else "regnet[xy]_0*",
        engine="folded" if dry else "auto",
    )
    return {"pick": found.pick and str(found.pick), "measured": found.measured}


def predicted(where: torch.device, *, dry: bool) -> dict[str, Any]:
    """Classify a folder of JPEG files with the command `regnet predict`."""
    count = 8 if dry else 2000
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((320, 256)).save(Path(folder, f"{number:05d}.jpg"))
        command = [
            sys.executable, "-m", "regnet", "predict", folder, "--out", f"{folder}/out.parquet",
            "--model", "regnety_cifar.cifar10", "--device", str(where), "--json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    return {"images": count, "said": json.loads(done.stdout)}


def main() -> None:
    """Run the tasks one after another; a task that fails becomes a row with its reason."""
    args = arguments(__doc__)
    end = time.monotonic() + args.seconds
    where = device(dry=args.dry)
    rows = Rows(args.out, where)
    works: dict[str, Callable[..., dict[str, Any]]] = {
        "optimize": optimized, "choose": chosen, "predict a folder": predicted
    }  # fmt: skip
    for name, work in works.items():
        if time.monotonic() > end:
            break
        began = time.monotonic()
        try:
            found: dict[str, Any] = work(where, dry=args.dry)
        except Exception as error:  # noqa: BLE001 - a failed task must not end the other tasks
            found = {"reason": f"{type(error).__name__}: {error}"[:300]}
        rows.add(what=name, seconds=time.monotonic() - began, **found)


if __name__ == "__main__":
    main()
