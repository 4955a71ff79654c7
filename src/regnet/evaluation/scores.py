"""What the answers of a model are worth: pure functions of answers and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

TOP: Final = 5
CALIBRATION_BINS: Final = 15
LIST_PAIRS: Final = 20

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A model's answers for some images of a set, by the number of the image."""

    indices: Ints
    """(N,)"""
    top: Ints
    """(N, 5): the most probable outputs, best first; fewer where the model has fewer."""
    confidence: Floats
    """(N,): probability of the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """One class."""

    name: str
    images: int
    top1: float | None
    """In percent; None where it has no images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Images of one class that were taken for another."""

    label: str
    answer: str
    images: int


def top_k(answers: Answers, labels: Ints, k: int) -> float:
    """Images whose label is among the k best answers, in percent."""
    hits = (answers.top[:, :k] == labels[answers.indices, None]).any(1)
    return 100 * float(hits.mean()) if len(hits) else 0.0


def top1_of_sets(answers: Answers, allowed: Sequence[frozenset[int]]) -> tuple[float, int]:
    """Images whose answer is among their allowed ones, in percent, and how many images count.

    Images without an allowed answer do not count (ReaL, Beyer et al. 2020).
    """
    judged = [
        answer in allowed[index]
        for index, answer in zip(answers.indices.tolist(), answers.top[:, 0].tolist(), strict=True)
        if allowed[index]
    ]
    return (100 * sum(judged) / len(judged) if judged else 0.0), len(judged)


def calibration_error(answers: Answers, labels: Ints) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over 15 equal bins.

    In percent; each bin weighs as much as it has images (Guo et al. 2017).
    """
    if not len(answers.indices):
        return 0.0
    hits = answers.top[:, 0] == labels[answers.indices]
    bins = np.minimum((answers.confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, hits - answers.confidence, CALIBRATION_BINS)
    return 100 * float(np.abs(gaps).sum()) / len(hits)


def by_class(answers: Answers, labels: Ints, names: Mapping[int, str]) -> list[ClassResult]:
    """Top-1 of each class; `names` has those that the set knows."""
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
    """The most frequent mistakes."""
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
    """Images by label (rows) and answer (columns), of these outputs."""
    place = {output: number for number, output in enumerate(outputs)}
    matrix = np.zeros((len(place), len(place)), dtype=int)
    for label, answer in zip(
        labels[answers.indices].tolist(), answers.top[:, 0].tolist(), strict=True
    ):
        if label in place and answer in place:
            matrix[place[label], place[answer]] += 1
    return [[int(value) for value in row] for row in matrix]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle:
    """A sign that labels belong to other outputs than was assumed."""

    moved: int
    """Classes whose images are mostly taken for one other class."""
    top1: float
    """What accuracy would be if each class were the output that its images are taken for."""
    example: tuple[str, str]
    """A class, and what its images are taken for."""


def find_shuffle(answers: Answers, labels: Ints, names: Mapping[int, str]) -> Shuffle | None:
    """Whether classes look exchanged: the model is sure of another one, a different one for each.

    Half of the images of a class must be taken for one other class, in two classes and in one of
    fifty, and no two of them for the same: a model mixes up a few classes of its own accord.
    """
    truth, answer = labels[answers.indices], answers.top[:, 0]
    taken: dict[int, int] = {}
    right = 0
    for label in np.unique(truth).tolist():
        own = answer[truth == label]
        values, counts = np.unique(own, return_counts=True)
        best = int(counts.argmax())
        right += int(counts[best])
        if 2 * counts[best] > len(own):
            taken[label] = int(values[best])
    moved = {label: found for label, found in taken.items() if label != found}
    distinct = len(set(moved.values())) == len(moved)
    if len(moved) < max(2, len(np.unique(truth)) / 50) or not distinct:
        return None
    label, found = next(iter(moved.items()))
    return Shuffle(
        moved=len(moved),
        top1=100 * right / len(truth),
        example=(names.get(label, str(label)), names.get(found, str(found))),
    )
