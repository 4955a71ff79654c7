"""Tests that ~ is the home folder in every path that a Python function takes."""

from dataclasses import replace

import pytest
from PIL import Image

import regnet
from regnet.data.images import open_image
from regnet.errors import RegNetError
from regnet.spaces import find_space
from regnet.studies import population
from regnet.studies.study import Study
from regnet.studies.tables import read_table, write_table
from regnet.training.loop import resume, train
from regnet.training.recipe import Recipe
from tests.pictures import write_folder
from tests.training.test_recipe import TINY


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "~").exists()


def test_images_are_found(home):
    Image.new("RGB", (8, 8)).save(home / "a.png")
    assert open_image("~/a.png").size == (8, 8)


def test_studies_and_their_tables_are_found(home):
    write_folder(home / "data/train", 12)
    write_folder(home / "data/val", 12, seed=1)
    space = replace(find_space("regnetx"), image_size=16).restrict(flops=(None, 3e5), d=(None, 8))
    study = Study(spaces=(space,), models=1, train="~/data", val="~/data")
    population.init("~/s", study)
    assert (home / "s/study.json").exists()
    assert population.read("~/s").models == 1
    assert population.progress("~/s") == (0, 1)
    write_table(population.load("~/s"), "~/s.csv")
    assert (home / "s.csv").exists()
    with pytest.raises(RegNetError, match=r"s\.csv"):
        read_table("~/s.csv")  # it has no trained network


def test_runs_are_written_to_the_home_folder(home):
    write_folder(home / "data/train", 12)
    write_folder(home / "data/val", 12, seed=1)
    recipe = Recipe(epochs=1, batch_size=12, warmup_epochs=0, crop="pad")
    train(TINY, "~/data", "~/run", recipe=recipe)
    assert (home / "run/run.json").exists()
    assert (home / "run/model").exists()
    resume("~/run")


def test_exports_are_written_to_the_home_folder(home):
    regnet.export("regnety_cifar", "~/a.onnx")
    assert (home / "a.onnx").exists()
