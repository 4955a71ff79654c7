"""Tests of the search that trains, on small pictures and with a known law of latency."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regnet.selection.search as searching
from regnet.design.complexity import complexity
from regnet.design.config import config_from_json
from regnet.devices import core_count
from regnet.errors import ConfigError
from regnet.executors.base import InProcess
from regnet.selection.device import Conditions
from regnet.selection.limits import Limits, Measured
from regnet.spaces.paper import search_space
from regnet.spaces.space import Space
from regnet.studies import population
from regnet.studies.search import (
    Searched,
    Trained,
    _difference,
    front,
    search_with_data,
    trainings,
)
from regnet.studies.search_report import render
from regnet.training.recipe import Recipe
from tests.command import refused, regnet
from tests.pictures import write_folder

SIDE = 16

RECIPE = Recipe(
    epochs=4, batch_size=12, lr=0.1, warmup_epochs=1, crop="pad", lighting=0.0, precise_bn=0
)

LIMITS = Limits(flops=6e6, latency_ms=4.0)


class Law:
    """A meter that computes milliseconds by arithmetic."""

    def __init__(self) -> None:
        self.conditions = Conditions(device=torch.device("cpu"), engine="folded", image_size=SIDE)
        self.problem: str | None = None
        self.environment: dict[str, Any] = {"device": "a law", "threads": 1}

    def measure(self, config: Any, name: str = "") -> Measured:
        cost = complexity(config, SIDE)
        found = 0.1 * sum(config.depths) + cost.flops / 1e7
        return Measured(
            name=name, config=config, flops=cost.flops, params=cost.params,
            activations=cost.activations, latency_ms=found, low_ms=0.99 * found,
            high_ms=1.01 * found, memory_mb=1.0,
        )  # fmt: skip

    def compare(self, a: Any, b: Any) -> None:
        raise AssertionError("nothing is raced")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "CANDIDATES", 120)
    monkeypatch.setattr(searching, "SCOUTS", 200)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder / "train", 36)
    write_folder(folder / "val", 12, seed=1)
    return folder


def space() -> Space:
    found = search_space("regnetx")
    return replace(found, architecture=replace(found.architecture, stem="cifar", stem_width=8))


def searched(folder: Path, data: Path, limits: Limits = LIMITS, **options: Any) -> Searched:
    values: dict[str, Any] = {
        "data": str(data), "recipe": RECIPE, "space": space(), "candidates": 4, "replicas": 2,
        "executor": InProcess(), "meter": Law(), "engine": "folded", "probes": 8,
    }  # fmt: skip
    return search_with_data(folder, limits, **{**values, **options})


def test_candidates_are_halved_and_compared_on_fresh_seeds(data: Path, tmp_path: Path) -> None:
    rounds: list[str] = []

    def begins(name: str, _: Path) -> Any:
        rounds.append(name)
        return lambda row: None

    found = searched(tmp_path / "s", data, on_round=begins)
    assert rounds == ["round-1", "round-2", "round-3", "confirm"]
    studies = {name: population.read(tmp_path / "s" / name) for name in rounds}
    candidates = [len(studies[f"round-{n}"].given[0].configs) for n in (1, 2, 3)]
    assert candidates == [4, 2, 2]
    assert [studies[f"round-{n}"].recipe.epochs for n in (1, 2, 3)] == [1, 2, 4]
    assert len({study.seed for study in studies.values()}) == 4
    assert found.rival is not None
    assert found.against_rival is not None
    assert found.against_rival.replicas == 2
    # The comparison does not use any training that decided the choice.
    again = population.load(tmp_path / "s/confirm")
    assert found.against_rival.pick_error == pytest.approx(np.mean(again["pick"].repeats[0]))
    for row in found.trained:
        assert LIMITS.allow(Law().measure(row.config))
        assert row.config.num_classes == 3
    assert set(found.front) <= set(found.trained)
    page = render(found, LIMITS)
    assert found.rival.name in page
    assert found.against_rival.verdict in page


def test_a_killed_search_is_resumed_and_repeats_nothing(data: Path, tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole", data)
    told: list[str] = []

    def result(row: Any) -> None:
        told.append(json.dumps(row.outcome["epochs"][-1]["loss"]))
        if len(told) % 4 == 0:
            raise KeyboardInterrupt

    for _ in range(20):
        try:
            found = searched(tmp_path / "s", data, on_round=lambda *_: result)
            break
        except KeyboardInterrupt:
            continue
    assert found == replace(whole, conditions=found.conditions)
    everything = sum(
        sum(states.values())
        for name in ("round-1", "round-2", "round-3", "confirm")
        for states in population.counts(tmp_path / "s" / name).values()
    )
    assert len(told) == everything


def test_another_search_in_the_folder_is_refused(data: Path, tmp_path: Path) -> None:
    searched(tmp_path / "s", data)
    with pytest.raises(ConfigError, match=r"holds another search, which differs in recipe, seed;"):
        searched(tmp_path / "s", data, recipe=replace(RECIPE, epochs=8), seed=1)
    other = replace(space(), image_size=48)
    with pytest.raises(ConfigError, match="holds another search, which differs in space;"):
        searched(tmp_path / "s", data, space=other)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files, such as notes\.txt"):
        searched(tmp_path / "other", data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 3}, "candidates must be a whole number of at least 4; got 3"),
        ({"replicas": 1}, "replicas must be a whole number from 2 to 10; got 1"),
        ({"replicas": 11}, "replicas must be a whole number from 2 to 10; got 11"),
        ({"limits": Limits(latency_ms=0.01)}, r"the fastest network of this space takes \d"),
        ({"budget": 1e-6}, r"a budget of 0 minutes is too short: 4 candidates take about"),
    ],
)
def test_impossible_searches_are_refused(
    data: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        searched(tmp_path / "s", data, **options)
    assert not (tmp_path / "s").exists()


def test_a_budget_reduces_the_number_of_candidates(data: Path, tmp_path: Path) -> None:
    searched(tmp_path / "s", data, candidates=7, replicas=2)
    rows = json.loads((tmp_path / "s/search.json").read_text())
    flops = np.mean([row["flops"] for row in rows["candidates"]])
    each = 3 * flops * 36 * RECIPE.epochs / (core_count() * population.CORE_SPEED)
    budget = each * trainings(5, len(rows["published"]), 2)
    found = searched(tmp_path / "less", data, candidates=7, budget=float(budget))
    assert found.candidates == 5


@given(
    errors=st.lists(st.floats(1, 99), min_size=2, max_size=10),
    by=st.floats(-20, 20),
    spread=st.floats(0.01, 5),
)
def test_the_interval_equals_that_of_students_t_test(
    errors: list[float], by: float, spread: float
) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    pick = [error + spread * at for at, error in enumerate(errors)]
    rival = [error + by - spread * at for at, error in enumerate(errors)]
    found = _difference(pick, rival)
    if np.ptp(pick) + np.ptp(rival) < 1e-6:
        return
    interval = stats.ttest_ind(rival, pick).confidence_interval(0.95)
    assert found.low == pytest.approx(interval.low, rel=1e-5, abs=1e-5 * (1 + spread * 99))
    assert found.high == pytest.approx(interval.high, rel=1e-5, abs=1e-5 * (1 + spread * 99))
    told = {True: "better", False: "no difference shown"}[found.low > 0]
    assert found.verdict == ("worse" if found.high < 0 else told)


@given(st.lists(st.tuples(st.floats(1, 99), st.floats(0.1, 50)), min_size=1, max_size=12))
def test_no_network_beats_the_front_in_both_error_and_cost(rows: list[tuple[float, float]]) -> None:
    config = space_config()
    trained = [
        Trained(name=str(n), config=config, error=error, flops=1, params=1, latency_ms=ms,
                low_ms=ms, high_ms=ms)
        for n, (error, ms) in enumerate(rows)
    ]  # fmt: skip
    found = front(trained)
    for row in trained:
        beaten = [o for o in trained if o.error < row.error and o.latency_ms < row.latency_ms]
        assert not (beaten and row in found)
    assert min(rows)[0] in [row.error for row in found]


def space_config() -> Any:
    from regnet.design.variants import VARIANTS

    return VARIANTS["regnetx_002"].config


@pytest.mark.slow
def test_the_command_prints_and_writes_what_it_found(data: Path, tmp_path: Path) -> None:
    words = (
        "search", "--latency-ms", 1000, "--flops", "6M", "--data", data, "--space", "regnetx",
        "--stem", "cifar", "--engine", "folded", "--recipe", "cifar", "--set", "epochs=2",
        "--set", "warmup_epochs=1", "--set", "batch_size=12", "--set", "clean_epochs=0",
        "--set", "precision=fp32", "--candidates", 4, "--replicas", 2, "--probes", 8,
        "--seconds", 0.02, "--folder", tmp_path / "s", "--out", tmp_path / "best.json",
    )  # fmt: skip
    done = regnet(*words, code=0)
    assert "4 candidates; errors of the last round" in done.stdout
    assert "trainings each with new seeds" in done.stdout
    assert "confirm: " in done.stderr
    config_from_json((tmp_path / "best.json").read_text())
    assert list((tmp_path / "s/front").glob("01-*.json"))
    assert "<svg" in (tmp_path / "s/report.html").read_text()
    again = json.loads(regnet(*words, "--json", code=0).stdout)
    assert again["against_rival"]["replicas"] == 2
    refused(regnet(*words, "--budget", "soon"), 2, "needs a time such as 90s, 45m or 2h")
