"""Classify a few images: the most probable classes with their probabilities."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from regnet.data.images import ImageSource, image_name
from regnet.data.preprocess import Preprocess
from regnet.engines.files import FileNetwork, open_model
from regnet.errors import ConfigError, EngineError, ImageError
from regnet.nn.features import FeatureNet
from regnet.nn.model import AnyNet
from regnet.nn.views import evaluation_view, unwrapped
from regnet.zoo.create import preprocess

DEFAULT_MODEL = "regnety_cifar"
"""The variant whose weights are part of the package."""

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class and its probability."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The most probable classes of one image, the best first.

    If the image cannot be read, there are no classes, and `error` contains the reason.
    """

    image: str
    classes: tuple[ClassScore, ...] = ()
    error: str | None = None


def predict(
    images: ImageSource | Iterable[ImageSource],
    model: AnyNet | FileNetwork | str = DEFAULT_MODEL,
    *,
    topk: int | None = None,
    trust: bool = False,
) -> list[Prediction]:
    """Classify images, and return one `Prediction` for each.

    `predict_collection` classifies any number of images into a file, and can be resumed.

    Args:
        images: paths or Pillow images; one, or any iterable of them.
        model: a model that `create` built, any name with weights that `create` accepts (a
            checkpoint, a folder), or the path of an exported file (.onnx, .xml).
        topk: classes per image; None: 5, or all if the model has fewer.
        trust: also open .pt2 files, which can run code.

    Raises:
        ImageError: an image cannot be read.
        ConfigError: there is no such model, the model has no classifier, or `topk` is not between 1
            and its number of classes.
        WeightsError: there are no such weights.
    """
    several = [images] if isinstance(images, (str, Path, Image.Image)) else images
    results = list(predict_each(several, model, topk=topk, trust=trust))
    for result in results:
        if result.error:
            raise ImageError(result.error)
    return results


def predict_each(
    images: Iterable[ImageSource],
    model: AnyNet | FileNetwork | str = DEFAULT_MODEL,
    *,
    topk: int | None = None,
    trust: bool = False,
) -> Iterator[Prediction]:
    """Classify images like `predict`, and yield each result as it is ready.

    An image that cannot be read gives a result with `error` instead of an exception.
    """
    network: Any = open_model(model, trust=trust) if isinstance(model, str) else model
    if isinstance(network, nn.Module):
        network = unwrapped(network)
    if not isinstance(network, AnyNet | FeatureNet | FileNetwork):
        raise ConfigError(
            "model must be a network of this library, or a name, got "
            f"{type(network).__module__}.{type(network).__name__}"
        )
    if isinstance(network, FeatureNet):
        raise ConfigError("feature networks have no classifier; create it without features_only")
    if not network.num_classes:
        raise ConfigError("this model has no classifier; create it with num_classes=...")
    classes = network.num_classes
    return _results(images, network, check_topk(topk, classes))


def _results(
    images: Iterable[ImageSource], model: AnyNet | FileNetwork, topk: int
) -> Iterator[Prediction]:
    transform, network = preprocess(model), evaluation_view(model)
    reference = next(model.parameters(), torch.empty(0))  # an exported file has no parameters
    remaining = iter(images)
    while batch := list(islice(remaining, BATCH_SIZE)):
        inputs = [_read(image, transform) for image in batch]
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        scores: Iterator[tuple[ClassScore, ...]] = iter(())
        if tensors:
            stacked = torch.stack(tensors).to(reference.device, reference.dtype)
            with torch.inference_mode():
                probabilities = network(stacked).float().softmax(1).cpu()
            if not probabilities.isfinite().all():
                named = ", ".join(image_name(image) for image in batch)
                raise EngineError(
                    f"the outputs for {named} are not finite; check the weights, or use another "
                    "precision"
                )
            scores = _top(probabilities, topk, labels_of(model))
        for image, x in zip(batch, inputs, strict=True):
            if isinstance(x, ImageError):
                yield Prediction(image=image_name(image), error=str(x))
            else:
                yield Prediction(image=image_name(image), classes=next(scores))


def _read(image: ImageSource, transform: Preprocess) -> Tensor | ImageError:
    try:
        return transform(image)
    except ImageError as error:
        return error


def _top(
    probabilities: Tensor, topk: int, labels: Sequence[str]
) -> Iterator[tuple[ClassScore, ...]]:
    values, indices = probabilities.topk(topk, dim=1)
    for row_values, row_indices in zip(values.tolist(), indices.tolist(), strict=True):
        yield tuple(
            ClassScore(index=index, label=labels[index], probability=value)
            for value, index in zip(row_values, row_indices, strict=True)
        )


def check_topk(topk: int | None, classes: int) -> int:
    """Return the number of classes to report per image; None: 5, or all if there are fewer.

    Raises:
        ConfigError: it is not a whole number between 1 and the number of classes.
    """
    if topk is None:
        return min(5, classes)
    if isinstance(topk, bool) or not isinstance(topk, Integral) or not 1 <= topk <= classes:
        raise ConfigError(
            "topk must be a whole number between 1 and the number of classes, "
            f"{classes}; got {topk!r}"
        )
    return int(topk)


def labels_of(model: AnyNet | FileNetwork) -> Sequence[str]:
    """Return the names of a model's classes, or "class 0", "class 1", ... if it has no names."""
    labels: Sequence[str] = model.card.labels if model.card else ()
    if len(labels) == model.num_classes:
        return labels
    return [f"class {index}" for index in range(model.num_classes)]
