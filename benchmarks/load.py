"""Compare `create` with the usual way to build a model and load its weights; writes JSON.

    python benchmarks/load.py [--variant regnetx_320] [--rounds 5] [--out FILE]

The document has seconds and memory of both methods, which alternate; each run is a process of its
own. "ours" is `create(..., checkpoint_path=)`; "usual" builds the module with random weights, reads
the file, and copies the tensors with `load_state_dict`. The times named "touched" include reading
every weight once afterwards, as a first prediction does. For both methods, the file is in the page
cache. Memory is the peak resident set of the process minus the peak after the imports.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

import regnet

WORKER = """
import json, sys, time
import torch
from safetensors.torch import load_file
import regnet
from regnet.nn.model import AnyNet

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

variant, path, way = sys.argv[1:]
config = regnet.info(variant).config
before, start = peak(), time.perf_counter()
if way == "ours":
    model = regnet.create(variant, checkpoint_path=path)
else:
    model = AnyNet(config)
    model.load_state_dict(load_file(path))
loaded = time.perf_counter()
checksum = sum(float(value.double().sum()) for value in model.state_dict().values())
print(json.dumps({
    "seconds": loaded - start,
    "seconds_touched": time.perf_counter() - start,
    "peak_bytes": peak() - before,
    "checksum": checksum,
}))
"""


def main() -> None:
    """Run both methods in alternation, and compare their medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--variant", default="regnetx_320")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(regnet.create(args.variant).state_dict(), path)
        size = path.stat().st_size
        path.read_bytes()
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "usual": []}
        for round in range(args.rounds):
            for way in ("ours", "usual") if round % 2 else ("usual", "ours"):
                command = [sys.executable, "-c", WORKER, args.variant, str(path), way]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[way].append(json.loads(done.stdout))
    checksums = {run["checksum"] for way in runs.values() for run in way}
    assert len(checksums) == 1, f"the two methods loaded different weights: {checksums}"
    medians = {
        way: {key: statistics.median(run[key] for run in rows) for key in rows[0]}
        for way, rows in runs.items()
    }
    ours, usual = medians["ours"], medians["usual"]
    result = {
        "variant": args.variant,
        "file_bytes": size,
        "median": medians,
        "times_faster": usual["seconds"] / ours["seconds"],
        "times_faster_touched": usual["seconds_touched"] / ours["seconds_touched"],
        "peak_over_file": {way: row["peak_bytes"] / size for way, row in medians.items()},
        "runs": runs,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {
            "regnet": regnet.__version__,
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
            "python": platform.python_version(),
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
