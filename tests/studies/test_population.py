"""Tests of studies on small pictures: results are saved, whichever process dies."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regnet import documents
from regnet.design.config import ArchitectureConfig, config_from_dict
from regnet.errors import ConfigError, DataError, StudyError
from regnet.executors.base import Died, InProcess
from regnet.executors.pool import ProcessPool
from regnet.spaces.paper import SPACES
from regnet.spaces.space import Space
from regnet.studies import population
from regnet.studies.analysis import analyze, gain, refine
from regnet.studies.report import render
from regnet.studies.store import _SELECT, Row, Store, _digest
from regnet.studies.study import Given, Study
from regnet.studies.tables import read_table, write_table
from regnet.studies.task import _images
from regnet.training.recipe import Recipe
from tests.faults import flipped_bits
from tests.marks import times
from tests.pictures import write_folder

RECIPE = Recipe(
    epochs=2, batch_size=12, lr=1.0, warmup_epochs=0, crop="pad", lighting=0.0, precise_bn=24
)


def small(name: str) -> Space:
    """Return the part of a space whose networks train quickly."""
    space = replace(
        SPACES[name], architecture=ArchitectureConfig(stem="cifar", stem_width=8), image_size=16
    )
    return space.restrict(flops=(None, 3e5), d=(None, 8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder / "train", 48)
    write_folder(folder / "val", 18, seed=1)
    return folder


@pytest.fixture(scope="module")
def study(data: Path) -> Study:
    return Study(
        spaces=(small("anynetx_a"), small("regnetx")),
        models=4,
        train=str(data),
        val=str(data),
        recipe=RECIPE,
    )


@pytest.fixture(scope="module")
def done(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose networks are all trained."""
    folder = tmp_path_factory.mktemp("study") / "done"
    population.init(folder, study)
    population.resume(folder, executor=InProcess())
    return folder


NAMES = ("anynetx_a", "regnetx")


def test_the_last_epoch_counts_unless_the_lowest_is_requested(done: Path) -> None:
    last, lowest = population.load(done), population.load(done, "lowest")
    for name in NAMES:
        assert (last[name].select, lowest[name].select) == ("last", "lowest")
        epochs = [row.outcome["epochs"] for row in last[name].rows if row.outcome]
        assert last[name].errors == pytest.approx([100 - rows[-1]["top1"] for rows in epochs])
        assert lowest[name].errors == pytest.approx(
            [100 - max(row["top1"] for row in rows) for rows in epochs]
        )


def test_replicas_are_the_first_networks_with_other_seeds(study: Study, tmp_path: Path) -> None:
    again = replace(study, replicas=3, replicated=2)
    assert again.count == 2 * (4 + 2 * 2)
    rows = {name: list(again.rows(name)) for name in NAMES}
    for name, found in rows.items():
        first = list(study.rows(name))
        assert found[:4] == first, "they equal the networks of a study without replicas"
        assert [row.number for row in found] == list(range(8))
        for row in found[4:]:
            assert row.config == first[row.number % 2].config
        assert len({row.seed for row in found}) == 8
    folder = tmp_path / "s"
    population.init(folder, again)
    population.resume(folder, executor=InProcess())
    for found in population.load(folder).values():
        assert len(found) == 4
        assert {number: len(errors) for number, errors in found.repeats.items()} == {0: 3, 1: 3}
        assert found.repeats[1][0] == found.errors[1]
    write_table(population.load(folder), tmp_path / "all.csv")
    for name, found in read_table(tmp_path / "all.csv").items():
        there = population.load(folder)[name]
        assert len(found) == 4
        assert found.repeats.keys() == there.repeats.keys()
        for number, errors in found.repeats.items():
            assert sorted(errors) == pytest.approx(sorted(there.repeats[number]))
    analysis = analyze(population.load(folder))
    noise = analysis.spaces["regnetx"].noise
    assert noise is not None
    assert noise.networks == 2
    assert "fewer than 16 networks in anynetx_a, regnetx" in analysis.warnings[0]


def test_given_networks_are_trained_and_compared_in_pairs(study: Study, tmp_path: Path) -> None:
    """The networks are the same draws with and without squeeze-excitation."""
    configs = [config_from_dict(row.config) for row in study.rows("regnetx")]
    plain = Given(name="plain", configs=tuple(configs))
    gated = Given(name="gated", configs=tuple(replace(c, se_ratio=0.25) for c in configs))
    folder = tmp_path / "s"
    began = population.init(folder, replace(study, spaces=(), given=(plain, gated)))
    assert population.read(folder) == began
    assert began.given[0].configs[0].num_classes == 3
    assert began.given[0].image_size == 16
    population.resume(folder, executor=InProcess())
    found = population.load(folder)
    assert found["plain"].space is None
    assert set(found["plain"].metrics) >= {"d", "d1", "w4", "flops", "params", "activations"}
    assert (found["gated"].metrics["params"] > found["plain"].metrics["params"]).all()
    [pair] = analyze(found, paired=True).pairs
    expected = (found["gated"].errors - found["plain"].errors).mean()
    assert pair.comparison.difference == pytest.approx(expected)
    with pytest.raises(ConfigError, match="leave normalize out"):
        analyze(found, paired=True, normalize="flops")
    assert '"size": "given"' in render(began, found)


def test_errors_are_those_of_averaged_weights_if_there_are_any(done: Path) -> None:
    row = population.load(done)["regnetx"].rows[0]
    epochs = [{"top1": 50.0, "average_top1": 61.0}, {"top1": 40.0, "average_top1": 60.0}]
    row = replace(row, outcome={"error": 39.0, "epochs": epochs})
    assert population.error_of(row, "last") == 40
    assert population.error_of(row, "lowest") == 39


class Stopping:
    """An executor that trains in this process, and stops after a number of networks."""

    def __init__(self, after: int) -> None:
        self.after = after

    def run(self, function: Any, tasks: Any) -> Any:
        for number, task in enumerate(tasks):
            if number == self.after:
                raise KeyboardInterrupt
            yield task, function(task, "cpu")


def test_every_network_is_a_row_with_its_results_and_origin(done: Path, study: Study) -> None:
    assert population.counts(done) == {"anynetx_a": {"done": 4}, "regnetx": {"done": 4}}
    found = population.load(done)
    for name, of_space in found.items():
        assert len(of_space) == 4
        assert of_space.space.architecture.num_classes == 3
        for row, error in zip(of_space.rows, of_space.errors, strict=True):
            assert row.outcome is not None
            tops = [epoch["top1"] for epoch in row.outcome["epochs"]]
            assert error == 100 - tops[-1]
            assert [epoch["epoch"] for epoch in row.outcome["epochs"]] == [1, 2]
            assert row.outcome.keys() >= {"seconds", "host", "device", "images", "code", "torch"}
            assert row.attempts == 1
        assert set(of_space.metrics) == set(small(name).metric_names)


def test_the_same_study_gives_the_same_errors(done: Path, study: Study, tmp_path: Path) -> None:
    """This also holds if the study is interrupted."""
    population.init(tmp_path / "s", study)
    with pytest.raises(KeyboardInterrupt):
        population.resume(tmp_path / "s", executor=Stopping(3))
    counts = population.counts(tmp_path / "s")
    assert sum(c.get("done", 0) for c in counts.values()) == 3
    assert sum(c.get("running", 0) for c in counts.values()) == 0
    population.resume(tmp_path / "s", executor=InProcess())
    for name, of_space in population.load(tmp_path / "s").items():
        assert of_space.errors.tolist() == population.load(done)[name].errors.tolist()


def test_networks_of_all_spaces_are_trained_in_alternation(study: Study, tmp_path: Path) -> None:
    population.init(tmp_path / "s", study)
    with Store(tmp_path / "s") as store:
        order = [store.claim(NAMES) for _ in range(4)]
    assert [(row.space, row.number) for row in order if row] == [
        ("anynetx_a", 0), ("regnetx", 0), ("anynetx_a", 1), ("regnetx", 1),
    ]  # fmt: skip


def test_two_drivers_share_the_work(study: Study, tmp_path: Path) -> None:
    """A driver leaves the networks of another one alone, and takes them over once it is gone."""
    population.init(tmp_path / "s", study)
    with Store(tmp_path / "s") as first, Store(tmp_path / "s") as second:
        mine = [first.claim(NAMES) for _ in range(5)]
        assert second.free_orphans() == 0
        others = [second.claim(NAMES) for _ in range(4)]
        assert others[3] is None
        ids = [row.id for row in (*mine, *others[:3]) if row]
        assert len(set(ids)) == 8
        first.close()
        assert second.claim(NAMES) is not None


def test_a_result_is_refused_after_its_network_was_taken_over(study: Study, tmp_path: Path) -> None:
    population.init(tmp_path / "s", study)
    with Store(tmp_path / "s") as first, Store(tmp_path / "s") as second:
        row = first.claim(NAMES)
        assert row is not None
        second._free(first.owner)  # as if the first driver had been considered dead
        with pytest.raises(
            StudyError, match="anynetx_a number 0 is no longer claimed by this process"
        ):
            first.finish(row, {"error": 1.0}, failed=False)


DRIVER = """
import sys
from regnet.studies import population
from regnet.executors.pool import ProcessPool
if __name__ == "__main__":
    def told(row):
        print(row.space, row.number, flush=True)
    population.resume(sys.argv[1], executor=ProcessPool(2, threads=1), on_result=told)
"""


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [2, pytest.param(10, marks=pytest.mark.long)])
def test_randomly_killed_drivers_and_workers_lose_and_repeat_nothing(
    study: Study, tmp_path: Path, wanted: int
) -> None:
    """Kill the driver or one of its workers with SIGKILL until the study is done; then count."""
    folder, script = tmp_path / "s", tmp_path / "driver.py"
    script.write_text(DRIVER)
    slower = replace(study, models=1 + 2 * wanted, recipe=replace(RECIPE, epochs=6))
    count = population.init(folder, slower).count
    rng = random.Random(0)
    trained: list[str] = []
    kills = workers_killed = 0
    for attempt in range(20 * wanted):
        command = [sys.executable, str(script), str(folder)]
        # A second driver runs at the same time, so that one driver may die while the other watches.
        other = subprocess.Popen(command, stdout=subprocess.DEVNULL) if attempt % 3 == 2 else None
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        for number, line in enumerate(driver.stdout):
            trained.append(line.strip())
            if attempt < wanted and number == 0:
                workers_killed += _kill_a_worker(driver.pid, rng)
            elif attempt < wanted:
                time.sleep(rng.uniform(0, 0.3))
                driver.kill()
                kills += 1
                break
        workers = _children(driver.pid)
        driver.stdout.close()
        ended = driver.wait() == 0
        if other is not None and attempt < wanted:
            other.kill()
            other.wait()
            kills += 1
        elif other is not None:
            assert other.wait() == 0
        if ended:
            break
        for pid in workers:  # they end with the driver
            _gone(pid)
    assert kills >= wanted
    assert workers_killed >= wanted
    every = {"done": slower.models}
    assert population.counts(folder) == {"anynetx_a": every, "regnetx": every}
    # A driver can be killed after it saved a result and before it printed it.
    assert len(trained) == len(set(trained))
    rows = [row for of_space in population.load(folder).values() for row in of_space.rows]
    assert len({(row.space, row.number) for row in rows}) == count
    # Each killed driver loses at most the two networks that it is training.
    assert sum(row.attempts for row in rows) <= count + 2 * kills


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _kill_a_worker(driver: int, rng: random.Random) -> int:
    workers = [pid for pid in _children(driver) if b"spawn_main" in _command(pid)]
    if not workers:
        return 0
    os.kill(rng.choice(workers), signal.SIGKILL)
    return 1


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _gone(pid: int) -> None:
    end = time.monotonic() + 10
    while b"spawn_main" in _command(pid):
        assert time.monotonic() < end, "a worker survives its driver"
        time.sleep(0.05)


def test_a_network_that_fails_is_a_row_with_its_reason(study: Study, tmp_path: Path) -> None:
    population.init(tmp_path / "s", replace(study, recipe=replace(RECIPE, lr=1e30)))
    population.resume(tmp_path / "s", executor=InProcess())
    found = population.load(tmp_path / "s")
    rows = [row for of_space in found.values() for row in of_space.failed]
    assert len(rows) == 8
    assert write_table(found, tmp_path / "t.csv") == 8
    assert "TrainingError: the loss is not finite" in (tmp_path / "t.csv").read_text()
    for row in rows:
        assert row.outcome is not None
        assert row.outcome["reason"].startswith("TrainingError: the loss is not finite")
    with pytest.raises(ConfigError, match="no network of the study is trained yet"):
        analyze(population.load(tmp_path / "s"))


class Deadly:
    """An executor all of whose processes die."""

    def run(self, function: Any, tasks: Any) -> Any:
        for task in tasks:
            yield task, Died("its process was ended by SIGKILL, 3 times")


def test_a_network_that_kills_its_process_is_a_row_too(study: Study, tmp_path: Path) -> None:
    population.init(tmp_path / "s", study)
    population.resume(tmp_path / "s", executor=Deadly())
    assert population.counts(tmp_path / "s")["regnetx"] == {"failed": 4}
    population.resume(tmp_path / "s", executor=InProcess(), retry_failed=True)
    assert population.counts(tmp_path / "s")["regnetx"] == {"done": 4}


@pytest.mark.parametrize("where", ["middle", "header", "content"])
def test_a_damaged_store_is_detected_and_the_rest_is_recovered(
    done: Path, tmp_path: Path, where: str
) -> None:
    folder = copied(done, tmp_path / "s")
    path = folder / "study.db"
    data = bytearray(path.read_bytes())
    if where == "content":  # change a digit of a result, which SQLite cannot detect
        at = data.index(b'"seconds": ') + len(b'"seconds": ')
        data[at] = ord("9") if data[at] != ord("9") else ord("8")
    elif where == "middle":
        data[-4096:] = random.Random(1).randbytes(4096)
    else:
        data[:100] = bytes(100)
    path.write_bytes(data)
    for reader in (population.counts, population.load, population.resume):
        with pytest.raises(StudyError, match=r"is damaged .*`regnet study recover"):
            reader(folder)
    kept, damaged = population.recover(folder)
    assert kept == 8
    assert damaged is not None
    assert damaged.exists()
    counts = population.counts(folder)
    assert sum(c.get("done", 0) for c in counts.values()) == kept
    population.resume(folder, executor=InProcess())
    for name, of_space in population.load(folder).items():
        assert of_space.errors.tolist() == population.load(done)[name].errors.tolist()


def test_the_log_of_a_damaged_store_is_saved_next_to_it(done: Path, tmp_path: Path) -> None:
    """The last results of a killed driver are in SQLite's log, and not yet in the file."""
    folder = copied(done, tmp_path / "s")
    (folder / "study.db-wal").write_bytes(b"log")
    (folder / "study.db").write_bytes(bytes(100) + (folder / "study.db").read_bytes()[100:])
    _, damaged = population.recover(folder)
    assert damaged is not None
    assert damaged.with_name(damaged.name + "-wal").read_bytes() == b"log"


def test_a_full_disk_loses_no_saved_result(study: Study, tmp_path: Path) -> None:
    """The full disk is simulated by limiting SQLite to the pages that it has."""
    population.init(tmp_path / "s", study)
    with Store(tmp_path / "s") as store:
        row = store.claim(NAMES)
        assert row is not None
        [(pages,)] = store._connection.execute("PRAGMA page_count").fetchall()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StudyError, match="disk is full; committed results are safe"):
            store.finish(row, {"error": 1.0, "epochs": ["x" * 20_000]}, failed=False)
    assert population.counts(tmp_path / "s")["anynetx_a"] == {"pending": 4}


def copied(done: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("study.json", "study.db", "results.jsonl"):
        (folder / name).write_bytes((done / name).read_bytes())
    return folder


def test_a_lost_store_is_rebuilt_from_the_journal(done: Path, tmp_path: Path) -> None:
    folder = copied(done, tmp_path / "s")
    (folder / "study.db").unlink()
    with pytest.raises(StudyError, match=r"study\.db is missing; `regnet study recover"):
        population.counts(folder)
    assert population.recover(folder) == (8, None)
    assert population.counts(folder) == population.counts(done)


def rewritten(folder: Path, statement: str, *, with_digest: bool) -> None:
    """Change rows of a store by SQL, with or without updating their digests."""
    with Store(folder) as store:
        store._connection.execute(statement)
        if with_digest:
            for row in store._connection.execute("SELECT id FROM networks").fetchall():
                [values] = store._connection.execute(f"{_SELECT} WHERE id = ?", row).fetchall()
                found = Row(
                    id=values[0], space=values[1], number=values[2], config=json.loads(values[3]),
                    metrics=json.loads(values[4]), seed=values[5],
                )  # fmt: skip
                digest = _digest(found, values[6], values[8])
                store._connection.execute(
                    "UPDATE networks SET digest = ? WHERE id = ?", (digest, row[0])
                )


@pytest.mark.parametrize("status", ["dome", "failed", "pending", ""])
def test_a_status_that_the_study_did_not_write_is_detected(
    done: Path, tmp_path: Path, status: str
) -> None:
    """Without this check, a finished network would vanish from all results."""
    folder = copied(done, tmp_path / "s")
    rewritten(folder, f"UPDATE networks SET status = '{status}' WHERE id = 3", with_digest=False)
    for reader in (population.counts, population.load, population.resume):
        with pytest.raises(StudyError, match="is not as it was written"):
            reader(folder)
    assert population.recover(folder)[0] == 8


def test_results_that_vanished_from_a_store_are_detected(done: Path, tmp_path: Path) -> None:
    """SQLite drops a damaged log, after which each remaining row is as it was once written."""
    folder = copied(done, tmp_path / "s")
    lost = "UPDATE networks SET status = 'pending', outcome = NULL WHERE id IN (2, 5)"
    rewritten(folder, lost, with_digest=True)
    for reader in (population.counts, population.load, population.resume):
        with pytest.raises(StudyError, match=r"lacks 2 of 8 results; `regnet study recover .*"):
            reader(folder)
    assert population.recover(folder)[0] == 8
    assert population.counts(folder) == population.counts(done)
    rewritten(folder, "DELETE FROM networks WHERE id = 4", with_digest=True)
    with pytest.raises(StudyError, match=r"lacks 1 of 8 results"):
        population.load(folder)


@times(30, 1000)
def test_flipped_bits_of_a_store_give_no_other_results(
    done: Path, tmp_path: Path, count: int
) -> None:
    """A flip is detected or hits unused bytes, and the journal restores the trained networks."""
    folder = copied(done, tmp_path / "s")
    expected = {name: found.errors.tolist() for name, found in population.load(done).items()}
    for _ in flipped_bits(folder / "study.db", count):
        try:
            found = population.load(folder)
        except StudyError as error:
            assert "`regnet study recover" in str(error)  # noqa: PT017 - both outcomes are valid
        else:
            assert {name: one.errors.tolist() for name, one in found.items()} == expected
        for left in ("study.db-wal", "study.db-shm"):
            (folder / left).unlink(missing_ok=True)


@pytest.mark.parametrize("column", ["space", "number", "outcome"])
def test_a_value_of_another_type_is_damage(done: Path, tmp_path: Path, column: str) -> None:
    """SQLite stores the type with each value, so a flipped bit can turn text into bytes."""
    folder = copied(done, tmp_path / "s")
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as connection, connection:
        connection.execute(f"UPDATE networks SET {column} = CAST({column} AS BLOB) WHERE id = 3")
    with pytest.raises(StudyError, match="is damaged"):
        population.load(folder)
    assert population.recover(folder)[0] == 8


@times(10, 1000)
def test_a_damaged_log_never_loses_results_silently(
    study: Study, tmp_path: Path, count: int
) -> None:
    """SQLite drops the damaged log of a killed driver, but the journal still has its results."""
    folder = tmp_path / "s"
    population.init(folder, study)
    store = Store(folder)
    store._connection.execute("PRAGMA wal_autocheckpoint = 0")
    for _ in range(3):
        row = store.claim(NAMES)
        assert row is not None
        store.finish(row, {"error": 50.0 + row.number, "epochs": []}, failed=False)
    killed = tmp_path / "killed"  # a copy of the files while the driver runs
    shutil.copytree(folder, killed)
    shutil.rmtree(killed / "owners")
    store.close()
    for number in flipped_bits(killed / "study.db-wal", count):
        folder = tmp_path / f"damaged-{number}"
        shutil.copytree(killed, folder)
        try:
            found = population.counts(folder)
        except StudyError as error:
            assert "`regnet study recover" in str(error)  # noqa: PT017 - both outcomes are valid
            assert population.recover(folder)[0] == 3
            found = population.counts(folder)
        assert sum(of_space.get("done", 0) for of_space in found.values()) == 3
        shutil.rmtree(folder)


def test_a_damaged_journal_is_detected_and_rewritten(done: Path, tmp_path: Path) -> None:
    folder = copied(done, tmp_path / "s")
    path = folder / "results.jsonl"
    data = bytearray(path.read_bytes())
    data[40] ^= 2
    path.write_bytes(data)
    with pytest.raises(StudyError, match=r"results\.jsonl: line 1 is not a result as"):
        population.load(folder)
    assert population.recover(folder)[0] == 8
    assert population.counts(folder) == population.counts(done)
    path.write_bytes(path.read_bytes()[:-7])  # as cut off by a kill; the store still has the result
    assert population.counts(folder) == population.counts(done)


def test_a_running_study_is_not_recovered(study: Study, tmp_path: Path) -> None:
    population.init(tmp_path / "s", study)
    with Store(tmp_path / "s") as store:
        store.claim(NAMES)
        with pytest.raises(StudyError, match="a process is training this study; end it first"):
            population.recover(tmp_path / "s")


def test_an_interrupted_init_is_completed_by_resuming(study: Study, tmp_path: Path) -> None:
    """The process is killed after it wrote study.json and before it wrote the networks."""
    population.init(tmp_path / "s", study)
    with Store(tmp_path / "s") as store:
        store._connection.execute("DELETE FROM networks WHERE space = 'regnetx' OR number > 1")
    population.resume(tmp_path / "s", executor=Deadly())
    assert population.counts(tmp_path / "s") == {n: {"failed": 4} for n in NAMES}


@pytest.mark.slow
def test_networks_of_large_images_train_in_a_pool(tmp_path: Path) -> None:
    """Each worker decodes the images in its own processes, at the image size of the space."""
    write_folder(tmp_path / "data/train", 24, size=(40, 30))
    write_folder(tmp_path / "data/val", 6, size=(40, 30), seed=1)
    recipe = Recipe(epochs=1, batch_size=8, warmup_epochs=0, precise_bn=0)
    space = replace(SPACES["regnetx"], image_size=32).restrict(flops=(None, 1e6), d=(None, 8))
    study = Study(spaces=(space,), models=1, train=str(tmp_path / "data"),
                  val=str(tmp_path / "data"), recipe=recipe)  # fmt: skip
    population.init(tmp_path / "s", study)
    population.resume(tmp_path / "s", executor=ProcessPool(1, threads=1))
    assert population.counts(tmp_path / "s") == {"regnetx": {"done": 1}}


def test_missing_images_end_the_study_but_fail_no_network(study: Study, tmp_path: Path) -> None:
    images = tmp_path / "data"
    shutil.copytree(study.train, images)
    population.init(tmp_path / "s", replace(study, train=str(images), val=str(images)))

    def gone(row: Any) -> None:
        shutil.rmtree(images)
        _images.cache_clear()

    with pytest.raises(DataError):
        population.resume(tmp_path / "s", executor=InProcess(), on_result=gone)
    counts = population.counts(tmp_path / "s")
    assert counts == {"anynetx_a": {"done": 1, "pending": 3}, "regnetx": {"pending": 4}}


def test_other_images_are_refused(done: Path, tmp_path: Path) -> None:
    folder = copied(done, tmp_path / "s")
    document = json.loads((done / "study.json").read_text())
    write_folder(tmp_path / "other/train", 60)
    write_folder(tmp_path / "other/val", 18)
    document["train"] = document["val"] = str(tmp_path / "other")
    documents.write(folder / "study.json", document)
    with pytest.raises(DataError, match="the images here are not those that the study began with"):
        population.resume(folder, executor=InProcess())


def test_a_study_is_analyzed_and_refined(done: Path, study: Study) -> None:
    found = population.load(done)
    analysis = analyze(found, seed=1)
    assert analysis == analyze(found, seed=1)
    result = analysis.spaces["regnetx"]
    assert (result.models, result.failed) == (4, 0)
    assert result.minimum == found["regnetx"].errors.min()
    [pair] = analysis.pairs
    assert (pair.first, pair.second) == ("regnetx", "anynetx_a")
    refined = refine(found["regnetx"].space, result)
    assert refined.name == "regnetx_refined"
    best = result.best["wm"]
    assert refined.parameters["wm"].low >= best.low - 1e-9
    assert refined.parameters["wm"].high <= best.high + 1e-9
    only = refine(found["anynetx_a"].space, analysis.spaces["anynetx_a"], "d", name="deep")
    assert only.name == "deep"
    assert only.limits["d"] == (
        analysis.spaces["anynetx_a"].best["d"].low,
        min(8, analysis.spaces["anynetx_a"].best["d"].high),
    )
    with pytest.raises(ConfigError, match="no metric of regnetx 'depth'"):
        refine(found["regnetx"].space, result, "depth")


def test_a_refinement_names_the_parameter_that_brings_its_gain(done: Path) -> None:
    """The errors depend only on depth."""
    base = population.load(done)["regnetx"]
    rng = np.random.default_rng(0)
    depth, width = rng.integers(4, 20, 200), rng.uniform(8, 64, 200)
    deep = replace(base, errors=40.0 + depth, metrics={"d": depth, "w0": width})
    result = analyze({"regnetx": deep}).spaces["regnetx"]
    found = gain(deep, result, "d", "w0")
    best = result.best["d"]
    inside = (depth >= best.low) & (depth <= best.high)
    assert found.alone["d"] == pytest.approx((40 + depth).mean() - (40 + depth[inside]).mean())
    assert found.points == pytest.approx(found.alone["d"], abs=0.5)
    assert abs(found.alone["w0"]) < 1
    assert 0 < found.inside <= inside.sum()


def test_spaces_can_be_compared_whatever_their_complexity(done: Path) -> None:
    """If only flops decide the errors, no difference remains once flops are made uniform."""
    rng, found = np.random.default_rng(0), {}
    for name, (low, high) in {"anynetx_a": (1, 3), "regnetx": (2, 4)}.items():
        flops = rng.uniform(low, high, 400)
        base = population.load(done)[name]
        found[name] = replace(
            base,
            errors=60 - 5 * flops,
            metrics={"flops": flops},
            rows=base.rows * 100,
        )
    [plain] = analyze(found).pairs
    [normal] = analyze(found, normalize="flops", bins=8).pairs
    assert plain.comparison.difference == pytest.approx(-5, abs=0.5)
    assert plain.comparison.verdict == "better"
    assert normal.comparison.difference == pytest.approx(0, abs=0.3)
    assert normal.comparison.verdict == "not told apart"
    with pytest.raises(ConfigError, match="by params needs this metric of every network"):
        analyze(found, normalize="params")
    with pytest.raises(ConfigError, match="normalize by flops: no network between"):
        analyze(found, normalize="flops", bins=4000)


def test_a_space_can_be_added(done: Path, tmp_path: Path, study: Study) -> None:
    population.init(tmp_path / "s", replace(study, models=2))
    new = replace(small("regnetx").restrict(b=1), name="no_bottleneck")
    population.extend(tmp_path / "s", new)
    assert population.counts(tmp_path / "s")["no_bottleneck"] == {"pending": 2}
    with pytest.raises(ConfigError, match="two spaces are called 'no_bottleneck'"):
        population.extend(tmp_path / "s", new)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_contain_every_network(done: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    found = population.load(done)
    assert write_table(found, path) == 8
    if suffix == ".csv":
        import csv

        rows: list[dict[str, Any]] = list(csv.DictReader(path.read_text().splitlines()))
    else:
        from pyarrow import parquet

        rows = parquet.read_table(path).to_pylist()
    assert [row["space"] for row in rows] == ["anynetx_a"] * 4 + ["regnetx"] * 4
    errors = np.concatenate([of_space.errors for of_space in found.values()])
    assert [float(row["error"]) for row in rows] == errors.tolist()
    assert json.loads(rows[5]["config"])["kind"] == "regnet"
    with pytest.raises(ConfigError, match=r"must end in \.csv or \.parquet"):
        write_table(found, tmp_path / "table.txt")


def test_bad_studies_are_refused(data: Path, study: Study, tmp_path: Path, done: Path) -> None:
    with pytest.raises(ConfigError, match="holds a study already"):
        population.init(done, study)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    with pytest.raises(ConfigError, match="run holds a training run; name another folder"):
        population.init(tmp_path / "run", study)
    with pytest.raises(ConfigError, match=r"there is no study\.json"):
        population.resume(tmp_path)
    with pytest.raises(ConfigError, match="two spaces are called 'regnetx'"):
        replace(study, spaces=(small("regnetx"),) * 2)
    unsplit = replace(study, train=str(data / "train"), val=str(data / "train"))
    with pytest.raises(ConfigError, match="the test images are the training images"):
        population.init(tmp_path / "a", unsplit)
    odd = small("regnetx").where("odd", lambda n: n.metric("d") % 2 == 1)
    with pytest.raises(ConfigError, match="has conditions that are code"):
        population.init(tmp_path / "a", replace(study, spaces=(odd,)))
    with pytest.raises(ConfigError, match="a study needs a space"):
        replace(study, spaces=())
    with pytest.raises(DataError, match="1000 images were requested, it has 48"):
        population.init(tmp_path / "a", replace(study, train_images=1000))
    assert not (tmp_path / "a").exists()
    (tmp_path / "study.json").write_text("[")
    with pytest.raises(ConfigError, match=r"study\.json"):
        population.read(tmp_path)


def test_a_store_of_another_kind_is_named(tmp_path: Path, study: Study) -> None:
    population.init(tmp_path / "s", study)
    (tmp_path / "s/study.db").write_bytes(b"not a database at all" * 200)
    with pytest.raises(StudyError, match=r"study\.db is damaged"):
        population.counts(tmp_path / "s")
