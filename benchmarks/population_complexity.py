"""Time the complexity of 100,000 random RegNets as arrays, and of some one by one; prints JSON.

taskset -c 0 python benchmarks/population_complexity.py
"""

import json
import platform
import statistics
import time

import numpy as np

from regnet.design.complexity import complexity, population_complexity
from regnet.design.config import ArchitectureConfig, RegNetConfig
from regnet.design.population import regnet_population

COUNT, ONE_BY_ONE = 100_000, 300


def main() -> None:
    """Time both functions on the same networks, drawn from the paper's search space."""
    rng = np.random.default_rng(0)
    parameters = {
        "depth": rng.integers(1, 64, COUNT),
        "w0": 8 * rng.integers(1, 32, COUNT),
        "wa": rng.uniform(0, 255, COUNT),
        "wm": rng.uniform(1.5, 3, COUNT),
        "group_width": 2 ** rng.integers(0, 6, COUNT),
        "bottleneck_ratio": 2.0 ** rng.integers(0, 3, COUNT),
    }
    shared = ArchitectureConfig(se_ratio=0.25)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        costs = population_complexity(regnet_population(**parameters), shared)
        seconds.append(time.perf_counter() - start)
    rows = [{name: values[i].item() for name, values in parameters.items()} for i in range(COUNT)]
    start = time.perf_counter()
    flops = [complexity(RegNetConfig(**row, se_ratio=0.25)).flops for row in rows[:ONE_BY_ONE]]
    alone = (time.perf_counter() - start) / ONE_BY_ONE
    assert flops == costs.flops[:ONE_BY_ONE].tolist()
    median = statistics.median(seconds)
    result = {
        "networks": COUNT,
        "seconds": {"median": median, "samples": seconds},
        "networks_per_second": {"as_arrays": COUNT / median, "one_by_one": 1 / alone},
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
