"""Test whether the benchmark's verdicts can be trusted on this machine; writes JSON.

    python benchmarks/verdicts.py --out benchmarks/results/verdicts.json

A network is compared with itself twenty times; at least nineteen comparisons must show no
difference. Then it is compared ten times with itself followed by a wait of 5 % of its time, and the
script counts how often that difference is shown.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import regnet
from regnet.atomic import write_bytes
from regnet.engines.base import Runner, Target
from regnet.engines.eager import Folded
from regnet.machine import environment
from regnet.timing import compare, measure

CPU = torch.device("cpu")


def slowed(call: Runner, seconds: float) -> Runner:
    """Return the call followed by a wait of `seconds`."""

    def run(x: Tensor) -> Tensor:
        out = call(x)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return out

    return run


def main() -> None:
    """Run both series of comparisons, and count the differences that were shown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="regnetx_002")
    parser.add_argument("--seconds", type=float, default=5.0, help="per comparison")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = regnet.create(args.model).eval()
    rng = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 3, 224, 224, generator=rng) for _ in range(3)]
    call = Folded().build(model, inputs[0], Target(device=CPU))
    again = Folded().build(model, inputs[0], Target(device=CPU))
    slow = slowed(call, 0.05 * measure(call, inputs).median)
    document = {"environment": environment(CPU), "model": args.model, "seconds": args.seconds}
    for name, other, runs in (("same", again, 20), ("slower by 5 %", slow, 10)):
        found = [
            compare(call, other, inputs, seconds=args.seconds, rng=np.random.default_rng(n))
            for n in range(runs)
        ]
        document[name] = {
            "runs": runs,
            "differences_shown": sum(c.differs for c in found),
            "medians": [round(c.median, 4) for c in found],
            "intervals": [[round(c.low, 4), round(c.high, 4)] for c in found],
            "verdicts": [c.verdict("the one", "the other") for c in found],
        }
        print(name, document[name]["differences_shown"], "of", runs, document[name]["medians"])
    if args.out:
        write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
