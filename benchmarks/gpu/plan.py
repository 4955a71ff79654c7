"""Spend a budget of seconds on a GPU: run parts in order of importance, each with a share of it.

    scripts/gpu_check.sh --budget 480
    scripts/gpu_check.sh --part headline --budget 200
    scripts/gpu_check.sh --dry

Each part is a process that writes its JSON after every row, so that an unfinished part leaves valid
results. A part is ended when its share of the time is over; time that it does not use goes to the
next parts. plan.json records the outcome of each part. `--dry` runs every part on the CPU, with
tiny networks, kernels in Triton's interpreter, and stand-ins for libraries that cannot be imported.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from regnet.atomic import write_bytes

HERE: Final = Path(__file__).parent
GRACE: Final = 5.0
"""Seconds that a part has to end after SIGTERM, before it is killed."""

STARTING: Final = 15.0
"""Seconds that a part needs to import torch and to finish its last step; its own budget is shorter
by this amount."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the plan."""

    name: str
    share: float
    """Share of the budget, from 0 to 1."""
    script: str
    args: tuple[str, ...] = ()
    dry_args: tuple[str, ...] = ()


PARTS: Final = (
    Part("headline", 0.60, "headline.py"),
    Part("tests", 0.10, "gpu_tests.py"),
    Part("kernels", 0.08, "kernels.py"),
    Part("everyday", 0.07, "everyday.py"),
    Part("populations", 0.10, "populations.py"),
    Part(
        "grouped", 0.05, "grouped_convs.py", ("--device", "cuda"),
        ("--device", "cpu", "--models", "regnetx_002", "--batch-size", "1", "--precisions", "fp32",
         "--image-size", "32"),
    ),
)  # fmt: skip


def command(part: Part, out: Path, seconds: float, extra: list[str], *, dry: bool) -> list[str]:
    """Return the command that runs a part."""
    own = part.dry_args if dry else part.args
    if part.script == "grouped_convs.py":  # it has neither the option --seconds nor --dry
        extra = list(own)
    else:
        left = max(seconds - STARTING, 1.0)
        extra = [*own, "--seconds", f"{left:.0f}", *(["--dry"] if dry else []), *extra]
    return [sys.executable, str(HERE / part.script), "--out", str(out), *extra]


def run(part: Part, folder: Path, seconds: float, extra: list[str], *, dry: bool) -> dict[str, Any]:
    """Run a part for at most `seconds`, and return its outcome as a row."""
    out, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    began = time.monotonic()
    environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if dry else {})}
    with log.open("w") as file:
        process = subprocess.Popen(
            command(part, out, seconds, extra, dry=dry),
            stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        state = "done"
        try:
            process.wait(max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            state = "cut off"
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:  # end the processes that the part has started as well
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if state == "done" and process.returncode:
        state = f"failed ({process.returncode})"
    rows = len(json.loads(out.read_text())["rows"]) if out.exists() else 0
    spent = round(time.monotonic() - began, 1)
    return {"part": part.name, "state": state, "seconds": spent, "of": round(seconds), "rows": rows}


def main() -> None:
    """Run the parts, or one of them, and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "gpu")
    parser.add_argument("--budget", type=float, default=480, help="seconds for all parts")
    parser.add_argument(
        "--part", choices=names, action="append", help="run only this part; repeatable"
    )
    parser.add_argument("--dry", action="store_true", help="run tiny networks on the CPU")
    parser.add_argument("--data", help="CIFAR-10, for the study of populations")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if not args.part or part.name in args.part]
    whole, began, given = sum(part.share for part in chosen), time.monotonic(), 0.0
    told: list[dict[str, Any]] = []
    for part in chosen:
        given += args.budget * part.share / whole
        left = given - (time.monotonic() - began)
        extra = ["--data", args.data] if args.data and part.name == "populations" else []
        told.append(run(part, args.out, left, extra, dry=args.dry))
        print(json.dumps(told[-1]), flush=True)
        document = {"budget": args.budget, "dry": args.dry, "rows": told}
        write_bytes(args.out / "plan.json", json.dumps(document, indent=1).encode())
    if any(row["state"].startswith("failed") for row in told):
        sys.exit(1)


if __name__ == "__main__":
    main()
