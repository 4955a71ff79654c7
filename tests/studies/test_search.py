"""The search on images so small that it takes seconds; how fast things are decides nothing here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regnet
from regnet.errors import ConfigError, EngineError
from regnet.studies import search as searching
from regnet.studies.sampling import sample
from regnet.studies.search import (
    EQUAL,
    Found,
    LatencyModel,
    Limits,
    Measured,
    features_of,
    search,
    search_space,
)

FLOPS = 8e6  # at 32 pixels, as RegNetX-400MF has


@pytest.fixture(scope="module")
def found() -> Found:
    return quick(Limits(flops=FLOPS, latency_ms=1e4))


def quick(limits: Limits, **options: Any) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "CANDIDATES", 300)
        return search(
            limits, input_size=32, probes=8, finalists=2, seconds=0.02,
            **{"engine": "folded", **options},
        )  # fmt: skip


def test_the_best_is_the_fastest_of_the_largest(found: Found) -> None:
    best = found.best
    assert best.flops <= FLOPS
    assert best in found.pareto
    large = [row for row in found.pareto if row.flops >= (1 - EQUAL) * max(
        other.flops for other in found.pareto)]  # fmt: skip
    assert best.latency_ms == min(row.latency_ms for row in large)
    for slower, faster in zip(found.pareto[1:], found.pareto[:-1], strict=True):
        assert slower.latency_ms >= faster.latency_ms
        assert slower.flops > faster.flops


def test_published_networks_stand_beside_it(found: Found) -> None:
    names = [row.name for row in found.published]
    assert len(names) == 6
    assert {"regnetx_004", "regnety_004"} <= set(names)
    # Of equal flops, none is faster than the best: it would be the best itself.
    for row in found.published:
        if (1 - EQUAL) * found.best.flops <= row.flops <= FLOPS:
            assert row.latency_ms >= found.best.latency_ms
    assert found.measured == 8 + 2 + 6
    assert found.environment["packages"]["torch"]


def test_the_model_of_latency_recovers_a_law_of_its_kind() -> None:
    networks = sample(search_space(), 400)
    features = features_of(networks)
    law = np.exp(0.4 * features[:, 0] + 0.5 * features[:, 2] + 0.3 * features[:, 3] - 20)
    noisy = law[:30] * np.exp(np.random.default_rng(0).normal(0, 0.02, 30))
    model = LatencyModel(features[:30], noisy)
    off = np.abs(model.predict(features[30:]) / law[30:] - 1)
    assert np.median(off) < 0.06
    assert model.error == pytest.approx(np.median(off), abs=0.04)


def test_leaving_one_out_is_what_it_says() -> None:
    networks = sample(search_space(), 20)
    features = features_of(networks)
    times = np.random.default_rng(0).uniform(1, 3, 20)
    once = LatencyModel(features, times)
    off = []
    for at in range(20):
        rest = np.arange(20) != at
        # The same scaling and penalty: only the network itself is missing.
        one = LatencyModel.__new__(LatencyModel)
        one._mean, one._scale = once._mean, once._scale
        x = np.column_stack([np.ones(20), (features - once._mean) / once._scale])
        penalty = searching._RIDGE * 20 * np.eye(x.shape[1])
        penalty[0, 0] = 0
        one._weights = np.linalg.solve(
            x[rest].T @ x[rest] + penalty, x[rest].T @ np.log(times[rest])
        )
        off.append(abs(times[at] / one.predict(features[[at]])[0] - 1))
    assert once.error == pytest.approx(np.median(off), rel=1e-6)


def test_the_config_of_the_best_is_a_models_name(found: Found, tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    path.write_text(found.best.config.to_json())
    model = regnet.create(str(path))
    assert model.config == found.best.config
    told = regnet.info(str(path), input_size=32)
    assert (told.name, told.complexity.flops) == ("best", found.best.flops)


def test_the_smaller_limit_counts() -> None:
    few = quick(Limits(flops=FLOPS, params=2e6, activations=1.2e5))
    assert few.best.params <= 2e6
    assert few.best.activations <= 1.2e5


def test_limits_that_nothing_meets_say_what_came_closest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"none of \d+ measured networks .* the fastest takes"):
        quick(Limits(flops=FLOPS, latency_ms=1e-6))
    monkeypatch.setattr("regnet.studies.sampling.PATIENCE", 20_000)
    with pytest.raises(ConfigError, match="fail activations up to 10"):
        quick(Limits(flops=FLOPS, activations=10))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "cuda_graph"}, EngineError, "cuda_graph runs none of the networks: .*"),
        ({"engine": "eagre"}, ConfigError, "eagre"),
        ({"precision": "fp64"}, ConfigError, "precision must be one of fp32, .* got 'fp64'"),
    ],
)
def test_what_cannot_run_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quick(Limits(flops=FLOPS), **options)


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="a search needs a limit"):
        Limits()
    with pytest.raises(ConfigError, match="latency_ms must be positive, got -1"):
        Limits(latency_ms=-1)
    with pytest.raises(ConfigError, match="regnetx or regnety; got 'regnetz'"):
        search_space("regnetz")


def test_all_fields_have_a_json_form(found: Found) -> None:
    from regnet.cli.output import _plain

    document = json.loads(json.dumps(found, default=_plain))
    assert document["best"]["config"]["kind"] == "regnet"
    assert isinstance(found.best, Measured)
