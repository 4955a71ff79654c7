"""Compare RegNets on this package's kernels with timm's RegNets and EfficientNets; writes JSON.

    python benchmarks/gpu/headline.py --out benchmarks/results/gpu/headline.json --seconds 240

Everything runs in half precision. There is a row for each of our networks and batch size, with
milliseconds, images per second and the share of the floor, and a row for each rival, timed in
alternation with ours (A B B A). A ratio above 1 means that the rival takes longer. Rivals that are
compiled in the default mode with channels last come first; eager mode and other layouts and modes
follow while there is time. Before anything is timed, background processes compile the rivals while
this process compiles our kernels, so that later both come from the compilers' caches.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from common import (
    TINY,
    TINY_SIDE,
    Rows,
    arguments,
    device,
    half,
    images,
    network,
    own_kernels,
    timm_network,
)

from regnet.bench.floors import Ceilings, floor, measure_ceilings
from regnet.design.layers import network_layers
from regnet.design.variants import VARIANTS
from regnet.engines.base import TOLERANCES, Runner
from regnet.engines.check import answers, worst_error
from regnet.engines.transforms import folded
from regnet.kernels.launch import prepare
from regnet.kernels.network import plan
from regnet.timing import compare, time_queued

NETWORKS: Final = ("regnety_080", "regnetx_080", "regnety_016", "regnety_040", "regnetx_032")
BATCHES: Final = (256, 1, 64)
EFFICIENTNETS: Final = {
    "efficientnet_b5": (456, ("regnety_080", "regnetx_032")),
    "efficientnet_b3": (300, ("regnety_016",)),
    "efficientnet_b0": (224, ("regnety_016",)),
}
"""Side of the images of each EfficientNet, and the RegNets to compare it with. These have about the
same flops in the paper's table 4 (B5 and Y-8.0GF, B3 and Y-1.6GF) or about the same error there (B5
and X-3.2GF). B0 is the smallest network of its family."""

LAYOUTS: Final = {
    "channels_last": torch.channels_last, "contiguous": torch.contiguous_format
}  # fmt: skip
FARM: Final = 6
"""Number of processes that compile rivals at the same time."""

FARM_SHARE: Final = 0.35
"""Share of the time budget that compiling rivals may take."""

RIVALS_SHARE: Final = 0.3
"""Share of the time budget that is reserved for comparisons with rivals."""


def warm(names: list[tuple[str, int, int]], seconds: float) -> subprocess.Popen[bytes]:
    """Start a background process that compiles the rivals."""
    return subprocess.Popen(
        [sys.executable, __file__, "--farm", json.dumps(names), str(seconds)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def farm(names: list[tuple[str, int, int]], seconds: float) -> None:
    """Compile each rival in its own process, `FARM` at the same time, until the time is over."""
    end, running, waiting = time.monotonic() + seconds, [], list(names)
    while (waiting or running) and time.monotonic() < end:
        running = [process for process in running if process.poll() is None]
        while waiting and len(running) < FARM:
            one = json.dumps(waiting.pop(0))
            running.append(subprocess.Popen([sys.executable, __file__, "--compile", one]))
        time.sleep(0.2)
    for process in running:
        process.kill()


def compile_one(name: str, batch: int, side: int) -> None:
    """Compile one rival exactly as it will be measured, to fill the compiler's cache."""
    model, _ = timm_network(name, dry=False)
    call = half(model.cuda(), torch.channels_last, "default", dry=False)
    call(torch.randn(batch, 3, side, side, device="cuda"))


def compile_ahead(networks: Sequence[str], batches: Sequence[int]) -> None:
    """Compile our kernels for all networks and batch sizes; this uses only the CPU."""
    choices = []
    for name in networks:
        model = folded(network(name, dry=False))
        for batch in batches:
            choices += plan(model, torch.float16, (batch, 3, 224, 224))
    capability = torch.cuda.get_device_capability()
    prepare(choices, ("cuda", 10 * capability[0] + capability[1], 32))


def rivals(name: str, batch: int, *, dry: bool) -> Iterator[tuple[str, str, str | None, int]]:
    """Yield name, layout, mode and image side of the first rivals of one of our networks."""
    side = TINY_SIDE if dry else 224
    yield name, "channels_last", "default", side
    for other, (size, ours) in EFFICIENTNETS.items():
        if name in ours:
            yield other, "channels_last", "default", TINY_SIDE if dry else size


def more(name: str, batch: int, *, dry: bool) -> Iterator[tuple[str, str, str | None, int]]:
    """Yield the rivals that follow if there is time: eager, then other layouts and modes."""
    side = TINY_SIDE if dry else 224
    yield name, "channels_last", None, side
    if batch == 1:
        yield name, "channels_last", "reduce-overhead", side
    yield name, "contiguous", "default", side
    yield name, "channels_last", "max-autotune", side


class Headline:
    """The document, and those of our networks whose outputs were found correct."""

    def __init__(self, rows: Rows, where: torch.device, ceilings: Ceilings, *, dry: bool) -> None:
        self.rows, self.where, self.ceilings, self.dry = rows, where, ceilings, dry
        self.ready: dict[tuple[str, int], tuple[Runner, list[torch.Tensor]]] = {}

    def ours(self, name: str, batch: int) -> None:
        """Build one of our networks, check its outputs, and measure it."""
        model = network(name, dry=self.dry).to(self.where)
        config = TINY if self.dry else VARIANTS[name].config
        side = TINY_SIDE if self.dry else 224
        inputs = images(batch, side, self.where)
        expected = answers(model, inputs)
        began = time.monotonic()
        runner = own_kernels(model, inputs[0])
        built = time.monotonic() - began
        error = worst_error(runner, inputs, expected)
        seconds = time_queued(runner, inputs, calls=2 if self.dry else 20)
        least = floor(network_layers(config.anynet(), side), batch, self.ceilings, element_bytes=2)
        self.rows.add(
            model=name, batch_size=batch, ms=1e3 * seconds, images_per_second=batch / seconds,
            floor_ms=1e3 * least.fused, share_of_floor=least.fused / seconds, error=error,
            right=error < TOLERANCES["fp16"], build_seconds=built,
        )  # fmt: skip
        if error < TOLERANCES["fp16"]:
            self.ready[name, batch] = runner, inputs

    def against(
        self, name: str, batch: int, other: str, layout: str, mode: str | None, side: int
    ) -> None:
        """Measure one of our networks in alternation with a rival."""
        if (name, batch) not in self.ready:
            return
        ours, inputs = self.ready[name, batch]
        facts: dict[str, Any] = {
            "model": name, "batch_size": batch, "rival": other, "layout": layout,
            "mode": mode or "eager",
        }  # fmt: skip
        try:
            model, source = timm_network(other, dry=self.dry)
            call = half(model.to(self.where), LAYOUTS[layout], mode, dry=self.dry)
            theirs = images(batch, side, self.where)
            began = time.monotonic()
            call(theirs[0])
            first = time.monotonic() - began
            found = compare(
                ours, call, inputs, inputs_b=theirs, pairs=2 if self.dry else 30,
                seconds=0.1 if self.dry else 1.5,
            )  # fmt: skip
            ms = 1e3 * time_queued(call, theirs, calls=2 if self.dry else 10)
        except Exception as error:  # noqa: BLE001 - compilers may raise anything
            self.rows.add(**facts, reason=f"{type(error).__name__}: {error}"[:300])
            return
        self.rows.add(
            **facts, source=source, image_size=side, ms=ms, first_call_seconds=first,
            ratio=found.median, low=found.low, high=found.high,
            verdict=found.verdict("ours", other),
        )  # fmt: skip


def main() -> None:
    """Compile everything, then measure our networks and their rivals while there is time."""
    args = arguments(__doc__)
    end = time.monotonic() + args.seconds
    where = device(dry=args.dry)
    networks = NETWORKS[:1] if args.dry else NETWORKS
    batches = (1,) if args.dry else BATCHES
    ceilings = measure_ceilings(where, "fp32" if args.dry else "fp16")
    background = None
    if not args.dry:
        order = [
            (other, batch, side)
            for batch in batches
            for name in networks
            for other, _, _, side in rivals(name, batch, dry=False)
        ]
        background = warm(list(dict.fromkeys(order)), FARM_SHARE * args.seconds)
        compile_ahead(networks, batches)
        background.wait()  # the compilers use the GPU too, and would disturb the times
    rows = Rows(
        args.out, where, precision="fp16",
        bytes_per_second=ceilings.bytes_per_second, flops_per_second=ceilings.flops_per_second,
    )  # fmt: skip
    work = Headline(rows, where, ceilings, dry=args.dry)
    for batch in batches:
        for name in networks:
            if time.monotonic() < end - args.seconds * RIVALS_SHARE:
                try:
                    work.ours(name, batch)
                except Exception as error:  # noqa: BLE001 - such as out of memory
                    reason = f"{type(error).__name__}: {error}"[:300]
                    rows.add(model=name, batch_size=batch, reason=reason)
    torch.backends.cudnn.benchmark = True  # let cuDNN choose its fastest kernels for the rivals
    for choice in (rivals, more):
        for batch in batches:
            for name in networks:
                for rival in choice(name, batch, dry=args.dry):
                    if time.monotonic() < end:
                        work.against(name, batch, *rival)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--farm"]:
        farm([tuple(one) for one in json.loads(sys.argv[2])], float(sys.argv[3]))
    elif sys.argv[1:2] == ["--compile"]:
        compile_one(*json.loads(sys.argv[2]))
    else:
        main()
