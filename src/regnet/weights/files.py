"""Read a safetensors file into a model: verified and strict."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from regnet.errors import WeightsError


def verify(path: Path, sha256: str) -> None:
    """Compare a file with its SHA-256.

    Raises:
        WeightsError: the file is missing, unreadable, or not the one expected.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error
    if digest.hexdigest() != sha256:
        raise WeightsError(
            f"{path}: the file is damaged: its SHA-256 begins with {digest.hexdigest()[:12]}, not "
            f"{sha256[:12]}; fetch or install it again"
        )


def load_weights(model: nn.Module, path: Path, *, leave: Collection[str] = ()) -> None:
    """Copy the tensors of a safetensors file into the model, in the model's dtype.

    Args:
        model: takes exactly the tensors of the file, by name and shape.
        path: the file.
        leave: names that keep the model's values, such as a classifier for other classes.

    Raises:
        WeightsError: the file cannot be read, or tensors are missing, unexpected or of another
            shape.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    expected = model.state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if name not in leave}
    problems = [f"missing {name}" for name in expected if name not in tensors and name not in leave]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensor.shape)}, the model needs {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(f"{path} does not fit the model: {', '.join(problems[:3])}{more}")
    model.load_state_dict(expected | tensors)
