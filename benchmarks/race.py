"""Compare the race of `regnet.optimize` with an exhaustive race on this CPU; writes JSON.

    python benchmarks/race.py --out benchmarks/results/race.json

An exhaustive race builds and times every candidate. A row for each network and batch size has the
seconds of both races, and the latency of the winner of the first over that of the exhaustive race,
timed in alternation (A B B A). Saved choices are not used, and compilers begin with empty caches.
Rows that are already in --out are not measured again.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import regnet
from regnet.atomic import write_bytes
from regnet.engines.race import NOT_TRIED
from regnet.machine import environment
from regnet.timing import compare

MODELS = ("regnetx_002", "regnety_004", "regnety_016", "regnetx_032", "regnety_040")
CPU = torch.device("cpu")


def raced(model: torch.nn.Module, example: torch.Tensor, **options: Any) -> tuple[Any, float]:
    """Return the result of `optimize`, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        start = time.monotonic()
        fast = regnet.optimize(model, example, refresh=True, progress=False, **options)
        return fast, time.monotonic() - start


def row(name: str, batch_size: int) -> dict[str, Any]:
    """Run both races for one network, and time their winners in alternation."""
    torch.manual_seed(0)
    model = regnet.create(name).eval()
    inputs = [torch.randn(batch_size, 3, 224, 224) for _ in range(3)]
    short, seconds = raced(model, inputs[0])
    full, exhaustive = raced(model, inputs[0], exhaustive=True)
    same = str(short.report.winner) == str(full.report.winner)
    pairs = 30 if batch_size == 1 else 12
    found = compare(full, short, inputs, pairs=pairs, seconds=6.0)
    return {
        "model": name,
        "batch_size": batch_size,
        "seconds": round(seconds, 1),
        "exhaustive_seconds": round(exhaustive, 1),
        "winner": str(short.report.winner),
        "exhaustive_winner": str(full.report.winner),
        "same": same,
        "ratio": found.median,
        "interval": [found.low, found.high],
        "problem": found.problem,
        "not_tried": {str(c): c.reason for c in short.report.candidates if c.reason and
                      c.reason.startswith(NOT_TRIED)},
    }  # fmt: skip


def main() -> None:
    """Measure the rows that are missing, and write the document after each."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batch-sizes", default="1,16")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    document: dict[str, Any] = {"environment": environment(CPU), "rows": []}
    if args.out.exists():
        document["rows"] = json.loads(args.out.read_text("utf-8"))["rows"]
    done = {(row["model"], row["batch_size"]) for row in document["rows"]}
    for batch_size in map(int, args.batch_sizes.split(",")):
        for name in args.models.split(","):
            if (name, batch_size) in done:
                continue
            document["rows"].append(row(name, batch_size))
            print(json.dumps(document["rows"][-1]), flush=True)
            write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
