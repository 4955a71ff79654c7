"""Convert images to the tensors that models take, with only Pillow and torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from regnet.data.images import image_name, open_image
from regnet.errors import ConfigError, ImageError, check_number

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """The evaluation transform of a checkpoint: resize, crop the center, normalize.

    Calling an instance converts an image (a Pillow image or a path) to a float32 tensor of shape
    (channels, height, width). The result equals that of the Pillow transforms of torchvision and
    timm. If `mean` has a single value, the image is converted to gray first (ITU-R 601-2).
    """

    size: tuple[int, int] = (224, 224)
    """Height and width of the result, in pixels."""
    crop_pct: float = 0.875
    """Side of the crop divided by the side of the resized image, greater than 0 and at most 1."""
    resize: Literal["short_side", "squash"] = "short_side"
    """Method of resizing: "short_side" preserves the aspect ratio of the image, "squash" does
    not."""
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    """One value per channel, from 0 (black) to 1 (white)."""
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            values = getattr(self, name)
            listed = not isinstance(values, str) and isinstance(values, Sequence)
            count = {"size": 2, "mean": len(values) if listed else 3, "std": self.channels}[name]
            if not listed or len(values) != count or not count:
                raise ConfigError(f"{name} needs {count or 'one or more'} values, got {values!r}")
            values = tuple(values)
            for value in values:
                check_number(name, value)
            object.__setattr__(self, name, values)
        if not min(self.std) > 0:
            raise ConfigError(f"std must be positive, got {self.std}")
        if min(self.size) < 1:
            raise ConfigError(f"size must be at least 1 pixel in height and width, got {self.size}")
        if any(side % 1 for side in self.size):
            raise ConfigError(f"size must be a whole number of pixels, got {self.size}")
        check_number("crop_pct", self.crop_pct)
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct must lie in (0, 1], got {self.crop_pct!r}")
        if self.interpolation not in _RESAMPLING:
            known = ", ".join(_RESAMPLING)
            raise ConfigError(f"interpolation must be one of {known}; got {self.interpolation!r}")
        if self.resize not in ("short_side", "squash"):
            raise ConfigError(f"resize must be 'short_side' or 'squash', got {self.resize!r}")

    @property
    def channels(self) -> int:
        """Number of channels of the result."""
        return len(self.mean)

    def for_channels(self, channels: int) -> "Preprocess":
        """Return the transform for images with another number of channels.

        For one channel, mean and standard deviation are averaged over the channels. For more
        channels, the existing values are repeated in turn, as the weights of the stem are.
        """
        if channels == self.channels:
            return self
        if channels == 1:
            average = [(round(sum(v) / len(v), 6),) for v in (self.mean, self.std)]
            return replace(self, mean=average[0], std=average[1])
        turns = [index % self.channels for index in range(channels)]
        mean, std = (tuple(v[turn] for turn in turns) for v in (self.mean, self.std))
        return replace(self, mean=mean, std=std)

    def check_files(self) -> None:
        """Check that this transform applies to image files, which have one or three channels.

        Raises:
            ConfigError: the transform is for another number of channels.
        """
        if self.channels not in (1, 3):
            raise ConfigError(
                f"this network takes images of {self.channels} channels, but image files have 1 or "
                "3; in Python, pass it tensors (N, channels, H, W): model(images)"
            )

    @classmethod
    def from_timm(cls, cfg: Mapping[str, Any]) -> "Preprocess":
        """Return the transform that timm's `pretrained_cfg` describes.

        Args:
            cfg: the configuration; fields that it lacks take the defaults of this class.

        Raises:
            ConfigError: a value cannot be used.
        """
        options: dict[str, Any] = {
            name: cfg[name] for name in ("crop_pct", "interpolation", "mean", "std") if name in cfg
        }
        if "input_size" in cfg:
            options["size"] = tuple(cfg["input_size"])[-2:]
        if cfg.get("crop_mode") == "squash":
            options["resize"] = "squash"
        return cls(**options)

    def to_timm(self) -> dict[str, Any]:
        """Return the transform as fields of timm's `pretrained_cfg`."""
        return {
            "input_size": (self.channels, *self.size),
            "crop_pct": self.crop_pct,
            "crop_mode": "squash" if self.resize == "squash" else "center",
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
        }

    def __call__(self, image: Image.Image | str | Path) -> "Tensor":
        import torch

        self.check_files()
        opened = open_image(image)
        if self.channels == 1:
            opened = opened.convert("L")
        pixels = torch.from_numpy(np.array(self.crop(opened, name=image_name(image) or "image")))
        scaled = (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (scaled - mean) / std

    def crop(self, image: Image.Image, *, name: str = "image") -> Image.Image:
        """Return the resized and cropped image, before it is converted to a tensor.

        Args:
            image: the image.
            name: name of the image in error messages.

        Raises:
            ImageError: the image is so long and thin that its resized form would fill the memory.
        """
        height, width = self.size
        target = (floor(height / self.crop_pct), floor(width / self.crop_pct))
        if self.resize == "squash":
            new_height, new_width = target
        elif target[0] * image.width >= target[1] * image.height:
            new_height = target[0]
            new_width = max(target[1], image.width * target[0] // image.height)
        else:
            new_height = max(target[0], image.height * target[1] // image.width)
            new_width = target[1]
        if new_width * new_height > (Image.MAX_IMAGE_PIXELS or inf):
            raise ImageError(
                f"{name}: an image of {image.width} x {image.height} pixels is too long and thin "
                f"to resize to {new_width} x {new_height}; crop it first"
            )
        if (new_width, new_height) != image.size:
            image = image.resize((new_width, new_height), _RESAMPLING[self.interpolation])
        top, left = round((new_height - height) / 2), round((new_width - width) / 2)
        return image.crop((left, top, left + width, top + height))
