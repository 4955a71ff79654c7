"""Tests of one model in many threads: answers are the same, and the model is unchanged."""

import logging
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

import regnet
from regnet.data.sets import open_set
from regnet.evaluation.evaluate import evaluate
from regnet.nn.count import count_flops_torch
from regnet.nn.views import evaluation_view
from tests.pictures import pictures, write_folder


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.long)])
def test_eight_threads_predict_the_same(count, training):
    """The model is in either mode, while another thread uses it in another way."""
    model = regnet.create("regnety_cifar", pretrained=True).train(training)
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_flops_torch(model, 32)  # its imports add warning filters; do that before the test
    filters, loggers = list(warnings.filters), states_of_loggers()
    images = [Image.fromarray(image) for image in pictures(8, (32, 32))[0]]
    expected = [regnet.predict(image, model) for image in images]

    def work(number):
        if number % 20 == 0:
            count_flops_torch(model, 32)
        return regnet.predict(images[number % 8], model) == expected[number % 8]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(count)))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(warnings.filters) == filters
    assert loggers.items() <= states_of_loggers().items()


def states_of_loggers():
    """Return the level, the switch and the handlers of each existing logger."""
    known = logging.root.manager.loggerDict
    found = {name: row for name, row in known.items() if isinstance(row, logging.Logger)}
    return {
        name: (row.level, row.disabled, row.propagate, len(row.handlers))
        for name, row in sorted((found | {"root": logging.root}).items())
    }


def test_evaluation_and_a_race_leave_a_model_unchanged(tmp_path):
    data = open_set(write_folder(tmp_path, 24, names=("cat", "dog", "frog")))
    model = regnet.create("regnety_cifar", pretrained=True).train()
    expected = evaluate(model, data).top1
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def work(number):
        if number == 0:
            regnet.optimize(model, torch.zeros(1, 3, 32, 32), engines=["eager"], refresh=True)
            return expected
        return evaluate(model, data).top1

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(8))) == {expected}
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_view_shares_the_tensors_but_has_its_own_mode():
    model = regnet.create("regnety_cifar").train()
    view = evaluation_view(model)
    assert view is not model
    assert not any(module.training for module in view.modules())
    for ours, theirs in zip(model.parameters(), view.parameters(), strict=True):
        assert ours is theirs
    assert evaluation_view(view) is view
