"""Time every grouped 3x3 convolution of some RegNets on its own; writes JSON.

    python benchmarks/gpu/grouped_convs.py --device cuda --out grouped_convs.json

There is a row for each shape, precision and layout, with the milliseconds per call (of calls that
are queued one behind another), the rate, the time relative to the memory floor, and on CUDA the
names and times of the kernels that ran. Inputs alternate between buffers, so that none is still in
a cache. Padded rows have the same groups widened to the next power of two.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from regnet.atomic import write_bytes
from regnet.bench.floors import measure_ceilings
from regnet.design.variants import VARIANTS
from regnet.engines.base import DTYPES
from regnet.engines.transforms import padded_group_width
from regnet.machine import environment
from regnet.timing import synchronize, time_queued

MODELS = ("regnety_016", "regnety_040", "regnety_080", "regnetx_032")
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
BUFFER_BYTES = 256e6
"""Total size of the alternating inputs, which exceeds every cache of the device."""


def shapes(name: str, image_size: int = 224) -> Counter[tuple[int, int, int, int]]:
    """Count the shapes (width, group width, side of the input, stride) of a network."""
    config, side, found = VARIANTS[name].config.anynet(), image_size, Counter()
    for stride in config.stem_conv_strides:
        side = (side - 1) // stride + 1
    for block in config.blocks():
        found[block.bottleneck_width, block.group_width, side, block.stride] += 1
        side = (side - 1) // block.stride + 1
    return found


def kernels(conv: nn.Module, x: Tensor) -> list[dict[str, object]]:
    """Return the names and times of the kernels that ran on the device."""
    if x.device.type != "cuda":
        return []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        conv(x)
        synchronize(x.device)
    return [
        {"name": event.key[:120], "ms": event.self_device_time_total / 1e3}
        for event in profile.key_averages()
    ]


def rows(
    name: str,
    batch: int,
    image_size: int,
    device: torch.device,
    precision: str,
    bandwidth: float,
) -> Iterator[dict[str, object]]:
    """Yield the rows of one network in one precision: both layouts, padded and not padded."""
    dtype = DTYPES[precision]
    for (width, group_width, side, stride), count in shapes(name, image_size).items():
        for layout, pad in product(LAYOUTS, (False, True)):
            g = padded_group_width(group_width) if pad else group_width
            if pad and g == group_width:
                continue
            w = width // group_width * g
            conv = nn.Conv2d(w, w, 3, stride, 1, groups=w // g, bias=False).to(device, dtype)
            conv = conv.to(memory_format=LAYOUTS[layout])
            one = batch * w * side**2 * dtype.itemsize
            copies = max(3, min(20, int(BUFFER_BYTES / one) + 1))
            inputs = [
                torch.randn(batch, w, side, side, device=device)
                .to(dtype)
                .to(memory_format=LAYOUTS[layout])
                for _ in range(copies)
            ]
            out = (side - 1) // stride + 1
            with torch.inference_mode():
                seconds = time_queued(conv, inputs)
                ran = kernels(conv, inputs[0])
            # Floor and rate count the work of the original groups, without the padding.
            moved = batch * width * (side**2 + out**2) * dtype.itemsize
            yield {
                "model": name,
                "width": width,
                "group_width": group_width,
                "side": side,
                "stride": stride,
                "count": count,
                "batch_size": batch,
                "precision": precision,
                "layout": layout,
                "padded": pad,
                "ms": 1e3 * seconds,
                "tflops": 2 * 9 * group_width * width * out**2 * batch / seconds / 1e12,
                "times_memory_floor": seconds * bandwidth / moved,
                "kernels": ran,
            }


def main() -> None:
    """Measure all networks, and print and write a row per shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=("fp16", "bf16"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True  # let cuDNN choose its fastest kernel
    document: dict[str, object] = {"environment": environment(device), "rows": []}
    for precision in args.precisions:
        bandwidth = measure_ceilings(device, precision).bytes_per_second
        for name in args.models:
            for row in rows(name, args.batch_size, args.image_size, device, precision, bandwidth):
                document["rows"].append(row)
                print(json.dumps({k: v for k, v in row.items() if k != "kernels"}), flush=True)
                if args.out:
                    write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
