"""Batches of training images: a pure function of seed, epoch and step, for any process count.

Small images are stored on the device as bytes; large ones are decoded and cropped by worker
processes. Both are then augmented on the device in the same manner.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from regnet.data import augment
from regnet.data.loading import load_pixels, read
from regnet.data.sets import ImageSet, open_set
from regnet.errors import ConfigError, DataError, ImageError
from regnet.evaluation.calibration import hold_out
from regnet.process_group import Group
from regnet.training.recipe import Recipe

SUBSTITUTES: Final = 10
"""Number of unreadable images in a row that ends a run; otherwise the next image replaces one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The images of one forward pass, with their labels."""

    indices: Tensor
    """(N,): indices of the images in the set."""
    images: Tensor
    """(N, channels, H, W), float32, channels last."""
    labels: Tensor
    """(N,): their classes."""
    partners: Tensor
    """(N,): classes of the images that were mixed in."""
    own: float
    """Share of each image that is not mixed in; 1 without mixing."""
    unreadable: tuple[str, ...] = ()
    """Why images of the set could not be read; the next ones replace them."""


def seed_of(*parts: int | str) -> int:
    """Return a seed for a purpose, unrelated to the seeds of other purposes."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a new generator, seeded by `seed_of` these parts."""
    return torch.Generator().manual_seed(seed_of(*parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which images go into which forward pass.

    Raises:
        DataError: the images do not fill one batch.
        ConfigError: the processes cannot share a batch equally.
    """

    images: int
    """Number of training images."""
    recipe: Recipe
    seed: int
    group: Group

    def __post_init__(self) -> None:
        recipe, size = self.recipe, self.group.size
        if self.images < recipe.batch_size:
            raise DataError(
                f"{self.images} training images do not fill one batch of {recipe.batch_size}; "
                "choose a smaller batch_size"
            )
        micro = recipe.micro_batch_size
        if micro is None and recipe.batch_size % size:
            raise ConfigError(
                f"{size} processes cannot share batches of {recipe.batch_size} images equally; "
                "choose another batch_size"
            )
        if micro is not None and recipe.batch_size // micro % size:
            raise ConfigError(
                f"{size} processes cannot share the {recipe.batch_size // micro} forward passes of "
                f"a batch of {recipe.batch_size} (micro_batch_size {micro}) equally; "
                "choose another micro_batch_size"
            )

    @property
    def micro_size(self) -> int:
        """Number of images per forward pass."""
        return self.recipe.micro_batch_size or self.recipe.batch_size // self.group.size

    @property
    def steps(self) -> int:
        """Number of steps per epoch; images that do not fill a batch are left out."""
        return self.images // self.recipe.batch_size

    @property
    def passes(self) -> range:
        """Indices of the forward passes of each step that this process computes."""
        return self.group.share(self.recipe.batch_size // self.micro_size)

    def epoch(self, epoch: int) -> Tensor:
        """Return the indices of the images of an epoch: (steps, passes, micro_size)."""
        order = torch.randperm(self.images, generator=generator(self.seed, "order", epoch))
        order = order.repeat_interleave(self.recipe.repeats)[: self.images]
        whole = order[: self.steps * self.recipe.batch_size]
        # Transposed, so that neighbors, such as repeats of an image, go to different passes.
        return whole.view(self.steps, self.micro_size, -1).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of one run or of many: opened once, and decoded once if they stay in memory."""

    train: ImageSet
    val: ImageSet | None
    calibration: ImageSet | None = None
    """Training images that were held out for calibration."""
    _memory: dict[tuple[str, torch.device], Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls,
        train: str,
        val: str | None = None,
        *,
        train_images: int | None = None,
        val_images: int | None = None,
        num_classes: int | None = None,
        calibrate: bool = False,
    ) -> "Images":
        """Open the images of a run; the arguments are fields of `Run`.

        Raises:
            DataError: the images cannot be used, or the two sets do not belong together.
            ConfigError: the images have more classes than `num_classes`.
        """
        trained = open_set(train, "train")
        if len(trained.present) < 2:
            raise DataError(
                f"{trained.source}: all images are of one class; training needs at least two"
            )
        if num_classes is not None and num_classes < len(trained.classes):
            raise ConfigError(
                f"{trained.source} has {len(trained.classes)} classes, but num_classes is "
                f"{num_classes}; leave num_classes out, or make it as large"
            )
        tests = open_set(val, "val") if val is not None else None
        if tests is not None and tests.classes != trained.classes:
            tests = tests.relabelled(trained.classes)
        if train_images is not None:
            trained = trained.part(train_images)
        if tests is not None and val_images is not None:
            tests = tests.part(val_images)
        held = None
        if calibrate:
            held, trained = hold_out(trained)
        return cls(train=trained, val=tests, calibration=held)

    @property
    def summary(self) -> tuple[str, ...]:
        """Lines that describe the images that were found."""
        lines = [f"train: {self.train.summary}"]
        if self.calibration is not None:
            lines.append(f"held out for calibration: {len(self.calibration):,} training images")
        if self.val is None:
            return (*lines, "no test set: accuracy is not measured")
        lines.append(f"test: {self.val.summary}")
        without = sorted({self.train.classes[n] for n in self.train.present}
                         - {self.val.classes[n] for n in self.val.present})  # fmt: skip
        if without:
            lines.append(f"classes without test images: {', '.join(without[:10])}")
        return tuple(lines)

    def resident(self, device: torch.device) -> "Resident":
        """Return the training images in the memory of a device; the first call decodes them."""
        if ("train", device) not in self._memory:
            self._memory["train", device] = Resident(self.train, device)
        found: Resident = self._memory["train", device]
        return found

    def val_pixels(self, device: torch.device) -> Tensor | None:
        """Return the test images on a device as bytes (N, 3, H, W), or None without a test set."""
        if self.val is not None and ("val", device) not in self._memory:
            self._memory["val", device] = load_pixels(self.val).to(device)
        return self._memory.get(("val", device))


class Resident:
    """A set of small images of one size, stored on the device as bytes."""

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        pixels = load_pixels(images)
        self.mean, self.std = _colors(pixels.unbind(1))
        """Mean and standard deviation of each color, from 0 to 1, rounded to four digits."""
        self.pixels = pixels.to(device)
        """(N, 3, H, W), bytes."""
        self.labels = torch.from_numpy(images.labels).to(device)

    def colors(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of the channels of a network: 1 (gray) or 3."""
        if channels != 1:
            return self.mean, self.std
        # As floats, all images at once would need four times their memory.
        parts = [augment.gray(part).round().byte().cpu() for part in self.pixels.split(4096)]
        return _colors([torch.cat(parts)])

    def batches(
        self, order: Tensor, seeds: Sequence[Sequence[int | str]]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[str, ...]]]:
        """Yield indices, pixels and labels of each forward pass, and no failures."""
        del seeds  # only streamed images are cropped at random here
        for indices in order:
            there = augment.beside(self.pixels, indices)
            yield indices, self.pixels[there], self.labels[there], ()


def _colors(channels: Sequence[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of bytes, from 0 to 1, rounded to four digits."""
    # Computed from the histogram of the values, which is exact and needs little memory.
    counts = torch.stack([color.flatten().bincount(minlength=256) for color in channels])
    share, values = counts / counts.sum(1, keepdim=True), torch.arange(256) / 255
    mean = (share * values).sum(1)
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt().clamp_min(1e-3)
    return tuple(mean.round(decimals=4).tolist()), tuple(std.round(decimals=4).tolist())


class Streamed:
    """A set of large images, decoded and cropped by worker processes."""

    def __init__(
        self, images: ImageSet, *, size: int, recipe: Recipe, workers: int, device: torch.device
    ) -> None:
        self.workers, self.device = workers, device
        self.crops = _Crops(images, size, recipe.min_area)

    def batches(
        self, order: Tensor, seeds: Sequence[Sequence[int | str]]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[str, ...]]]:
        """Yield indices, pixels and labels of each forward pass, and why images were replaced.

        Raises:
            DataError: `SUBSTITUTES` images in a row cannot be read.
        """
        asked = (
            [(index, seed_of(*parts, place)) for place, index in enumerate(indices.tolist())]
            for indices, parts in zip(order, seeds, strict=True)
        )
        batches = read(
            self.crops,
            asked,
            _collate,
            workers=self.workers,
            batch_bytes=order.shape[1] * 3 * self.crops.size**2,
            pin_memory=self.device.type == "cuda",
        )
        for indices, pixels, labels, unreadable, lost in batches:
            if lost:
                raise DataError(lost)
            yield (
                indices,
                pixels.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
                unreadable,
            )


class _Crops(Dataset[Any]):
    def __init__(self, images: ImageSet, size: int, min_area: float) -> None:
        self.images, self.size, self.min_area = images, size, min_area

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Tensor, int, tuple[str, ...]]:
        index, seed = key
        rng = torch.Generator().manual_seed(seed)
        failures: list[str] = []
        pixels = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
        while len(failures) < SUBSTITUTES:
            try:
                image = self.images.open(index)
            except ImageError as error:
                failures.append(str(error))
                index = (index + 1) % len(self.images)
            else:
                crop = augment.random_resized_crop(image, self.size, self.min_area, rng)
                pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
                break
        return index, pixels, int(self.images.labels[index]), tuple(failures)


def _collate(items: list[tuple[int, Tensor, int, tuple[str, ...]]]) -> tuple[Any, ...]:
    indices, pixels, labels, failures = zip(*items, strict=True)
    unreadable = tuple(reason for reasons in failures for reason in reasons)
    lost = next((f"{len(f)} images in a row cannot be read; the last: {f[-1]}" for f in failures
                 if len(f) == SUBSTITUTES), None)  # fmt: skip
    return torch.tensor(indices), torch.stack(pixels), torch.tensor(labels), unreadable, lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Batches as the network receives them: augmented and normalized."""

    plan: Plan
    source: Resident | Streamed
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def batches(
        self, epoch: int, first_step: int = 0, steps: int | None = None, *, mixed: bool = True
    ) -> Iterator[Batch]:
        """Yield this process's forward passes of an epoch, in order, beginning with a step.

        Args:
            epoch: the epoch, from 0.
            first_step: the first step, from 0.
            steps: number of steps; None: all that remain.
            mixed: False leaves out mixup and cutmix.
        """
        plan, recipe = self.plan, self.plan.recipe
        order = plan.epoch(epoch)
        last = plan.steps if steps is None else min(first_step + steps, plan.steps)
        passes = [(step, number) for step in range(first_step, last) for number in plan.passes]
        if not passes:
            return
        chosen = torch.stack([order[step, number] for step, number in passes])
        seeds = [(plan.seed, "images", epoch, step, number) for step, number in passes]
        clean = epoch >= recipe.epochs - recipe.clean_epochs
        for seed, (indices, pixels, labels, unreadable) in zip(
            seeds, self.source.batches(chosen, seeds), strict=True
        ):
            rng = generator(*seed)
            images = self._augmented(pixels, rng, clean=clean)
            partners, own = labels, 1.0
            if mixed and (recipe.mixup or recipe.cutmix) and not clean:
                images, partner, own = augment.mix(
                    images, mixup=recipe.mixup, cutmix=recipe.cutmix, rng=rng
                )
                partners = labels[partner]
            yield Batch(
                indices=indices,
                images=images.contiguous(memory_format=torch.channels_last),
                labels=labels,
                partners=partners,
                own=own,
                unreadable=unreadable,
            )

    def _augmented(self, pixels: Tensor, rng: torch.Generator, *, clean: bool) -> Tensor:
        recipe = self.plan.recipe
        pixels = augment.flip(pixels, rng) if recipe.flip else pixels
        if recipe.policy != "none" and not clean:
            pixels = pixels.float()
            if recipe.policy == "rand":
                pixels = augment.rand_augment(pixels, recipe.magnitude, rng)
            else:
                pixels = augment.trivial_augment(pixels, rng)
        if recipe.lighting and not clean:
            pixels = augment.lighting(pixels.float(), recipe.lighting, rng)
        images = augment.normalize(pixels, self.mean, self.std)
        if recipe.crop == "pad":
            images = augment.pad_and_crop(images, rng)
        if recipe.erasing and not clean:
            images = augment.erase(images, recipe.erasing, rng)
        if recipe.cutout and not clean:
            images = augment.cutout(images, recipe.cutout, rng)
        return images
