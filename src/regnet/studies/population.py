"""Begin, run and load a study in its folder.

The file study.json describes the study, and the store has the status and result of each network.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from regnet import runfolder
from regnet.data import sources
from regnet.design.config import config_from_dict
from regnet.design.widths import FloatArray
from regnet.errors import ConfigError, DataError, ImageError, StudyError, check_number, shell
from regnet.executors import Died, Executor, ProcessPool
from regnet.paths import expanded
from regnet.selection.device import learn_latency
from regnet.spaces.custom import KIND, find_function
from regnet.spaces.space import Space
from regnet.studies import store as stores
from regnet.studies.store import Row, Store
from regnet.studies.study import Given, Study
from regnet.studies.task import Task, fingerprints, train_network
from regnet.training.input import Images
from regnet.training.run import FILE as RUN_FILE
from regnet.training.run import Run

FILE: Final = "study.json"

Select = Literal["last", "lowest"]
"""Epoch whose test error counts: the last one, or the one with the lowest error. The latter is what
pycls does (`sweep/analysis.py`), and favours networks whose errors vary more."""

CORE_SPEED: Final = 1e10
"""Multiply-adds that one core computes per second of training, including backward passes. The
median over the networks of benchmarks/results/study.parquet is 9e9."""

MOST_FAILURES: Final = 20
"""If this many networks fail in a row, the run ends: the networks are probably not the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """The trained networks of a space, as arrays (n,)."""

    space: Space | None
    """None if the space is not known, as for a table."""
    errors: FloatArray
    """Test errors, measured with averaged weights if the recipe averages them."""
    metrics: Mapping[str, FloatArray]
    """Values of each metric: of the space's `metric_names`, or of the columns of a table."""
    rows: tuple[Row, ...]
    failed: tuple[Row, ...] = ()
    """Networks whose training failed; no statistic includes them."""
    replicas: tuple[tuple[int, Row], ...] = ()
    """Further trainings, each with the number of the network that it repeats with another seed;
    failed ones, too."""
    repeats: Mapping[int, FloatArray] = field(default_factory=dict)
    """Errors of the networks that were trained more than once, by the numbers of the networks."""
    select: Select = "last"
    """The epoch that the errors are of."""
    unit: str = "%"
    """Unit of the errors; empty if they come from an objective."""

    def __len__(self) -> int:
        """Number of networks that were trained."""
        return len(self.rows)


def init(
    folder: str | Path, study: Study, on_network: Callable[[int, int], None] | None = None
) -> Study:
    """Begin a study in a new folder: sample its networks, but do not train them yet.

    The spaces get the number of classes and the size of the images. Functions that the study names
    are imported and run.

    Args:
        folder: a folder that does not exist yet, or that holds no study.
        study: the definition of the study.
        on_network: called if networks are counted one by one, with the number counted so far, and
            their total.

    Returns:
        The study as it was saved, with the fingerprints of its images.

    Raises:
        ConfigError: the folder holds a study already, a space has too few networks, or a space
            cannot be saved.
        DataError: the images cannot be used.
    """
    path = expanded(folder)
    with runfolder.owned(path, "beginning a study"):
        there = set(runfolder.contents(path))
        if {FILE, stores.FILE} & there:
            raise ConfigError(f"{path} holds a study already; resume it, or name another folder")
        if RUN_FILE in there:
            raise ConfigError(f"{path} holds a training run; name another folder for the study")
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
        # study.json comes first: if the process dies before all networks are stored, `resume` adds
        # the missing ones.
        _write(path, study)
        with Store(path, create=True) as store:
            store.add(rows)
    return study


def limit_latency(
    study: Study, most: float, on_probe: Callable[[int, int], None] = lambda _done, _all: None
) -> Study:
    """Restrict the spaces of a study to networks that are predicted to be fast enough on this CPU.

    For a space without a latency model one is learned (`regnet.learn_latency`), with the classes
    and the size of the study's images.

    Args:
        study: a study that has not begun.
        most: largest predicted latency of a network, in milliseconds.
        on_probe: called with the number of networks measured so far, and their total.

    Raises:
        ConfigError: a space is custom, or has no network that is fast enough.
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
    """Add a space, such as a refined one, to a study: sample its networks, but do not train them.

    Processes that are already training the study do not train the new networks.

    Raises:
        ConfigError: there is no study, it has a space with this name already, or the space has too
            few networks.
        StudyError: the store of the study is damaged.
        DataError: the images cannot be used.
    """
    path = expanded(folder)
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
    """Write study.json, with relative paths as seen from the folder."""
    runfolder.begin(folder, FILE, _placed(study, folder, sources.beside))


def read(folder: str | Path) -> Study:
    """Read the definition of the study in a folder.

    Raises:
        ConfigError: the folder holds no study.
    """
    path = expanded(folder)
    study = Study.from_dict(runfolder.begun(path, FILE, "a study"))
    path = path if path.is_dir() else path.parent
    return _placed(study, path, sources.from_beside)


def _placed(study: Study, folder: Path, place: Callable[[str, Path], str]) -> Study:
    """Apply `place` to the paths of a study, to make them relative to a folder or undo that."""
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
    """Train all networks that are not trained yet.

    Several processes on one host may do this for the same study at the same time. Functions that
    the study names are imported and run, here and in the processes that train.

    Args:
        folder: the folder of the study.
        executor: the executor that trains the networks; None: processes, one per core.
        retry_failed: train networks that failed once more.
        data: new path of the training images, if they were moved. They must be the same images.
        val: new path of the test images, if they are separate and were moved.
        on_result: called with the row of each network after its result is committed.

    Returns:
        The number of networks with each status, by space.

    Raises:
        ConfigError: there is no study.
        DataError: the images are not those of the study, here or where a network was trained.
        StudyError: the store is damaged or cannot be written, processes do not start, or many
            networks in a row fail. Committed results stay in the store.
    """
    path = expanded(folder)
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
                        "fix the cause, then resume with retry_failed (--retry-failed)"
                    )
        return store.counts()


def recover(folder: str | Path) -> tuple[int, Path | None]:
    """Rebuild a damaged or lost store from all results that can still be read.

    Returns:
        The number of recovered results, and the new path of the former file; None if there was no
        file.

    Raises:
        ConfigError: there is no study.
        StudyError: a process is training the study.
    """
    read(folder)
    with runfolder.owned(expanded(folder), "recovering the study"):
        study = read(folder)
        rows = [row for name in study.names for row in study.rows(name)]
        return stores.recover(expanded(folder), rows)


def counts(folder: str | Path) -> dict[str, dict[str, int]]:
    """Count the networks of each space that are pending, running, done and failed.

    Raises:
        ConfigError: there is no study.
    """
    study = read(folder)
    with Store(expanded(folder)) as store:
        _check_complete(study, store)
        return store.counts()


def progress(folder: str | Path) -> tuple[int, int]:
    """Return the number of trained or failed networks, and of all, without checking the store."""
    read(folder)
    with Store(expanded(folder)) as store:
        found = store.counts().values()
    ended = sum(of_space.get(state, 0) for of_space in found for state in ("done", "failed"))
    return ended, sum(count for of_space in found for count in of_space.values())


def work(folder: str | Path) -> float:
    """Return the multiply-adds of all trainings that are still to be done.

    A backward pass counts as two forward passes. The result is NaN if an objective evaluates the
    networks, because its cost is not known.

    Raises:
        ConfigError: there is no study.
        DataError: the images cannot be used.
    """
    study = read(folder)
    if study.objective:
        return math.nan
    with Store(expanded(folder)) as store:
        left = [row for row in store.rows() if row.outcome is None]
    images = study.train_images or len(_open(study).train)
    return sum(3 * row.metrics["flops"] * images * study.recipe.epochs for row in left)


def _check_complete(study: Study, store: Store) -> list[Row]:
    """Return all rows of the store after checking them.

    Raises:
        StudyError: the store is damaged, or networks are missing.
    """
    rows = store.rows()
    if 0 < len(rows) < study.count:
        raise StudyError(
            f"{store.path} has {len(rows)} of {study.count} networks; "
            f"{shell('regnet', 'study', 'recover', store.folder)} adds the missing ones"
        )
    return rows


def load(folder: str | Path, select: Select = "last") -> dict[str, Population]:
    """Load the networks trained so far, as a population of each space.

    Args:
        folder: the folder of the study.
        select: the epoch whose error counts: "last", or "lowest" for the lowest error.

    Raises:
        ConfigError: there is no study.
        StudyError: the store of the study is damaged.
    """
    study = read(folder)
    with Store(expanded(folder)) as store:
        rows = [row for row in _check_complete(study, store) if row.outcome is not None]
    found, spaces = {}, {space.name: space for space in study.spaces}
    for name in study.names:
        networks = study.networks(name)
        trained = [row for row in rows if row.space == name and row.status == "done"]
        done = tuple(row for row in trained if row.number < networks)
        metrics = spaces[name].metric_names if name in spaces else next(study.rows(name)).metrics
        found[name] = Population(
            space=spaces.get(name),
            errors=np.array([error_of(row, select) for row in done]),
            metrics={name: np.array([row.metrics[name] for row in done]) for name in metrics},
            rows=done,
            failed=tuple(
                row
                for row in rows
                if row.space == name
                and row.status == "failed"
                and row.number not in range(networks, study.trainings(name))
            ),
            repeats=repeated(
                (study.network(name, row.number), error_of(row, select)) for row in trained
            ),
            replicas=tuple(
                (study.network(name, row.number), row)
                for row in rows
                if row.space == name and row.number in range(networks, study.trainings(name))
            ),
            select=select,
            unit="" if study.objective else "%",
        )
    return found


def _open(study: Study) -> Images:
    return Images.open(
        study.train, study.val, train_images=study.train_images, val_images=study.val_images
    )


def _suited(study: Study, spaces: Sequence[Space], images: Images) -> tuple[Space, ...]:
    """Return the spaces with the number of classes and the size of the study's images."""
    classes, side = _classes_and_side(study, images)
    if side is not None and any("r" in s.parameters for s in spaces if not s.custom):
        raise ConfigError(
            f"a space that samples the image size needs a recipe with the crop 'resized' and no "
            f"image_size; this recipe trains at {side}"
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
    """Return the given networks with the number of classes and the size of the study's images."""
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
    """Return the number of classes, and the side of the images if it is fixed."""
    assert images.val is not None, "a study has images to test on"
    if images.val.fingerprint == images.train.fingerprint:
        raise ConfigError(
            f"{study.train}: the test images are the training images; set other ones with val"
        )
    classes = len(images.train.classes)
    if study.recipe.crop != "pad":
        return classes, study.recipe.image_size
    try:
        width, height = images.train.open(0).size
    except ImageError as error:
        raise DataError(
            f"{error}; every image of a set that is held in memory must be readable"
        ) from error
    study.recipe.check_size(height, width)
    if width != height:
        raise ConfigError(
            f"{images.train.source} has images of {width} x {height} pixels; the crop 'pad' "
            "needs square images"
        )
    return classes, width


def _tasks(study: Study, store: Store) -> Iterator[Task]:
    while (row := store.claim(study.names)) is not None:
        run = None if study.objective else _run(study, row)
        yield Task(row=row, run=run, objective=study.objective, code=study.code)


def _run(study: Study, row: Row) -> Run:
    """Return the run that trains a network of the study."""
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
    """Raise an error if images are not those that the study began with."""
    if study.images is not None and dict(study.images) != dict(found):
        raise DataError(
            f"{study.train}: the images {where} are not those that the study began with: "
            f"their fingerprints are {dict(found)}, and were {dict(study.images)}"
        )


def repeated(trainings: Iterable[tuple[int, float]]) -> dict[int, FloatArray]:
    """Return the errors of the networks that were trained more than once, by their numbers.

    Args:
        trainings: the number of the network and the error of each training.
    """
    found: dict[int, list[float]] = {}
    for number, error in trainings:
        found.setdefault(number, []).append(error)
    return {number: np.array(errors) for number, errors in found.items() if len(errors) > 1}


def error_of(row: Row, select: Select) -> float:
    """Return the test error of a trained network in percent, or the error of an objective."""
    assert row.outcome is not None, "it is done"
    epochs = row.outcome.get("epochs")
    if select == "lowest" or not epochs:  # an objective has no epochs
        return float(row.outcome["error"])
    last = epochs[-1]
    return 100 - float(last.get("average_top1", last["top1"]))
