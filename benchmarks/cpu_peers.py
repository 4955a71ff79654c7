"""Compare `regnet.optimize` with each runtime used directly, on this CPU; writes JSON.

    python benchmarks/cpu_peers.py --out benchmarks/results/cpu_peers.json

The peers of each network and batch size run in one process: eager PyTorch (channels last, float32),
torch.compile (channels last, frozen weights), ONNX Runtime and OpenVINO. Each is used as its own
guide recommends, without this package's engines; torch.compile and OpenVINO also run in bf16.
`regnet.optimize` runs a fresh race of its engines, and its winner is then timed against each peer
in alternation (A B B A). There are 30 pairs or, if calls are slow, as many as fit into --budget
seconds; fewer than 30 pairs get no verdict. A ratio above 1 means that the peer takes longer.
"without_openvino" is the fastest engine that needs only torch. Rows that are already in --out are
not measured again.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import onnxruntime
import openvino
import torch
from torch import Tensor, nn

import regnet
from regnet.atomic import write_bytes
from regnet.engines.base import TOLERANCES, relative_error
from regnet.machine import environment
from regnet.timing import Comparison, compare, time_call

MODELS = ("regnetx_004", "regnety_004", "regnety_016", "regnety_040", "regnety_080")
NATIVE = ("eager", "folded", "padded", "compiled", "aot_inductor")
CPU = torch.device("cpu")
Call = Callable[[Tensor], object]


def eager(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Run the model eagerly in channels-last layout, as PyTorch's guide recommends."""
    model = model.to(dtype=dtype, memory_format=torch.channels_last)

    def call(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(x.to(dtype=dtype, memory_format=torch.channels_last)).float()

    return call


def compiled(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Run the same model compiled by torch.compile with frozen weights."""
    call = eager(torch.compile(model, dynamic=False), x, dtype)
    with torch._inductor.config.patch(freezing=True):
        call(x)
    return call


def onnx_runtime(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Export the model with `torch.onnx.export`, and run it in a session with default options."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})


def open_vino(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Convert the model, and compile it with the performance hint LATENCY."""
    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=x)
    converted.reshape(list(x.shape))
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = openvino.compile_model(converted, "CPU", hints).create_infer_request()
    return lambda x: request.infer([x.numpy()], share_inputs=True, share_outputs=True)


PEERS = (
    ("eager fp32", eager, torch.float32),
    ("torch.compile fp32", compiled, torch.float32),
    ("onnxruntime fp32", onnx_runtime, torch.float32),
    ("openvino fp32", open_vino, torch.float32),
    ("torch.compile bf16", compiled, torch.bfloat16),
    ("openvino bf16", open_vino, torch.bfloat16),
)


def rows(name: str, batch: int, seconds: float, budget: float) -> Iterator[dict[str, object]]:
    """Yield a row with all precisions allowed, then one with fp32 only."""
    # Only here: a later reset would also discard the peers that are compiled with frozen weights.
    torch._dynamo.reset()
    torch.manual_seed(0)
    build = lambda: regnet.create(name).eval()  # noqa: E731 - a fresh copy each time
    model = build()
    rng = torch.Generator().manual_seed(1)
    inputs = [torch.randn(batch, 3, 224, 224, generator=rng) for _ in range(3)]
    peers = {}
    for label, make, dtype in PEERS:
        peer = build()
        peer.load_state_dict(model.state_dict())
        peers[label] = make(peer, inputs[0], dtype)
        tolerance = TOLERANCES["bf16" if dtype == torch.bfloat16 else "fp32"]
        for x in inputs:
            found = peers[label](x)
            found = found if isinstance(found, Tensor) else torch.as_tensor(found[0]).clone()
            with torch.inference_mode():
                error = relative_error(found, model(x))
            assert error < tolerance, f"{label}: relative error {error:.1e} exceeds {tolerance:.1e}"
    for allowed in ("bf16", "fp32"):
        start = time.monotonic()
        ours = regnet.optimize(
            model,
            inputs[0],
            precision="auto" if allowed == "bf16" else "fp32",
            refresh=allowed == "bf16",  # that race also times fp32, so the second one reuses it
        )
        seconds_to_choose = time.monotonic() - start
        native = min(
            (c for c in ours.report.candidates if c.engine in NATIVE and c.latency_ms),
            key=lambda c: c.latency_ms,
        )
        without = regnet.optimize(
            model, inputs[0], engines=[native.engine], precision=native.precision
        )
        row: dict[str, object] = {
            "model": name,
            "batch_size": batch,
            "allowed": allowed,
            "winner": str(ours.report.winner),
            "native": str(without.report.winner),
            "seconds_to_choose": seconds_to_choose,
            "candidates": [asdict(c) for c in ours.report.candidates],
            "against": {},
        }
        for label, call in peers.items():
            if allowed == "fp32" and "bf16" in label:
                continue
            found = in_turn(ours, call, inputs, seconds, budget)
            row["against"][label] = summary(found)
        best = "openvino bf16" if allowed == "bf16" else "openvino fp32"
        found = in_turn(without, peers[best], inputs, seconds, budget)
        row["without_openvino"] = {"peer": best} | summary(found)
        yield row


def in_turn(
    ours: Call, peer: Call, inputs: list[Tensor], seconds: float, budget: float
) -> Comparison:
    """Compare in 30 pairs, or fewer if calls are slow: at least 10, or 4 for a far slower peer."""
    mine, theirs = (min(time_call(call, x) for x in inputs) for call in (ours, peer))
    fewest = 10 if theirs < 1.3 * mine else 4
    # The factor 2 is for the call at the beginning of each turn that is not counted.
    pairs = max(fewest, min(30, int(budget / (2 * (mine + theirs)))))
    return compare(ours, peer, inputs, pairs=pairs, seconds=seconds)


def summary(found: Comparison) -> dict[str, object]:
    """Return the figures of a comparison that the document reports."""
    return {
        "ratio": found.median,
        "low": found.low,
        "high": found.high,
        "control": [found.control_low, found.control_high],
        # With fewer than 30 pairs nothing is claimed.
        "verdict": found.verdict("regnet", "the peer") if len(found.ratios) >= 30 else None,
        "ratios": [round(r, 4) for r in found.ratios],
    }


def main() -> None:
    """Measure all rows; print and write each as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-size", type=int, nargs="+", default=(1, 16))
    parser.add_argument("--seconds", type=float, default=3.0, help="per comparison")
    parser.add_argument("--budget", type=float, default=15.0, help="per comparison, in seconds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    document: dict[str, object] = {"environment": environment(CPU), "rows": []}
    if args.out and args.out.exists():
        document = json.loads(args.out.read_text(encoding="utf-8"))
    done = {(row["model"], row["batch_size"]) for row in document["rows"]}
    for name in args.models:
        for batch in args.batch_size:
            if (name, batch) in done:
                continue
            for row in rows(name, batch, args.seconds, args.budget):
                document["rows"].append(row)
                ratios = {k: round(v["ratio"], 3) for k, v in row["against"].items()}
                least = min(ratios.values())
                line = {k: row[k] for k in ("model", "batch_size", "allowed", "winner", "native")}
                without = round(row["without_openvino"]["ratio"], 3)
                print(
                    json.dumps(
                        line | {"against": ratios, "least": least, "native_vs_openvino": without}
                    ),
                    flush=True,
                )
                if args.out:
                    write_bytes(args.out, json.dumps(document, indent=1).encode())
    worst = min(v["ratio"] for row in document["rows"] for v in row["against"].values())
    print(json.dumps({"worst_ratio": round(worst, 3), "rows": len(document["rows"])}))


if __name__ == "__main__":
    main()
