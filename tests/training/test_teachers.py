"""Tests of learning from trained networks: the loss, the teachers' images, their order, bad
input."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

import regnet
from regnet.data.augment import normalize
from regnet.errors import ConfigError, WeightsError
from regnet.training.loop import resume, start, train
from regnet.training.recipe import Recipe
from regnet.training.run import read
from regnet.training.session import Options
from regnet.training.teachers import Teachers, distillation_loss
from tests.pictures import write_folder
from tests.training.test_recipe import TINY
from tests.training.test_train import SHORT, same

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder / "train", 48)
    write_folder(folder / "val", 18, seed=1)
    return folder


@pytest.fixture(scope="module")
def taught(data, tmp_path_factory):
    """The names of two teachers: one knows the colors, the other hardly anything."""
    folder = tmp_path_factory.mktemp("teachers")
    plain = Recipe(epochs=8, batch_size=12, lr=2.0, lr_per="step", warmup_epochs=0, crop="pad")
    train(TINY, data, folder / "good", recipe=plain)
    train(TINY, data, folder / "poor", recipe=replace(plain, epochs=1, lr=1e-4), seed=9)
    return tuple(f"local-dir:{folder / which / 'model'}" for which in ("good", "poor"))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_the_divergence_of_softened_answers(temperature):
    """The loss of Hinton et al. 2015, KL(teacher || learner) at T times T^2, computed by scipy."""
    rng = np.random.default_rng(0)
    learner, teacher = rng.normal(size=(2, 5, 4))
    expected = rel_entr(softmax(teacher / temperature, 1), softmax(learner / temperature, 1)).sum(1)
    found = distillation_loss(torch.tensor(learner), torch.tensor(teacher), temperature)
    assert float(found) == pytest.approx(temperature**2 * expected.mean())
    assert float(distillation_loss(torch.tensor(teacher), torch.tensor(teacher), 1.0)) == 0


def teachers(names, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1)):
    return Teachers(
        names, classes=CLASSES, mean=mean, std=std, seed=0, device=torch.device("cpu")
    )  # fmt: skip


@pytest.mark.slow
def test_a_teacher_gets_images_in_its_own_normalization(taught):
    """The learner's images are normalized again with the mean and deviation of the teacher."""
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    network = regnet.create(taught[0], pretrained=True).eval()
    look = regnet.preprocess(network)
    with torch.no_grad():
        expected = network(normalize(pixels, look.mean, look.std))
    found = teachers(taught[:1], mean, std).logits(normalize(pixels, mean, std), 0, 0, 0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_teachers_alternate_in_a_reproducible_order(taught):
    images = torch.randn(2, 3, 32, 32)
    turns = []
    for _ in "ab":
        team = teachers(taught)
        turns.append([float(team.logits(images, 0, step, 0).sum()) for step in range(40)])
    assert turns[0] == turns[1]
    assert min(Counter(turns[0]).values()) > 10


@pytest.mark.slow
def test_a_network_can_learn_from_teachers_alone(data, taught, tmp_path):
    """If the loss comes from a teacher alone, labels do not matter: its answers are learned."""
    recipe = replace(SHORT, epochs=12, distill=1.0, lr=2.0, drop_path_rate=0.0, drop_rate=0.0)
    good = train(TINY, data, tmp_path / "good", recipe=recipe, teachers=taught[:1])
    poor = train(TINY, data, tmp_path / "poor", recipe=recipe, teachers=taught[1:])
    assert good.top1 is not None
    assert poor.top1 is not None
    assert good.top1 > 80 > 60 > poor.top1


@pytest.mark.slow
def test_a_run_with_teachers_resumes_and_repeats_bit_by_bit(data, taught, tmp_path):
    recipe = replace(SHORT, distill=0.5, temperature=2.0)
    train(TINY, data, tmp_path / "whole", recipe=recipe, teachers=taught, save_steps=1)
    run, facts = read(tmp_path / "whole")
    assert run.teachers == taught
    assert set(facts.teachers) == set(taught)

    def stop(at):
        if (at.epoch, at.step) == (1, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(run, tmp_path / "cut", options=Options(on_step=stop))
    resume(tmp_path / "cut", options=Options())
    assert same(tmp_path / "whole", tmp_path / "cut")
    start(replace(run, teachers=taught[:1]), tmp_path / "other")
    assert not same(tmp_path / "whole", tmp_path / "other")
    facts = replace(facts, teachers={taught[1]: "0123456789abcdef"})
    with pytest.raises(ConfigError, match="its weights are not those of the run"):
        start(run, tmp_path / "changed", facts=facts)


def test_bad_teachers_are_refused(data, taught, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="distill, the teachers' share of the loss, must be"):
        train(TINY, data, out, recipe=SHORT, teachers=taught)
    with pytest.raises(ConfigError, match="teachers must be given too"):
        train(TINY, data, out, recipe=replace(SHORT, distill=0.5))
    some = replace(SHORT, distill=0.5)
    with pytest.raises(
        ConfigError, match=r"regnety_cifar.cifar10: its classes are not those of the images"
    ):
        train(TINY, data, out, recipe=some, teachers=("regnety_cifar.cifar10",))
    with pytest.raises(WeightsError, match="none"):
        train(TINY, data, out, recipe=some, teachers=("local-dir:none",))
    with pytest.raises(ConfigError, match=r"distill must lie in \[0, 1\], got 2"):
        replace(SHORT, distill=2.0)
    with pytest.raises(ConfigError, match="temperature must be positive, got 0"):
        replace(SHORT, temperature=0.0)
    assert not out.exists()
