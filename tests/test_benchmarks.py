"""Tests that the benchmarks which people run themselves still work."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True
    )


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
    assert [row["workers"] for row in rows_of(dry, "populations")] == [1, 2]
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
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts/write_tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    document = json.loads((dry / "headline.json").read_text())
    for count in range(len(document["rows"]) + 1):
        found = list(tables.gpu_headline({**document, "rows": document["rows"][:count]}))
        assert len(found) >= 4
        assert ("regnety_080, batch 1" in "".join(found)) == (count > 0)
    failed = {"model": "regnetx_080", "batch_size": 1, "reason": "out of memory"}
    found = list(tables.gpu_headline({**document, "rows": [failed, *document["rows"]]}))
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
