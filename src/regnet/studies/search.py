"""Search for a network that is fast enough and good on given images, by training candidates.

Candidates within the limits are trained by successive halving (Jamieson and Talwalkar 2016): all of
them for a quarter of the epochs, the better half for half of the epochs, and the better half of
those for all epochs. Published networks are trained beside them in every round. Each round is a
study in a folder of its own, so that it can be resumed and distributed like any other study. Then
the best candidate and the best published network are trained again, with new seeds that were not
used to select either, and only these trainings are compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from pathlib import Path
from statistics import fmean, variance
from typing import Any, Final, Literal

from regnet import documents, runfolder
from regnet.data.sets import ImageSet
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.devices import core_count
from regnet.errors import ConfigError, StudyError, check_whole
from regnet.executors import Executor
from regnet.paths import expanded
from regnet.selection.limits import Limits, Measured
from regnet.selection.search import Contenders, OnStep, contenders
from regnet.spaces.paper import search_space
from regnet.spaces.space import Space
from regnet.studies import population
from regnet.studies.statistics import student
from regnet.studies.store import Row
from regnet.studies.study import Given, Study
from regnet.studies.task import fingerprints
from regnet.training.input import Images, seed_of
from regnet.training.recipe import Recipe

FILE: Final = "search.json"

CANDIDATES: Final = 16
"""Default number of candidates that are trained; a budget may reduce it."""

FEWEST: Final = 4
"""Smallest number of candidates; with fewer there is nothing to halve."""

SHARES: Final = (0.25, 0.5, 1.0)
"""Share of the epochs that each round trains; each later round has half as many candidates."""

REPLICAS: Final = 4
"""Default number of trainings of each of the two networks that are compared at the end."""

CONFIRM: Final = "confirm"
"""Name of the last study, which trains the best candidate and the best published network again."""

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network that was trained for all epochs."""

    name: str
    """Name of a published network, or `candidate` and a number."""
    config: RegNetConfig | AnyNetConfig
    error: float
    """In percent, from the training that was also used to select the network."""
    flops: int
    params: int
    latency_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The error of the best published network minus that of the pick, with new seeds."""

    points: float
    """The difference in percentage points; positive if the pick is better."""
    low: float
    high: float
    """The 95 % interval of the difference is `low` to `high` (Student's t, equal variances)."""
    replicas: int
    """Number of trainings of each network."""
    pick_error: float
    rival_error: float
    """Mean errors of the two networks, in percent."""

    @property
    def verdict(self) -> Verdict:
        """The claim about the pick that the interval supports."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """The result of a search with images."""

    pick: Trained
    rival: Trained | None
    """The best published network within the limits; None if there is none."""
    against_rival: Difference | None
    """The comparison of the pick with its rival; None without a rival."""
    trained: tuple[Trained, ...]
    """All networks of the last round, sorted by error."""
    front: tuple[Trained, ...]
    """Those that no other network of the last round beats in both error and latency, by latency."""
    seed_deviation: float | None
    """Standard deviation of the error between seeds, in points, from the trainings of `CONFIRM`."""
    candidates: int
    """Number of candidates in the first round."""
    conditions: dict[str, Any]
    """Engine, precision, batch size, image size and machine of the latencies."""
    doubts: tuple[str, ...]
    """Reasons to doubt the latencies."""


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
    """Search for the best network within limits by training candidates on images.

    Call it again with the same arguments to resume an interrupted search.

    Args:
        folder: a new folder for the search, or the folder of an interrupted one.
        limits: the largest cost that the network may have.
        data: training images, as `regnet.train` takes them.
        recipe: the recipe for training the networks.
        val: test images; None: those that belong to the training images.
        space: a space of RegNets; None: `search_space()`. It gets the classes and the size of the
            images.
        candidates: largest number of candidates to train, not counting published networks.
        budget: approximate time for training on all cores of this machine, in seconds. Fewer
            candidates are trained if all of them would take longer; None: no limit.
        replicas: number of trainings of the pick, and of its rival, that are compared: 2 to 10.
        train_images: number of training images to use; None: all.
        val_images: number of test images to use; None: all.
        seed: seed of everything random.
        executor: the executor that trains the networks; None: processes, one per core.
        on_step: called while measuring with the current step, the number of its parts done, and
            their total.
        on_round: called at the start of each round with its name and the folder of its study. It
            returns a function, which is called with the row of each trained network.
        measuring: device, engine and other options of `regnet.selection.search.search`.

    Returns:
        The best candidate, its comparison with the best published network, and all networks of the
        last round.

    Raises:
        ConfigError: an option is not valid, no network is within the limits, or the folder holds
            another search.
        DataError: the images cannot be used.
        StudyError: trainings that the search needs failed.
    """
    path = expanded(folder)
    candidates = check_whole("candidates", candidates, least=FEWEST)
    replicas = check_whole("replicas", replicas, least=2, most=10)
    images = Images.open(data, val or data, train_images=train_images, val_images=val_images)
    question = {
        "limits": limits,
        "recipe": recipe,
        "images": fingerprints(images),
        "space": _described(space or search_space()),
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
                recipe=recipe.changed(epochs=epochs),
                replicas=repeats,
                seed=seed_of(seed, name) % 2**31,
            )
            population.init(where, study)
        on_result = on_round(name, where) if on_round else None
        population.resume(where, executor=executor, on_result=on_result)
        return population.load(where)

    size = begun["image_size"]
    # By their numbers in search.json, which are also their names.
    left = {at: documents.build(Measured, row) for at, row in enumerate(begun["candidates"])}
    published = [documents.build(Measured, row) for row in begun["published"]]
    errors: dict[int, float] = {}
    for number, share in enumerate(SHARES, 1):
        epochs = max(1, round(share * recipe.epochs))
        groups = [_given("candidates", list(left.values()), size)]
        # Published networks may have another number of stages than the candidates, and all networks
        # of a population must have the same number.
        if published:
            groups.append(_given("published", published, size))
        found = train(f"round-{number}", groups, epochs)
        numbers, errors = list(left), _errors(found["candidates"])
        if number < len(SHARES):
            keep = max(2, ceil(len(left) / 2))
            best = sorted(errors, key=errors.__getitem__)[:keep]
            left = {numbers[at]: left[numbers[at]] for at in sorted(best)}
    trained = [
        _trained(f"candidate {numbers[at]}", left[numbers[at]], error)
        for at, error in errors.items()
    ]
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
    rows = [*left.values(), *published]
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


def front(rows: Sequence[Trained]) -> tuple[Trained, ...]:
    """Return the networks that no other beats in both error and latency, by latency."""
    found: list[Trained] = []
    for row in sorted(rows, key=lambda row: (row.latency_ms, row.error)):
        if not found or row.error < found[-1].error:
            found.append(row)
    return tuple(found)


def trainings(candidates: int, published: int, replicas: int) -> float:
    """Return the cost of a search in full trainings; a shorter training counts as a fraction."""
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
    """Read the search in the folder, or begin one: choose the networks and save them there."""
    asked = documents.sealed(question)
    with runfolder.owned(path, "searching"):
        if FILE in runfolder.contents(path):
            begun = runfolder.begun(path, FILE, "a search")
            if begun["question"] != asked:
                changed = [n for n in asked if asked[n] != begun["question"].get(n)]
                raise ConfigError(
                    f"{path} holds another search, which differs in {', '.join(changed[:-1])}; "
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
                f"only {len(found.candidates)} of the measured networks are within the limits; "
                "raise the limits"
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
    """Return how many candidates the budget allows, if a full training sees `images` images."""
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
                f"about {least / 60:.0f} minutes; raise the budget, or train on fewer images or "
                "for fewer epochs"
            )
    return count


def _shape(images: Images, recipe: Recipe) -> tuple[int, int]:
    """Return the number of classes, and the side of the images that the networks are trained on."""
    classes = len(images.train.classes)
    if recipe.crop == "pad":
        return classes, _side(images.train)
    return classes, recipe.image_size or 224


def _side(images: ImageSet) -> int:
    return int(images.open(0).size[0])


def _described(space: Space) -> dict[str, Any]:
    """Return a space as a dictionary, with the names of its conditions that are code."""
    return {**replace(space, predicates={}).to_dict(), "predicates": list(space.predicates)}


def _given(name: str, rows: Sequence[Measured], size: int) -> Given:
    return Given(name=name, configs=tuple(row.config for row in rows), image_size=size)


def _errors(found: population.Population) -> dict[int, float]:
    """Return the errors of the trained networks, by the number of the network.

    Raises:
        StudyError: no network was trained successfully.
    """
    errors = {row.number: float(e) for row, e in zip(found.rows, found.errors, strict=True)}
    if not errors:
        outcome = found.failed[0].outcome if found.failed else None
        raise StudyError(
            f"no network could be trained: {outcome['reason'] if outcome else 'none was started'}"
        )
    return errors


def _repeats(found: population.Population, replicas: int) -> list[float]:
    errors = [float(error) for error in found.repeats.get(0, found.errors)]
    if len(errors) < replicas:
        again = [row for _, row in found.replicas if row.status == "failed"]
        outcome = next((row.outcome for row in (*found.failed, *again)), None)
        reason = outcome["reason"] if outcome else "the others are missing"
        raise StudyError(
            f"only {len(errors)} of {replicas} trainings for the comparison succeeded: {reason}"
        )
    return errors


def _difference(pick: Sequence[float], rival: Sequence[float]) -> Difference:
    points, count = fmean(rival) - fmean(pick), len(pick)
    pooled = (variance(pick) + variance(rival)) / 2
    half = student(2 * count - 2) * sqrt(2 * pooled / count)
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
