"""Tests of accuracy: counts with any number of processes, faults, and shuffled classes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import regnet
from regnet.data.preprocess import Preprocess
from regnet.data.sets import open_set
from regnet.errors import ConfigError, DataError, EngineError
from regnet.evaluation import scores
from regnet.evaluation.datasets import identify, imagenet, match_classes
from regnet.evaluation.evaluate import evaluate
from regnet.evaluation.scores import Answers
from regnet.nn.model import AnyNet
from regnet.weights.card import Card, Metric
from regnet.weights.catalog import label_sets
from tests.marks import long
from tests.pictures import COLORS, write_folder
from tests.training.test_recipe import TINY

NAMES = ("red", "green", "blue", "yellow", "cyan")
LOOK = Preprocess(size=(16, 16), crop_pct=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)


class ByColor(torch.nn.Module):
    """A model that answers with the class of the nearest color."""

    def forward(self, x):
        x = x.float()
        colors = torch.tensor(COLORS[: len(NAMES)]) / 255 * 4 - 2
        distances = (x.mean((2, 3))[:, None] - colors).square().sum(2)
        return -3 * distances


@pytest.fixture
def model():
    network = AnyNet(replace(TINY, num_classes=len(NAMES)))
    network.forward = ByColor().forward
    network.card = Card(
        preprocess=LOOK,
        labels=NAMES,
        metrics=(Metric(dataset="colors", top1=99.95, image_size=16),),
    )
    return network


def test_a_perfect_model_has_full_accuracy(model, tmp_path):
    write_folder(tmp_path, 25, names=NAMES)
    seen = []
    done = evaluate(model, tmp_path, dataset="colors", on_images=lambda *at: seen.append(at))
    assert (done.count, done.evaluated, done.top1, done.top5) == (25, 25, 100, None)
    assert done.published is not None
    assert done.published.verdict == "the same, within 0.1 points"
    assert done.matched_by == "names"
    assert {c.name: (c.images, c.top1) for c in done.classes} == dict.fromkeys(NAMES, (5, 100))
    assert done.warnings == done.confusions == done.unreadable == ()
    assert seen[-1] == (25, 25)
    assert np.trace(done.confusion_matrix) == 25
    json.dumps(done.confusion_matrix)


def test_wrong_labels_are_counted_and_reported(model, tmp_path):
    write_folder(tmp_path, 25, names=NAMES)
    for number in ("0000", "0005"):
        shutil.move(tmp_path / f"red/{number}.png", tmp_path / f"blue/{number}.png")
    done = evaluate(model, tmp_path, dataset="colors")
    assert done.top1 == 92
    [confusion] = done.confusions
    assert (confusion.label, confusion.answer, confusion.images) == ("blue", "red", 2)
    assert done.published is not None
    assert done.published.verdict == "7.95 points below"
    assert not done.warnings


def test_exchanged_folders_are_explained(model, tmp_path):
    write_folder(tmp_path, 25, names=("green", "red", "blue", "yellow", "cyan"))
    done = evaluate(model, tmp_path)
    assert done.top1 == 60
    [warning] = done.warnings
    assert "order of the classes looks wrong" in warning
    assert "'red' for 'green'" in warning
    assert "top-1 would be 100.0 %" in warning


def test_folders_without_known_names_are_taken_in_order(model, tmp_path):
    write_folder(tmp_path, 25, names=("c0", "c1", "c2", "c3", "c4"))
    done = evaluate(model, tmp_path)
    assert done.matched_by.startswith("their order")
    assert "most folders do not have the name" in done.warnings[0]
    assert done.top1 == 100


def test_a_missing_folder_does_not_shift_the_classes(model, tmp_path):
    write_folder(tmp_path, 25, names=NAMES)
    shutil.rmtree(tmp_path / "green")
    done = evaluate(model, tmp_path)
    assert (done.count, done.top1) == (20, 100)
    assert "1 of the model's classes have no folder here: green" in done.warnings[0]


def test_numbers_are_not_sorted_as_text(tmp_path):
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}/a.png")
    match = match_classes(open_set(tmp_path), (), 12)
    assert match.outputs[:4] == (0, 1, 10, 11)
    assert match.how == "numbers"


def folders(tmp_path, names, count):
    for number in range(count):
        folder = tmp_path / names[number % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").touch()
    return tmp_path


def test_wordnet_names_and_subsets_are_recognized(tmp_path):
    synsets, subsets = imagenet()["synsets"], imagenet()["subsets"]
    # According to their papers, ImageNet-A and ImageNet-R have 200 classes each and share 113 of
    # them. The WordNet list begins with tench and ends with toilet tissue.
    assert (synsets[0], synsets[-1], len(set(synsets))) == ("n01440764", "n15075141", 1000)
    a, r = subsets["imagenet-a"], subsets["imagenet-r"]
    assert len(set(a)) == len(set(r)) == 200
    some = folders(tmp_path / "some", [synsets[n] for n in (7, 3, 900)], 9)
    match = match_classes(open_set(some), (), 1000)
    assert match.outputs == (3, 7, 900)
    assert not match.restricted
    assert len(match.missing) == 997
    whole = folders(tmp_path / "a", [synsets[n] for n in a], 200)
    match = match_classes(open_set(whole), (), 1000)
    assert match.restricted
    assert match.missing == ()
    assert list(match.outputs) == sorted(a)


def test_a_folder_may_list_several_names_but_must_not_be_unknown(tmp_path):
    labels = label_sets()["imagenet-1k"]
    some = open_set(folders(tmp_path / "a", ["tench, Tinca tinca", "goldfish"], 4))
    assert match_classes(some, labels, 1000).outputs == (1, 0)
    odd = open_set(folders(tmp_path / "b", ["__odd", *imagenet()["synsets"][:4]], 10))
    with pytest.raises(DataError, match=r"1 of 5 classes are not outputs .* WordNet names: __odd"):
        match_classes(odd, labels, 1000)


def test_classes_without_images_do_not_matter(tmp_path):
    synsets, subset = imagenet()["synsets"], imagenet()["subsets"]["imagenet-a"]
    folders(tmp_path, [synsets[n] for n in subset], 200)
    for name in synsets:
        (tmp_path / name).mkdir(exist_ok=True)
    match = match_classes(open_set(tmp_path), (), 1000)
    assert match.restricted
    assert match.missing == ()


def test_the_class_names_of_the_model_come_first(model, tmp_path):
    """A network trained on the folders 0 to 11 has its classes in the order of text."""
    names = tuple(sorted(str(number) for number in range(12)))
    images = open_set(folders(tmp_path, [str(number) for number in range(12)], 12))
    match = match_classes(images, names, 12)
    assert (match.outputs, match.how) == (tuple(range(12)), "names")


def test_classes_that_the_model_does_not_have_are_refused(model, tmp_path):
    write_folder(tmp_path / "a", 10, names=("red", "pink", "green", "blue", "cyan"))
    with pytest.raises(DataError, match=r"1 of 5 classes are not outputs .* names: pink"):
        evaluate(model, tmp_path / "a")
    write_folder(tmp_path / "b", 10, names=("x", "y"))
    with pytest.raises(DataError, match="neither the names nor the numbers of the model's 5"):
        evaluate(model, tmp_path / "b")


def test_restricted_classes_compete_only_with_each_other():
    from regnet.evaluation.evaluate import _records

    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0]])
    [free] = _records([0], logits, None)
    [few] = _records([0], logits, torch.tensor([1, 2, 3]))
    assert free["top"] == [0, 2, 3, 1]
    assert few["top"] == [2, 3, 1]
    assert few["confidence"] == pytest.approx(logits[0, 1:].softmax(0)[1].item())


def test_known_sets_are_recognized(tmp_path):
    names = [f"{n:04d}" for n in range(1000)]
    v2 = open_set(folders(tmp_path / "imagenetv2-matched-frequency-format-val", names, 10_000))
    assert identify(v2, match_classes(v2, (), 1000)) == "imagenet-v2-matched-frequency"
    few = open_set(folders(tmp_path / "few", names[:3], 9))
    assert identify(few, match_classes(few, (), 1000)) is None


def test_the_embedded_network_on_real_pictures(tmp_path):
    """The set consists of one photo of a cat."""
    photo = Path(__file__).parents[2] / "docs/photos/chelsea.png"
    (tmp_path / "cat").mkdir()
    shutil.copy(photo, tmp_path / "cat")
    done = evaluate(data=tmp_path)
    assert (done.top1, done.top5) == (100, None)
    assert done.model == "regnety_cifar"


@pytest.fixture
def damaged(tmp_path):
    folder = write_folder(tmp_path / "set", 60, names=NAMES)
    bad = ["red/0000.png", "red/0005.png", "blue/0002.png", "cyan/0004.png", "cyan/0059.png"]
    (folder / bad[0]).write_bytes(b"")
    (folder / bad[1]).write_bytes(b"no image")
    for name in bad[2:]:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    return folder, bad


def test_images_that_cannot_be_read_are_listed(model, damaged):
    folder, bad = damaged
    done = evaluate(model, folder, batch_size=7)
    assert (done.count, done.evaluated, done.top1) == (60, 55, 100)
    assert sorted(reason.partition(": ")[0] for reason in done.unreadable) == sorted(
        str(folder / name) for name in bad
    )
    assert "5 images cannot be read" in done.warnings[0]
    kept = evaluate(model, folder, batch_size=7, workers=1, dataset="colors", keep=folder / ".kept")
    assert kept.unreadable == done.unreadable
    assert kept.published is not None
    assert kept.published.verdict == "not comparable: 5 images cannot be read"


def test_a_set_without_readable_images_is_refused(model, tmp_path):
    write_folder(tmp_path, 5, names=NAMES)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 5 images can be read"):
        evaluate(model, tmp_path)


SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from dataclasses import asdict
from regnet.evaluation.evaluate import evaluate
done = evaluate("regnety_cifar", sys.argv[1], batch_size=4, keep=sys.argv[2] or None)
text = json.dumps(asdict(done), default=str)
Path(sys.argv[3], f"{os.environ['RANK']}.json").write_text(text)
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, *long(1)])
def test_any_number_of_processes_counts_the_same(tmp_path, count):
    names = regnet.create("regnety_cifar", pretrained=True).pretrained_cfg["label_names"]
    folder = write_folder(tmp_path / "set", 31, names=tuple(names[:5]), size=(32, 32))
    for name in ("airplane/0000.png", "cat/0003.png"):
        (folder / name).write_bytes(b"no image")
    expected = evaluate("regnety_cifar", folder)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={count}", script, folder, tmp_path / "kept", tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in range(count):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["count"] == 31
        assert result["evaluated"] == 29
        assert result["top1"] == expected.top1
        assert result["unreadable"] == list(expected.unreadable)
    files = (tmp_path / "kept").glob("answers-*.jsonl")
    lines = [line for path in files for line in path.read_text().splitlines()]
    images = [json.loads(line)["image"] for line in lines]
    assert sorted(images) == list(range(31))


def test_an_interrupted_evaluation_is_resumed(model, tmp_path):
    write_folder(tmp_path / "set", 20, names=NAMES)
    kept = tmp_path / "kept"

    class Killed(BaseException):
        pass

    def stop(done, total):
        if done >= 12:
            raise Killed

    with pytest.raises(Killed):
        evaluate(model, tmp_path / "set", batch_size=4, keep=kept, on_images=stop)
    [path] = kept.glob("answers-*.jsonl")
    path.write_text(path.read_text()[:-5])  # as if killed while writing a line
    seen = []
    done = evaluate(
        model, tmp_path / "set", batch_size=4, keep=kept, on_images=lambda *at: seen.append(at)
    )
    assert done.evaluated == 20
    assert done.top1 == 100
    assert seen[0] == (15, 20)
    (kept / "answers-1.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match=r"answers-1\.jsonl: line 1 is not an answer as"):
        evaluate(model, tmp_path / "set", batch_size=4, keep=kept)
    (kept / "answers-1.jsonl").unlink()
    with pytest.raises(ConfigError, match="answers of another evaluation"):
        evaluate(model, tmp_path / "set", keep=kept, crop_pct=0.5)


def test_published_figures_are_compared_at_the_same_setting(model, tmp_path):
    write_folder(tmp_path, 5, names=NAMES)
    model.card = replace(
        model.card,
        larger=replace(LOOK, size=(32, 32), crop_pct=0.9),
        metrics=(
            Metric(dataset="colors", top1=99.0, image_size=32, crop_pct=0.9),
            Metric(dataset="colors", top1=98.0),
        ),
    )

    def published(**setting):
        found = evaluate(model, tmp_path, dataset="colors", **setting).published
        return found and found.top1

    assert published() == 98.0
    assert published(larger=True) == 99.0
    assert published(image_size=32) is None
    assert published(larger=True, crop_pct=1.0) is None
    assert published(image_size=32, crop_pct=0.9) == 99.0


def test_answers_that_are_nan_are_refused(model, tmp_path):
    write_folder(tmp_path, 5, names=NAMES)
    model.eval()
    model.forward = lambda x: torch.full((len(x), 5), float("nan"))
    with pytest.raises(EngineError, match="outputs for images 0 to 4 are not finite"):
        evaluate(model, tmp_path)


def test_arguments_in_the_wrong_order_or_range_are_refused(model, tmp_path):
    write_folder(tmp_path, 5, names=NAMES)
    with pytest.raises(ConfigError, match=r"path, hf:owner/name or shapes; got AnyNet"):
        evaluate(str(tmp_path), model)
    for options in ({"batch_size": 0}, {"batch_size": -5, "engine": "folded"}, {"workers": -1}):
        with pytest.raises(ConfigError, match="must be a whole number of at least"):
            evaluate(model, tmp_path, **options)


def test_a_reported_precision_is_the_one_that_was_used(model, tmp_path):
    write_folder(tmp_path, 5, names=NAMES)
    with pytest.raises(ConfigError, match="eager computes in the precision of the weights, fp32"):
        evaluate(model, tmp_path, precision="bf16")
    assert evaluate(model.bfloat16(), tmp_path).precision == "bf16"


def test_real_labels_count_any_of_their_classes(model, tmp_path):
    folder = tmp_path / "set"
    for number, name in enumerate(("red", "green", "blue", "red"), 1):
        (folder / name).mkdir(parents=True, exist_ok=True)
        color = COLORS[NAMES.index(name)]
        path = folder / name / f"ILSVRC2012_val_{number:08d}.png"
        Image.new("RGB", (16, 16), color).save(path)
    real = tmp_path / "real.json"
    real.write_text(json.dumps([[0, 3], [2], [], [0]]))
    done = evaluate(model, folder, real_labels=real)
    assert done.top1 == 100
    assert done.real_top1 == pytest.approx(200 / 3)
    (folder / "red/ILSVRC2012_val_00000001.png").rename(folder / "red/other.png")
    with pytest.raises(DataError, match=r"red/other.png is not named as ImageNet's"):
        evaluate(model, folder, real_labels=real)
    with pytest.raises(DataError, match=r"not the real.json"):
        evaluate(model, folder, real_labels=tmp_path / "none.json")


def test_other_engines_give_the_same(tmp_path):
    names = regnet.create("regnety_cifar", pretrained=True).pretrained_cfg["label_names"]
    folder = write_folder(tmp_path / "set", 10, names=tuple(names[:5]), size=(32, 32))
    eager = evaluate("regnety_cifar", folder, batch_size=4)
    folded = evaluate("regnety_cifar", folder, batch_size=4, engine="folded")
    assert folded.top1 == eager.top1
    assert folded.calibration_error == pytest.approx(eager.calibration_error, abs=1e-3)


def test_calibration_error_equals_one_worked_out_by_hand():
    # Two bins: ten answers at 0.95, of which eight are correct, and ten at 0.55, of which six are.
    answers = Answers(
        indices=np.arange(20),
        top=np.array([[0]] * 20),
        confidence=np.array([0.95] * 10 + [0.55] * 10),
    )
    labels = np.array([0] * 8 + [1] * 2 + [0] * 6 + [1] * 4)
    assert scores.calibration_error(answers, labels) == pytest.approx(100 * (0.15 + 0.05) / 2)


def test_top_k_accuracy_counts_the_first_k_classes():
    answers = Answers(
        indices=np.array([0, 1, 3]),
        top=np.array([[3, 1, 0, 2, 4], [4, 3, 2, 1, 0], [5, 6, 7, 8, 9]]),
        confidence=np.ones(3),
    )
    labels = np.array([1, 4, 0, 0])
    assert scores.top_k(answers, labels, 1) == pytest.approx(100 / 3)
    assert scores.top_k(answers, labels, 5) == pytest.approx(200 / 3)


def test_two_confused_classes_of_many_are_not_taken_for_shuffled_folders():
    labels = np.repeat(np.arange(200), 5)
    top = labels.copy()
    top[labels == 3] = 7
    top[labels == 8] = 9
    answers = Answers(indices=np.arange(1000), top=top[:, None], confidence=np.ones(1000))
    assert scores.find_shuffle(answers, labels, {}) is None
    shifted = replace(answers, top=((labels + 1) % 200)[:, None])
    found = scores.find_shuffle(shifted, labels, {})
    assert found is not None
    assert (found.moved, found.top1) == (200, 100)
    # A weak model that confuses one class with its neighbor.
    weak = np.where(np.arange(1000) % 5 == 0, 7, shifted.top[:, 0])
    weak[labels == 12] = weak[labels == 11]
    found = scores.find_shuffle(replace(answers, top=weak[:, None]), labels, {})
    assert found is not None
    assert found.moved > 190


def test_few_images_say_nothing_about_the_order():
    labels = np.arange(10)
    top = labels.copy()
    top[[2, 5]] = 5, 7
    answers = Answers(indices=np.arange(10), top=top[:, None], confidence=np.ones(10))
    assert scores.find_shuffle(answers, labels, {}) is None


def test_answers_about_files_that_have_changed_are_not_used_again(model, tmp_path):
    """The new images have the names and sizes of the old ones, as bitmaps do."""
    write_folder(tmp_path / "set", 10, names=NAMES, suffix=".bmp")
    assert evaluate(model, tmp_path / "set", keep=tmp_path / "kept").top1 == 100
    for path in (tmp_path / "set").rglob("*.bmp"):
        Image.new("RGB", (16, 16), "white").save(path)
    with pytest.raises(ConfigError, match="holds the answers of another evaluation"):
        evaluate(model, tmp_path / "set", keep=tmp_path / "kept")


def test_answers_are_not_kept_where_they_would_be_a_class(model, tmp_path):
    write_folder(tmp_path / "set", 10, names=NAMES)
    with pytest.raises(ConfigError, match="would become a class"):
        evaluate(model, tmp_path / "set", keep=tmp_path / "set/kept")
    assert not (tmp_path / "set/kept").exists()


def test_a_model_without_class_names_is_not_warned_about_them(tmp_path):
    write_folder(tmp_path, 3, names=("a", "b", "c"))
    assert evaluate(regnet.create("regnety_cifar", num_classes=3).eval(), tmp_path).warnings == ()
