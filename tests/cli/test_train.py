"""Tests of `regnet train` and `regnet evaluate`, as a person uses them."""

import json

import pytest

from tests.command import regnet
from tests.marks import linux
from tests.pictures import write_folder
from tests.training.test_recipe import TINY

SETTINGS = (
    "--recipe", "cifar", "--set", "epochs=2", "--set", "batch_size=12", "--set", "warmup_epochs=0",
    "--set", "clean_epochs=1", "--set", "precision=fp32", "--threads", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder / "train", 36)
    write_folder(folder / "val", 12, seed=1)
    (folder / "tiny.json").write_text(json.dumps(TINY.to_dict()))
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    plot = out.parent / "curve.svg"
    done = regnet(
        "train", data, "--model", data / "tiny.json", "--out", out, "--plot", plot, *SETTINGS
    )
    assert "2 epochs: top-1" in done.stdout
    assert done.stderr.count("epoch ") == 2
    assert "<svg" in plot.read_text()
    return out


@pytest.mark.slow
def test_what_was_trained_can_be_evaluated(run, data):
    done = regnet("evaluate", data, "--model", f"local-dir:{run / 'model'}", "--json")
    found = json.loads(done.stdout)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert found["top1"] == pytest.approx(log[-1]["average_top1"])
    assert (found["count"], found["matched_by"]) == (12, "names")
    shown = regnet(
        "evaluate", data, "--model", f"local-dir:{run / 'model'}", "--per-class", "--workers", 0
    )
    assert "12 of 12" in shown.stdout
    assert "green" in shown.stdout


def test_replay_and_resume(run, tmp_path):
    regnet("train", "--replay", run / "run.json", "--out", tmp_path / "again", "--threads", 1)
    assert list((tmp_path / "again/checkpoints").glob("0002-000000-*.pt"))
    weights = [folder / "model/model.safetensors" for folder in (run, tmp_path / "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    done = json.loads(regnet("train", "--resume", run, "--json").stdout)
    assert done["stopped_by"] is None
    assert len(done["log"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train",), 2, "give one of: the training images, --resume FOLDER, --replay RUN.json"),
        (("train", "DATA"), 2, "--out is missing"),
        (("train", "DATA", "--out", "OUT", "--recipe", "dd"), 2, "did you mean 'dds'"),
        (("train", "DATA", "--out", "OUT", "--set", "epoch=3"), 2, "did you mean 'epochs'"),
        (("train", "DATA", "--out", "OUT", "--set", "epochs"), 2, "--set needs field=value"),
        (("train", "none", "--out", "OUT"), 2, "there is no such file or folder"),
        pytest.param(("train", "DATA", "--out", "/proc/x", *SETTINGS), 2, "/proc/x", marks=linux),
        (("train", "DATA", "--out", "OUT", "--device", "cuda:9"), 2, "device cuda"),
        (("train", "DATA", "--out", "OUT", "--parallel", "dp"), 2, "parallel must be ddp or fsdp"),
        (("train", "DATA", "--out", "OUT", "--plot", "a.txt"), 2, "must end in .svg"),
        (("train", "--resume", "none"), 2, "there is no run.json"),
        (("train", "--resume", "RUN", "--set", "epochs=9"), 2, "--set would change the run"),
        (("train", "DATA", "--out", "OUT", "--set", "lr=0,1"), 2, "lr must be a number, got '0,1'"),
        (("evaluate", "none"), 2, "there is no such file or folder"),
        (("evaluate", "DATA"), 1, "classes are not outputs of the model|neither the names"),
        (
            ("evaluate", "DATA", "--precision", "fp8"),
            2,
            "there are fp32, bf16, fp16",
        ),
        (("evaluate", "DATA", "--model", "regnety_015"), 2, "did you mean"),
    ],
)
def test_wrong_usage_is_explained(data, tmp_path, arguments, code, message):
    places = {"DATA": data, "OUT": tmp_path / "out"}
    done = regnet(*(places.get(a, a) for a in arguments), code=code)
    [line] = done.stderr.strip().splitlines()
    assert any(part in line for part in message.split("|")), line
    assert not (tmp_path / "out").exists()


def test_recipes_are_listed():
    shown = regnet("train", "--list-recipes").stdout
    assert "dds-short" in shown.splitlines()[0]
    assert json.loads(regnet("train", "--list-recipes", "--json").stdout)["dds"]["lr"] == 0.1


def test_fine_tuning_works_the_first_time(tmp_path):
    """A new user passes photos in class folders and the name of weights, and nothing else."""
    data, out = tmp_path / "photos", tmp_path / "flowers"
    write_folder(data / "train", 40, names=("rose", "tulip"), size=(48, 40))
    write_folder(data / "val", 12, names=("rose", "tulip"), size=(48, 40))
    done = regnet(
        "train", data, "--model", "regnety_cifar.cifar10", "--out", out, "--set", "epochs=1", code=0
    )
    lines = done.stderr.splitlines()
    assert lines[0] == "weights: regnety_cifar.cifar10 (apache-2.0)"
    assert any(line.endswith("40 images of 2 classes") for line in lines)
    assert "images of 32x32 pixels" in lines
    assert "1 epochs of 1 steps of 32 images, peak learning rate 0.04" in lines
    told = json.loads((out / "run.json").read_text())["run"]
    assert told["recipe"]["layer_decay"] < 1, "the default recipe for weights is finetune"
    card = (out / "model/README.md").read_text()
    for words in (
        "\n# flowers\n", "- Base: the weights of regnety_cifar.cifar10", "- License: apache-2.0",
        "- Training images: 40 of 2 classes, fingerprint ", "on 12 test images", "rose, tulip",
    ):  # fmt: skip
        assert words in card
    assert str(tmp_path) not in card


def test_random_weights_are_announced_with_the_name_of_trained_ones(tmp_path):
    write_folder(tmp_path / "train", 8, names=("a", "b"))
    done = regnet(
        "train", tmp_path, "--model", "regnety_004", "--out", tmp_path / "x", "--set", "epochs=1",
        "--set", "batch_size=8", "--image-size", 32, code=0,
    )  # fmt: skip
    first = done.stderr.splitlines()[0]
    assert first.startswith("weights: random, for regnety_004; --model regnety_004.")
    assert first.endswith(" starts from trained ones")


@pytest.mark.parametrize(
    ("recipe", "options", "sizes"),
    [
        ("tv2", ["--image-size", 64], "images of 64x64 pixels"),
        ("finetune", ["--set", "image_size=48"],
         "images of 48x48 pixels in training, of 32x32 in tests and in use"),
        ("finetune", ["--image-size", 64, "--set", "image_size=48"],
         "images of 48x48 pixels in training, of 64x64 in tests and in use"),
    ],
)  # fmt: skip
def test_image_sizes_are_printed_and_saved(tmp_path, recipe, options, sizes):
    import regnet as package

    write_folder(tmp_path / "train", 8, names=("a", "b"), size=(40, 50))
    done = regnet(
        "train", tmp_path, "--model", "regnety_cifar.cifar10", "--out", tmp_path / "x",
        "--recipe", recipe, "--set", "epochs=1", "--set", "batch_size=8", *options, code=0,
    )  # fmt: skip
    assert sizes in done.stderr.splitlines()
    model = package.create(f"local-dir:{tmp_path / 'x/model'}", pretrained=True)
    size = package.preprocess(model).size[0]
    assert size == (64 if "--image-size" in options else 32)
