"""Do what a new user would, from a fresh clone, and record the commands, their output and time.

    python scripts/record_walk.py [FOLDER]

Clones this repository into FOLDER (a temporary one by default), sets it up there with nothing but
Python, and writes benchmarks/results/walk.json here; scripts/write_tables.py puts it into
docs/walk.md.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/walk.json"
LINES = 40

FIVE_LINES = """
import regnet
[result] = regnet.predict("docs/photos/chelsea.png")
print(result.classes[0].label)
model = regnet.create("regnety_016", num_classes=10)
print(regnet.complexity(model.config, 224))
""".strip()

STUDY = (
    "regnet study init runs/first --space anynetx_a --space regnetx --models 8 --flops 1M "
    "--stem cifar --stem-width 8 --recipe cifar --set epochs=2 --set warmup_epochs=0 "
    "--set cutout=0 --set clean_epochs=0 --set ema_alpha=0 --set precision=fp32 "
    "--train-images 3000 --val-images 600 --run"
)

STEPS = (
    ("a real photo, classified", "make demo"),
    ("five lines of Python", f"python <<'END'\n{FIVE_LINES}\nEND"),
    ("a benchmark of this device", "regnet bench --quick --engine folded --html bench.html"),
    ("an export", "pip install -q '.[onnx]' && regnet export regnety_cifar.cifar10 regnety.onnx"),
    ("a study, on shapes that are drawn", f"pip install -q '.[study]' && {STUDY}"),
    ("all checks", "make test"),
)


def main() -> None:
    """Walk."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    clone = folder / "regnet"
    began = time.monotonic()
    steps = [
        _step(
            "a clone", f"git clone -q {ROOT} {clone}", folder, shown="git clone REPOSITORY regnet"
        )
    ]
    steps += [_step(what, command, clone) for what, command in STEPS]
    document: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cores": os.cpu_count(),
        "seconds": round(time.monotonic() - began),
        "steps": steps,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _step(what: str, command: str, folder: Path, *, shown: str | None = None) -> dict[str, Any]:
    print(f"{what}: {shown or command}", file=sys.stderr)
    path = f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "110", "CI": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.monotonic() - began
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stdout}")
    lines = [line.rstrip() for line in done.stdout.replace(str(folder), ".").splitlines()]
    # What pip says of where this machine finds its packages is of no use to others.
    lines = [line for line in lines if line and not line.startswith("WARNING: Location")]
    if len(lines) > LINES:
        lines = [*lines[: LINES // 2], "...", *lines[-LINES // 2 :]]
    print(f"  {seconds:.0f} s", file=sys.stderr)
    return {"what": what, "command": shown or command, "seconds": seconds, "output": lines}


if __name__ == "__main__":
    main()
