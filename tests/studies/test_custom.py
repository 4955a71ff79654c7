"""Tests of a user's own spaces and objectives, in a folder outside the package."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regnet.design.complexity import complexity
from regnet.design.config import RegNetConfig
from regnet.errors import ConfigError, FunctionError
from regnet.executors.base import InProcess
from regnet.executors.pool import ProcessPool
from regnet.nn.model import AnyNet
from regnet.spaces import Distribution, Space, find_space, sample, sample_by_flops
from regnet.spaces.custom import CustomConfig
from regnet.studies import population
from regnet.studies.analysis import analyze, refine
from regnet.studies.custom import counted, sample_networks
from regnet.studies.report import render, save_plots
from regnet.studies.study import Study
from regnet.studies.tables import read_table, write_table
from regnet.training.recipe import Recipe
from tests.command import refused, regnet
from tests.pictures import write_folder

MODULE = "blocks_of_a_user"

SOURCE = """
import math
import random
import time
from torch import nn


def build(depth, width, num_classes):
    layers = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))


def seven(depth, width, num_classes):
    if depth == 7:
        raise ValueError("seven is no good")
    return build(depth, width, num_classes)


def never(depth, width):
    raise ValueError("never")


def count(depth, width, image_size):
    return {"flops": depth * width * image_size, "params": depth, "activations": width}


def no_count(depth, width):
    return {"flops": float("nan"), "params": 1, "activations": 1}


def wrong_shape(depth, width):
    return nn.Flatten()


def no_module(depth, width):
    return "a network"


def error(parameters, seed, device):
    return 10 + abs(parameters["depth"] - 4) + random.Random(seed).random() / 10


def record(parameters, seed, device):
    return {"error": parameters["depth"], "iou": 0.5}


def of_a_config(config, seed, device):
    return sum(config.depths)


def nan(parameters, seed, device):
    return math.nan if parameters["depth"] > 4 else 1.0


def nothing(parameters, seed, device):
    return None


def unsteady(parameters, seed, device):
    return random.random()


def hanging(parameters, seed, device):
    if parameters["depth"] == 1:
        time.sleep(600)
    return 1.0
"""

RECIPE = Recipe(
    epochs=1, batch_size=12, lr=0.1, warmup_epochs=0, crop="pad", lighting=0.0, precise_bn=0
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a module that has not been imported."""
    folder = tmp_path_factory.mktemp("own")
    (folder / f"{MODULE}.py").write_text(SOURCE)
    write_folder(folder / "pictures/train", 36)
    write_folder(folder / "pictures/val", 12, seed=1)
    yield folder
    sys.modules.pop(MODULE, None)
    sys.path[:] = [place for place in sys.path if place != str(folder.resolve())]


def space(build: str = "build", count: str = "", **changes: Any) -> Space:
    found = Space(
        name="mine",
        family="custom",
        build=f"{MODULE}:{build}",
        count=count and f"{MODULE}:{count}",
        parameters={
            "depth": Distribution(low=1, high=8),
            "width": Distribution(kind="log_uniform", low=8, high=64, quantum=8),
        },
        image_size=16,
    )
    return replace(found, **changes)


def study(own: Path, *, objective: str = "", **changes: Any) -> Study:
    pictures = str(own / "pictures")
    values: dict[str, Any] = {
        "spaces": (space(),),
        "models": 4,
        "code": str(own),
        "recipe": RECIPE,
        **({"objective": f"{MODULE}:{objective}"} if objective else
           {"train": pictures, "val": pictures}),
    }  # fmt: skip
    return Study(**{**values, **changes})


def test_modules_and_arithmetic_give_the_same_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = RegNetConfig(depth=4, w0=16, wa=16.0, wm=2.0, group_width=8, num_classes=10)

    def build(depth: int) -> nn.Module:
        assert depth == 4
        return AnyNet(config)

    monkeypatch.setattr(sys.modules[__name__], "build", build, raising=False)
    network = CustomConfig(
        build=f"{__name__}:build", parameters={"depth": 4.0}, num_classes=10, image_size=64
    )
    [cost] = counted([network])
    known = complexity(config, 64)
    assert cost == replace(known, flops=known.flops - 10)  # the additions of biases are not counted


def test_a_transformer_is_counted_correctly() -> None:
    """The counts equal those of the matrix products, worked out by hand."""
    width, tokens = 32, 16
    network = CustomConfig(
        build="tests.studies.test_custom:transformer",
        parameters={"width": width},
        num_classes=10,
        image_size=16,
    )
    [cost] = counted([network])
    assert not isinstance(cost, str), cost
    attention = 3 * width * width + 2 * tokens * width + width * width
    each_token = 3 * 16 * width + attention + 2 * 2 * width * width
    assert cost.flops == tokens * each_token + 10 * width
    assert cost.params == sum(p.numel() for p in transformer(width, 10).parameters())


class Transformer(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.block(self.patches(x).flatten(2).transpose(1, 2))
        logits: torch.Tensor = self.head(found.mean(1))
        return logits


def transformer(width: int, num_classes: int) -> nn.Module:
    return Transformer(width, num_classes)


def test_many_slow_networks_are_counted_by_several_processes(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [sample_networks(space(), 20, folder=str(own)).config(n) for n in range(20)]
    here = counted(networks, str(own))
    used: list[int] = []

    class Pool(InProcess):
        def run(self, function: Any, tasks: Any) -> Any:
            used.append(1)
            return reversed(list(super().run(function, tasks)))

    monkeypatch.setattr("regnet.studies.custom._WORTH_A_POOL", 0.0)
    monkeypatch.setattr("regnet.studies.custom.ProcessPool", Pool)
    assert counted(networks, str(own)) == here
    assert used


def test_samples_are_reproducible_and_have_no_duplicates(own: Path) -> None:
    with pytest.raises(ConfigError, match=r"sample it with regnet.studies.sample_networks"):
        sample_by_flops(space(), (1e6, 2e6), 1)
    few, many = (sample_networks(space(), n, 3, folder=str(own)) for n in (5, 40))
    for name in ("depth", "width", "flops", "params", "activations"):
        assert np.array_equal(few.metric(name), many.metric(name)[:5])
    drawn = set(zip(many.metric("depth"), many.metric("width"), strict=True))
    assert len(drawn) == 40


def test_limits_and_conditions_hold_for_all_networks(own: Path) -> None:
    part = space(count="count").restrict(depth=(3, 5), flops=(None, 2000), params=(4, None))
    found = sample_networks(
        part.where("wide", lambda networks: networks.metric("width") > 8), 4, folder=str(own)
    )
    depth, width = found.metric("depth"), found.metric("width")
    assert set(depth) <= {4.0, 5.0}
    assert (width > 8).all()
    assert np.array_equal(found.metric("flops"), depth * width * 16)
    assert (found.metric("flops") <= 2000).all()


def test_a_space_that_has_too_few_networks_says_why(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regnet.spaces.custom.PATIENCE", 2000)
    with pytest.raises(
        ConfigError, match=r"mine: only 2 of 5 networks were found in .* are outside"
    ):
        sample_networks(space(count="count").restrict(depth=1, flops=(None, 256)), 5,
                        folder=str(own))  # fmt: skip
    monkeypatch.setattr("regnet.spaces.custom.MOST_FAILURES", 20)
    with pytest.raises(ConfigError, match=r"none could be built and counted.*ValueError: never"):
        sample_networks(space("never"), 5, folder=str(own))


@pytest.mark.parametrize(
    ("build", "count", "reason"),
    [
        ("build", "no_count", "no_count returned .*nan"),
        ("wrong_shape", "", r"logits \(1, 1000\) for one image, got \(1, 768\)"),
        ("no_module", "", "must return a torch.nn.Module, got str"),
    ],
)
def test_a_network_that_cannot_be_counted_has_a_reason(
    own: Path, monkeypatch: pytest.MonkeyPatch, build: str, count: str, reason: str
) -> None:
    monkeypatch.setattr("regnet.spaces.custom.MOST_FAILURES", 5)
    with pytest.raises(ConfigError, match=reason):
        sample_networks(space(build, count), 5, folder=str(own))


@pytest.mark.parametrize("name", ["nowhere_at_all:build", f"{MODULE}:nothing_here"])
def test_missing_functions_are_named(own: Path, name: str) -> None:
    with pytest.raises(FunctionError, match=f"{name} cannot be imported: "):
        sample_networks(replace(space(), build=name), 2, folder=str(own))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"build": "os.system"}, "build must be 'package.module:function'"),
        ({"build": ""}, "build must be"),
        ({"count": "count"}, "count must be"),
        ({"parameters": {}}, "nothing is drawn"),
        ({"parameters": {"flops": Distribution(low=1, high=2)}}, "cannot be the name"),
        ({"parameters": {"for": Distribution(low=1, high=2)}}, "cannot be the name"),
        ({"family": "anynet"}, "build and count are for custom"),
        ({"relations": {"depth": "equal"}}, "not drawn for each stage"),
        ({"limits": {"d": (1, 2)}}, "metric of mine"),
    ],
)
def test_spaces_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(space(), **changes)


def test_a_space_is_saved_and_has_a_size() -> None:
    found = space(count="count").restrict(flops=(None, 1e6))
    assert Space.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert (found.size, found.dimensions) == (64, 2)
    with pytest.raises(ConfigError, match=r"custom; sample it with regnet\.studies"):
        sample(found, 2)


def test_networks_are_trained_and_studied_like_others(own: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    population.init(tmp_path / "s", study(own), lambda *done: told.append(done))
    assert told[-1] == (4, 4)
    began = population.read(tmp_path / "s")
    assert began.spaces[0].architecture.num_classes == 3
    counts = population.resume(tmp_path / "s", executor=InProcess())
    assert counts == {"mine": {"done": 4}}
    found = population.load(tmp_path / "s")
    result = analyze(found)
    assert set(result.spaces["mine"].best) == {
        "depth", "width", "flops", "params", "activations"
    }  # fmt: skip
    narrower = refine(began.spaces[0], result.spaces["mine"], "depth")
    assert population.extend(tmp_path / "s", narrower).names == ("mine", narrower.name)
    assert f"{MODULE}:build" in render(began, found)
    assert len(save_plots(found, tmp_path / "plots")) == 5


def test_networks_that_cannot_be_built_are_rows_with_reasons(own: Path, tmp_path: Path) -> None:
    population.init(tmp_path / "s", study(own, spaces=(space("seven"),), models=30,
                                          objective="error", train="", val=""))  # fmt: skip
    folder = tmp_path / "s"
    population.resume(folder, executor=InProcess(), retry_failed=True)
    found = population.load(folder)["mine"]
    assert len(found) == 30
    assert found.failed
    for row in found.failed:
        assert row.config["parameters"]["depth"] == 7
        assert row.outcome is not None
        assert row.outcome["reason"] == "ValueError: seven is no good"
    (folder / "study.db").unlink()
    assert population.recover(folder)[0] == 30 + len(found.failed)
    again = population.load(folder)["mine"].failed
    assert [(row.number, row.attempts) for row in again] == [
        (row.number, row.attempts) for row in found.failed
    ]


def test_a_network_of_another_size_than_claimed_has_failed(own: Path, tmp_path: Path) -> None:
    population.init(tmp_path / "s", study(own, spaces=(space(count="count"),), models=2))
    population.resume(tmp_path / "s", executor=InProcess())
    failed = population.load(tmp_path / "s")["mine"].failed
    assert len(failed) == 2
    for row in failed:
        assert row.outcome is not None
        assert "when the study began; begin a new study" in row.outcome["reason"]


def test_an_objective_judges_networks(own: Path, tmp_path: Path) -> None:
    population.init(tmp_path / "s", study(own, objective="error", models=20, replicas=2))
    population.resume(tmp_path / "s", executor=InProcess())
    found = population.load(tmp_path / "s")
    result = analyze(found).spaces["mine"]
    assert result.best["depth"].low <= 4 <= result.best["depth"].high
    assert result.noise is not None
    assert result.noise.seed_deviation < 0.1 < result.noise.network_deviation
    assert '"unit": ""' in render(population.read(tmp_path / "s"), found)


def test_the_record_of_an_objective_is_saved(own: Path, tmp_path: Path) -> None:
    population.init(tmp_path / "s", study(own, objective="record", models=2))
    population.resume(tmp_path / "s", executor=InProcess())
    for row in population.load(tmp_path / "s")["mine"].rows:
        assert row.outcome is not None
        assert row.outcome["also"]["iou"] == 0.5


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"error": 40.0, "epochs": [{"epoch": 1, "top1": 10.0}]}, [{"epoch": 1, "top1": 10.0}]),
        ({"error": 40.0, "epochs": 90}, 90),
        ({"error": np.float32(40), "epochs": np.arange(2)}, [0, 1]),
        ({"error": torch.tensor(40.0), "epochs": torch.tensor(0.5)}, 0.5),
    ],
)
def test_fields_of_an_objective_cannot_change_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Any, expected: Any
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "judge", lambda *_: record, raising=False)
    found = Study(spaces=(find_space("regnetx"),), models=2, objective=f"{__name__}:judge")
    population.init(tmp_path / "s", found)
    population.resume(tmp_path / "s", executor=InProcess())
    done = population.load(tmp_path / "s")
    assert done["regnetx"].errors.tolist() == [40.0, 40.0]
    write_table(done, tmp_path / "s.csv")
    again = read_table(tmp_path / "s.csv")["regnetx"]
    assert again.errors.tolist() == [40.0, 40.0]
    for row in done["regnetx"].rows:
        assert row.outcome is not None
        assert row.outcome["also"]["epochs"] == expected


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("error", [-3.5, 0.25, 1200.0])
def test_the_table_of_an_objective_has_no_percentages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: float
) -> None:
    values = iter([error, error + 0.125])
    monkeypatch.setattr(sys.modules[__name__], "judge", lambda *_: next(values), raising=False)
    found = Study(spaces=(find_space("regnetx"),), models=2, objective=f"{__name__}:judge")
    monkeypatch.setattr("regnet.studies.task._BRIEF", 0.0)
    population.init(tmp_path / "s", found)
    population.resume(tmp_path / "s", executor=InProcess())
    table = tmp_path / f"s{suffix}"
    write_table(population.load(tmp_path / "s"), table)
    again = read_table(table)
    assert again["regnetx"].errors.tolist() == [error, error + 0.125]
    assert '"unit": ""' in render(None, again)
    text = regnet("study", "analyze", table, code=0).stdout
    assert text == regnet("study", "analyze", tmp_path / "s", code=0).stdout
    assert "min error  mean error" in text


def test_a_record_without_a_json_form_is_a_failed_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"error": 40.0, "model": nn.Identity()}
    monkeypatch.setattr(sys.modules[__name__], "judge", lambda *_: record, raising=False)
    found = Study(spaces=(find_space("regnetx"),), models=2, objective=f"{__name__}:judge")
    population.init(tmp_path / "s", found)
    population.resume(tmp_path / "s", executor=InProcess())
    for row in population.load(tmp_path / "s")["regnetx"].failed:
        assert row.outcome is not None
        assert "must return what has a JSON form: Identity has none" in row.outcome["reason"]


def test_an_objective_of_the_papers_spaces_gets_configs(own: Path, tmp_path: Path) -> None:
    found = study(own, objective="of_a_config", models=3, spaces=(find_space("regnetx"),))
    population.init(tmp_path / "s", found)
    population.resume(tmp_path / "s", executor=InProcess())
    there = population.load(tmp_path / "s")["regnetx"]
    assert np.array_equal(there.errors, there.metrics["d"])


@pytest.mark.parametrize(
    ("objective", "reason"),
    [("nan", "a finite error, got nan"), ("nothing", "a mapping with 'error', got None")],
)
def test_an_objective_without_an_error_has_a_reason(
    own: Path, tmp_path: Path, objective: str, reason: str
) -> None:
    population.init(tmp_path / "s", study(own, objective=objective, models=8))
    population.resume(tmp_path / "s", executor=InProcess())
    found = population.load(tmp_path / "s")["mine"]
    assert found.failed
    assert len(found) == sum(found.metrics["depth"] <= 4)
    for row in found.failed:
        assert row.outcome is not None
        assert reason in row.outcome["reason"]


def test_an_objective_that_is_not_deterministic_is_detected(own: Path, tmp_path: Path) -> None:
    for objective, count in (("error", 0), ("unsteady", 1)):
        folder = tmp_path / objective
        population.init(folder, study(own, objective=objective, models=16))
        population.resume(folder, executor=InProcess())
        warnings = analyze(population.load(folder)).warnings
        assert sum("not deterministic" in text for text in warnings) == count


@pytest.mark.slow
def test_an_objective_that_hangs_is_ended(own: Path, tmp_path: Path) -> None:
    found = study(own, objective="hanging", models=3, spaces=(space().restrict(depth=(1, 2)),))
    population.init(tmp_path / "s", found)
    population.resume(tmp_path / "s", executor=ProcessPool(2, threads=1, time_limit=20))
    there = population.load(tmp_path / "s")["mine"]
    assert set(there.metrics["depth"]) <= {2.0}
    for row in there.failed:
        assert row.config["parameters"]["depth"] == 1
        assert row.outcome is not None
        assert "time limit of 20 s" in row.outcome["reason"]


def test_a_file_that_names_code_runs_only_when_it_is_trusted(own: Path, tmp_path: Path) -> None:
    (own / "mine.json").write_text(json.dumps(space().to_dict()))
    words = ("study", "init", tmp_path / "s", "--space", "mine.json", "--models", 2,
             "--data", "pictures", "--recipe", "cifar", "--set", "epochs=1")  # fmt: skip
    refused(regnet(*words, cwd=own), 2, f"{MODULE}:build", "--trust")
    refused(regnet(*words, "--trust", "--stages", 3, cwd=own), 2, "mine is built by a function")
    assert not (tmp_path / "s").exists()
    regnet(*words, "--trust", cwd=own, code=0)
    for command in (("run",), ("refine",), ("recover",)):
        more = ("mine",) if command == ("refine",) else ()
        refused(regnet("study", *command, tmp_path / "s", *more), 2, "--trust")
    regnet("study", "status", tmp_path / "s", code=0)  # runs nothing


def test_a_missing_function_is_reported_in_one_line(own: Path, tmp_path: Path) -> None:
    done = regnet("study", "init", tmp_path / "s", "--space", "regnetx", "--models", 2,
                  "--objective", "nowhere_at_all:error", "--trust", cwd=own)  # fmt: skip
    refused(done, 2, "nowhere_at_all:error cannot be imported: ModuleNotFoundError")
    refused(regnet("study", "init", tmp_path / "s", "--space", "regnetx", "--objective", "os"),
            2, "'package.module:function', got 'os'")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "executor",
    ["local", pytest.param("ray", marks=[pytest.mark.long, pytest.mark.xdist_group("ray")])],
)
def test_a_study_of_own_functions_runs_on_any_executor(
    own: Path, tmp_path: Path, executor: str
) -> None:
    """Workers find the functions even though they run in another folder."""
    if executor == "ray":
        pytest.importorskip("ray", reason="ray is not installed")
    (own / "mine.json").write_text(json.dumps(space().to_dict()))
    folder = tmp_path / "s"
    regnet("study", "init", folder, "--space", "mine.json", "--models", 3, "--data", "pictures",
           "--recipe", "cifar", "--set", "epochs=1", "--set", "warmup_epochs=0",
           "--set", "batch_size=12", "--set", "clean_epochs=0", "--trust",
           cwd=own, code=0)  # fmt: skip
    done = regnet("study", "run", folder, "--trust", "--executor", executor, cwd=Path(os.sep))
    assert done.returncode == 0, done.stderr
    assert population.counts(folder) == {"mine": {"done": 3}}
