"""Time every kernel of some networks in every way that it can run; writes JSON.

    python benchmarks/gpu/kernels.py --out benchmarks/results/gpu/kernels.json --seconds 60

A way is a choice of tile sizes, warps and pipeline stages, and sometimes of another kernel (see
`regnet.kernels.launch`). A row for each layer and way has the measured milliseconds, the predicted
ones, the resources that the binary needs, bytes per second, and the share of the floor of that
layer alone. After the rows of each network, three rows name its slowest layers.
"""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from typing import Any, Final

import torch
from common import Rows, arguments, device, images, network

from regnet.bench.floors import measure_ceilings
from regnet.engines.transforms import folded
from regnet.kernels import grouped, launch, pointwise, squeeze, stem
from regnet.kernels.binary import Binary, Resources, compile_all
from regnet.kernels.launch import Launch
from regnet.kernels.network import fused, plan

NETWORKS: Final = ("regnety_016", "regnetx_032", "regnety_080")
MODULES: Final = (grouped, pointwise, squeeze, stem)


class Watch:
    """A stand-in for `regnet.kernels.launch.fastest` that times every way of every layer."""

    def __init__(
        self, model: str, resources: dict[Binary, Resources | None], rows: Rows, end: float
    ) -> None:
        self.model, self.resources, self.document, self.end = model, resources, rows, end
        self.peak = rows.document["bytes_per_second"]
        self.calls: Counter[Hashable] = Counter()
        self.rows: dict[Hashable, list[dict[str, Any]]] = {}
        self.best: dict[Hashable, Any] = {}

    def __call__(
        self,
        key: Hashable,
        ways: Sequence[Any],
        made: Callable[[Any], Callable[[], object]],
        x: torch.Tensor,
    ) -> Any:
        """Return the fastest way of a layer; time its ways when the layer is first seen."""
        if x.is_meta:  # the network is only being planned: nothing can be timed
            return launch.fastest(key, ways, made, x)
        self.calls[key] += 1
        if key not in self.best:
            if time.monotonic() > self.end:
                return ways[0]
            self.rows[key] = rows = []
            times = [self._row(key, way, made(way), x, rows) for way in ways]
            for row in rows:
                self.document.add(**row)
            self.best[key] = ways[times.index(min(times))]
        return self.best[key]

    def _row(
        self,
        key: Hashable,
        way: Any,
        call: Callable[[], object],
        x: torch.Tensor,
        rows: list[dict[str, Any]],
    ) -> float:
        row: dict[str, Any] = {"model": self.model, "layer": str(key), "way": str(way)}
        if isinstance(call, Launch):
            needs = self.resources.get(call.binary)
            row |= {"resources": needs and asdict(needs), "work": call.work and asdict(call.work)}
            if needs:
                predicted = launch.predicted(call, needs, launch.processors(x))
                row["predicted_ms"] = 1e3 * predicted
        try:
            seconds = launch.seconds_alone(call, x) if x.is_cuda else _once(call)
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything
            rows.append({**row, "reason": f"{type(error).__name__}: {error}"[:200]})
            return float("inf")
        if isinstance(call, Launch) and call.work and seconds > 0:
            speed = call.work.memory / seconds
            row |= {"bytes_per_second": speed, "share_of_floor": speed / self.peak}
        rows.append({**row, "ms": 1e3 * seconds})
        return seconds


def _once(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Measure the kernels of one network after another."""
    args = arguments(__doc__)
    end = time.monotonic() + args.seconds
    where = device(dry=args.dry)
    ceilings = measure_ceilings(where, "fp32" if args.dry else "fp16")
    batch, side = (2, 17) if args.dry else (256, 224)
    facts = {"batch_size": batch, "bytes_per_second": ceilings.bytes_per_second}
    rows = Rows(args.out, where, **facts)
    for name in NETWORKS[:1] if args.dry else NETWORKS:
        model = folded(network(name, dry=args.dry).to(where))
        choices = plan(model, torch.float16, (batch, 3, side, side))
        binaries = (one.binary for ways in choices for one in ways)
        resources = {} if args.dry else compile_all(binaries)
        watch = Watch(name, resources, rows, end)
        for module in MODULES:
            module.fastest = watch  # type: ignore[attr-defined]
        with torch.inference_mode():
            fused(model, torch.float16)(images(batch, side, where, 1)[0])
        total = {
            key: watch.calls[key] * min(row.get("ms", float("inf")) for row in found)
            for key, found in watch.rows.items()
        }
        for key in sorted(total, key=lambda key: -total[key])[:3]:
            rows.add(model=name, slowest=str(key), times=watch.calls[key], ms_in_all=total[key])


if __name__ == "__main__":
    main()
