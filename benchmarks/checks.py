"""Measure what `make test` and `make test-all` cost in a fresh clone; writes JSON.

    python benchmarks/checks.py --out benchmarks/results/checks.json

The clone holds the committed files only. The first run of each target installs what it needs into
the clone; `make test` is then run a second time, without this set-up. `make test-all` begins with
`make test`, and its figures include that part.
"""

import argparse
import json
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch

from regnet.devices import core_count
from regnet.machine import environment

ROOT = Path(__file__).parents[1]
STEPS: Final = (("make test", "first"), ("make test", "again"), ("make test-all", "first"))


def main() -> None:
    """Run the targets one after another, and write the document after each of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.absolute()
    # A background job ignores Ctrl-C, and its children inherit that: the tests of Ctrl-C would
    # fail.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    facts = environment(torch.device("cpu"))
    document: dict[str, Any] = {"environment": facts, "cores": core_count(), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "regnet"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        for target, turn in STEPS:
            row = run(target.split(), clone)
            document["rows"].append({"target": target, "run": turn, **row})
            out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            print(row, file=sys.stderr)
            if row["exit_code"]:
                sys.exit(f"{target} failed; its output is above")


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """Run a command; return its exit code, wall and processor seconds, and passed tests."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    passed = [int(count) for count in re.findall(r"(\d+) passed", done.stdout)]
    return {
        "exit_code": done.returncode,
        "seconds": time.monotonic() - start,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "passed": sum(passed),
    }


if __name__ == "__main__":
    main()
