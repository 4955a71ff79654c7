"""A study in its folder: study.json says what it is, the store what has become of each network."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from regnet import runfolder
from regnet.data import sources
from regnet.design.config import config_from_dict
from regnet.design.widths import FloatArray
from regnet.errors import ConfigError, DataError, ImageError, StudyError, check_number
from regnet.executors import Died, Executor, ProcessPool
from regnet.selection.device import learn_latency
from regnet.spaces.custom import KIND, find_function
from regnet.spaces.space import Space
from regnet.studies import store as stores
from regnet.studies.store import Row, Store
from regnet.studies.study import Given, Study
from regnet.studies.task import Task, fingerprints, train_network
from regnet.training.input import Images
from regnet.training.run import Run

FILE: Final = "study.json"

Select = Literal["last", "lowest"]
"""Which epoch a network is judged by: its last; or the one with the lowest test error, as pycls
does (`sweep/analysis.py`), which favours networks whose errors vary more."""

CORE_SPEED: Final = 1e10
"""Multiply-adds that a core computes per second of training, backward passes included. The median
over the networks of benchmarks/results/study.parquet is 9e9."""

MOST_FAILURES: Final = 20
"""Networks that may fail in a row before a study is ended: something else is wrong then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """The trained networks of a space, as arrays (n,)."""

    space: Space | None
    """None where it is not known: of a table."""
    errors: FloatArray
    """Test errors in percent; of the averaged weights where the recipe averages."""
    metrics: Mapping[str, FloatArray]
    """By the space's `metric_names`, or by the columns of a table."""
    rows: tuple[Row, ...]
    failed: tuple[Row, ...] = ()
    """Networks whose training failed: they count in no statistic."""
    repeats: Mapping[int, FloatArray] = field(default_factory=dict)
    """Errors of the networks that were trained more than once, by their numbers."""
    select: Select = "last"
    """Whose error that is."""

    def __len__(self) -> int:
        """Networks that were trained."""
        return len(self.rows)


def init(
    folder: str | Path, study: Study, on_network: Callable[[int, int], None] | None = None
) -> Study:
    """Begin a study in a new folder: sample its networks; nothing is trained yet.

    Its spaces get as many classes as the images have, and their size. Functions that the study
    names are imported and run.

    Args:
        folder: new, or without a study.
        study: what to do.
        on_network: called where networks are counted one by one, with how many are, and how many
            there shall be.

    Raises:
        ConfigError: there is a study already, or a space has too few networks or cannot be saved.
        DataError: the images cannot be used.
    """
    path = Path(folder)
    with runfolder.owned(path, "beginning a study"):
        if {FILE, stores.FILE} & set(runfolder.contents(path)):
            raise ConfigError(f"{path} holds a study already; resume it, or name another folder")
        if study.objective:
            find_function(study.objective, study.code)
        else:
            images = _open(study)
            study = replace(
                study,
                spaces=_suited(study, study.spaces, images),
                given=_suited_networks(study, images),
                images=fingerprints(images),
            )
        rows = [row for name in study.names for row in study.rows(name, on_network)]
        # From here on there is a study; networks that the store lacks are added when it is resumed.
        _write(path, study)
        with Store(path, create=True) as store:
            store.add(rows)
    return study


def limit_latency(
    study: Study, most: float, on_probe: Callable[[int, int], None] = lambda _done, _all: None
) -> Study:
    """A study whose networks take at most so many milliseconds on this CPU, as a model predicts.

    Spaces that have no model learn one (`regnet.learn_latency`), for the classes and the size of
    the study's images.

    Args:
        study: not begun yet.
        most: milliseconds.
        on_probe: called with how many networks are measured, of how many.

    Raises:
        ConfigError: a space is custom, or has no networks that are so fast.
        DataError: the images cannot be used.
    """
    check_number("latency_ms", most, least=1e-6)
    spaces = study.spaces if study.objective else _suited(study, study.spaces, _open(study))
    limited = []
    for space in spaces:
        model = space.latency or learn_latency(space, on_step=on_probe)
        limited.append(space.restrict(device=model, latency_ms=(None, most)))
    return replace(study, spaces=tuple(limited))


def extend(folder: str | Path, space: Space) -> Study:
    """Add a space to a study, such as a refined one; its networks are sampled, not trained.

    Processes that are training the study already do not see it.

    Raises:
        ConfigError: there is no study, or a space of this name, or the space has too few networks.
        StudyError: its store is damaged.
        DataError: the images cannot be used.
    """
    path = Path(folder)
    read(path)
    with runfolder.owned(path, "adding a space"):
        study = read(path)
        suited = (space,) if study.objective else _suited(study, (space,), _open(study))
        study = replace(study, spaces=(*study.spaces, *suited))
        rows = list(study.rows(space.name))
        _write(path, study)
        with Store(path) as store:
            store.add(rows)
    return study


def _write(folder: Path, study: Study) -> None:
    """Write study.json; relative paths are kept from the folder on."""
    runfolder.begin(folder, FILE, _placed(study, folder, sources.beside))


def read(folder: str | Path) -> Study:
    """The study of a folder.

    Raises:
        ConfigError: there is none.
    """
    path = Path(folder)
    study = Study.from_dict(runfolder.begun(path, FILE, "a study"))
    path = path if path.is_dir() else path.parent
    return _placed(study, path, sources.from_beside)


def _placed(study: Study, folder: Path, place: Callable[[str, Path], str]) -> Study:
    """A study with its places as seen from a folder, or from here again."""
    return replace(
        study,
        train=place(study.train, folder) if study.train else "",
        val=place(study.val, folder) if study.val else "",
        code=place(study.code, folder) if study.code else None,
    )


def resume(
    folder: str | Path,
    *,
    executor: Executor | None = None,
    retry_failed: bool = False,
    data: str | Path | None = None,
    val: str | Path | None = None,
    on_result: Callable[[Row], None] | None = None,
) -> dict[str, dict[str, int]]:
    """Train what is not trained yet; several processes may do so at once, on one host.

    Functions that the study names are imported and run, here and by whoever trains.

    Args:
        folder: of the study.
        executor: who trains; None: processes, one per core.
        retry_failed: train those that failed again.
        data: where the training images lie now, if not where they did; the same ones.
        val: likewise of those to test on, where they lie apart.
        on_result: called with each network and its outcome, once that is kept.

    Returns:
        How many networks of each space have each status.

    Raises:
        ConfigError: there is no study.
        DataError: the images are not those of the study, here or where a network was trained.
        StudyError: the store is damaged or cannot be written, processes do not start, or one
            network after the other fails; what was committed is kept.
    """
    path = Path(folder)
    began = study = read(path)
    train, tests = sources.moved(study.train, study.val, data, val)
    study = replace(study, train=train, val=tests)
    if not study.objective:
        _check_images(study, fingerprints(_open(study)), "here")
    if study != began:
        _write(path, study)
    failures = 0
    with Store(path) as store:
        store.check()
        there = store.counts()
        for name in study.names:
            if sum(there.get(name, {}).values()) < study.trainings(name):  # `init` was interrupted
                store.add(study.rows(name))
        if retry_failed:
            store.retry_failed()
        with contextlib.closing(
            (executor or ProcessPool()).run(train_network, _tasks(study, store))
        ) as results:
            for task, outcome in results:
                told: dict[str, Any] = (
                    {"reason": outcome.reason} if isinstance(outcome, Died) else outcome
                )
                failed = "error" not in told
                if not failed:
                    _check_images(study, told.get("images", {}), f"on {told['host']}")
                row = store.finish(task.row, told, failed=failed)
                if on_result:
                    on_result(row)
                failures = failures + 1 if failed else 0
                if failures == MOST_FAILURES:
                    raise StudyError(
                        f"{failures} networks in a row failed, the last: {told['reason']}; "
                        "resume with retry_failed once that is mended"
                    )
        return store.counts()


def recover(folder: str | Path) -> tuple[int, Path | None]:
    """Begin a damaged or lost store anew with all results that can still be read.

    Returns:
        How many results were kept, and where the damaged file lies now.

    Raises:
        ConfigError: there is no study.
        StudyError: a process is training it.
    """
    read(folder)
    with runfolder.owned(Path(folder), "recovering the study"):
        study = read(folder)
        rows = [row for name in study.names for row in study.rows(name)]
        return stores.recover(Path(folder), rows)


def counts(folder: str | Path) -> dict[str, dict[str, int]]:
    """How many networks of each space are pending, running, done and failed.

    Raises:
        ConfigError: there is no study.
    """
    study = read(folder)
    with Store(Path(folder)) as store:
        _check_complete(study, store)
        return store.counts()


def progress(folder: str | Path) -> tuple[int, int]:
    """Return how many networks are trained or failed, and how many there are; not verified."""
    read(folder)
    with Store(Path(folder)) as store:
        found = store.counts().values()
    ended = sum(of_space.get(state, 0) for of_space in found for state in ("done", "failed"))
    return ended, sum(count for of_space in found for count in of_space.values())


def work(folder: str | Path) -> float:
    """Multiply-adds of what is not trained yet; backward counts as two forward passes.

    NaN where an objective judges networks: nobody knows what it does.

    Raises:
        ConfigError: there is no study.
        DataError: the images cannot be used.
    """
    study = read(folder)
    if study.objective:
        return math.nan
    with Store(Path(folder)) as store:
        left = [row for row in store.rows() if row.outcome is None]
    images = study.train_images or len(_open(study).train)
    return sum(3 * row.metrics["flops"] * images * study.recipe.epochs for row in left)


def _check_complete(study: Study, store: Store) -> list[Row]:
    """All networks of the store, verified.

    Raises:
        StudyError: the store is damaged, or lacks networks.
    """
    rows = store.rows()
    if 0 < len(rows) < study.count:
        raise StudyError(
            f"{store.path} has {len(rows)} of {study.count} networks; `regnet study run "
            f"{store.folder}` or `regnet study recover {store.folder}` adds the others"
        )
    return rows


def load(folder: str | Path, select: Select = "last") -> dict[str, Population]:
    """The populations trained so far, by the names of their spaces.

    Args:
        folder: of the study.
        select: which epoch's error counts.

    Raises:
        ConfigError: there is no study.
        StudyError: its store is damaged.
    """
    study = read(folder)
    with Store(Path(folder)) as store:
        rows = [row for row in _check_complete(study, store) if row.outcome is not None]
    found, spaces = {}, {space.name: space for space in study.spaces}
    for name in study.names:
        networks = study.networks(name)
        trained = [row for row in rows if row.space == name and row.status == "done"]
        done = tuple(row for row in trained if row.number < networks)
        metrics = spaces[name].metric_names if name in spaces else next(study.rows(name)).metrics
        repeats: dict[int, list[float]] = {}
        for row in trained:
            repeats.setdefault(study.network(name, row.number), []).append(error_of(row, select))
        found[name] = Population(
            space=spaces.get(name),
            errors=np.array([error_of(row, select) for row in done]),
            metrics={name: np.array([row.metrics[name] for row in done]) for name in metrics},
            rows=done,
            failed=tuple(row for row in rows if row.space == name and row.status == "failed"),
            repeats={at: np.array(errors) for at, errors in repeats.items() if len(errors) > 1},
            select=select,
        )
    return found


def _open(study: Study) -> Images:
    return Images.open(
        study.train, study.val, train_images=study.train_images, val_images=study.val_images
    )


def _suited(study: Study, spaces: Sequence[Space], images: Images) -> tuple[Space, ...]:
    """Spaces whose networks have the classes and the size of the study's images."""
    classes, side = _classes_and_side(study, images)
    if side is not None and any("r" in s.parameters for s in spaces if not s.custom):
        raise ConfigError(
            f"a space that draws the size of images needs a recipe that crops 'resized' and leaves "
            f"image_size open; this one trains at {side}"
        )
    return tuple(
        replace(
            space,
            architecture=replace(space.architecture, num_classes=classes),
            image_size=side or space.image_size,
        )
        for space in spaces
    )


def _suited_networks(study: Study, images: Images) -> tuple[Given, ...]:
    """Networks that are given, likewise."""
    classes, side = _classes_and_side(study, images)
    return tuple(
        replace(
            each,
            configs=tuple(replace(config, num_classes=classes) for config in each.configs),
            image_size=side or each.image_size,
        )
        for each in study.given
    )


def _classes_and_side(study: Study, images: Images) -> tuple[int, int | None]:
    """How many classes the images have, and their side in pixels where the recipe fixes it."""
    assert images.val is not None, "a study has images to test on"
    if images.val.fingerprint == images.train.fingerprint:
        raise ConfigError(
            f"{study.train}: the images to test on are those to train on; name others with val"
        )
    classes = len(images.train.classes)
    if study.recipe.crop != "pad":
        return classes, study.recipe.image_size
    try:
        width, height = images.train.open(0).size
    except ImageError as error:
        raise DataError(f"{error}; a set that is kept in memory must be whole") from error
    if width != height:
        raise ConfigError(
            f"{images.train.source} has images of {width} x {height} pixels; the crop 'pad' "
            "needs square ones here"
        )
    return classes, width


def _tasks(study: Study, store: Store) -> Iterator[Task]:
    while (row := store.claim(study.names)) is not None:
        run = None if study.objective else _run(study, row)
        yield Task(row=row, run=run, objective=study.objective, code=study.code)


def _run(study: Study, row: Row) -> Run:
    """How a network of the study is trained."""
    recipe, size = study.recipe, None
    if recipe.crop == "resized":
        drawn = row.metrics if row.config["kind"] != KIND else {}
        size = round(drawn.get("r", study.image_size(row.space)))
        recipe = replace(recipe, image_size=size)
    return Run(
        model=row.space if row.config["kind"] == KIND else config_from_dict(row.config),
        recipe=recipe,
        train=study.train,
        val=study.val,
        train_images=study.train_images,
        val_images=study.val_images,
        image_size=size,
        seed=row.seed,
    )


def _check_images(study: Study, found: Mapping[str, str], where: str) -> None:
    """Whether images are those that the study began with, if it has any."""
    if study.images is not None and dict(study.images) != dict(found):
        raise DataError(
            f"{study.train}: the images {where} are not those that the study began with: "
            f"fingerprints {dict(found)}, were {dict(study.images)}"
        )


def error_of(row: Row, select: Select) -> float:
    """The test error of a trained network, in percent; or what an objective gave."""
    assert row.outcome is not None, "it is done"
    epochs = row.outcome.get("epochs")
    if select == "lowest" or not epochs:  # an objective has none
        return float(row.outcome["error"])
    last = epochs[-1]
    return 100 - float(last.get("average_top1", last["top1"]))
