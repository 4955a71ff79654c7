"""Count how often a network is claimed to differ from itself, on a quiet and on a loaded machine.

    python benchmarks/claims.py --out benchmarks/results/claims.json

Each command that compares networks is given the same network twice. This is repeated --repeats
times, half of them while other processes keep all cores busy. At most one comparison in twenty may
claim a difference. The result is written as JSON.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import regnet
from regnet.atomic import write_bytes
from regnet.bench.compare import compare_documents
from regnet.bench.document import Case
from regnet.bench.runner import run
from regnet.design.variants import VARIANTS
from regnet.devices import core_count
from regnet.engines import optimize
from regnet.engines.eager import Eager, Folded
from regnet.machine import Waiting, environment
from regnet.selection.choose import Choice, shown_faster
from regnet.selection.device import Conditions, DeviceMeter
from regnet.selection.published import settings

CPU = torch.device("cpu")


class Again(Folded):
    """The engine `folded` under another name."""

    name = "again"


class Plain(Eager):
    """The engine `folded` under the name of the race's reference."""

    name = "eager"
    build = Folded.build


def compute() -> None:
    """Keep one core busy forever by multiplying matrices."""
    torch.set_num_threads(1)
    a = torch.randn(256, 256)
    while True:
        a @ a


@contextmanager
def load(*, loaded: bool) -> Iterator[None]:
    """Run one busy process per core inside the context if `loaded` is true."""
    context = multiprocessing.get_context("spawn")
    count = core_count() if loaded else 0
    processes = [context.Process(target=compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def by_optimize(name: str) -> str | None:
    """Race two engines that are the same; return the claim of a difference, or None."""
    model = regnet.create(name).eval()
    with mock.patch.object(optimize, "ENGINES", (Plain(), Again())):
        winner = regnet.optimize(
            model, precision="fp32", refresh=True, progress=False
        ).report.winner
    told = winner.verdict or "no difference shown"
    return None if told.startswith("no ") else told


def by_choose(name: str) -> str | None:
    """Measure a network twice; return the two times if one is reported as faster, else None."""
    [setting, *_] = settings(f"{name}.*")
    waiting, rows = Waiting(), []
    for _ in range(2):
        meter = DeviceMeter(Conditions(device=CPU, engine="folded"), seconds=0.5)
        found = meter.measure(VARIANTS[name].config)
        assert found
        rows.append(
            Choice(
                setting=setting, engine="folded", latency_ms=found.latency_ms,
                low_ms=found.low_ms, high_ms=found.high_ms, reference_ms=found.reference_ms,
            )
        )  # fmt: skip
    claimed = shown_faster(*rows) or shown_faster(*reversed(rows))
    if not claimed or waiting.problem:
        return None
    return f"{rows[0].latency_ms:.2f} and {rows[1].latency_ms:.2f} ms"


def by_search(name: str) -> str | None:
    """Compare a network with itself as `search` does with its rival; return a claim, or None."""
    meter = DeviceMeter(Conditions(device=CPU, engine="folded"), seconds=0.5)
    found = meter.compare(VARIANTS[name].config, VARIANTS[name].config)
    assert found
    return found.verdict() if found.differs else None


def by_bench_compare(name: str) -> str | None:
    """Compare two benchmark documents of the same case; return a claim, or None."""
    cases = [Case(model=name, engine="folded")]
    before, after = (run(cases, device=CPU, seconds=1.0) for _ in range(2))
    [change] = compare_documents(before, after)
    return None if change.verdict.startswith("no ") else change.verdict


WAYS: dict[str, Callable[[str], str | None]] = {
    "optimize": by_optimize,
    "choose": by_choose,
    "search": by_search,
    "bench compare": by_bench_compare,
}


def main() -> None:
    """Compare with each command, quiet and loaded, and write the counts after each command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="regnetx_002")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    document: dict[str, Any] = {
        "environment": environment(CPU), "model": args.model, "rows": [],
    }  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": folder}),
    ):
        for loaded in (False, True):
            with load(loaded=loaded):
                for way, ask in WAYS.items():
                    told = [ask(args.model) for _ in range(args.repeats // 2)]
                    claims = [words for words in told if words]
                    document["rows"].append(
                        {"way": way, "loaded": loaded, "repeats": len(told), "claims": claims}
                    )
                    print(json.dumps(document["rows"][-1]), flush=True)
                    write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
