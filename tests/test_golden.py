"""Tests of the rule that makes the golden weights, against recorded values."""

import hashlib

import pytest
import torch

from tests import golden


@pytest.mark.parametrize("row", golden.load("fill_check.json")["tensors"], ids=lambda r: r["name"])
def test_fill_makes_the_recorded_tensors(row):
    tensor = torch.empty(row["shape"])
    golden.fill(row["name"], tensor, row["conv_gain"])
    assert golden.seed_of(row["name"]) == row["seed"]
    assert tensor.flatten()[:4].tolist() == row["first4"]
    assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest() == row["sha256"]


@pytest.mark.parametrize("row", golden.load("fill_check.json")["inputs"], ids=lambda r: r["size"])
def test_images_are_the_recorded_ones(row):
    batch = golden.images(*row["size"])
    assert list(batch.shape) == row["shape"]
    assert hashlib.sha256(batch.numpy().tobytes()).hexdigest() == row["sha256"]
