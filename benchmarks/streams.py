"""Measure what streams gain on a CPU, and how many images each piece should have; writes JSON.

    python benchmarks/streams.py --out benchmarks/results/streams.json

A batch of 16 images is computed once on all threads together, and once in pieces of 1, 4 or 8
images by one stream per thread. Both are timed in alternation (A B B A), with ONNX Runtime and
OpenVINO.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch

import regnet
from regnet.atomic import write_bytes
from regnet.engines import batches
from regnet.engines.base import Target
from regnet.engines.onnx_runtime import ONNXRuntime
from regnet.engines.openvino import OpenVINO
from regnet.machine import environment
from regnet.timing import compare

CPU = torch.device("cpu")
BATCH = 16
PIECES = (1, 4, 8)


def main() -> None:
    """Time each engine and piece size against the undivided batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="regnetx_004")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model, threads = regnet.create(args.model).eval(), torch.get_num_threads()
    inputs = [torch.randn(BATCH, 3, 224, 224) for _ in range(3)]
    rows: list[dict[str, Any]] = []
    example = torch.zeros(BATCH, 3, 224, 224)
    with torch.inference_mode():
        for engine in (ONNXRuntime(), OpenVINO()):
            whole = engine.build(model, example, Target(device=CPU))
            for piece in PIECES:
                batches.PIECE = piece  # type: ignore[misc] # the size of the engines' pieces
                streams = engine.build(model, example, Target(device=CPU, streams=threads))
                found = compare(streams, whole, inputs, pairs=20, seconds=10)
                rows.append({"engine": engine.name, "piece": piece, "times_as_fast": found.median,
                             "low": found.low, "high": found.high,
                             "problem": found.problem})  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    document = {"environment": environment(CPU), "model": args.model, "batch": BATCH,
                "streams": threads, "rows": rows}  # fmt: skip
    write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
