"""Run a new user's first commands in a fresh clone; record each command, its output and its time.

    python scripts/record_walk.py --photos PHOTOS --cifar10 CIFAR10 [--folder FOLDER]

The script clones this repository into FOLDER (by default a temporary folder), sets the clone up
with nothing but Python, and writes benchmarks/results/walk.json in this checkout, from which
scripts/write_tables.py makes docs/walk.md. PHOTOS and CIFAR10 are data that a user would have:
PHOTOS is a folder with photos in class folders, which are merged into two classes, and CIFAR10 is a
folder with CIFAR-10 in Parquet files. A server on this machine stands in for the Hub.
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/walk.json"
LINES = 70

FIVE_LINES = """
import regnet
[result] = regnet.predict("docs/photos/chelsea.png")
print(result.classes[0].label)
model = regnet.create("regnety_016", num_classes=10)
print(regnet.complexity(model.config, 224))
""".strip()

STUDY = (
    "regnet study init runs/first --space anynetx_a --space regnetx --models 8 --flops 1M "
    "--stem cifar --stem-width 8 --stages 3 --recipe cifar-short --set epochs=4 "
    "--set batch_size=32 --set lr=0.4 --train-images 3000 --val-images 600 --run"
)

NEAREST = """
import pyarrow.parquet as parquet
import torch
rows = parquet.read_table("features.parquet").to_pylist()
x = torch.nn.functional.normalize(torch.tensor([row["features"] for row in rows]), dim=1)
nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
for row in (0, 20, 40):
    print(rows[row]["path"], "is most like", rows[nearest[row]]["path"])
""".strip()

FINETUNED = "runs/photos/model"

STEPS = (
    ("a real photo, classified", "make demo"),
    ("five lines of Python", f"python <<'END'\n{FIVE_LINES}\nEND"),
    ("a benchmark of this device", "regnet bench --quick --engine folded --html bench.html"),
    ("a study, on shapes that are drawn", f"pip install -q '.[study]' && {STUDY}"),
    (
        "which network to take",
        "pip install -q '.[onnx,openvino,int8]' && "
        "regnet choose --latency-ms 30 --license commercial",
    ),
    (
        "fine-tuning on 120 photos of two classes",
        "regnet train photos/ --model regnety_cifar.cifar10 --image-size 64 --out runs/photos",
    ),
    (
        "fine-tuning on 200 images of ten classes",
        "regnet train cifar/ --model regnety_cifar.cifar10 --out runs/cifar",
    ),
    ("how good it is", f"regnet evaluate photos/val --model {FINETUNED}"),
    (
        "the same weights from the Hub",
        "regnet predict docs/photos/chelsea.png --model hf-hub:me/photos",
    ),
    (
        "a file that takes pixels, and serves itself",
        f"regnet export {FINETUNED} photos.onnx --input uint8 --dynamic batch --example && "
        "python photos_serve.py photos.onnx docs/photos/chelsea.png",
    ),
    (
        "int8, that may lose two points",
        f"regnet export {FINETUNED} photos.int8.xml --precision int8 --images photos/train "
        "--data photos/val --max-drop 2 --dynamic batch",
    ),
    ("the accuracy of int8", "regnet evaluate photos/val --model photos.int8.xml"),
    (
        "before and after, side by side",
        f"regnet bench --models {FINETUNED},photos.onnx,photos.int8.xml --data photos/val",
    ),
    (
        "a folder into a table, and the photo most like another",
        f"regnet predict photos/ --model {FINETUNED} --features --out features.parquet && "
        f"python <<'END'\n{NEAREST}\nEND",
    ),
)


def main() -> None:
    """Run all steps in order, and write what they printed and how long they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    folder = args.folder.resolve() if args.folder else Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    clone = folder / "regnet"
    sys.path.insert(0, str(ROOT))
    from tests.hub_server import Hub

    hub = Hub()
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hub"),
                 "XDG_CACHE_HOME": str(folder / "cache")}  # fmt: skip
    began = time.monotonic()
    steps = [
        _step(
            "a clone", f"git clone -q {ROOT} {clone}", folder, {},
            shown="git clone REPOSITORY regnet",
        )
    ]  # fmt: skip
    sets = runpy.run_path(str(ROOT / "benchmarks/finetune.py"))
    sets["photos"](args.photos, clone / "photos")
    sets["cifar"](args.cifar10, clone / "cifar")
    for what, command in STEPS:
        steps.append(_step(what, command, clone, variables))
        if (clone / FINETUNED).is_dir():
            files = [path for path in (clone / FINETUNED).iterdir() if path.is_file()]
            hub.repos["me/photos"] = {path.name: path.read_bytes() for path in files}
    document: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cores": os.cpu_count(),
        "seconds": round(time.monotonic() - began),
        "steps": steps,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _step(
    what: str,
    command: str,
    folder: Path,
    variables: Mapping[str, str],
    *,
    shown: str | None = None,
) -> dict[str, Any]:
    print(f"{what}: {shown or command}", file=sys.stderr)
    path = f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env={**os.environ, **variables, "PATH": path, "COLUMNS": "110", "CI": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.monotonic() - began
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stdout}")
    lines = [line.rstrip() for line in done.stdout.replace(str(folder), ".").splitlines()]
    # pip's warnings about the package locations of this machine do not concern other users.
    lines = [line for line in lines if line and not line.startswith("WARNING: Location")]
    if len(lines) > LINES:
        lines = [*lines[: LINES // 2], "...", *lines[-LINES // 2 :]]
    print(f"  {seconds:.0f} s", file=sys.stderr)
    return {"what": what, "command": shown or command, "seconds": seconds, "output": lines}


if __name__ == "__main__":
    main()
