#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in the order of its worth, within a budget of seconds:
#
#     scripts/gpu_check.sh --budget 480
#     scripts/gpu_check.sh --part headline --budget 200
#     scripts/gpu_check.sh --dry          # every part on the CPU, tiny
#
# It runs from a checkout with the Python in $PYTHON (else .venv/bin/python, else python3), in which
# torch 2.11 or newer is installed, and for the rivals timm. The package itself need not be installed.
# Results go to benchmarks/results/gpu, or to --out; `python scripts/write_tables.py` then writes them
# into README and docs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
# Parts share what is compiled.
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
