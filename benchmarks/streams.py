"""What several images at once gain on a CPU, and how large their pieces should be: JSON.

    python benchmarks/streams.py --out benchmarks/results/streams.json

A batch of 16 on all threads, against a stream per thread that takes it in pieces of 1, 4 and 8
images; by ONNX Runtime and OpenVINO, timed in turn (A B B A).
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import regnet
from regnet.atomic import write_bytes
from regnet.engines.base import Runner, Target
from regnet.engines.batches import Streams
from regnet.engines.onnx_runtime import load_onnx, write_onnx
from regnet.engines.openvino import convert, run_openvino
from regnet.engines.program import capture
from regnet.machine import environment
from regnet.timing import compare

CPU = torch.device("cpu")
BATCH = 16
PIECES = (1, 4, 8)


class Pieces(Streams):
    """Streams that take pieces of a batch instead of single images."""

    def __init__(self, streams: Streams, piece: int) -> None:
        super().__init__([streams._free.get() for _ in range(streams.count)])
        self.piece = piece

    def _begun(self, batch: torch.Tensor) -> list[Any]:
        return [self._pool.submit(self._one, part) for part in batch.split(self.piece)]


def built(model: torch.nn.Module, engine: str, size: int, streams: int, folder: Path) -> Runner:
    """A runner of batches of one size, on streams if there are any."""
    example = torch.zeros(size, 3, 224, 224)
    program = capture(model, example, Target(device=CPU, layout="contiguous"))
    target = Target(device=CPU, streams=streams)
    if engine == "openvino":
        return run_openvino(convert(program, example), target)
    path = folder / f"{size}-{streams}.onnx"
    write_onnx(program, path)
    return load_onnx(path, target)


def main() -> None:
    """Time each way against the batch."""
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
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        for engine in ("onnx_runtime", "openvino"):
            whole = built(model, engine, BATCH, 0, Path(name))
            for piece in PIECES:
                runner = built(model, engine, piece, threads, Path(name))
                assert isinstance(runner, Streams)
                found = compare(Pieces(runner, piece), whole, inputs, pairs=20, seconds=10)
                rows.append({"engine": engine, "piece": piece, "times_as_fast": found.median,
                             "low": found.low, "high": found.high,
                             "problem": found.problem})  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    document = {"environment": environment(CPU), "model": args.model, "batch": BATCH,
                "streams": threads, "rows": rows}  # fmt: skip
    write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
