"""Tests of a study and of predictions on a Ray cluster of two nodes, one of which is killed."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regnet.studies import population
from regnet.studies.study import Study
from tests.pictures import write_folder
from tests.studies.test_population import RECIPE, small

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def test_a_study_is_complete_even_if_a_node_is_killed(cluster: Any, tmp_path: Path) -> None:
    from regnet.executors.ray import RayExecutor

    write_folder(tmp_path / "data/train", 48)
    write_folder(tmp_path / "data/val", 18, seed=1)
    study = Study(
        spaces=(small("anynetx_a"), small("regnetx")),
        models=4,
        train=str(tmp_path / "data"),
        val=str(tmp_path / "data"),
        recipe=replace(RECIPE, epochs=6),
    )
    population.init(tmp_path / "s", study)
    told: list[str] = []

    def after_each(row: Any) -> None:
        if not told:
            [node] = [node for node in cluster.list_all_nodes() if node != cluster.head_node]
            cluster.remove_node(node, allow_graceful=False)
        told.append(f"{row.space} {row.number}")

    population.resume(tmp_path / "s", executor=RayExecutor(), on_result=after_each)
    assert population.counts(tmp_path / "s") == {"anynetx_a": {"done": 4}, "regnetx": {"done": 4}}
    assert len(set(told)) == len(told) == 8


def test_predictions_are_complete_even_if_a_node_is_killed(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as parquet

    from regnet.executors.ray import RayExecutor
    from regnet.prediction import collection

    monkeypatch.setattr(collection, "PART", 10)
    images, out = write_folder(tmp_path / "images", 200), tmp_path / "out.parquet"
    killed: list[int] = []

    def after_each(what: str, done: int, _all: int) -> None:
        if what == "predicting" and not killed:
            [node] = [node for node in cluster.list_all_nodes() if node != cluster.head_node]
            cluster.remove_node(node, allow_graceful=False)
            killed.append(done)

    found = collection.predict_collection(images, out, executor=RayExecutor(), on_images=after_each)
    assert (found.images, found.unreadable) == (200, 0)
    assert 0 < killed[0] < 200
    paths = parquet.read_table(out)["path"].to_pylist()
    assert paths == sorted(map(str, images.rglob("*.png")))
