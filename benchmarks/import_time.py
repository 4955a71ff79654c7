"""Measure what `import regnet` costs after `import torch`; prints JSON.

python benchmarks/import_time.py
"""

import json
import platform
import statistics
import subprocess
import sys

CODE = (
    "import time, torch; start = time.perf_counter(); import regnet; "
    "print(time.perf_counter() - start)"
)


def main() -> None:
    """Time the import in eleven fresh interpreters."""
    seconds = [
        float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True).stdout)
        for _ in range(11)
    ]
    result = {
        "seconds_beside_torch": {"median": statistics.median(seconds), "samples": seconds},
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
