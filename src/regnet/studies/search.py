"""A network that is good on one's own images and fast enough: trained, not guessed.

Candidates within the limits, and published networks beside them, are trained shortly by successive
halving (Jamieson and Talwalkar 2016): all of them for a quarter of the epochs, the better half for
half of them, the better half of those for all. Each round is a study in a folder of its own, so
that it is resumed and worked on like any other. Then the best candidate and the best published
network are trained again with seeds that chose neither, and those trainings alone are compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from pathlib import Path
from statistics import fmean, variance
from typing import Any, Final, Literal

from regnet import documents, runfolder
from regnet.data.sets import ImageSet
from regnet.design.config import AnyNetConfig, RegNetConfig, config_from_dict
from regnet.devices import core_count
from regnet.errors import ConfigError, StudyError
from regnet.executors import Executor
from regnet.selection.limits import Limits, Measured
from regnet.selection.search import Contenders, OnStep, contenders
from regnet.spaces.paper import search_space
from regnet.spaces.space import Space
from regnet.studies import population
from regnet.studies.store import Row
from regnet.studies.study import Given, Study
from regnet.studies.task import fingerprints
from regnet.training.input import Images, seed_of
from regnet.training.recipe import Recipe

FILE: Final = "search.json"

CANDIDATES: Final = 16
"""Networks that are trained, where no budget says how many."""

FEWEST: Final = 4
"""With fewer candidates there is nothing to halve."""

SHARES: Final = (0.25, 0.5, 1.0)
"""Of the epochs, that the rounds train; each after the first has half as many candidates."""

REPLICAS: Final = 4
"""Trainings of the best candidate, and of the best published network, that are compared."""

_STUDENT: Final[Mapping[int, float]] = {
    2: 4.302653, 4: 2.776445, 6: 2.446912, 8: 2.306004, 10: 2.228139, 12: 2.178813, 14: 2.144787,
    16: 2.119905, 18: 2.100922,
}  # fmt: skip
"""Student's t, two-sided 95 %, by degrees of freedom."""

CONFIRM: Final = "confirm"

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network that was trained for all epochs."""

    name: str
    """Of a published network; else `candidate` and a number."""
    config: RegNetConfig | AnyNetConfig
    error: float
    """In percent, with the seed that also chose it."""
    flops: int
    params: int
    latency_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The error of the best published network less that of the pick, in points, on fresh seeds."""

    points: float
    low: float
    high: float
    """95 % interval (Student's t, equal variances)."""
    replicas: int
    pick_error: float
    rival_error: float
    """Means, in percent."""

    @property
    def verdict(self) -> Verdict:
        """What the interval bears out."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What a search with images came to."""

    pick: Trained
    rival: Trained | None
    """The best published network within the limits; None where none is."""
    against_rival: Difference | None
    trained: tuple[Trained, ...]
    """All networks of the last round, by error."""
    front: tuple[Trained, ...]
    """Those of them of which none is both better and faster, by latency."""
    seed_deviation: float | None
    """Standard deviation of the error between seeds, in points, from the last trainings."""
    candidates: int
    conditions: dict[str, Any]
    """Engine, precision, batch and image size of the latencies, and the machine."""
    doubts: tuple[str, ...]
    """What weakens the latencies."""


def search_with_data(
    folder: str | Path,
    limits: Limits,
    *,
    data: str,
    recipe: Recipe,
    val: str | None = None,
    space: Space | None = None,
    candidates: int = CANDIDATES,
    budget: float | None = None,
    replicas: int = REPLICAS,
    train_images: int | None = None,
    val_images: int | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    on_step: OnStep | None = None,
    on_round: Callable[[str, Path], Callable[[Row], None]] | None = None,
    **measuring: Any,
) -> Searched:
    """Search; called again with the same arguments, go on.

    Args:
        folder: of the search, new or begun.
        limits: the most that the network may cost.
        data: training images, as `regnet.train` takes them.
        recipe: how networks are trained.
        val: images that measure errors; None: beside the training images.
        space: of RegNets; None: `search_space()`. It gets the classes and the size of the images.
        candidates: networks that are trained, besides published ones, at most.
        budget: seconds that all cores of this machine may train, roughly: fewer candidates are
            trained where that would take longer; None: any time.
        replicas: trainings of the pick and of its rival that are compared, 2 to 10.
        train_images: of the training images, as many.
        val_images: of the others likewise.
        seed: of all that is random.
        executor: who trains; None: processes, one per core.
        on_step: called with what is measured, how many steps of it are done, and of how many.
        on_round: called with the name of a round and the folder of its study, which is there;
            gives what is called with each network that was trained.
        measuring: device, engine and so on, as for `regnet.selection.search.search`.

    Raises:
        ConfigError: an option cannot be used, no network is within the limits, or the folder holds
            another search.
        DataError: the images cannot be used.
        StudyError: networks fail.
    """
    path = Path(folder)
    if candidates < FEWEST:
        raise ConfigError(f"candidates must be at least {FEWEST}, got {candidates}")
    if replicas - 1 not in range(1, 10):
        raise ConfigError(f"replicas must be from 2 to 10, got {replicas}")
    images = Images.open(data, val or data, train_images=train_images, val_images=val_images)
    question = {
        "limits": limits,
        "recipe": recipe,
        "images": fingerprints(images),
        "space": (space or search_space()).name,
        "candidates": candidates,
        "budget": budget,
        "replicas": replicas,
        "seed": seed,
        "measuring": {name: str(value) for name, value in measuring.items() if name != "meter"},
    }
    options = {**measuring, "seed": seed, "on_step": on_step}
    begun = _begin(path, question, limits, images, recipe, space or search_space(), options)

    def train(name: str, given: Sequence[Given], epochs: int, repeats: int = 1) -> dict[str, Any]:
        where = path / name
        if not (where / population.FILE).exists():
            study = Study(
                spaces=(),
                models=1,
                given=tuple(given),
                train=data,
                val=val or data,
                train_images=train_images,
                val_images=val_images,
                recipe=shortened(recipe, epochs),
                replicas=repeats,
                seed=seed_of(seed, name) % 2**31,
            )
            population.init(where, study)
        on_result = on_round(name, where) if on_round else None
        population.resume(where, executor=executor, on_result=on_result)
        return population.load(where)

    size = begun["image_size"]
    left = [_measured(row) for row in begun["candidates"]]
    published = [_measured(row) for row in begun["published"]]
    errors: dict[int, float] = {}
    for number, share in enumerate(SHARES, 1):
        epochs = max(1, round(share * recipe.epochs))
        groups = [_given("candidates", left, size)]
        if published:  # a population of its own: it may have another number of stages
            groups.append(_given("published", published, size))
        found = train(f"round-{number}", groups, epochs)
        errors = _errors(found["candidates"])
        if number < len(SHARES):
            keep = max(2, ceil(len(left) / 2))
            best = sorted(errors, key=errors.__getitem__)[:keep]
            left = [left[at] for at in sorted(best)]
    trained = [_trained(f"candidate {at}", left[at], error) for at, error in errors.items()]
    pick = min(trained, key=lambda row: row.error)
    rivals = [
        _trained(published[at].name, published[at], error)
        for at, error in (_errors(found["published"]) if published else {}).items()
    ]
    rival = min(rivals, key=lambda row: row.error, default=None)
    against = None
    if rival is not None:
        pair = [
            Given(name=name, configs=(row.config,), image_size=size)
            for name, row in (("pick", pick), ("rival", rival))
        ]
        again = train(CONFIRM, pair, recipe.epochs, replicas)
        against = _difference(*(_repeats(again[name], replicas) for name in ("pick", "rival")))
    everything = sorted([*trained, *rivals], key=lambda row: row.error)
    deviation = None
    if against is not None:
        deviation = sqrt(fmean(variance(_repeats(again[n], replicas)) for n in ("pick", "rival")))
    rows = [*left, *published]
    problem = next((row.problem for row in rows if row.problem), None)
    return Searched(
        pick=pick,
        rival=rival,
        against_rival=against,
        trained=tuple(everything),
        front=front(everything),
        seed_deviation=deviation,
        candidates=len(begun["candidates"]),
        conditions=begun["conditions"],
        doubts=(f"latencies are doubtful: {problem}",) if problem else (),
    )


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """A recipe for fewer epochs: the same course, with less of what comes before and after."""
    part = epochs / recipe.epochs
    warmup = min(recipe.warmup_epochs, max(0, epochs - 1), ceil(part * recipe.warmup_epochs))
    clean = min(recipe.clean_epochs, epochs - warmup, round(part * recipe.clean_epochs))
    return replace(recipe, epochs=epochs, warmup_epochs=warmup, clean_epochs=clean)


def front(rows: Sequence[Trained]) -> tuple[Trained, ...]:
    """Return the networks that no other beats in both error and latency, by latency."""
    found: list[Trained] = []
    for row in sorted(rows, key=lambda row: (row.latency_ms, row.error)):
        if not found or row.error < found[-1].error:
            found.append(row)
    return tuple(found)


def trainings(candidates: int, published: int, replicas: int) -> float:
    """How many full trainings a search of so many candidates does, shorter ones as parts."""
    total, left = 0.0, candidates
    for share in SHARES:
        total += share * (left + published)
        left = max(2, ceil(left / 2))
    return total + 2 * replicas


def _begin(
    path: Path,
    question: Mapping[str, Any],
    limits: Limits,
    images: Images,
    recipe: Recipe,
    space: Space,
    options: dict[str, Any],
) -> dict[str, Any]:
    """What the folder says of the search, or what it will say: what is trained."""
    asked = documents.sealed(question)
    with runfolder.owned(path, "searching"):
        if FILE in runfolder.contents(path):
            begun = runfolder.begun(path, FILE, "a search")
            if begun["question"] != asked:
                changed = [n for n in asked if asked[n] != begun["question"].get(n)]
                raise ConfigError(
                    f"{path} holds another search: it differs in {', '.join(changed[:-1])}; "
                    "name another folder"
                )
            return begun
        if held := runfolder.contents(path):
            raise ConfigError(f"{path} holds other files, such as {held[0]}; name a new folder")
        classes, side = _shape(images, recipe)
        architecture = replace(space.architecture, num_classes=classes)
        found = contenders(
            limits,
            question["candidates"],
            space=replace(space, architecture=architecture),
            image_size=side,
            **options,
        )
        if len(found.candidates) < FEWEST:
            raise ConfigError(
                f"only {len(found.candidates)} networks that were measured are within the limits; "
                "allow more"
            )
        count = _affordable(found, question, len(images.train) * recipe.epochs)
        conditions = {
            "engine": found.engine,
            "precision": found.precision,
            "batch_size": found.batch_size,
            "image_size": found.image_size,
            "environment": found.environment,
        }
        begun = {
            "question": asked,
            "candidates": found.candidates[:count],
            "published": found.published,
            "image_size": found.image_size,
            "conditions": conditions,
        }
        runfolder.begin(path, FILE, begun)
        return runfolder.begun(path, FILE, "a search")


def _affordable(found: Contenders, question: Mapping[str, Any], images: int) -> int:
    """How many candidates the budget lets train, where each training sees so many images."""
    count, budget = len(found.candidates), question["budget"]
    flops = fmean(row.flops for row in found.candidates)
    each = 3 * flops * images / (core_count() * population.CORE_SPEED)
    rest = (len(found.published), question["replicas"])
    while budget is not None and each * trainings(count, *rest) > budget:
        count -= 1
        if count < FEWEST:
            least = each * trainings(FEWEST, *rest)
            raise ConfigError(
                f"a budget of {budget / 60:.0f} minutes is too short: {FEWEST} candidates take "
                f"about {least / 60:.0f}; allow more, or train on fewer images or epochs"
            )
    return count


def _shape(images: Images, recipe: Recipe) -> tuple[int, int]:
    """Classes, and the side of the images that networks will see."""
    classes = len(images.train.classes)
    if recipe.crop == "pad":
        return classes, _side(images.train)
    return classes, recipe.image_size or 224


def _side(images: ImageSet) -> int:
    return int(images.open(0).size[0])


def _measured(values: Mapping[str, Any]) -> Measured:
    config = config_from_dict(values["config"])
    reference = values.get("reference_ms")
    return Measured(
        **{**values, "config": config, "reference_ms": tuple(reference) if reference else None}
    )


def _given(name: str, rows: Sequence[Measured], size: int) -> Given:
    return Given(name=name, configs=tuple(row.config for row in rows), image_size=size)


def _errors(found: population.Population) -> dict[int, float]:
    """By number of the network; those that failed are left out.

    Raises:
        StudyError: all failed.
    """
    errors = {row.number: float(e) for row, e in zip(found.rows, found.errors, strict=True)}
    if not errors:
        outcome = found.failed[0].outcome if found.failed else None
        raise StudyError(
            f"no network could be trained: {outcome['reason'] if outcome else 'none was tried'}"
        )
    return errors


def _repeats(found: population.Population, replicas: int) -> list[float]:
    errors = [float(error) for error in found.repeats.get(0, found.errors)]
    if len(errors) < replicas:
        outcome = found.failed[0].outcome if found.failed else None
        reason = outcome["reason"] if outcome else "they are missing"
        raise StudyError(f"{len(errors)} of {replicas} trainings to compare succeeded: {reason}")
    return errors


def _difference(pick: Sequence[float], rival: Sequence[float]) -> Difference:
    points, count = fmean(rival) - fmean(pick), len(pick)
    pooled = (variance(pick) + variance(rival)) / 2
    half = _STUDENT[2 * count - 2] * sqrt(2 * pooled / count)
    return Difference(
        points=points,
        low=points - half,
        high=points + half,
        replicas=count,
        pick_error=fmean(pick),
        rival_error=fmean(rival),
    )


def _trained(name: str, row: Measured, error: float) -> Trained:
    return Trained(
        name=name,
        config=row.config,
        error=error,
        flops=row.flops,
        params=row.params,
        latency_ms=row.latency_ms,
        low_ms=row.low_ms,
        high_ms=row.high_ms,
    )
