"""Tests of how the way of a kernel is chosen, what it is compiled to, and what is cached of it."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import regnet
from regnet.engines.transforms import folded
from regnet.kernels import grouped as grouped_kernels
from regnet.kernels import launch as launching
from regnet.kernels.binary import Resources, compile_all
from regnet.kernels.grouped import Grouped, grouped
from regnet.kernels.launch import HAS_TRITON, Launch, Work, predicted, promising
from regnet.kernels.network import plan

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")

LEAN = Resources(registers=64, spills=0, shared=16 * 1024, waits=1)


@dataclass(frozen=True)
class Kind:
    number: int


@dataclass(frozen=True)
class OtherKind:
    number: int


class FakeKernel:
    """A stand-in for a function decorated with `triton.jit`."""

    def __init__(self, number):
        self.fn = type("fn", (), {"__module__": "m", "__name__": f"k{number}"})


def launch(number, cache=1e9):
    work = Work(memory=1e6, cache=cache, products=0)
    return Launch(
        kernel=FakeKernel(number), grid=(100,), args=(torch.zeros(1),), warps=4, stages=1, work=work
    )


@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(1e6, 1e12), st.sampled_from([0, 8, None])), min_size=1
    )
)
def test_the_best_of_each_kind_is_timed_and_nothing_that_spills(ways):
    kinds = [(Kind if first else OtherKind)(n) for n, (first, _, _) in enumerate(ways)]
    launches = [launch(n, cache) for n, (_, cache, _) in enumerate(ways)]
    known = {
        made.binary: None if spills is None else replace(LEAN, spills=spills)
        for made, (_, _, spills) in zip(launches, ways, strict=True)
    }
    before = dict(launching._resources)
    launching.remember(known)
    try:
        kept = promising(kinds, launches, 132)
        times = [predicted(made, known[made.binary], 132) for made in launches]
    finally:
        launching._resources.clear()
        launching._resources.update(before)
    usable = [n for n, seconds in enumerate(times) if seconds < float("inf")]
    if not usable:  # all ways spill: timing decides
        assert kept == kinds
        return
    assert set(kept) <= {kinds[n] for n in usable}
    for kind in {type(kinds[n]) for n in usable}:
        best = min((n for n in usable if type(kinds[n]) is kind), key=times.__getitem__)
        assert kinds[best] in kept


def test_ways_without_a_prediction_are_all_timed():
    ways = [Kind(0), Kind(1), OtherKind(2)]
    assert promising(ways, [launch(n, 10.0**n) for n in range(3)], 132) == ways


def test_weights_packed_only_for_timing_are_released(monkeypatch):
    layer = Grouped.of(nn.Conv2d(48, 48, 3, 1, 1, groups=2), torch.float16)

    def fastest(_key, ways, launch, _x):
        for way in ways:
            launch(way)
        return ways[1]

    monkeypatch.setattr(grouped_kernels, "fastest", fastest)
    first: set = set()
    for number, images in enumerate((1, 64), 1):
        # On the device `meta`, launches are prepared but nothing runs.
        grouped(torch.empty(images, 14, 14, 48, device="meta"), layer, squeeze=True)
        assert len(layer._packed) <= number  # one for each shape, though many were timed
        assert first <= layer._packed.keys()  # a captured graph may still read it
        first = set(layer._packed)


def test_a_plan_lists_all_ways_of_a_network_without_a_gpu():
    model = folded(regnet.create("regnety_002").eval())
    choices = plan(model, torch.float16, (4, 3, 64, 64))
    kernels = [{one.kernel.fn.__name__ for one in ways} for ways in choices]
    blocks = sum(model.config.depths)
    assert kernels[0] == {"_scalar", "_matrix"}
    assert sum("_chain" in names for names in kernels) == blocks
    assert len(choices) == 1 + 5 * blocks + 1  # stem, five per block (two for the gate), head
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.slow
def test_kernels_compiled_for_an_h200_stay_within_their_resources():
    """Limits registers, shared memory and waits; a spill would cost more than any of these."""
    model = folded(regnet.create("regnety_016").eval())
    choices = plan(model, torch.float16, (256, 3, 224, 224))
    bounds = {  # registers, shared memory, waits for products
        ("_chain", 64, 1): (168, 56 * 1024, 2),
        ("_chain", 128, 2): (136, 78 * 1024, 2),
        ("_kernel", (64, 128, 32), True): (168, 46 * 1024, 3),
        ("_matrix", 128, 2): (96, 16 * 1024, 1),
    }

    def which(one):
        c, name = one.constants, one.kernel.fn.__name__
        if "BLOCK_ROWS" in c:
            return name, (c["BLOCK_ROWS"], c["BLOCK_WIDTH"], c["BLOCK_IN"]), c["ONE_IMAGE"]
        return name, c.get("DEPTH", c.get("PIXELS")), c.get("STRIDE")

    chosen = {}
    for one in (one for ways in choices for one in ways):
        if (key := which(one)) in bounds and not one.constants.get("PROJECTED"):
            chosen.setdefault(key, one)
    assert chosen.keys() == bounds.keys()
    needs = compile_all((one.binary for one in chosen.values()), workers=2)
    for key, one in chosen.items():
        found = needs[one.binary]
        registers, shared, waits = bounds[key]
        assert found is not None, key
        assert found.spills == 0, key
        assert found.registers <= registers, (key, found)
        assert found.shared <= shared, (key, found)
        assert found.waits <= waits, (key, found)


@pytest.mark.slow
def test_a_kernel_that_cannot_be_compiled_is_reported_and_the_others_compile():
    model = folded(regnet.create("regnetx_002").eval())
    [stem, *_] = plan(model, torch.float16, (1, 3, 32, 32))
    good = stem[0].binary
    wrong = replace(good, constants=(*good.constants, ("NO_SUCH", 1)))
    found = compile_all([wrong, good])
    assert found[wrong] is None
    assert found[good] is not None
