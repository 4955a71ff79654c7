"""Tests of temperature scaling: the most likely temperature is folded into the classifier."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch.nn import functional
from typer.testing import CliRunner

import regnet
from regnet.cli.main import app
from regnet.data.sets import ImageSet
from regnet.errors import ConfigError, DataError
from regnet.evaluation.calibration import (
    RANGE,
    calibrate,
    fit_temperature,
    fold,
    hold_out,
    judge,
)
from regnet.training import checkpoint, loop
from regnet.training.recipe import Recipe
from tests.pictures import write_folder
from tests.training.test_recipe import TINY


def drawn(seed, count=400, classes=7, sharpness=2.0):
    """Return logits, and labels drawn from their probabilities at the temperature `sharpness`."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=rng)
    chances = (logits / sharpness).softmax(1)
    return logits, torch.multinomial(chances, 1, generator=rng)[:, 0]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.2, 5))
def test_the_temperature_is_the_most_likely_one(seed, sharpness):
    logits, labels = drawn(seed, sharpness=sharpness)

    def loss(log):
        return functional.cross_entropy(logits.double() / np.exp(log), labels).item()

    best = minimize_scalar(loss, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-8})
    assert fit_temperature(logits, labels) == pytest.approx(np.exp(best.x), rel=1e-3)


@given(st.floats(0.2, 5))
@settings(deadline=None, max_examples=10)
def test_logits_times_a_number_need_that_many_times_the_temperature(factor):
    logits, labels = drawn(1)
    expected = factor * fit_temperature(logits, labels)
    assert fit_temperature(factor * logits, labels) == pytest.approx(expected, rel=1e-4)


def test_the_temperature_stays_in_its_range_if_every_answer_is_right():
    logits, _ = drawn(2)
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(RANGE[0], rel=1e-3)


def test_no_image_is_judged_by_a_temperature_that_it_chose():
    logits, labels = drawn(3, count=4000, sharpness=3.0)
    found = judge(logits, labels)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert min(found.halves) < found.temperature < max(found.halves)
    assert found.error_after < 3 < 10 < found.error_before
    with pytest.raises(DataError, match="needs 100 images or more, better 1,000; got 99"):
        judge(logits[:99], labels[:99])


def test_a_folded_temperature_changes_confidences_and_no_answer():
    model = regnet.create("regnety_002", num_classes=5).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        before = model(x)
        fold(model, 1.7)
        after = model(x)
    assert torch.allclose(after, before / 1.7, atol=1e-6)
    assert torch.equal(after.argmax(1), before.argmax(1))
    with pytest.raises(ConfigError, match="no linear classifier"):
        fold(regnet.create("regnety_002", num_classes=0), 2.0)


def test_images_of_few_classes_are_refused(tmp_path):
    from PIL import Image

    for name in ("n01440764", "n01443537"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    model = regnet.create("regnetx_002")
    with pytest.raises(DataError, match=r"of the model's 1000 classes|needs 100 images"):
        calibrate(model, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "a.onnx"], "a.onnx is an exported file; --calibrate needs the model"),
        (["--image-size", "64"], "--calibrate uses the checkpoint's own setting"),
        (["--larger"], "--calibrate uses the checkpoint's own setting"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options, message, tmp_path):
    command = ["evaluate", "shapes", "--calibrate", str(tmp_path / "new"), *options]
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, command, catch_exceptions=False)


@pytest.mark.slow
def test_the_command_saves_a_calibrated_model(tmp_path):
    recipe = regnet.find_recipe("cifar-short", epochs=1)
    regnet.train(
        "regnety_cifar", "shapes", recipe=recipe, train_images=256, val_images=120,
        out=tmp_path / "run",
    )  # fmt: skip
    model, out = tmp_path / "run/model", tmp_path / "calibrated"
    command = ["evaluate", "shapes", "--model", str(model), "--calibrate", str(out), "--json"]
    document = tmp_path / "found.json"
    done = CliRunner().invoke(app, [*command, "--out", str(document)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert json.loads(document.read_text()) == found
    assert found["calibration"]["top1"] == pytest.approx(found["top1"])
    old, new = (
        regnet.create(f"local-dir:{where}", pretrained=True).eval() for where in (model, out)
    )
    x = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(new(x) * found["calibration"]["temperature"], old(x), atol=1e-4)
    with pytest.raises(ConfigError, match="exists already; name a new folder"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def labelled(*counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(1).shuffle(labels)
    return ImageSet(
        source="drawn",
        names=[str(number) for number in range(len(labels))],
        labels=labels,
        classes=tuple("abcdefgh"[: len(counts)]),
        reader=None,
    )


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.data())
def test_held_out_images_keep_the_proportions_of_the_classes(counts, data):
    images = labelled(*counts)
    free = len(images) - len(counts)
    count = data.draw(st.integers(0, len(images)))
    if not 1 <= count <= free:
        with pytest.raises(DataError, match="cannot be held out"):
            images.held_out(count)
        return
    held, rest = images.held_out(count)
    assert len(held) == count
    assert sorted([*held.names, *rest.names], key=int) == list(images.names)
    assert rest.present == images.present
    for label, there in enumerate(counts):
        share = (there - 1) * count / free
        assert abs(int((held.labels == label).sum()) - share) < 1
    again, _ = images.held_out(count)
    assert again.fingerprint == held.fingerprint


def test_the_number_of_held_out_images_follows_from_the_size_of_the_set():
    for images, expected in ((300, 100), (999, 100), (5000, 500), (80_000, 5000)):
        held, rest = hold_out(labelled(images // 2, images - images // 2))
        assert (len(held), len(rest)) == (expected, images - expected)
    with pytest.raises(DataError, match="holds 100 images out, too many of 299"):
        hold_out(labelled(100, 199))


@pytest.mark.slow
def test_training_calibrates_on_images_that_it_does_not_train_on(tmp_path):
    recipe = regnet.find_recipe("cifar-short", epochs=2, label_smoothing=0.3)

    def trained(out, **options):
        return regnet.train(
            "regnety_cifar", "shapes", recipe=recipe, train_images=400, val_images=120,
            calibrate=True, out=tmp_path / out, **options,
        )  # fmt: skip

    done = trained("run")
    found = done.calibration
    assert found is not None
    assert found.images == 100
    assert "held out; expected calibration error" in (tmp_path / "run/model/README.md").read_text()
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["images"]["train"]["count"] == 300
    assert facts["images"]["calibration"]["count"] == 100
    # Only the classifier in model/ is divided by the temperature, not that of the best epoch.
    model = regnet.create(f"local-dir:{tmp_path / 'run/model'}", pretrained=True).eval()
    saved = checkpoint.load_last(tmp_path / "run")
    assert saved is not None
    expected = (saved["average"] or saved["model"])["head.fc.weight"] / found.temperature
    assert torch.allclose(model.head.fc.weight, expected, rtol=1e-5)
    # A repeated or resumed run holds out the same images.
    words = ["train", "--replay", str(tmp_path / "run/run.json"), "--out", str(tmp_path / "again")]
    again = CliRunner().invoke(app, [*words, "--json"])
    assert again.exit_code == 0, again.output
    document = json.loads(again.stdout)
    assert document["calibration"]["temperature"] == pytest.approx(found.temperature, rel=1e-3)
    with pytest.raises(ConfigError, match="--calibrate would change the run"):
        CliRunner().invoke(app, [*words, "--calibrate"], catch_exceptions=False)


@pytest.mark.parametrize("factor", [1 / 400, 400])
def test_confidences_far_off_by_a_constant_are_calibrated(factor):
    logits, labels = drawn(0, sharpness=1.0)
    found = judge(logits * factor, labels)
    assert found.temperature == pytest.approx(factor, rel=0.2)
    assert found.error_after < found.error_before


@pytest.mark.parametrize("right", [100, 99])
def test_answers_that_are_all_right_fit_no_temperature(right):
    """If all answers of a half are right, any lower temperature makes its labels more likely."""
    logits = torch.full((100, 3), -4.0)
    labels = torch.arange(100) % 3
    logits[torch.arange(100), labels] = 4.0
    labels[right:] = (labels[right:] + 1) % 3
    with pytest.raises(DataError, match=rf"can be fitted: {right} of 100 answers"):
        judge(logits, labels)


def test_confidences_that_say_nothing_become_as_low_as_possible():
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    labels = logits.argmin(1)  # the surer the answer, the more wrong
    assert judge(logits, labels).temperature == pytest.approx(RANGE[1], rel=1e-6)


def test_training_ends_well_without_a_temperature(tmp_path, monkeypatch, caplog):
    write_folder(tmp_path / "set/train", 360)
    monkeypatch.setattr(loop, "calibrate_on", _no_temperature)
    done = regnet.train(
        TINY, tmp_path / "set", tmp_path / "run", calibrate=True,
        recipe=Recipe(epochs=1, batch_size=60, lr=0.1, warmup_epochs=0, crop="pad"),
    )  # fmt: skip
    assert done.calibration is None
    assert "is not calibrated: all answers are right" in caplog.text
    assert regnet.create(f"local-dir:{tmp_path / 'run/model'}", pretrained=True)


def _no_temperature(*_args, **_options):
    raise DataError("all answers are right")
