"""Temperature scaling, which makes confidences as high as the accuracy (Guo et al. 2017).

One number divides all logits. The most probable class of an image stays the same, and so does the
accuracy; only the confidence changes. Networks that were trained with mixed images or smoothed
labels are usually underconfident, and other networks are overconfident.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from regnet.data.layout import Split
from regnet.data.loading import load, lost_workers
from regnet.data.sets import ImageSet, open_set
from regnet.engines.optimize import device_of
from regnet.errors import ConfigError, DataError
from regnet.evaluation import scores
from regnet.evaluation.datasets import match_classes
from regnet.evaluation.scores import Answers
from regnet.nn.model import AnyNet
from regnet.nn.views import evaluation_view
from regnet.zoo.create import preprocess

LEAST_IMAGES: Final = 100
"""With fewer images, a temperature depends mostly on chance."""

SHARE: Final = 0.1
MOST_IMAGES: Final = 5000
"""Training that calibrates holds out this share of its images, but at least `LEAST_IMAGES` and at
most `MOST_IMAGES`, with which a temperature is known to about one percent."""

RANGE: Final = (1e-4, 1e3)
"""Least and largest temperature. They are needed because the likelihood has no maximum if every
answer is correct, or if the confidences say nothing about the answers."""

_STEPS: Final = 70
"""Steps of bisection, after which the interval is narrower than float64 can resolve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A fitted temperature, and what it changes."""

    temperature: float
    """Fitted on all images."""
    halves: tuple[float, float]
    """Temperatures fitted on each half of the images."""
    images: int
    error_before: float
    """Expected calibration error without a temperature, in percent, over 15 bins."""
    error_after: float
    """The same with a temperature. The logits of each half are divided by the temperature of the
    other half, so that no image is judged by a temperature that was fitted on it."""
    top1: float
    """Top-1 accuracy in percent, which a temperature does not change."""


def hold_out(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return the images to calibrate on, and the rest to train on.

    Raises:
        DataError: there are fewer than three times `LEAST_IMAGES`.
    """
    if len(images) < 3 * LEAST_IMAGES:
        raise DataError(
            f"{images.source}: calibration holds {LEAST_IMAGES} images out, too many of "
            f"{len(images)}; train without it, then calibrate on other images with `regnet "
            "evaluate --calibrate`"
        )
    return images.held_out(min(max(int(SHARE * len(images)), LEAST_IMAGES), MOST_IMAGES))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature under which the labels are most likely.

    The likelihood is concave in 1 / temperature, so bisection of its slope finds the maximum.

    Args:
        logits: outputs of the network (N, classes).
        labels: correct outputs (N,), as integers.
    """
    z = logits.double()
    z = z - z.max(1, keepdim=True).values  # so that nothing overflows
    wanted = z.gather(1, labels[:, None])[:, 0].mean()
    low, high = 1 / RANGE[1], 1 / RANGE[0]
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        slope = wanted - ((middle * z).softmax(1) * z).sum(1).mean()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def judge(logits: Tensor, labels: Tensor, seed: int = 0) -> Calibration:
    """Fit a temperature, and measure by two-fold cross-fitting what it changes.

    Args:
        logits: outputs of the network (N, classes).
        labels: correct outputs (N,), as integers.
        seed: seed of the random division into halves.

    Raises:
        DataError: there are fewer than `LEAST_IMAGES` images, or all answers about half of them are
            right, so that no temperature is the best.
    """
    count = len(labels)
    if count < LEAST_IMAGES:
        raise DataError(
            f"calibration needs {LEAST_IMAGES} images or more, better 1,000; got {count}"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    halves = order[: count // 2], order[count // 2 :]
    right = logits.argmax(1) == labels
    first, second = (fit_temperature(logits[half], labels[half]) for half in halves)
    if any(bool(right[half].all()) for half in halves):
        raise DataError(
            f"no temperature can be fitted: {int(right.sum()):,} of {count:,} answers are right, "
            "too many to say how sure the others should be; calibrate on more, or harder, images"
        )
    crossed = logits.double().clone()
    crossed[halves[0]] /= second
    crossed[halves[1]] /= first
    before, after = (_answers(found) for found in (logits.double(), crossed))
    truth = labels.numpy()
    return Calibration(
        temperature=fit_temperature(logits, labels),
        halves=(first, second),
        images=count,
        error_before=scores.calibration_error(before, truth),
        error_after=scores.calibration_error(after, truth),
        top1=scores.top_k(before, truth, 1),
    )


def calibrate(
    model: AnyNet,
    data: ImageSet | str | Path,
    *,
    split: Split = "val",
    batch_size: int = 64,
    workers: int = 0,
    on_images: Callable[[int, int], None] = lambda _done, _all: None,
) -> Calibration:
    """Fit a temperature on labelled images, and fold it into the classifier of the model.

    The images should be ones that the model was not trained on.

    Args:
        model: the model, whose classifier is divided by the temperature in place.
        data: images, as `regnet.evaluate` takes them.
        split: which images to take from a source that holds several splits.
        batch_size: images per call.
        workers: processes that read images; 0: this process reads them.
        on_images: called with the number of finished images and the number of all images.

    Raises:
        ConfigError: the model has no linear classifier.
        DataError: the images cannot be used, are too few, or are those of a set with a part of the
            model's classes, such as ImageNet-A.
    """
    _classifier(model)
    images = data if isinstance(data, ImageSet) else open_set(data, split)
    names = model.card.labels if model.card else ()
    match = match_classes(images, names, model.num_classes)
    if match.restricted:
        raise DataError(
            f"{images.source} has images of {len(match.outputs)} of the model's "
            f"{model.num_classes} classes; calibration needs images of all of them"
        )
    outputs = torch.tensor(match.outputs)
    return calibrate_on(
        model, images, outputs, batch_size=batch_size, workers=workers, on_images=on_images
    )


def calibrate_on(
    model: AnyNet,
    images: ImageSet,
    outputs: Tensor | None = None,
    *,
    batch_size: int = 64,
    workers: int = 0,
    on_images: Callable[[int, int], None] = lambda _done, _all: None,
) -> Calibration:
    """Do what `calibrate` does, on images whose classes need not be matched by name.

    Args:
        model: the model, whose classifier is divided by the temperature in place.
        images: some classes may have none.
        outputs: (classes,), the model's output for each class of the images. None: classes and
            outputs have the same numbers.
        batch_size: images per call.
        workers: processes that read images; 0: this process reads them.
        on_images: called with the number of finished images and the number of all images.

    Raises:
        ConfigError: the model has no linear classifier.
        DataError: the images cannot be used, or are too few.
    """
    _classifier(model)
    device, network = device_of(model), evaluation_view(model)
    logits: list[Tensor] = []
    labels: list[int] = []
    with torch.inference_mode(), lost_workers():
        todo = range(len(images))
        for loaded in load(images, todo, preprocess(model), batch_size=batch_size, workers=workers):
            if loaded.images is not None:
                logits.append(network(loaded.images.to(device)).float().cpu())
                labels += [int(images.labels[index]) for index in loaded.indices]
            on_images(len(labels), len(images))
    if not labels:
        raise DataError(f"none of the {len(images)} images of {images.source} can be read")
    wanted = torch.tensor(labels)
    found = judge(torch.cat(logits), wanted if outputs is None else outputs[wanted])
    fold(model, found.temperature)
    return found


def fold(model: AnyNet, temperature: float) -> None:
    """Divide the classifier of a model by a temperature, in place.

    Raises:
        ConfigError: the model has no linear classifier.
    """
    layer = _classifier(model)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                tensor.div_(temperature)


def _classifier(model: AnyNet) -> nn.Linear:
    layer = model.get_classifier()
    if not isinstance(layer, nn.Linear):
        raise ConfigError("this model has no linear classifier to calibrate")
    return layer


def _answers(logits: Tensor) -> Answers:
    values, top = logits.softmax(1).topk(1)
    return Answers(indices=np.arange(len(logits)), top=top.numpy(), confidence=values[:, 0].numpy())
