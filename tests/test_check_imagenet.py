"""Tests of the script that compares published accuracies with measured ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save

import regnet

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EMBEDDED = "regnety_cifar.cifar10"


def check(folder, *args, hub=None):
    where = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hub")} if hub else {}
    return subprocess.run(
        [sys.executable, ROOT / "scripts/check_imagenet.py", *map(str, args), "--workers", "0",
         "--out", folder / "out.json", "--keep", folder / "kept"],
        cwd=folder, capture_output=True, text=True, env={**os.environ, **where},
    )  # fmt: skip


def rows(folder):
    return json.loads((folder / "out.json").read_text())["rows"]


@pytest.fixture
def known(tmp_path):
    """Forty images whose labels are the network's own answers, except for six."""
    model = regnet.create("regnety_cifar", pretrained=True).eval()
    names = model.pretrained_cfg["label_names"]
    rng = np.random.default_rng(0)
    folder = tmp_path / "set"
    for name in names:
        (folder / name).mkdir(parents=True)
    for number in range(40):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)
        [found] = regnet.predict(image, model=model)
        label = names.index(found.classes[0].label)
        wrong = number % 7 == 6 or number == 0
        place = names[(label + 1) % 10] if wrong else names[label]
        image.save(folder / place / f"{number}.png")
    return folder


def test_known_answers_are_found_and_judged(known, tmp_path):
    done = check(tmp_path, known, "--models", EMBEDDED, "--dataset", "cifar-10-jpeg")
    assert done.returncode == 0, done.stderr
    [row] = rows(tmp_path)
    assert row["top1"] == pytest.approx(100 * 34 / 40)
    published = regnet.info(EMBEDDED).checkpoint.metrics[0].top1
    assert row["published"] == published
    assert row["verdict"] == f"{published - 85:.2f} points below"
    assert row["verdict"] in done.stdout
    again = check(tmp_path, known, "--models", EMBEDDED, "--dataset", "cifar-10-jpeg")
    assert again.stdout.count("\n") == 2  # only the table: nothing is evaluated again
    assert rows(tmp_path) == [row]
    check(tmp_path, known, "--models", EMBEDDED)
    [row] = rows(tmp_path)
    assert row["verdict"] == "nothing is published"
    check(tmp_path, known, "--models", EMBEDDED, "--dataset", "cifar-10-jpeg")
    [row] = rows(tmp_path)  # with the name of the set, it is evaluated again
    assert row["published"] == published


def test_a_failure_is_a_row_and_the_other_evaluations_run(known, tmp_path, hub):
    weights = regnet.create("regnetx_002").state_dict()
    hub.repos["timm/regnetx_002.pycls_in1k"] = {"model.safetensors": save(weights)}
    images = tmp_path / "photos"
    for name in ("n01440764", "n01443537"):
        (images / name).mkdir(parents=True)
        for number in (1, 2):
            place = images / name / f"ILSVRC2012_val_0000000{number}.JPEG"
            Image.new("RGB", (64, 48), (number * 90, 80, 200)).save(place)
    real = tmp_path / "real.json"
    real.write_text(json.dumps([[*range(1000)], []]))
    done = check(
        tmp_path, images, known, "--models", "regnetx_002.pycls_in1k", "--real", real, hub=hub
    )
    assert done.returncode == 0, done.stderr
    first, second, *failed = rows(tmp_path)
    assert second["dataset"] == "imagenet-real"
    assert second["top1"] == 100  # the first image may have any class, and the second has none
    assert first["images"] == 4
    assert first["verdict"] == "nothing is published"  # for a part of the set
    assert failed
    assert all("reason" in row for row in failed)
