"""Compare the answers of `regnet choose` with those of measuring every candidate; writes JSON.

    python benchmarks/choose.py --limits 10,30,60 --out benchmarks/results/choose.json

The command runs twice for each latency limit, as a user would type it, and in processes that cannot
reach the internet (on systems where `unshare` can cut them off). For the first limit, no earlier
measurements are on disk. Afterwards every candidate is measured on every engine that "auto" uses.
This gives the answers that `choose` should have found, and the errors of its predictions for the
networks that it did not measure.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from regnet.atomic import write_bytes
from regnet.engines.optimize import find_engine
from regnet.machine import Waiting, environment
from regnet.selection.choose import OUTSIDE
from regnet.selection.clock import REFERENCE, Clock
from regnet.selection.device import Conditions, check_engine
from regnet.selection.published import Setting, settings
from regnet.selection.timings import Network, Predictor, Timings, timings_here

CPU = torch.device("cpu")
LICENSE = "commercial"


def without_network() -> list[str]:
    """Return the prefix that cuts a command off the internet; empty if that is not possible."""
    prefix = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare"):
        return []
    return prefix if subprocess.run([*prefix, "true"], check=False).returncode == 0 else []


def seconds_of(command: list[str], variables: Mapping[str, str]) -> tuple[float, str]:
    """Run a command; return how long it took in seconds, and what it printed."""
    start = time.monotonic()
    ended = subprocess.run(
        command, env={**os.environ, **variables}, check=False, stdout=subprocess.PIPE, text=True
    )
    if ended.returncode > 1:  # exit code 1 means that no network is fast enough
        raise RuntimeError(f"{command}: exit code {ended.returncode}")
    return time.monotonic() - start, ended.stdout


def asked(limit: float, cache: Path) -> dict[str, Any]:
    """Run `regnet choose` twice, and time the import of torch, which every answer includes."""
    prefix, variables = without_network(), {"XDG_CACHE_HOME": str(cache)}
    ask = [*prefix, sys.executable, "-m", "regnet", "choose", "--latency-ms", str(limit)]
    ask += ["--license", LICENSE, "--json"]
    first, told = seconds_of(ask, variables)
    second, again = seconds_of(ask, variables)
    torch_alone, _ = seconds_of([sys.executable, "-c", "import torch"], variables)
    answer, repeated = json.loads(told)["chosen"], json.loads(again)["chosen"]
    return {
        "limit_ms": limit,
        "network": "none" if prefix else "not taken away",
        "seconds": round(first, 2),
        "again_seconds": round(second, 2),
        "import_torch_seconds": round(torch_alone, 2),
        "measured": answer["measured"],
        "measured_again": repeated["measured"],
        "answer": answer,
    }


def every_time(networks: Mapping[Network, Setting], cache: Path) -> Timings:
    """Measure every network on every engine."""
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache)}):
        clock = Clock(timings_here(CPU, 1), CPU, 1, lambda _what, _done, _all: None)
        for engine in (REFERENCE, *OUTSIDE):
            find_engine(engine)
            check_engine(Conditions(device=CPU, engine=engine))
            for setting in networks.values():
                clock.time(setting, engine, of=len(networks))
    return clock.timings


def prediction_errors(known: Timings, every: Timings) -> dict[str, dict[str, float]]:
    """Return the relative errors of the predictions for networks not measured, by engine."""
    found, base = {}, None
    for engine in (REFERENCE, *OUTSIDE):
        rows = known.on(engine)
        if not rows:
            continue
        predictor = Predictor(rows, base)
        base = base or predictor
        errors = [
            abs(predictor(row.network) / row.latency_ms - 1)
            for row in every.on(engine)
            if known.get(row.network, engine) is None
        ]
        found[engine] = {
            "networks": len(errors),
            "median": statistics.median(errors),
            "worst": max(errors),
            "said": predictor.error,
        }
    return found


def judged(row: dict[str, Any], candidates: list[Setting], every: Timings) -> dict[str, Any]:
    """Compare an answer with the one that follows from measuring everything."""
    fastest = every.fastest()
    within = [c for c in candidates if fastest.get(c.network, 1e9) <= row["limit_ms"]]
    best = max(within, key=lambda c: (c.accuracy, -fastest[c.network]), default=None)
    pick = row["answer"]["pick"]
    chosen = pick and next(
        c for c in candidates
        if {"checkpoint": c.checkpoint, "image_size": c.image_size}.items()
        <= pick["setting"].items()
    )  # fmt: skip
    return {
        "limit_ms": row["limit_ms"],
        "chosen": chosen and chosen.checkpoint,
        "chosen_top1": chosen and chosen.accuracy,
        "chosen_ms": chosen and fastest[chosen.network],
        "best": best and best.checkpoint,
        "best_top1": best and best.accuracy,
        "best_ms": best and fastest[best.network],
        "same": (best and best.checkpoint) == (chosen and chosen.checkpoint),
    }


def main() -> None:
    """Ask for each limit, measure all candidates, and compare the answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--limits", default="10,30,60", help="latency limits in milliseconds")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    document: dict[str, Any] = {"environment": environment(CPU), "license": LICENSE}
    waiting = Waiting()
    with tempfile.TemporaryDirectory() as name:
        cold, full = Path(name, "cold"), Path(name, "full")
        document["questions"] = []
        for limit in map(float, args.limits.split(",")):
            document["questions"].append(asked(limit, cold))
            write_bytes(args.out, json.dumps(document, indent=1).encode())
            print(json.dumps(document["questions"][-1] | {"answer": "..."}), flush=True)
        candidates = [row for row in settings("*", license=LICENSE) if row.allowed]
        networks = {row.network: row for row in sorted(candidates, key=lambda row: row.flops)}
        start = time.monotonic()
        every = every_time(networks, full)
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cold)}):
            known = timings_here(CPU, 1)
        document |= {
            "networks": len(networks),
            "exhaustive_seconds": round(time.monotonic() - start, 1),
            "prediction_errors": prediction_errors(known, every),
            "answers": [judged(row, candidates, every) for row in document["questions"]],
            "problem": waiting.problem,
        }
        write_bytes(args.out, json.dumps(document, indent=1).encode())
        print(json.dumps({k: v for k, v in document.items() if k != "questions"}, indent=1))


if __name__ == "__main__":
    main()
