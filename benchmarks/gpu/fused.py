"""Compare the engine `fused` with PyTorch's kernels and with the hardware floor; writes JSON.

    python benchmarks/gpu/fused.py --out benchmarks/results/fused.json

Each network runs in half precision, in a CUDA graph and with folded norms: with this package's
kernels ("fused"), with those of PyTorch ("cuda_graph", in the faster of both layouts), and with
those of PyTorch after groups were widened to powers of two ("padded_cuda_graph"). The engines are
timed in alternation (A B B A). A ratio above 1 means that the other engine takes longer. The floor
is the one for fused squeeze-excitation; it is computed from ceilings that are measured in the same
run.
"""

import argparse
import json
from pathlib import Path

import torch

import regnet
from regnet.atomic import write_bytes
from regnet.bench.floors import floor, measure_ceilings
from regnet.design.layers import network_layers
from regnet.design.variants import VARIANTS
from regnet.engines.base import DTYPES, TOLERANCES, Target
from regnet.engines.check import answers, worst_error
from regnet.engines.cuda_graph import CUDAGraph, PaddedCUDAGraph
from regnet.engines.fused import Fused
from regnet.engines.optimize import LAYOUTS
from regnet.errors import EngineError
from regnet.machine import environment
from regnet.timing import compare, time_queued

MODELS = ("regnety_016", "regnety_040", "regnety_080", "regnetx_032")


def main() -> None:
    """Measure each network and batch size, and print and write a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-size", type=int, nargs="+", default=(1, 256))
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda")
    ceilings = measure_ceilings(device, args.precision)
    document: dict[str, object] = {
        "environment": environment(device),
        "precision": args.precision,
        "bytes_per_second": ceilings.bytes_per_second,
        "flops_per_second": ceilings.flops_per_second,
        "rows": [],
    }
    for name in args.models:
        torch.manual_seed(0)
        model = regnet.create(name).to(device).eval()
        for batch in args.batch_size:
            rng = torch.Generator().manual_seed(0)
            inputs = [torch.randn(batch, 3, 224, 224, generator=rng).to(device) for _ in range(3)]
            reference = answers(model, inputs)
            target = Target(device=device, precision=args.precision)
            ours = Fused().build(model, inputs[0], target)
            error = worst_error(ours, inputs, reference)
            assert error < TOLERANCES[args.precision], f"error above the tolerance: {error}"
            seconds = time_queued(ours, inputs)
            least = floor(
                network_layers(VARIANTS[name].config.anynet(), 224), batch, ceilings,
                element_bytes=DTYPES[args.precision].itemsize,
            ).fused  # fmt: skip
            row: dict[str, object] = {
                "model": name,
                "batch_size": batch,
                "ms": 1e3 * seconds,
                "images_per_second": batch / seconds,
                "floor_ms": 1e3 * least,
                "error": error,
                "against": {},
            }
            for engine in (CUDAGraph(), PaddedCUDAGraph()):
                try:
                    others = {
                        layout: engine.build(
                            model, inputs[0],
                            Target(device=device, precision=args.precision, layout=layout),
                        )
                        for layout in LAYOUTS
                    }  # fmt: skip
                except EngineError:  # the network has no group width that needs padding
                    continue
                times = {k: time_queued(v, inputs, calls=5) for k, v in others.items()}
                layout = min(times, key=lambda k: times[k])
                found = compare(ours, others[layout], inputs, pairs=30, seconds=args.seconds)
                row["against"][engine.name] = {
                    "layout": layout,
                    "ms": 1e3 * times[layout],
                    "ratio": found.median,
                    "low": found.low,
                    "high": found.high,
                    "verdict": found.verdict("fused", engine.name),
                }
            document["rows"].append(row)
            print(json.dumps(row), flush=True)
            if args.out:
                write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
