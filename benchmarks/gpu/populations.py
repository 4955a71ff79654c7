"""Count the networks that 1 to 16 processes on one GPU train per minute; writes JSON.

    python benchmarks/gpu/populations.py --out benchmarks/results/gpu/populations.json --seconds 60

The networks have about 4 million multiply-adds. With `--data PATH/cifar10` the rest of the time is
spent on the study of the order of spaces (docs/study-cifar.md); the networks that it trained are
written next to the JSON file, as a table.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common import Rows, arguments, device

from regnet.spaces import find_space

WORKERS: Final = (1, 4, 8, 16)
SPACES: Final = ("anynetx_a", "anynetx_b", "anynetx_c", "anynetx_d", "anynetx_e", "regnetx")


def study(
    folder: Path, args: list[str], spaces: Sequence[str] = SPACES, **changes: object
) -> list[str]:
    """Return the command that creates a study in a folder."""
    files = []
    for name in spaces:
        space = dataclasses.replace(find_space(name), num_stages=3, name=f"{name}_3")
        files.append(folder / f"{space.name}.json")
        files[-1].write_text(json.dumps(space.to_dict()))
    return [
        sys.executable, "-m", "regnet", "study", "init", str(folder / "study"),
        *[part for file in files for part in ("--space", str(file))],
        "--stem", "cifar", "--stem-width", "16", "--recipe", "cifar-short",
        *[part for item in changes.items() for part in ("--set", "{}={}".format(*item))],
        "--seed", "2026", *args,
    ]  # fmt: skip


def main() -> None:
    """Train small populations with each number of workers, then the study while there is time."""
    args = arguments(__doc__)
    end = time.monotonic() + args.seconds
    where = str(device(dry=args.dry))
    rows = Rows(args.out, device(dry=args.dry))
    small = ["--flops", "1e6" if args.dry else "4e6", "--val-images", "200"]
    for workers in (2,) if args.dry else WORKERS:
        if time.monotonic() > end:
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            images = "200" if args.dry else "4000"
            models = max(1, workers // 3)
            spaces = SPACES[:2] if args.dry else SPACES
            begin = study(
                folder, [*small, "--models", str(models), "--train-images", images], spaces,
                epochs=1, warmup_epochs=0,
            )  # fmt: skip
            subprocess.run(begin, check=True)
            began = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "regnet", "study", "run", str(folder / "study"),
                 "--workers", str(workers), "--device", where],
                check=True,
            )  # fmt: skip
            seconds = time.monotonic() - began
        networks = models * len(spaces)
        rows.add(
            workers=workers, networks=networks, images=int(images), seconds=seconds,
            networks_per_minute=60 * networks / seconds,
        )  # fmt: skip
    if args.data is None or args.dry:
        return
    best = max(rows.document["rows"], key=lambda row: row["networks_per_minute"])
    folder = args.out.with_suffix("")
    folder.mkdir(exist_ok=True)
    begin = study(
        folder,
        ["--data", args.data, "--flops", "4e6", "--models", "64", "--train-images", "20000",
         "--val-images", "10000"],
    )  # fmt: skip
    subprocess.run(begin, check=True)
    running = subprocess.Popen(
        [sys.executable, "-m", "regnet", "study", "run", str(folder / "study"),
         "--workers", str(best["workers"]), "--device", where],
    )  # fmt: skip
    while running.poll() is None and time.monotonic() < end - 25:
        time.sleep(1)
    running.send_signal(signal.SIGINT)
    try:
        running.wait(8)
    except subprocess.TimeoutExpired:
        running.kill()
    subprocess.run(
        [sys.executable, "-m", "regnet", "study", "export", str(folder / "study"),
         str(folder / "study.parquet")],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
