"""Time sampling a population: 500 networks of each space with 360 to 400 million multiply-adds.

    taskset -c 0 python benchmarks/sampling.py --out benchmarks/results/sampling.json

The script prints JSON. For comparison, pycls takes 44 s for 100 RegNetX in this window on two
cores.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from regnet.atomic import write_bytes
from regnet.machine import environment
from regnet.spaces import SPACES, find_space, sample

COUNT, FLOPS, REPEATS = 500, 400e6, 5


def main() -> None:
    """Time every space, one after another, in several rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="also write the document to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in SPACES}
    for seed in range(REPEATS):
        for name in SPACES:
            start = time.perf_counter()
            sample(find_space(name, flops=FLOPS), COUNT, seed)
            seconds[name].append(time.perf_counter() - start)
    document = {
        "networks": COUNT,
        "flops": FLOPS,
        "combinations": {name: space.size for name, space in SPACES.items()},
        "median_seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "seconds": seconds,
        "environment": environment(torch.device("cpu")),
    }
    text = json.dumps(document, indent=1)
    print(text)
    if args.out:
        write_bytes(args.out, text.encode())


if __name__ == "__main__":
    main()
