"""A study: populations of one or more spaces, trained with one recipe on one set of images.

A folder holds it: study.json says what it is, and the store what has become of each network.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from regnet.atomic import write_bytes
from regnet.design.config import config_from_dict
from regnet.design.widths import FloatArray
from regnet.errors import ConfigError, DataError, ImageError
from regnet.machine import device_name
from regnet.studies import store as stores
from regnet.studies.executor import Died, Executor, ProcessPool
from regnet.studies.sampling import sample
from regnet.studies.space import Space
from regnet.studies.store import Row, Store
from regnet.training.input import Images, seed_of
from regnet.training.loop import start
from regnet.training.recipe import Recipe
from regnet.training.run import Run
from regnet.training.session import Options

FILE: Final = "study.json"

KEPT: Final = ("epoch", "loss", "train_top1", "top1", "average_top1", "seconds", "test_seconds")
"""What is kept of each epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is sampled and how it is trained: with the same seed, the same networks."""

    spaces: tuple[Space, ...]
    models: int
    """Networks of each space."""
    train: str
    """Where the training images are; see `regnet.data.sets.open_set`."""
    val: str
    """Where the images are that measure errors."""
    recipe: Recipe
    train_images: int | None = None
    """Train on so many of the images only, equally from all classes."""
    val_images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        names = [space.name for space in self.spaces]
        if not names:
            raise ConfigError("a study needs a space")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two spaces are called {twice[0]!r}; give one another name")
        if self.models < 1:
            raise ConfigError(f"models must be at least 1, got {self.models}")

    @property
    def count(self) -> int:
        """Networks of all spaces."""
        return self.models * len(self.spaces)

    def space(self, name: str) -> Space:
        """One of its spaces.

        Raises:
            ConfigError: there is no such space.
        """
        for space in self.spaces:
            if space.name == name:
                return space
        raise ConfigError(
            f"the study has no space {name!r}; it has {', '.join(s.name for s in self.spaces)}"
        )

    def rows(self, space: Space) -> Iterator[Row]:
        """The networks of one of its spaces, to be trained.

        Raises:
            ConfigError: the space has too few.
        """
        found = sample(space, self.models, seed_of(self.seed, "sample", space.name))
        metrics = found.metrics
        for number in range(self.models):
            yield Row(
                id=0,
                space=space.name,
                number=number,
                config=found.config(number).to_dict(),
                metrics={name: values[number].item() for name, values in metrics.items()},
                seed=seed_of(self.seed, "train", space.name, number) % 2**31,
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return {
            "spaces": [space.to_dict() for space in self.spaces],
            "models": self.models,
            "train": self.train,
            "val": self.val,
            "train_images": self.train_images,
            "val_images": self.val_images,
            "seed": self.seed,
            "recipe": self.recipe.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Study":
        """The study of `to_dict`.

        Raises:
            ConfigError: it is not one.
        """
        try:
            fields = dict(values)
            spaces = tuple(Space.from_dict(space) for space in fields.pop("spaces"))
            return cls(spaces=spaces, recipe=Recipe.from_dict(fields.pop("recipe")), **fields)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"not a study: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A network to train."""

    row: Row
    run: Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """The trained networks of a space, as arrays (n,)."""

    space: Space
    errors: FloatArray
    """The lowest test error of any epoch, in percent; of the averaged weights where the recipe
    averages (pycls `sweep/analysis.py`)."""
    metrics: Mapping[str, FloatArray]
    """By the space's `metric_names`."""
    rows: tuple[Row, ...]
    failed: int
    """Networks whose training failed: they count in no statistic."""

    def __len__(self) -> int:
        """Networks that were trained."""
        return len(self.rows)


def init(folder: str | Path, study: Study) -> Study:
    """Begin a study in a new folder: sample its networks; nothing is trained yet.

    Its spaces get as many classes as the images have, and the size of the images.

    Args:
        folder: new, or empty.
        study: what to do.

    Raises:
        ConfigError: there is a study already, or a space has too few networks.
        DataError: the images cannot be used.
    """
    path = Path(folder)
    if (path / FILE).exists():
        raise ConfigError(f"{path} holds a study already; resume it, or name another folder")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; name a folder")
    study = replace(study, spaces=_suited(study, study.spaces))
    rows = [row for space in study.spaces for row in study.rows(space)]
    path.mkdir(parents=True, exist_ok=True)
    with Store(path) as store:
        store.add(rows)
    write_bytes(path / FILE, json.dumps(study.to_dict(), indent=1).encode())
    return study


def extend(folder: str | Path, space: Space) -> Study:
    """Add a space to a study, such as a refined one; its networks are sampled, not trained.

    Raises:
        ConfigError: there is no study, or a space of this name, or the space has too few networks.
    """
    path = Path(folder)
    study = read(path)
    [suited] = _suited(study, (space,))
    study = replace(study, spaces=(*study.spaces, suited))
    rows = list(study.rows(suited))
    with Store(path) as store:
        store.add(rows)
    write_bytes(path / FILE, json.dumps(study.to_dict(), indent=1).encode())
    return study


def read(folder: str | Path) -> Study:
    """The study of a folder.

    Raises:
        ConfigError: there is none.
    """
    file = Path(folder) / FILE
    try:
        return Study.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"{folder}: there is no {FILE}; name the folder of a study") from error
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error


def resume(
    folder: str | Path,
    *,
    executor: Executor | None = None,
    retry_failed: bool = False,
    on_result: Callable[[Row], None] | None = None,
) -> dict[str, dict[str, int]]:
    """Train what is not trained yet; several processes may do so at once, on one host.

    Args:
        folder: of the study.
        executor: who trains; None: processes, one per core.
        retry_failed: train those that failed again.
        on_result: called with each network and its outcome, once that is kept.

    Returns:
        How many networks of each space have each status.

    Raises:
        ConfigError: there is no study.
        DataError: the images are not those of the networks trained so far.
        StudyError: the store is damaged or cannot be written; what was committed is kept.
    """
    path = Path(folder)
    study = read(path)
    with Store(path) as store:
        store.check()
        store.free_orphans()
        if retry_failed:
            store.retry_failed()
        _check_images(study, store)
        tasks = _tasks(study, store)
        results = (executor or ProcessPool()).run(train_network, tasks)
        try:
            for task, outcome in results:
                told = {"reason": outcome.reason} if isinstance(outcome, Died) else outcome
                row = store.finish(task.row, told, failed="error" not in told)
                if on_result:
                    on_result(row)
        finally:
            results.close()  # type: ignore[attr-defined]  # they are generators
        return store.counts()


def recover(folder: str | Path) -> tuple[int, Path]:
    """Begin a damaged store anew with all results that can still be read.

    Returns:
        How many results were kept, and where the damaged file lies now.

    Raises:
        ConfigError: there is no study.
    """
    path = Path(folder)
    study = read(path)
    kept, damaged = stores.recover(path, study.count)
    with Store(path) as store:
        store.add(row for space in study.spaces for row in study.rows(space))
        store.restore(kept)
    return len(kept), damaged


def counts(folder: str | Path) -> dict[str, dict[str, int]]:
    """How many networks of each space are pending, running, done and failed.

    Raises:
        ConfigError: there is no study.
    """
    read(folder)
    with Store(Path(folder)) as store:
        return store.counts()


def load(folder: str | Path) -> dict[str, Population]:
    """The populations trained so far, by the names of their spaces.

    Raises:
        ConfigError: there is no study.
        StudyError: its store is damaged.
    """
    study = read(folder)
    with Store(Path(folder)) as store:
        rows = store.rows("done", "failed")
    found = {}
    for space in study.spaces:
        done = tuple(r for r in rows if r.space == space.name and r.status == "done")
        found[space.name] = Population(
            space=space,
            errors=np.array([_error(row) for row in done]),
            metrics={
                name: np.array([row.metrics[name] for row in done]) for name in space.metric_names
            },
            rows=done,
            failed=sum(r.space == space.name and r.status == "failed" for r in rows),
        )
    return found


def train_network(task: Task, device: str) -> dict[str, Any]:
    """Train a network and say what came out: an error, or a reason why there is none.

    Raises:
        KeyboardInterrupt: and nothing else; whatever goes wrong with a network is its outcome.
    """
    began, run = time.monotonic(), task.run
    facts: dict[str, Any] = {"host": platform.node()}
    try:
        images = _images(run.train, run.val, run.train_images, run.val_images)
        trained = start(run, None, options=Options(device=device), images=images)
        facts = _facts(images, torch.device(device))
        assert trained.best is not None, "a study has images to test on"
        found = {
            "error": 100 - trained.best,
            "epochs": [{name: row[name] for name in KEPT if name in row} for row in trained.log],
        }
    except Exception as error:  # noqa: BLE001 - one network must not end the study
        found = {"reason": " ".join(f"{type(error).__name__}: {error}".split())}
    return found | {"seconds": round(time.monotonic() - began, 2)} | facts


@lru_cache(maxsize=1)
def _images(
    train: str, val: str | None, train_images: int | None, val_images: int | None
) -> Images:
    """Opened, and decoded, once for all networks that a process trains."""
    return Images.open(train, val, train_images=train_images, val_images=val_images)


def _suited(study: Study, spaces: Sequence[Space]) -> tuple[Space, ...]:
    """Spaces whose networks have the classes and the size of the study's images."""
    images = Images.open(
        study.train, study.val, train_images=study.train_images, val_images=study.val_images
    )
    classes = len(images.train.classes)
    found = tuple(
        replace(space, architecture=replace(space.architecture, num_classes=classes))
        for space in spaces
    )
    if study.recipe.crop != "pad":
        return found
    try:
        width, height = images.train.open(0).size
    except ImageError as error:
        raise DataError(f"{error}; a set that is kept in memory must be whole") from error
    for space in found:
        if width != height or "r" in space.parameters:
            raise ConfigError(
                f"{images.train.source} has images of {width} x {height} pixels; with the crop "
                "'pad' they must be square, and no space may draw their size"
            )
    return tuple(replace(space, input_size=width) for space in found)


def _tasks(study: Study, store: Store) -> Iterator[Task]:
    while (row := store.claim()) is not None:
        yield Task(row=row, run=_run(study, row))


def _run(study: Study, row: Row) -> Run:
    """How a network of the study is trained."""
    recipe, size = study.recipe, None
    if recipe.crop == "resized":
        size = round(row.metrics.get("r", study.space(row.space).input_size))
        recipe = replace(recipe, image_size=recipe.image_size or size)
    return Run(
        model=config_from_dict(row.config),
        recipe=recipe,
        train=study.train,
        val=study.val,
        train_images=study.train_images,
        val_images=study.val_images,
        input_size=size,
        seed=row.seed,
    )


def _check_images(study: Study, store: Store) -> None:
    """Whether the images are those of the networks trained so far, before any is trained."""
    images = Images.open(
        study.train, study.val, train_images=study.train_images, val_images=study.val_images
    )
    found = _fingerprints(images)
    for row in store.rows("done"):
        assert row.outcome is not None, "it is done"
        if row.outcome["images"] != found:
            raise DataError(
                f"{study.train}: not the images that {row.space} number {row.number} was trained "
                f"on: fingerprints {found}, were {row.outcome['images']}"
            )


def _fingerprints(images: Images) -> dict[str, str]:
    sets = {"train": images.train, "val": images.val}
    return {name: found.fingerprint for name, found in sets.items() if found is not None}


def _facts(images: Images, device: torch.device) -> dict[str, Any]:
    """Where and on what a network was trained."""
    return {
        "images": _fingerprints(images),
        "code": _code_fingerprint(),
        "host": platform.node(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@lru_cache(maxsize=1)
def _code_fingerprint() -> str:
    """SHA-256 over the files that decide how a network is built and trained, 16 digits."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for room in ("design", "nn", "data", "training"):
        for path in sorted((root / room).glob("*.py")):
            digest.update(f"{room}/{path.name}".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _error(row: Row) -> float:
    assert row.outcome is not None, "it is done"
    return float(row.outcome["error"])
