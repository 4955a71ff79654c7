"""Test cases of the kernels, for a GPU and for Triton's interpreter.

`python -m tests.kernels.cases` with TRITON_INTERPRET=1 runs some of the cases and prints a JSON
line for each. It must be a separate process, because Triton decides whether to interpret a kernel
when the kernel is defined.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from regnet.design.variants import VARIANTS
from regnet.kernels import grouped as grouped_kernels
from regnet.kernels import pointwise as pointwise_kernels
from regnet.kernels import squeeze as squeeze_kernels
from regnet.kernels import stem as stem_kernels
from regnet.kernels.grouped import Grouped, grouped
from regnet.kernels.pointwise import Gate, Pointwise, pointwise
from regnet.kernels.squeeze import Squeeze, gate
from regnet.kernels.stem import Stem, stem
from regnet.nn.layers import SqueezeExcitation

MODULES = (grouped_kernels, pointwise_kernels, squeeze_kernels, stem_kernels)
GROUP_WIDTHS = sorted(
    {
        block.group_width
        for variant in VARIANTS.values()
        if variant.family in ("regnetx", "regnety")
        for block in variant.config.anynet().blocks()
        if block.group_width % 8 == 0
    }
)
BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
SIDES = ((3, 5, 3), (1, 9, 6), (64, 7, 7), (2, 4, 19), (3, 1, 1))
"""Images, height, width."""
Call = Callable[[], tuple[Tensor, ...]]


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new memory with NaN, so that values which a kernel fails to write are detected."""
    usual = Tensor.new_empty

    def new_empty(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        return usual(self, *args, **kwargs).fill_(torch.nan)

    Tensor.new_empty = new_empty
    try:
        yield
    finally:
        Tensor.new_empty = usual


@contextmanager
def chosen(number: int) -> Iterator[list[object]]:
    """Make each kernel run in its way `number`, or its last; yield the last kernel's ways."""
    usual, ways = [module.fastest for module in MODULES], []

    def fastest(key, offered, launch, x):
        del key, launch, x
        ways[:] = offered
        return offered[min(number, len(offered) - 1)]

    for module in MODULES:
        module.fastest = fastest
    try:
        with poisoned():
            yield ways
    finally:
        for module, function in zip(MODULES, usual, strict=True):
            module.fastest = function


def every_way(call: Call, *, thin: bool) -> Iterator[tuple[object, tuple[Tensor, ...]]]:
    """Yield the results of a call in all ways of its kernel, or (`thin`) the first of each kind."""
    number, kinds = 0, set()
    while True:
        with chosen(number) as ways:
            found = call()
            if not thin:
                again = call()
                assert all(map(torch.equal, found, again)), f"not repeatable: {ways[number]}"
        kinds.add(type(ways[number]))
        yield ways[number], found
        number += 1
        while thin and number < len(ways) and type(ways[number]) in kinds:
            number += 1
        if number >= len(ways):
            return


def distance(found: Tensor, expected: Tensor) -> float:
    expected = expected.float()
    return float((found.float() - expected).norm() / expected.norm().clamp_min(1e-6))


def check(
    device: str,
    dtype: torch.dtype,
    *,
    thin: bool,
    widths: Sequence[int] | None = None,
    sides: Sequence[tuple[int, int, int]] | None = None,
) -> Iterator[tuple[str, float]]:
    """Yield each case and its largest relative error against float32.

    If `widths` is given, only grouped convolutions with these group widths are run. `sides` are the
    numbers of images, heights and widths of the inputs.
    """

    def half(*shape: int) -> Tensor:
        return torch.randn(shape).to(device, dtype)

    if sides is None:
        sides = SIDES[:1] if thin else SIDES
    only = widths is not None
    if widths is None:
        # Wider groups use the same code as 72 and 168, and are slow to interpret.
        widths = [g for g in GROUP_WIDTHS if not thin or g <= 72 or g == 168]
    for number, g in enumerate(widths):
        for stride in (1 + number % 2,) if thin else (1, 2):
            conv = nn.Conv2d(2 * g, 2 * g, 3, stride, 1, groups=2).to(device)
            layer = Grouped.of(conv, dtype)
            for images, height, width in sides:
                x = half(images, height, width, 2 * g)
                maps, sums = grouped_kernels.reference(x.float(), layer, squeeze=True)
                name = f"grouped {g}, stride {stride}, {images}x{height}x{width}"
                call = partial(grouped, x, layer, squeeze=True)
                for way, (out, parts) in every_way(call, thin=thin):
                    errors = distance(out, maps), distance(parts.sum(1), sums[:, 0])
                    yield f"{name}, {way}", max(errors)

    if only:
        return
    first, second = nn.Conv2d(40, 72, 1).to(device), nn.Conv2d(24, 72, 1).to(device)
    layer, again = Pointwise.of(first, dtype), Pointwise.of(second, dtype)
    # The last shape has maps that fill several blocks, the last of them only partly.
    for images, height, width in (*sides, (2, 11, 13)):
        x, factor = half(images, height, width, 40), half(images, 40).sigmoid()
        hidden, excite = (
            half(images, 24).relu(),
            Pointwise.of(nn.Conv2d(24, 40, 1).to(device), dtype),
        )
        own = Gate(hidden, excite)
        others = {
            "own gate": {"gate": own, "residual": half(images, height, width, 72)},
            "own gate and projection": {
                "gate": own,
                "projected": half(images, height, width, 24),
                "projection": again,
            },
            "relu": {"activation": "relu"},
            "gate": {"gate": factor},
            "residual": {"gate": factor, "residual": half(images, height, width, 72)},
            "projection": {
                "projected": half(images, 2 * height - 1, 2 * width, 24),
                "projection": again,
                "stride": 2,
                "activation": "relu",
            },
        }
        for name, options in others.items():
            wide = {k: v.float() if isinstance(v, Tensor) else v for k, v in options.items()}
            if isinstance(options.get("gate"), Gate):
                wide["gate"] = Gate(hidden.float(), excite)
            expected = pointwise_kernels.reference(x.float(), layer, **wide)
            call = partial(_in_a_tuple, pointwise, x, layer, **options)
            for way, (out,) in every_way(call, thin=thin):
                yield f"pointwise {name}, {images}x{height}x{width}, {way}", distance(out, expected)

    se = SqueezeExcitation(88, 22, "relu").to(device)
    layers = Squeeze.of(se, dtype)
    for images, parts in ((1, 5), (3, 1), (33, 9)):
        sums = 50 * torch.randn(images, parts, 88, device=device)
        with torch.no_grad():
            mean = (sums.sum(1) / 50)[:, :, None, None]
            expected = se.fc2(se.act(se.fc1(mean))).sigmoid()[:, :, 0, 0]

        def factors(sums=sums):
            found = gate(sums, 50, layers)
            return (pointwise(found.hidden[:, None, None], found.layer, activation="sigmoid"),)

        for way, (out,) in every_way(factors, thin=thin):
            name = f"gate, {images} images of {parts} parts, {way}"
            yield name, distance(out[:, 0, 0], expected)

    for stride in (1, 2):
        for channels, width_of_stem in ((3, 32),) if thin else ((3, 32), (1, 16), (4, 24)):
            conv = nn.Conv2d(channels, width_of_stem, 3, stride, 1).to(device)
            layer = Stem.of(conv, dtype)
            for images, height, width in sides:
                x = torch.randn(images, channels, height, width).to(device)
                expected = stem_kernels.reference(x, layer)
                for memory_format in (torch.contiguous_format, torch.channels_last):
                    call = partial(_in_a_tuple, stem, x.to(memory_format=memory_format), layer)
                    for way, (out,) in every_way(call, thin=thin):
                        name = f"stem {channels}, stride {stride}, {images}x{height}x{width}"
                        yield f"{name}, {memory_format}, {way}", distance(out, expected)


def _in_a_tuple(call, *args, **kwargs) -> tuple[Tensor]:
    return (call(*args, **kwargs),)


if __name__ == "__main__":
    torch.manual_seed(time.time_ns())
    # Only fp16, because the interpreter multiplies bfloat16 matrices as if they held integers.
    for name, error in check("cpu", torch.float16, thin=True):
        sys.stdout.write(json.dumps([name, error]) + "\n")
