"""Measure the accuracy of a model on labelled images, and compare it with the published one."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor

from regnet import documents
from regnet.data.layout import Split
from regnet.data.loading import load, lost_workers
from regnet.data.preprocess import Preprocess
from regnet.data.sets import ImageSet, open_set, refuse_new_class
from regnet.devices import find_device
from regnet.engines.base import Precision
from regnet.engines.files import FileNetwork, open_model
from regnet.engines.optimize import device_of
from regnet.engines.running import running
from regnet.errors import ConfigError, DataError, EngineError, check_whole, unknown
from regnet.evaluation import scores
from regnet.evaluation.datasets import BY_ORDER, Match, identify, match_classes
from regnet.evaluation.kept import Kept, kept
from regnet.evaluation.scores import Answers, ClassResult, Confusion, Shuffle
from regnet.machine import environment
from regnet.nn.model import AnyNet
from regnet.nn.views import digest_of, evaluation_view, unwrapped
from regnet.paths import expanded
from regnet.prediction.images import DEFAULT_MODEL
from regnet.process_group import Group, joined
from regnet.weights.card import Card
from regnet.weights.catalog import checkpoints
from regnet.zoo.create import preprocess

SAME: Final = 0.1
"""Percentage points within which a measured accuracy counts as the published one. Decoders,
rounding and batch sizes change the answers for a few of 50,000 images."""

MATRIX_CLASSES: Final = 50
"""Most classes for which the complete confusion matrix is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published accuracy beside the measured one."""

    dataset: str
    top1: float
    image_size: int
    difference: float
    """Measured minus published accuracy, in percentage points."""
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of an evaluation. Accuracies are in percent."""

    model: str
    weights: str
    """SHA-256 over the model's tensors, 16 digits."""
    source: str
    dataset: str | None
    """Name of the published data set that the images are; None if they are not known to be one."""
    fingerprint: str
    count: int
    """Number of images in the set."""
    evaluated: int
    """Number of images that could be read."""
    top1: float
    """Accuracy on the images that could be read."""
    top5: float | None
    """None if the set has five classes or fewer."""
    real_top1: float | None
    """Accuracy by the labels of ImageNet-ReaL, if they were given."""
    calibration_error: float
    published: Published | None
    published_real: Published | None
    matched_by: str
    restricted: bool
    """Whether only the classes of the set competed."""
    warnings: tuple[str, ...]
    unreadable: tuple[str, ...]
    """Images that could not be read, each with the reason; they do not count in the accuracy."""
    preprocess: dict[str, Any]
    engine: str
    precision: str
    classes: tuple[ClassResult, ...]
    confusions: tuple[Confusion, ...]
    confusion_matrix: list[list[int]] | None
    answers: tuple[int | None, ...] = field(repr=False)
    """The most probable output for each image, in the order of the set; None: it was not readable.
    """
    environment: dict[str, Any]

    def agreement(self, other: "Evaluation") -> float:
        """Return the share of images, in percent, with the same class in another evaluation."""
        pairs = zip(self.answers, other.answers, strict=True)
        same = sum(ours == theirs for ours, theirs in pairs if ours is not None)
        return 100 * same / self.evaluated


def evaluate(
    model: AnyNet | FileNetwork | str = DEFAULT_MODEL,
    data: ImageSet | str | Path = ".",
    *,
    split: Split = "val",
    engine: str = "eager",
    precision: Precision = "fp32",
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str | None = None,
    larger: bool = False,
    image_size: int | None = None,
    crop_pct: float | None = None,
    dataset: str | None = None,
    real_labels: str | Path | None = None,
    keep: str | Path | None = None,
    trust: bool = False,
    on_images: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure the accuracy of a model on labelled images.

    Under `torchrun` the processes share the images.

    Args:
        model: a model that `create` built, the name of a checkpoint or whatever else `create` takes
            (a folder, a file of weights), or an exported file (.onnx, .xml; .pt2 if trusted), which
            runs as it is.
        data: images, as `regnet.data.sets.open_set` takes them.
        split: which images to take from a source that holds several splits.
        engine: the engine that runs the network, by its name in `regnet.engines`; its outputs are
            checked first.
        precision: precision to compute in; eager computes in the precision of the weights.
        batch_size: images per call.
        workers: processes that read images; 0: this process reads them.
        device: device to run on; None: the device of the model. The model itself is not moved.
        larger: use the checkpoint's larger test setting, if its publisher gives one.
        image_size: side of the images in pixels, instead of the checkpoint's.
        crop_pct: part of the image's shorter side that the crop keeps, instead of the checkpoint's.
        dataset: name of the published set, if it cannot be recognized.
        real_labels: the file `real.json` of ImageNet-ReaL, for ImageNet-1k's validation images.
        keep: a folder to save the answers in; pass it again to resume an interrupted evaluation.
            Images that could not be read are tried again.
        trust: open .pt2 files, which can run code.
        on_images: called with the number of finished images and the number of all images; under
            `torchrun` they are those of the first process.

    Raises:
        ConfigError: there is no such model, engine or setting.
        DataError: the images cannot be used, or are not of the model's classes.
        EngineError: the engine cannot run the network, or its outputs are not finite.
        WeightsError: there are no such weights.
    """
    batch_size = check_whole("batch_size", batch_size, least=1)
    images = data if isinstance(data, ImageSet) else open_set(data, split)
    opened = open_model(model, trust=trust) if isinstance(model, str) else model
    network = cast("AnyNet | FileNetwork", unwrapped(opened))
    if not network.num_classes:
        raise ConfigError("this model has no classifier; create it with num_classes")
    if dataset is not None:
        _check_dataset(dataset, network)
    look = _look(network, larger=larger, image_size=image_size, crop_pct=crop_pct)
    names: Sequence[str] = network.card.labels if network.card else ()
    match = match_classes(images, names, network.num_classes)
    allowed = _real(expanded(real_labels), images) if real_labels is not None else None
    keep = None if keep is None else expanded(keep)
    if keep is not None and not isinstance(data, ImageSet):
        refuse_new_class(keep, data)
    weights, home = digest_of(network), device_of(network)
    with joined(find_device(device) if device is not None else home) as group:
        what = {
            "weights": weights,
            "images": images.fingerprint,
            "modified": images.modified if keep is not None else "",
            "preprocess": look,
            "engine": engine,
            "precision": precision,
        }
        folder = nullcontext() if keep is None else kept(keep, what, group, images=len(images))
        with folder as saved:
            there = evaluation_view(opened)
            if group.device != home:
                there = deepcopy(network).eval().to(group.device)
            runner, ran = _runner(there, look, engine, precision, batch_size, group)
            records = _answers(
                images,
                runner,
                look,
                match,
                group=group,
                batch_size=batch_size,
                workers=workers,
                saved=saved,
                on_images=on_images,
            )
    found, failures = _merged(records, len(images))
    return _judged(
        network=network,
        name=model if isinstance(model, str) else (network.card or Card()).name,
        weights=weights,
        images=images,
        dataset=dataset or identify(images, match),
        match=match,
        answers=found,
        failures=failures,
        allowed=allowed,
        look=look,
        engine=network.runtime if isinstance(network, FileNetwork) else engine,
        precision=ran,
        device=group.device,
    )


def _look(
    network: AnyNet | FileNetwork, *, larger: bool, image_size: int | None, crop_pct: float | None
) -> Preprocess:
    look = preprocess(network)
    if larger:
        if network.card is None or network.card.larger is None:
            raise ConfigError("this checkpoint has no larger test setting; leave --larger out")
        look = network.card.larger.for_channels(look.channels)
    if image_size is not None:
        look = replace(look, size=(image_size, image_size))
    if crop_pct is not None:
        look = replace(look, crop_pct=crop_pct)
    return look


def _runner(
    network: AnyNet | FileNetwork,
    look: Preprocess,
    engine: str,
    precision: Precision,
    batch_size: int,
    group: Group,
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return a function that runs batches, and the precision that it computes in."""
    if isinstance(network, FileNetwork):
        if engine != "eager" or group.device.type != "cpu" or precision != "fp32":
            raise ConfigError(
                f"{network.path} always runs in {network.runtime} on the CPU, in its own "
                "precision; leave engine, device and precision out"
            )
        return (lambda x: network(x).float()), network.precision
    shape = (batch_size, network.config.in_chans, *look.size)
    return running(network, shape, engine, precision, group.device)


def _answers(
    images: ImageSet,
    runner: Callable[[Tensor], Tensor],
    look: Preprocess,
    match: Match,
    *,
    group: Group,
    batch_size: int,
    workers: int,
    saved: Kept | None,
    on_images: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """Return the answers of all processes, with at least one record for each image."""
    share = group.block(len(images))
    records = [] if saved is None else saved.records
    done = {record["image"] for record in records if "error" not in record}
    missing = [index for index in share if index not in done]
    own: list[dict[str, Any]] = []
    present = sorted(match.outputs[label] for label in images.present)
    competing = torch.tensor(present) if match.restricted else None
    with torch.inference_mode(), lost_workers():
        for loaded in load(images, missing, look, batch_size=batch_size, workers=workers):
            new: list[dict[str, Any]] = [
                {"image": index, "error": reason} for index, reason in loaded.failures
            ]
            if loaded.images is not None:
                logits = runner(loaded.images.to(group.device))
                new += _records(loaded.indices, logits, competing)
            own += new
            if saved is not None:
                saved.add(new)
            if on_images and group.leads:
                on_images(len(share) - len(missing) + len(own), len(share))
    return [record for part in group.gather(records + own) for record in part]


def _records(
    indices: Sequence[int], logits: Tensor, competing: Tensor | None
) -> Iterator[dict[str, Any]]:
    probabilities = logits.float().cpu()
    if not probabilities.isfinite().all():
        raise EngineError(
            f"the outputs for images {indices[0]} to {indices[-1]} are not finite; use a higher "
            "precision, or check that the weights are intact"
        )
    if competing is not None:
        probabilities = probabilities[:, competing]
    probabilities = probabilities.softmax(1)
    values, top = probabilities.topk(min(scores.TOP, probabilities.shape[1]))
    if competing is not None:
        top = competing[top]
    for index, found, best in zip(indices, top.tolist(), values[:, 0].tolist(), strict=True):
        yield {"image": index, "top": found, "confidence": best}


def _merged(records: Sequence[Mapping[str, Any]], count: int) -> tuple[Answers, dict[int, str]]:
    """Return the answer, or the reason for failure, of each image once and in order."""
    by_image: dict[int, Mapping[str, Any]] = {}
    for record in records:
        before = by_image.get(record["image"])
        if before is None or "error" in before:  # an image may fail in one evaluation only
            by_image[record["image"]] = record
    assert sorted(by_image) == list(range(count)), "every image is answered or has failed"
    read = [r for _, r in sorted(by_image.items()) if "error" not in r]
    failures = {image: r["error"] for image, r in sorted(by_image.items()) if "error" in r}
    if not read:
        raise DataError(f"none of the {count} images can be read; the first: {failures[0]}")
    return (
        Answers(
            indices=np.array([r["image"] for r in read], dtype=np.int64),
            top=np.array([r["top"] for r in read], dtype=np.int64),
            confidence=np.array([r["confidence"] for r in read]),
        ),
        failures,
    )


def _real(path: Path, images: ImageSet) -> list[frozenset[int]]:
    """Return the allowed answers of each image, by the number in the name of its file."""
    try:
        table = documents.load(path, "the real.json of ImageNet-ReaL")
        sets = [frozenset(int(label) for label in labels) for labels in list(table)]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not the real.json of ImageNet-ReaL ({error})") from error
    found = []
    for name in images.names:
        number = re.search(r"ILSVRC2012_val_(\d{8})", name)
        if not number or not 1 <= int(number[1]) <= len(sets):
            raise DataError(
                f"{images.source}: {name} is not named as ImageNet's validation images are "
                "(ILSVRC2012_val_00000001.JPEG), so its labels in ReaL are not known"
            )
        found.append(sets[int(number[1]) - 1])
    return found


def _judged(
    *,
    network: AnyNet | FileNetwork,
    name: str,
    weights: str,
    images: ImageSet,
    dataset: str | None,
    match: Match,
    answers: Answers,
    failures: Mapping[int, str],
    allowed: Sequence[frozenset[int]] | None,
    look: Preprocess,
    engine: str,
    precision: str,
    device: torch.device,
) -> Evaluation:
    labels = np.array(match.outputs, dtype=np.int64)[images.labels]
    known: Sequence[str] = network.card.labels if network.card else ()
    of_source = {output: images.classes[n] for n, output in enumerate(match.outputs)}
    names = {
        output: known[output] if output < len(known) else of_source.get(output, str(output))
        for output in range(network.num_classes)
    }
    present = [match.outputs[label] for label in images.present]
    top1 = scores.top_k(answers, labels, 1)
    real = scores.top1_of_sets(answers, allowed)[0] if allowed is not None else None

    def published(name: str | None, found: float | None) -> Published | None:
        return _published(network, name, look, found, len(failures))

    return Evaluation(
        model=name,
        weights=weights,
        source=images.source,
        dataset=dataset,
        fingerprint=images.fingerprint,
        count=len(images),
        evaluated=len(answers.indices),
        top1=top1,
        top5=scores.top_k(answers, labels, 5) if len(present) > scores.TOP else None,
        real_top1=real,
        calibration_error=scores.calibration_error(answers, labels),
        published=published(dataset, top1),
        published_real=published("imagenet-real", real),
        matched_by=match.how,
        restricted=match.restricted,
        warnings=_warnings(
            match, scores.find_shuffle(answers, labels, names), failures, named=bool(known)
        ),
        unreadable=tuple(failures.values()),
        preprocess=asdict(look),
        engine=engine,
        precision=precision,
        classes=tuple(scores.by_class(answers, labels, {n: names[n] for n in present})),
        confusions=tuple(scores.confusions(answers, labels, names)),
        confusion_matrix=scores.confusion_matrix(answers, labels, present)
        if len(present) <= MATRIX_CLASSES
        else None,
        answers=_in_order(answers, len(images)),
        environment=environment(device),
    )


def _in_order(answers: Answers, count: int) -> tuple[int | None, ...]:
    found = dict(zip(answers.indices.tolist(), answers.top[:, 0].tolist(), strict=True))
    return tuple(found.get(index) for index in range(count))


def _warnings(
    match: Match, shuffle: Shuffle | None, failures: Mapping[int, str], *, named: bool
) -> tuple[str, ...]:
    found = []
    if match.how == BY_ORDER and named:
        found.append(
            "most folders do not have the name of one of the model's classes, so classes were "
            "matched by the order of the folders, which may be wrong"
        )
    if match.missing:
        some = ", ".join(match.missing[:3])
        found.append(f"{len(match.missing)} of the model's classes have no folder here: {some}")
    if shuffle:
        label, answer = shuffle.example
        found.append(
            f"the order of the classes looks wrong: the images of {shuffle.moved} classes are "
            f"mostly taken for one other class each, such as {label!r} for {answer!r}; top-1 would "
            f"be {shuffle.top1:.1f} % if these were exchanged. Classes were matched by "
            f"{match.how}; check that the folders have their usual names"
        )
    if failures:
        found.append(f"{len(failures)} images cannot be read and do not count in the accuracy")
    return tuple(found)


def _check_dataset(name: str, network: AnyNet | FileNetwork) -> None:
    """Refuse the name of a data set for which neither a checkpoint nor the card has an accuracy."""
    metrics = [metric for row in checkpoints().values() for metric in row.metrics]
    if network.card:
        metrics += network.card.metrics
    known = sorted({metric.dataset for metric in metrics})
    if name not in known:
        raise ConfigError(unknown("published data set", name, known))


def _published(
    network: AnyNet | FileNetwork,
    dataset: str | None,
    look: Preprocess,
    found: float | None,
    failures: int,
) -> Published | None:
    """Compare with the accuracy that the card states for this set and setting, if it states one."""
    usual = preprocess(network)
    rows = [
        row
        for row in (network.card.metrics if network.card else ())
        if row.dataset == dataset
        and (row.image_size or usual.size[0]) == look.size[0]
        and abs((row.crop_pct or usual.crop_pct) - look.crop_pct) < 1e-3
    ]
    if not rows or found is None:
        return None
    top1 = rows[0].top1
    difference = found - top1
    if failures:
        verdict = f"not comparable: {failures} images cannot be read"
    elif abs(difference) <= SAME:
        verdict = f"the same, within {SAME} points"
    else:
        verdict = f"{abs(difference):.2f} points {'above' if difference > 0 else 'below'}"
    return Published(
        dataset=rows[0].dataset,
        top1=top1,
        image_size=look.size[0],
        difference=difference,
        verdict=verdict,
    )
