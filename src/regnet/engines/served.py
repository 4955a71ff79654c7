"""A network that includes its preprocessing and softmax: pixels in, probabilities out."""

from collections.abc import Mapping
from typing import Final, Literal, cast

import torch
from torch import Tensor, nn

from regnet.data.preprocess import Preprocess

Input = Literal["float32", "uint8"]
"""Input of an exported file: normalized images (N, C, H, W), or pixels (N, H, W, C)."""

EXAMPLE: Final = "serve.py.txt"
"""Name of a script beside this file that serves an ONNX file without torch."""

PIXEL_AXES: Final[Mapping[int, str]] = {0: "batch", 1: "height", 2: "width"}
"""Axes of pixels (N, H, W, C) whose size may stay free in a program."""


class Served(nn.Module):
    """A network that takes the bytes of cropped images (N, H, W, C) and returns probabilities."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, look: Preprocess) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", 255 * torch.tensor(look.mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(look.std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalize the pixels, run the network, and return probabilities (N, classes)."""
        images = (pixels.permute(0, 3, 1, 2) - self.mean) / self.std
        return cast("Tensor", self.model(images)).softmax(1)


def pixels_of(images: Tensor, look: Preprocess) -> Tensor:
    """Return the pixels of normalized images (N, C, H, W), as bytes (N, H, W, C)."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (look.mean, look.std))
    pixels = (255 * (images * std + mean)).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()
