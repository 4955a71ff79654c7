"""Tests that the benchmarks which people run themselves still work."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import principles
from regnet.design.config import config_from_dict
from regnet.spaces import Space, sample
from regnet.studies.population import Population
from regnet.studies.tables import read_table
from scripts.tables.engines import gpu_headline

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True
    )


SCRIPTS = sorted(
    path
    for folder in ("scripts", "benchmarks", "benchmarks/gpu")
    for path in (ROOT / folder).glob("*.py")
)


def test_every_script_can_be_imported():
    """All in one process, because importing torch takes seconds."""
    code = (
        "import os, runpy, sys\n"
        "for path in sys.argv[1:]:\n"
        "    sys.path[0] = os.path.dirname(path)\n"  # as for a script
        "    runpy.run_path(path, run_name='script')\n"
    )
    done = run("-c", code, *SCRIPTS)
    assert done.returncode == 0, done.stderr


def test_the_profile_of_grouped_convolutions_runs(tmp_path):
    out = tmp_path / "a.json"
    done = run(
        "benchmarks/gpu/grouped_convs.py", "--device", "cpu", "--models", "regnety_016",
        "--batch-size", "1", "--precisions", "fp32", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert (
        sum(row["count"] for row in rows if row["layout"] == "contiguous" and row["padded"]) == 27
    )
    assert {row["group_width"] for row in rows} == {24}
    assert all(row["ms"] > 0 for row in rows)


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The folder of results that a dry run of the plan for a GPU leaves."""
    out = tmp_path_factory.mktemp("gpu")
    done = subprocess.run(
        [ROOT / "scripts/gpu_check.sh", "--dry", "--budget", "1200", "--out", out],
        capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + "".join(p.read_text() for p in out.glob("*.log"))
    return out


def rows_of(out, part):
    return json.loads((out / f"{part}.json").read_text())["rows"]


@pytest.mark.xdist_group("plan")  # one process runs the plan for all tests
def test_every_part_of_the_plan_for_a_gpu_runs_dry(dry):
    states = {row["part"]: row["state"] for row in rows_of(dry, "plan")}
    assert set(states.values()) == {"done"}, states
    ours, *rivals = rows_of(dry, "headline")
    assert ours["right"], ours
    assert {row["mode"] for row in rivals} == {
        "default",
        "eager",
        "reduce-overhead",
        "max-autotune",
    }
    assert all(row["ratio"] > 0 for row in rivals), rivals
    assert [row["outcome"] for row in rows_of(dry, "tests")] == ["passed"]
    slowest = [row for row in rows_of(dry, "kernels") if "slowest" in row]
    assert len(slowest) == 3
    assert all(row["ms_in_all"] > 0 for row in slowest)
    assert not any("reason" in row for row in rows_of(dry, "everyday"))
    assert [row["workers"] for row in rows_of(dry, "populations")] == [2]
    assert len(rows_of(dry, "grouped")) > 1


def test_parts_that_are_cut_off_leave_their_rows(tmp_path):
    done = run(
        "benchmarks/gpu/plan.py", "--dry", "--budget", "14", "--out", tmp_path,
        "--part", "headline", "--part", "populations",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in rows_of(tmp_path, "plan"):
        assert row["state"] in ("cut off", "done"), row  # a part may finish within its time
        assert row["seconds"] < row["of"] + 7
        if row["rows"]:
            assert len(rows_of(tmp_path, row["part"])) == row["rows"]


@pytest.mark.xdist_group("plan")  # one process runs the plan for all tests
def test_the_table_of_the_headline_is_made_from_any_part_of_its_rows(dry):
    document = json.loads((dry / "headline.json").read_text())
    for count in range(len(document["rows"]) + 1):
        found = list(gpu_headline({**document, "rows": document["rows"][:count]}))
        assert len(found) >= 4
        assert ("regnety_080, batch 1" in "".join(found)) == (count > 0)
    failed = {"model": "regnetx_080", "batch_size": 1, "reason": "out of memory"}
    found = list(gpu_headline({**document, "rows": [failed, *document["rows"]]}))
    assert "regnetx_080" not in "".join(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a CUDA GPU")
def test_the_gpu_check_reports_a_missing_gpu(tmp_path):
    done = subprocess.run(
        [ROOT / "scripts/gpu_check.sh", "--out", tmp_path], capture_output=True, text=True,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("gpu_check: torch sees no CUDA GPU")
    assert not list(tmp_path.iterdir())


def population(errors, **metrics):
    return Population(
        space=None,
        errors=np.asarray(errors, dtype=float),
        metrics={name: np.asarray(values, dtype=float) for name, values in metrics.items()},
        rows=(),
    )


def test_kinds_are_compared_within_spaces():
    """A kind of network is not judged worse because it is frequent in a space of high errors."""
    rng = np.random.default_rng(0)

    def networks(errors):
        return principles.Networks(errors, np.ones(len(errors)))

    errors = [
        (30 + rng.normal(size=5), 30 + rng.normal(size=40)),
        (50 + rng.normal(size=40), 50 + rng.normal(size=5)),
    ]
    strata = [(networks(a), networks(b)) for a, b in errors]
    same = principles.stratified(strata)
    assert abs(same.difference) < 1.5
    assert same.low < 0 < same.high
    assert same.p_value > 0.05
    pooled = np.concatenate([a for a, _ in errors]).mean()
    assert pooled - np.concatenate([b for _, b in errors]).mean() > 10
    better = principles.stratified(strata, margin=3)
    assert better.difference == pytest.approx(same.difference - 3)
    assert better.high < 0
    assert better.p_value < 0.01


def test_one_space_is_compared_as_welch_does():
    rng = np.random.default_rng(0)
    a, b = rng.normal(40, 3, 14), rng.normal(42, 6, 11)
    strata = [(principles.Networks(a, a), principles.Networks(b, b))]
    found = principles.stratified(strata)
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high), abs=1e-4)


def test_a_difference_that_is_one_of_depth_vanishes_at_equal_depth():
    """The first kind is shallower, and every block costs half a point; the kinds are the same."""
    rng = np.random.default_rng(0)
    depths = np.arange(3, 23), np.arange(8, 28)
    first, second = (
        principles.Networks(30 + 0.5 * d + rng.normal(0, 0.5, len(d)), d.astype(float))
        for d in depths
    )
    assert principles.stratified([(first, second)]).high < 0
    difference, low, high = principles.at_equal_depth([(first, second)])
    assert low < 0 < high
    assert abs(difference) < 0.5
    better = principles.Networks(first.errors - 1, first.depths)
    again, low, high = principles.at_equal_depth([(better, second)])
    assert again == pytest.approx(difference - 1)
    assert high < 0


def test_statements_are_judged_by_the_populations():
    rng = np.random.default_rng(1)
    means = {
        "anynetx_a": 46, "anynetx_b": 46.3, "anynetx_c": 50, "anynetx_d": 42, "anynetx_e": 44,
    }  # fmt: skip
    found = {
        name: population(
            mean + rng.normal(size=40), d=rng.integers(3, 20, 40), b=np.ones(40),
            g=np.where(np.arange(40) < 4, 1, 2),
        )
        for name, mean in means.items()
    }  # fmt: skip
    many = np.arange(40) < 30
    found["regnetx"] = population(
        np.where(many, 40, 45) + rng.normal(size=40), d=np.where(many, 6, 30),
        wm=np.where(np.arange(40) % 2 == 0, 2.4 + 0.2 * rng.random(40), 1.5 + 1.5 * rng.random(40)),
        b=np.ones(40), g=2 * np.ones(40),
    )  # fmt: skip
    found["regnetx"].errors[::2] -= 5
    verdicts = {
        finding.statement.partition(" (")[0]: finding.verdict
        for finding in principles.judged(found)
    }
    assert verdicts == {
        "all stages can share the bottleneck ratio": "seen",
        "all stages can share the group width": "opposite",
        "widths should not fall from stage to stage": "seen",
        "depths should not fall either": "opposite",
        "widths should follow a quantized line": "seen",
        "all steps together": "seen",
        "no bottleneck": "too few networks",
        "grouped convolutions": "too few networks",
        "the best networks have about 20 blocks": "opposite",
        "the best networks have w_m near 2.5": "seen",
    }


def test_a_value_is_not_judged_by_noise():
    """With errors that have nothing to do with depth, no statement about depth is seen or refuted,
    although a single network lies above the paper's value."""
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(20):
        found = population(rng.normal(size=64), d=[*rng.integers(3, 19, 63), 22], wm=np.ones(64),
                           b=np.ones(64), g=np.ones(64))  # fmt: skip
        verdicts += [f.verdict for f in principles.judged({"regnetx": found})
                     if "20 blocks" in f.statement]  # fmt: skip
    assert verdicts == ["not told apart"] * 20


def test_spaces_that_have_just_begun_are_too_few():
    def some(count):
        return population(np.arange(count) + 40, d=np.arange(count) + 3)

    few = principles.judged({"b_1": some(1), "b_half": some(12), "b_2": some(12)})
    verdicts = {f.statement: f.verdict for f in few}
    assert verdicts["b = 1 beats b = 1/2"] == "too few networks"
    assert principles.complexity({}) is None


def test_two_populations_of_a_space_are_refused(tmp_path):
    for name in ("regnetx", "regnetx_3"):
        rows = "\n".join(f"{name},{40 + n},{n}" for n in range(6))
        (tmp_path / f"{name}.csv").write_text(f"space,error,d\n{rows}\n")
    done = run("benchmarks/principles.py", tmp_path / "regnetx.csv", tmp_path / "regnetx_3.csv")
    assert done.returncode == 1
    assert "there are two populations of the space regnetx" in done.stderr


def test_tables_without_a_known_space_are_refused(tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("space,error,d\nmine,40,3\nmine,41,4\n")
    done = run("benchmarks/principles.py", table)
    assert done.returncode == 1
    assert done.stderr == "no statement is about the spaces mine\n"


ORDER = ROOT / "benchmarks/results/order/order.parquet"


def test_the_chance_of_drawn_depths_is_taken_out():
    """Two samples of one law that differ in depth by chance, around the same mean depth of 10."""
    rng = np.random.default_rng(0)
    first, second = (
        principles.Networks(30 + 0.8 * d + rng.normal(0, 0.5, len(d)), d.astype(float))
        for d in (rng.integers(1, 14, 40), rng.integers(6, 20, 40))
    )
    assert principles.stratified([(first, second)]).high < 0
    difference, low, high = principles.at_own_depth(first, second, 10, 10)
    assert low < 0 < high
    assert abs(difference) < 0.5
    difference, low, high = principles.at_own_depth(first, second, 10, 15)
    assert low < -4 < high, "the spaces differ in depth, which is a difference of the spaces"
    flat = principles.Networks(first.errors, np.full(40, 7.0))
    assert principles.at_own_depth(first, flat, 10, 10) is None


def test_depths_of_spaces_are_those_of_many_draws():
    depths = dict(principles.mean_depths(ORDER))
    assert {*principles.ORDER, "b_1", "b_2", "b_4", "grouped"} == {*depths}
    assert depths["b_1"] < depths["regnetx"] < depths["b_4"]
    trained = read_table(ORDER)["anynetx_c_3"].metrics["d"]
    assert depths["anynetx_c"] == pytest.approx(trained.mean(), abs=2)
    assert not dict(principles.mean_depths(ROOT / "benchmarks/results/study.parquet"))


@pytest.mark.parametrize(
    ("study", "options"), [("principles", ("--order", ORDER)), ("families", ())]
)
def test_spaces_of_further_studies_can_be_sampled(study, options, tmp_path):
    run("benchmarks/spaces.py", study, tmp_path, *options, "--models", "2").check_returncode()
    for path in sorted(tmp_path.iterdir()):
        document = json.loads(path.read_text())
        if isinstance(document, list):
            assert len(document) == 2
            continue
        space = Space.from_dict(document)
        shared = replace(space.architecture, stem="cifar", stem_width=16)
        space = replace(space, architecture=shared, image_size=32)
        found = sample(space.restrict(flops=(3.6e6, 4e6)), 2)
        assert all(len(config.depths) == 3 for config in found.configs)
    if study == "principles":
        for config, row in zip(
            json.loads((tmp_path / "with_se.json").read_text()),
            read_table(ORDER)["regnetx_3"].rows,
            strict=False,
        ):
            assert config["se_ratio"] == 0.25
            assert config_from_dict({**config, "se_ratio": 0.0}) == config_from_dict(row.config)


def test_pairs_and_parts_of_regnetx_are_compared():
    """RegNetX of the study of the order is one side of several statements."""
    populations = read_table(ORDER)
    regnetx = populations["regnetx_3"]
    part = principles.parts(regnetx)
    assert sum(len(part[f"b_{b}"]) for b in (1, 2, 4)) == len(regnetx)
    assert all(row.metrics["b"] == 2 for row in part["b_2"].rows)
    squeezed = replace(regnetx, errors=regnetx.errors - 1.5, rows=regnetx.rows)
    found = {f.statement: f for f in principles.judged({"regnetx": regnetx, "with_se": squeezed})}
    helps = found["squeeze-excitation helps (RegNetY - RegNetX)"]
    assert (helps.ours, helps.verdict) == (pytest.approx(-1.5), "seen")
    assert helps.networks == (len(regnetx), len(regnetx))
    few = replace(squeezed, errors=squeezed.errors[:4], rows=squeezed.rows[:4])
    found = {f.statement: f for f in principles.judged({"regnetx": regnetx, "with_se": few})}
    assert found[helps.statement].verdict == "too few networks"
