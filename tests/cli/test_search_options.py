"""Tests that options of `regnet search` which would have no effect are refused, not ignored."""

import pytest

from tests.command import refused
from tests.command import regnet as command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "shapes", "--image-size", "64"], "--image-size cannot be used with --data"),
        (["--data", "shapes", "--pareto", "x"], "--pareto cannot be used with --data"),
        (["--data", "shapes", "--finalists", "3"], "--finalists cannot be used with --data"),
        (["--budget", "1h"], "--budget needs --data"),
        (["--set", "epochs=3"], "--set needs --data"),
        (["--recipe", "cifar"], "--recipe needs --data"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    refused(command("search", "--latency-ms", "5", *options), 2, message)
