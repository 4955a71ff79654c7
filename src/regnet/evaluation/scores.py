"""Compute accuracies and other scores: pure functions of answers and labels."""

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


FEWEST: Final = 5
"""Images of a class from which on its most frequent answer says something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle:
    """A sign that labels belong to other outputs than was assumed."""

    moved: int
    """Classes whose images are mostly taken for one other class."""
    top1: float
    """What accuracy would be if each of them were the output that its images are taken for."""
    example: tuple[str, str]
    """A class, and what its images are taken for."""


def find_shuffle(answers: Answers, labels: Ints, names: Mapping[int, str]) -> Shuffle | None:
    """Whether classes look exchanged.

    A model mixes up a few classes of its own accord: most images of one are taken for another. It
    is a sign only where two are taken for each other by four of five images, or where many are
    moved, one in fifty and three at least, and hardly two of them to the same place.
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
