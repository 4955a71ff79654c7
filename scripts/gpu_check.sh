#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in some minutes: GPU tests, the benchmark, the profile of
# grouped convolutions, own kernels, and `optimize` against timm; one that fails does not stop the
# rest. Results go to benchmarks/results/gpu, or to $1.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
python=${PYTHON:-.venv/bin/python}
"$python" - <<'END'
import sys, torch
if not torch.cuda.is_available():
    sys.exit("gpu_check: torch sees no CUDA GPU; run this where there is one, with a CUDA build of torch")
END
mkdir -p "$out"
failed=0
"$python" -m pytest -m gpu -q -p no:cacheprovider --junitxml "$out/tests.xml" || failed=1
"$python" -m regnet.bench --device cuda --batch-size 1,64 --precision fp16 --seconds 1 \
  --out "$out/bench.json" --html "$out/bench.html" || failed=1
"$python" benchmarks/grouped_convs.py --device cuda --out "$out/grouped_convs.json" || failed=1
"$python" benchmarks/fused.py --batch-size 1 64 256 --out "$out/fused.json" || failed=1
"$python" benchmarks/gpu_peers.py --out "$out/peers.json" || failed=1
exit $failed
