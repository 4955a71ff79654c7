#!/usr/bin/env bash
# Run everything that needs an NVIDIA GPU within a budget in seconds, the most important part first:
#
#     scripts/gpu_check.sh --budget 480
#     scripts/gpu_check.sh --part headline --budget 200
#     scripts/gpu_check.sh --dry          # every part on the CPU, with tiny networks
#
# The script uses the Python interpreter in $PYTHON, or else .venv/bin/python, or else python3. That
# environment needs torch 2.11 or newer, and timm for the comparisons with rivals; the package
# itself is used from this checkout and need not be installed. Results are written to
# benchmarks/results/gpu, or to the folder given with --out. Then run
# `python scripts/write_tables.py` to update the tables in the README and the docs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
# All parts share the compiler caches, so that each kernel is compiled only once.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/build/gpu-cache/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$PWD/build/gpu-cache/inductor}
if [[ " $* " != *" --dry "* ]]; then
  "$python" - <<'END'
import sys, torch
if not torch.cuda.is_available():
    sys.exit("gpu_check: torch sees no CUDA GPU; run this where there is one, with a CUDA build of torch")
END
fi
exec "$python" benchmarks/gpu/plan.py "$@"
