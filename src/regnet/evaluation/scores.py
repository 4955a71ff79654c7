"""Compute accuracies and other scores: pure functions of answers and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

TOP: Final = 5
"""Most probable outputs that are saved for each image."""

CALIBRATION_BINS: Final = 15

LIST_PAIRS: Final = 20
"""Most pairs of classes that `confusions` lists."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A model's answers for some images of a set."""

    indices: Ints
    """(N,): numbers of the images in the set."""
    top: Ints
    """(N, 5): the most probable outputs, best first; fewer if the model has fewer outputs."""
    confidence: Floats
    """(N,): probability of the best output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """The accuracy of one class."""

    name: str
    images: int
    top1: float | None
    """In percent; None if the class has no images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Images of one class that were taken for another class."""

    label: str
    answer: str
    images: int


def top_k(answers: Answers, labels: Ints, k: int) -> float:
    """Return the share of images whose label is among the k best answers, in percent."""
    hits = (answers.top[:, :k] == labels[answers.indices, None]).any(1)
    return 100 * float(hits.mean()) if len(hits) else 0.0


def top1_of_sets(answers: Answers, allowed: Sequence[frozenset[int]]) -> tuple[float, int]:
    """Return the share of images whose answer is allowed, in percent, and how many images count.

    Images without an allowed answer do not count (ReaL, Beyer et al. 2020).
    """
    judged = [
        answer in allowed[index]
        for index, answer in zip(answers.indices.tolist(), answers.top[:, 0].tolist(), strict=True)
        if allowed[index]
    ]
    return (100 * sum(judged) / len(judged) if judged else 0.0), len(judged)


def calibration_error(answers: Answers, labels: Ints) -> float:
    """Return the expected calibration error in percent (Guo et al. 2017).

    It is the mean distance between confidence and accuracy over 15 bins of equal width, in which
    each bin is weighted by its number of images.
    """
    if not len(answers.indices):
        return 0.0
    hits = answers.top[:, 0] == labels[answers.indices]
    bins = np.minimum((answers.confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, hits - answers.confidence, CALIBRATION_BINS)
    return 100 * float(np.abs(gaps).sum()) / len(hits)


def by_class(answers: Answers, labels: Ints, names: Mapping[int, str]) -> list[ClassResult]:
    """Return the top-1 accuracy of each class of the set; `names` maps outputs to names."""
    truth = labels[answers.indices]
    hits = answers.top[:, 0] == truth
    size = max(names, default=-1) + 1
    counts, right = np.bincount(truth, minlength=size), np.bincount(truth, hits, size)
    return [
        ClassResult(
            name=name,
            images=int(counts[output]),
            top1=100 * float(right[output] / counts[output]) if counts[output] else None,
        )
        for output, name in names.items()
    ]


def confusions(
    answers: Answers, labels: Ints, names: Mapping[int, str], *, limit: int = LIST_PAIRS
) -> list[Confusion]:
    """Return the most frequent mistakes, as pairs of a label and an answer."""
    truth, answer = labels[answers.indices], answers.top[:, 0]
    wrong = truth != answer
    pairs, counts = np.unique(np.stack([truth[wrong], answer[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    return [
        Confusion(
            label=names.get(int(pairs[0, n]), str(pairs[0, n])),
            answer=names.get(int(pairs[1, n]), str(pairs[1, n])),
            images=int(counts[n]),
        )
        for n in order
    ]


def confusion_matrix(answers: Answers, labels: Ints, outputs: Sequence[int]) -> list[list[int]]:
    """Count the images by label (rows) and answer (columns), among these outputs."""
    place = {output: number for number, output in enumerate(outputs)}
    matrix = np.zeros((len(place), len(place)), dtype=int)
    for label, answer in zip(
        labels[answers.indices].tolist(), answers.top[:, 0].tolist(), strict=True
    ):
        if label in place and answer in place:
            matrix[place[label], place[answer]] += 1
    return [[int(value) for value in row] for row in matrix]


FEWEST: Final = 5
"""Images that a class must have before `find_shuffle` considers its most frequent answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle:
    """A sign that labels belong to other outputs than was assumed."""

    moved: int
    """Number of classes whose images are mostly taken for one other class."""
    top1: float
    """The accuracy, in percent, if each of these classes were the one its images are taken for."""
    example: tuple[str, str]
    """A class, and the class that its images are taken for."""


def find_shuffle(answers: Answers, labels: Ints, names: Mapping[int, str]) -> Shuffle | None:
    """Return a sign that classes were exchanged; None if there is none.

    Every model confuses a few classes, so that most images of one class are taken for another. That
    is a sign only in two cases. In the first, two classes are taken for each other, each by more
    than four of five images. In the second, at least three classes and one in fifty are mostly
    taken for another class, and for hardly two of them is it the same class.
    """
    truth, answer = labels[answers.indices], answers.top[:, 0]
    taken: dict[int, tuple[int, float]] = {}
    hits: dict[int, int] = {}
    for label in np.unique(truth).tolist():
        values, counts = np.unique(answer[truth == label], return_counts=True)
        best = int(counts.argmax())
        hits[label] = int(counts[values == label].sum())
        if counts.sum() >= FEWEST and 2 * counts[best] > counts.sum() and values[best] != label:
            taken[label] = int(values[best]), float(counts[best] / counts.sum())
            hits[label] = int(counts[best])
    pairs = {
        label: found
        for label, (found, share) in taken.items()
        if share > 0.8 and taken.get(found, (None, 0))[0] == label and taken[found][1] > 0.8
    }
    targets = [found for found, _ in taken.values()]
    many = len(taken) >= max(3, len(hits) / 50) and len(set(targets)) >= 0.9 * len(targets)
    moved = {label: found for label, (found, _) in taken.items()} if many else pairs
    if not moved:
        return None
    kept = sum(int((answer[truth == n] == n).sum()) for n in hits.keys() - moved.keys())
    right = kept + sum(hits[label] for label in moved)
    label, found = next(iter(moved.items()))
    return Shuffle(
        moved=len(moved),
        top1=100 * right / len(truth),
        example=(names.get(label, str(label)), names.get(found, str(found))),
    )
