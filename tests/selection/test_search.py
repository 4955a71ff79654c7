"""Tests of the search with a known law of latency, and of one real search on small images."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import regnet
import regnet.selection.search as searching
from regnet.design.complexity import complexity, memory_bytes, population_memory_bytes
from regnet.design.config import AnyNetConfig, ArchitectureConfig, RegNetConfig, StageConfig
from regnet.design.variants import PLAIN, VARIANTS
from regnet.engines.optimize import ENGINES
from regnet.errors import ConfigError, EngineError
from regnet.selection.device import Conditions
from regnet.selection.limits import Found, Limits, Measured
from regnet.selection.prior import FEATURES, prior, stages_of
from regnet.selection.search import EQUAL, NEAR, flops_range, sample_candidates, search
from regnet.spaces import latency, paper
from regnet.spaces.latency import LatencyModel, features_of_config
from regnet.spaces.paper import find_space, search_space
from regnet.spaces.sampling import sample
from regnet.timing import Comparison
from tests.marks import long, slow_fixture


def law(config: Any, size: int) -> float:
    """Return milliseconds by a law of blocks, activations, and unsuitable group widths."""
    cost = complexity(config, size)
    blocks = config.blocks()
    odd = sum(block.group_width % 32 != 0 for block in blocks) / len(blocks)
    return 0.15 * len(blocks) + cost.activations / 4e5 + (1 + 0.4 * odd) * cost.flops / 5e7


CPU = torch.device("cpu")


class Planted:
    """A meter whose latencies follow the law, with 2 % of noise."""

    def __init__(self, *, rivals_take: float = 1.0, image_size: int = 224) -> None:
        self.conditions = Conditions(device=CPU, engine="folded", image_size=image_size)
        self.problem: str | None = None
        self.environment: dict[str, Any] = {}
        self.rng, self.rivals_take = np.random.default_rng(0), rivals_take

    def measure(self, config: Any, name: str = "") -> Measured:
        size = self.conditions.image_size
        cost = complexity(config, size)
        found = law(config, size) * float(np.exp(self.rng.normal(0, 0.02)))
        memory = memory_bytes(config, size, batch_size=1, element_bytes=4) / 1e6
        return Measured(
            name=name, config=config, flops=cost.flops, params=cost.params,
            activations=cost.activations, latency_ms=found, low_ms=0.98 * found,
            high_ms=1.02 * found, memory_mb=memory,
        )  # fmt: skip

    def compare(self, a: Any, b: Any) -> Comparison:
        ratio = self.rivals_take * law(b, 224) / law(a, 224)
        return Comparison(
            ratios=(ratio,), median=ratio, low=0.99 * ratio, high=1.01 * ratio, control_low=1.0,
            control_high=1.0,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "CANDIDATES", 600)


def quick(limits: Limits, **options: Any) -> Found:
    return search(limits, **{"engine": "folded", "meter": Planted(), **options})


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_under_a_limit_of_flops_the_answer_is_among_the_best_and_fast(seed: int) -> None:
    found = quick(Limits(flops=400e6), seed=seed)
    assert (1 - EQUAL) * 400e6 <= found.best.flops <= 400e6
    others = sample(search_space().restrict(flops=(0.9 * 400e6, 400e6)), 400, seed + 9)
    worth = prior().worth_of(others)
    assert found.best.worth is not None
    assert found.best.worth >= 0.95 * np.quantile(worth, 0.95)
    alike = np.flatnonzero(np.abs(worth / found.best.worth - 1) < NEAR)
    times = [law(others.config(int(at)), 224) for at in alike]
    assert found.best.latency_ms <= np.quantile(times, 0.4)
    assert found.prediction_error is not None
    assert found.prediction_error < 0.15
    if found.rival:
        assert found.rival in ("regnetx_004", "regnety_004", "regnety_006")
        assert found.against_rival is not None
        assert found.against_rival.median > 1  # faster than the published network


@pytest.mark.slow
@pytest.mark.parametrize("latency_ms", [25.0, *long(6.0, 120.0)])
def test_under_a_limit_of_latency_the_answer_is_as_large_as_possible(latency_ms: float) -> None:
    found = quick(Limits(latency_ms=latency_ms))
    assert found.best.latency_ms <= latency_ms
    # According to the law, a network with twice the flops would take too long, whatever its shape.
    larger = search_space().restrict(flops=(1.6 * found.best.flops, 2.2 * found.best.flops))
    times = [law(config, 224) for config in sample(larger, 200).configs]
    assert np.quantile(times, 0.1) > latency_ms
    near = [abs(np.log(row.flops / found.best.flops)) for row in found.published]
    assert min(near) < 0.7 or found.best.flops < 100e6  # smaller than any published network
    assert near == sorted(near)


def test_the_limit_of_latency_is_met_if_it_is_the_tighter_one() -> None:
    found = quick(Limits(flops=4e9, latency_ms=12.0))
    assert found.best.latency_ms <= 12.0
    assert found.best.flops < 1e9


def test_a_published_network_that_is_faster_is_the_answer() -> None:
    found = quick(Limits(flops=402e6), meter=Planted(rivals_take=0.5))
    assert found.best.name == found.rival
    assert found.best.name.endswith("_004")


def test_no_network_of_the_pareto_set_dominates_another() -> None:
    found = quick(Limits(flops=1e9, latency_ms=30.0))
    for faster, slower in zip(found.pareto[:-1], found.pareto[1:], strict=True):
        assert slower.latency_ms >= faster.latency_ms
        assert (slower.worth or 0) > (faster.worth or 0)


def test_limits_known_by_arithmetic_are_met() -> None:
    few = quick(Limits(params=3e6, activations=2e6, memory_mb=20)).best
    assert few.params <= 3e6
    assert few.activations <= 2e6


def test_if_nothing_meets_the_limits_the_closest_network_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"the fastest network of this space takes \d+\.\d\d ms"):
        quick(Limits(flops=400e6, latency_ms=1e-3))
    monkeypatch.setattr("regnet.spaces.sampling.PATIENCE", 20_000)
    with pytest.raises(ConfigError, match="fail activations up to 10"):
        quick(Limits(flops=400e6, activations=10))


def test_memory_equals_a_value_worked_out_by_hand() -> None:
    """Count weights, and the first block's input and bottleneck before and after the stride."""
    networks = sample(search_space(), 1)
    config = networks.config(0)
    first = config.blocks()[0]
    params = complexity(config, 224).params
    maps = []
    side, width = 112, 32
    for block in config.blocks():
        after = -(-side // block.stride)
        if block.stride == 2:
            inner = block.bottleneck_width
            maps.append((width + inner) * side**2 + inner * after**2)
        side, width = after, block.width
    assert first.stride == 2
    expected = 4 * (params + 2 * max(maps))
    assert memory_bytes(config, 224, batch_size=2, element_bytes=4) == expected
    many = population_memory_bytes(
        networks.population, networks.space.architecture, networks.image_sizes,
        params=networks.complexity.params, batch_size=2, element_bytes=4,
    )  # fmt: skip
    assert many.tolist() == [expected]


@pytest.mark.parametrize("block", ["bottleneck", "basic", "vanilla"])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_populations_need_the_memory_of_their_networks(block: str, ratio: float) -> None:
    """Only blocks with a bottleneck have a bottleneck ratio."""
    stages = tuple(
        StageConfig(depth=2, width=width, group_width=16, bottleneck_ratio=ratio, stride=2)
        for width in (64, 128)
    )
    config = AnyNetConfig(stages=stages, block=block)  # type: ignore[arg-type]
    architecture = ArchitectureConfig(block=block)  # type: ignore[arg-type]
    cost = complexity(config, 64)
    [many] = population_memory_bytes(
        stages_of(config), architecture, 64,
        params=np.array([cost.params]), batch_size=2, element_bytes=4,
    )  # fmt: skip
    assert many == memory_bytes(config, 64, batch_size=2, element_bytes=4)


def test_memory_follows_the_blocks_of_dilated_and_inverted_networks() -> None:
    """Their strides and bottleneck widths are not those that the stages name."""
    plain = VARIANTS["regnetx_002"].config
    params = complexity(plain, 224).params
    # The third stage at stride 1: input, and the bottleneck twice, at 28 pixels. The largest maps
    # are still those of the first stage: 32 channels in, and 24 at 112 and at 56 pixels.
    first = (32 + 24) * 112**2 + 24 * 56**2
    dilated = replace(plain, output_stride=8)
    assert memory_bytes(dilated, 224, batch_size=1, element_bytes=1) == params + first
    dilated = replace(plain, output_stride=2)  # the fourth stage: 152 channels in, and 2 times 368
    most = (152 + 2 * 368) * 112**2
    assert memory_bytes(dilated, 224, batch_size=1, element_bytes=1) == params + most
    # RegNetZ expands the input of a block, here 32 channels to 96; the stage is 48 channels wide.
    inverted = VARIANTS["regnetz_b16"].config
    params = complexity(inverted, 224).params
    block = inverted.blocks()[0]
    assert (block.width_in, block.bottleneck_width, block.stride) == (32, 96, 2)
    first = (32 + 96) * 112**2 + 96 * 56**2
    assert memory_bytes(inverted, 224, batch_size=1, element_bytes=1) == params + first


def test_memory_limits_the_sample() -> None:
    conditions = Conditions(device=CPU, engine="folded", batch_size=2)
    found = sample_candidates(
        Limits(memory_mb=40, flops=1e9), search_space(), conditions, np.random.default_rng(0)
    )
    needed = [
        memory_bytes(config, 224, batch_size=2, element_bytes=4) for config in found.configs[:50]
    ]
    assert 20e6 < max(needed) <= 40e6


def test_a_published_network_must_meet_all_limits_too() -> None:
    found = quick(Limits(flops=402e6, params=3e6), meter=Planted(rivals_take=0.5))
    assert found.best.params <= 3e6
    assert not found.best.name, "the rival has more parameters"


def test_flops_are_a_target_only_if_there_is_no_other_limit() -> None:
    assert flops_range(Limits(flops=4e9), search_space()) == (3.6e9, 4e9)
    low, high = flops_range(Limits(flops=4e9, params=5e6), search_space())
    assert low < 30e6, "only the space bounds the flops from below"
    assert high == 4e9
    with pytest.raises(ConfigError, match=r"the smallest network of regnety_search at 224 pixels"):
        flops_range(Limits(flops=1e6, params=5e6), search_space())


def test_a_search_takes_any_stages_classes_channels_and_stem() -> None:
    space = search_space("regnetx")
    shape = replace(space.architecture, stem="cifar", num_classes=10, in_chans=1)
    found = quick(
        Limits(flops=50e6),
        space=replace(space, num_stages=3, architecture=shape),
        image_size=32,
        meter=Planted(image_size=32),
    )
    for row in (found.best, *found.published):
        config = row.config
        assert (config.num_classes, config.in_chans, config.stem) == (10, 1, "cifar")
    assert len(found.best.config.depths) == 3


def test_the_prior_is_unchanged_and_carries_its_evidence() -> None:
    known = prior()
    assert len(known.weights) == len(known.center) == len(FEATURES)
    assert known.flops_exponent < 0
    assert str(known.evidence["networks"]) in str(known)
    assert f"{known.evidence['published']['rank_correlation']:.2f}" in str(known)
    # The same network alone and among others.
    networks = sample(search_space(), 50)
    alone = [known.worth_of_config(networks.config(at), 224) for at in range(50)]
    assert np.allclose(known.worth_of(networks), alone)
    published = [known.worth_of_config(VARIANTS[name].config, 224) for name in PLAIN]
    flops = [complexity(VARIANTS[name].config, 224).flops for name in PLAIN]
    assert np.abs(np.log(np.divide(published, flops))).max() < np.log(1.5), (
        "a prior only adjusts flops"
    )


def test_the_model_of_latency_recovers_a_law_of_its_kind() -> None:
    networks = sample(search_space(), 400)
    features = networks.latency_features
    planted = features @ np.array([5.0, 20.0, 0.3, 0.0, 0.2, 0.1, 0.0])
    noisy = planted[:30] * np.exp(np.random.default_rng(0).normal(0, 0.02, 30))
    model = LatencyModel.fit(features[:30], noisy)
    off = np.abs(model.predict(features[30:]) / planted[30:] - 1)
    assert np.median(off) < 0.02
    assert model.error == pytest.approx(np.median(off), abs=0.02)
    # On another engine, costs are twice as high except for grouped convolutions: three networks
    # suffice to learn that.
    other = features @ np.array([10.0, 90.0, 0.6, 0.0, 0.4, 0.2, 0.0])
    few = LatencyModel.fit(features[:3], other[:3], like=model)
    assert np.median(np.abs(few.predict(features[30:]) / other[30:] - 1)) < 0.1


def test_costs_equal_those_of_nonnegative_least_squares() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    features = sample(search_space(), 25).latency_features
    times = np.random.default_rng(0).uniform(1, 30, 25)
    x = features / times[:, None]
    scale = np.sqrt((x**2).mean(axis=0)) + 1e-12
    ridge = np.sqrt(latency._LITTLE * 25) * np.eye(len(scale))
    expected, _ = optimize.nnls(np.vstack([x / scale, ridge]), [*np.ones(25), *np.zeros(7)])
    found = LatencyModel.fit(features, times)
    assert np.allclose(np.array(found.costs) * scale, expected, atol=1e-5)
    assert min(found.costs) >= 0


def test_the_features_of_a_network_do_not_depend_on_the_others() -> None:
    networks = sample(search_space(), 5)
    for at in range(5):
        alone = features_of_config(networks.config(at), 224)
        assert np.allclose(alone[0], networks.latency_features[at])


@pytest.fixture(scope="module")
@slow_fixture
def real() -> Found:
    """A real search on small images, of whose times nothing is required."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "CANDIDATES", 240)
        few = tuple(e for e in ENGINES if e.name in ("eager", "folded"))
        patch.setattr("regnet.selection.device.ENGINES", few)
        return search(
            Limits(flops=8e6, latency_ms=1e4), image_size=32, probes=8, finalists=2, seconds=0.02,
            engine="auto",
        )  # fmt: skip


def test_a_real_search_ends_with_a_network_and_its_measurements(real: Found) -> None:
    assert real.best.flops <= 8e6
    assert real.best in real.pareto or real.best.name
    assert len(real.published) == 6
    assert real.measured >= 8 + 2 + 6
    assert real.engine
    assert real.environment["packages"]["torch"]
    document = json.loads(json.dumps(real, default=lambda value: (
        value.to_dict() if hasattr(value, "to_dict")
        else {name: getattr(value, name) for name in value.__slots__}
    )))  # fmt: skip
    assert document["best"]["config"]["kind"] == "regnet"


@pytest.mark.long
def test_networks_can_be_searched_in_int8(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("openvino", "nncf"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.setattr(searching, "CANDIDATES", 240)
    monkeypatch.setattr(searching, "RIVALS", 1)
    monkeypatch.setattr(paper, "DEPTHS", (4, 6))  # each network takes seconds to quantize
    limits = Limits(latency_ms=1e4, memory_mb=2)
    with pytest.raises(ConfigError, match="int8 runs on openvino, not on folded; leave --engine"):
        search(limits, engine="folded", precision="int8")
    found = search(
        limits, image_size=32, probes=8, finalists=1, seconds=0.02, precision="int8"
    )  # fmt: skip
    assert (found.engine, found.precision) == ("openvino", "int8")
    best = found.best
    assert best.memory_mb == memory_bytes(best.config, 32, batch_size=1, element_bytes=1) / 1e6
    assert best.memory_mb <= 2
    assert capsys.readouterr().out == ""  # NNCF would print progress bars into JSON


def test_the_file_of_the_best_config_is_a_name_of_a_model(tmp_path: Path) -> None:
    config = sample(search_space(), 1).config(0)
    assert isinstance(config, RegNetConfig)
    path = tmp_path / "Best.JSON"
    path.write_text(config.to_json())
    assert regnet.create(str(path), device="meta").config == config
    told = regnet.info(str(path), image_size=32)
    assert (told.name, told.complexity) == ("Best", complexity(config, 32))
    path.write_bytes(b"\xff{")
    with pytest.raises(ConfigError, match=r"Best\.JSON: "):
        regnet.create(str(path))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "cuda_graph"}, EngineError, "cuda_graph cannot be used here: "),
        ({"engine": "eagre"}, ConfigError, "eagre"),
        ({"precision": "fp64"}, ConfigError, "there is no precision 'fp64'; did you mean 'fp16'"),
        ({"probes": 3}, ConfigError, "probes must be a whole number of at least 8; got 3"),
        ({"batch_size": 0}, ConfigError, "batch_size must be a whole number of at least 1; got 0"),
        ({"space": find_space("anynetx_a")}, ConfigError, "a space of RegNets, got anynetx_a"),
        ({"device": "gpu"}, ConfigError, "there is no device 'gpu'"),
        ({"seed": -1}, ConfigError, "seed must be a whole number of at least 0; got -1"),
    ],
)
def test_a_device_or_engine_that_cannot_run_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        search(Limits(flops=8e6), **{"engine": "folded", **options})


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="a search needs a limit"):
        Limits()
    with pytest.raises(ConfigError, match="latency_ms must be a positive number, got -1"):
        Limits(latency_ms=-1)
    for value in ("1", True, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="flops must be a number, got"):
            Limits(flops=value)
    with pytest.raises(ConfigError, match="there is no space to search 'regnetz'"):
        search_space("regnetz")


@pytest.mark.parametrize(
    ("median", "differs", "best"),
    [(0.9, True, "better"), (1.0, False, "better"), (1.2, True, "")],
)
def test_a_published_network_that_is_better_and_no_slower_is_the_answer(
    monkeypatch: pytest.MonkeyPatch, median: float, differs: bool, best: str
) -> None:
    """A rival may be better than the network found, not only as good as it."""
    config = find_space("regnetx", flops=4e8)

    def row(name: str, worth: float, ms: float) -> Measured:
        return Measured(
            name=name, config=sample(config, 1).config(0), flops=1, params=1, activations=1,
            latency_ms=ms, low_ms=ms, high_ms=ms, memory_mb=1, worth=worth,
        )  # fmt: skip

    winner = row("", 60e6, 2.4)
    published = (row("worse", 40e6, 1.0), row("better", 75e6, 2.0), row("slow", 61e6, 6.0))
    against = SimpleNamespace(median=median, differs=differs)
    meter = SimpleNamespace(
        compare=lambda a, b: against, environment={},
        conditions=SimpleNamespace(
            engine="", precision="", layout="", batch_size=1, image_size=32
        ),
    )  # fmt: skip
    candidates = SimpleNamespace(
        meter=meter, limits=Limits(latency_ms=3), rows=[winner], networks=[],
        model=SimpleNamespace(error=0.0), prediction_error=None,
    )  # fmt: skip
    found = searching._found(candidates, winner, published)  # type: ignore[arg-type]
    assert found.rival == "better"
    assert found.best.name == best
