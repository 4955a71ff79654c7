"""`regnet.optimize` against timm's networks, eager and compiled, on a GPU: JSON.

    python benchmarks/gpu_peers.py --out benchmarks/results/gpu_peers.json

timm's networks run in half precision, eager and by torch.compile (reduce-overhead for one image,
default for batches), each in the faster of both layouts; ours is what `regnet.optimize` chooses for
the same precision, with the same weights. In turn (A B B A); a ratio above 1 means that timm takes
longer. Without timm, this package's own network, which has the same operations, stands in for it.
"""

import argparse
import json
import warnings
from dataclasses import asdict
from importlib import util
from pathlib import Path

import torch
from torch import Tensor, nn

import regnet
from regnet.atomic import write_bytes
from regnet.bench.networks import load
from regnet.engines.base import DTYPES, TOLERANCES, Runner, relative_error
from regnet.machine import environment
from regnet.timing import compare, measure

MODELS = ("regnety_016", "regnety_040", "regnety_080", "regnetx_032")
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def peer(model: nn.Module, layout: str, precision: str, mode: str | None) -> Runner:
    """The network in half precision, perhaps compiled: float32 in and out, as ours."""
    dtype, memory_format = DTYPES[precision], LAYOUTS[layout]
    model = model.to(dtype=dtype, memory_format=memory_format).eval()
    call = torch.compile(model, mode=mode, dynamic=False) if mode else model

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return call(x.to(dtype=dtype, memory_format=memory_format)).float()

    return run


def main() -> None:
    """Measure, and print a line per comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-size", type=int, nargs="+", default=(1, 256))
    parser.add_argument("--precision", choices=DTYPES, default="fp16")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(args.device)
    library = "timm" if util.find_spec("timm") else "regnet"
    document: dict[str, object] = {
        "environment": environment(device), "peer": library, "rows": [],
    }  # fmt: skip
    for name in args.models:
        for batch in args.batch_size:
            torch.manual_seed(0)
            model = regnet.create(name).to(device).eval()
            rng = torch.Generator().manual_seed(0)
            inputs = [torch.randn(batch, 3, 224, 224, generator=rng).to(device) for _ in range(3)]
            with torch.inference_mode():
                reference = model(inputs[0])
            torch._dynamo.reset()  # never behind: it would take what is frozen from ours
            ours = regnet.optimize(model, inputs[0], precision=args.precision, refresh=True)
            row: dict[str, object] = {
                "model": name,
                "batch_size": batch,
                "winner": str(ours.report.winner),
                "candidates": [asdict(c) for c in ours.report.candidates],
                "against": {},
            }
            for label, mode in (
                ("eager", None), ("compiled", "reduce-overhead" if batch == 1 else "default"),
            ):  # fmt: skip
                runners: dict[str, Runner] = {}
                for layout in LAYOUTS:
                    other = load(f"timm:{name}" if library == "timm" else name).model.to(device)
                    other.load_state_dict(model.state_dict())
                    runners[layout] = peer(other, layout, args.precision, mode)
                times = {k: measure(v, inputs, seconds=1).median for k, v in runners.items()}
                layout = min(times, key=lambda k: times[k])
                error = relative_error(runners[layout](inputs[0]), reference)
                assert error < TOLERANCES[args.precision], f"{label} gives wrong numbers: {error}"
                found = compare(ours, runners[layout], inputs, pairs=30, seconds=args.seconds)
                row["against"][label] = {
                    "layout": layout,
                    "error": error,
                    "ratio": found.median,
                    "low": found.low,
                    "high": found.high,
                    "verdict": found.verdict("regnet", library),
                }
            document["rows"].append(row)
            print(json.dumps({k: v for k, v in row.items() if k != "candidates"}), flush=True)
            if args.out:
                write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
