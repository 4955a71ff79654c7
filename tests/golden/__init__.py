"""Weights and images made by a fixed rule, and outputs of other implementations for them."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DATA = Path(__file__).parent

_CHUNK = 1 << 16  # elements computed at a time, so that temporaries stay in the cache


@cache
def load(name: str) -> Any:
    """Load a JSON file of this folder, compressed or not."""
    path = DATA / name
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def seed_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def uniform(
    name: str, shape: tuple[int, ...], low: float, high: float, dtype: Any = np.float32
) -> NDArray[Any]:
    """Return float32 numbers in [low, high) that depend on the tensor's name, stored as `dtype`."""
    out = np.empty(prod(shape), dtype=dtype)
    seed, step = np.uint64(seed_of(name)), np.uint64(0x9E3779B97F4A7C15)
    for start in range(0, out.size, _CHUNK):
        stop = min(start + _CHUNK, out.size)
        z = np.arange(start + 1, stop + 1, dtype=np.uint64)
        z *= step
        z += seed
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(31)
        unit = (z >> np.uint64(40)).astype(np.float64) / 2**24
        out[start:stop] = (low + (high - low) * unit).astype(np.float32)
    return out.reshape(shape)


def fill(name: str, tensor: Tensor, conv_gain: float) -> None:
    """Fill the tensor in place with the values that belong to its name and shape."""
    shape, last = tuple(tensor.shape), name.rpartition(".")[2]
    if last == "num_batches_tracked":
        tensor.zero_()
        return
    if last == "running_mean":
        low, high = -0.1, 0.1
    elif last == "running_var":
        low, high = 0.7, 1.3
    elif len(shape) == 4 and last == "weight":
        bound = conv_gain * sqrt(6.0 / prod(shape[1:]))
        low, high = -bound, bound
    elif len(shape) == 2:
        bound = 1.5 * sqrt(3.0 / shape[1])
        low, high = -bound, bound
    elif last == "bias":
        low, high = -0.1, 0.1
    else:
        low, high = 0.7, 1.3
    dtype = np.float64 if tensor.dtype == torch.float64 else np.float32
    tensor.copy_(torch.from_numpy(uniform(name, shape, low, high, dtype)))


def images(height: int, width: int) -> Tensor:
    """Return two float32 images made of patches of 16x16 pixels and noise."""
    coarse = uniform(
        f"input.coarse.{height}x{width}", (2, 3, -(-height // 16), -(-width // 16)), -1.5, 1.5
    )
    coarse = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    fine = uniform(f"input.fine.{height}x{width}", (2, 3, height, width), -0.5, 0.5)
    return torch.from_numpy(coarse + fine)


def differences(output: Tensor, expected: dict[str, Any]) -> Iterator[float]:
    """Yield how far each recorded figure of a tensor is off, in units of its root mean square."""
    flat = output.detach().double().flatten(1)
    for row, values in enumerate(flat):
        rms = expected["l2"][row] / sqrt(values.numel())
        yield abs(values.norm().item() / expected["l2"][row] - 1)
        yield abs(values.mean().item() - expected["mean"][row]) / rms
        yield abs(values.std(correction=0).item() - expected["std"][row]) / rms
        for recorded, found in (
            (expected.get("first8"), values[:8]),
            (expected.get("at_indices"), _at_indices(values)),
        ):
            if recorded is not None and recorded[row]:
                numbers = torch.tensor(recorded[row], dtype=torch.float64)
                yield (found[: len(numbers)] - numbers).abs().max().item() / rms


def _at_indices(values: Tensor) -> Tensor:
    indices = load("golden_timm.json")["logit_indices"]
    return values[[index for index in indices if index < len(values)]]
