"""Train one network of a study, in the process that runs this task."""

import inspect
import platform
import time
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import torch

from regnet import digest
from regnet.design.config import config_from_dict
from regnet.errors import DataError, FunctionError, MissingExtraError, in_one_line
from regnet.machine import device_name
from regnet.spaces.custom import KIND, CustomConfig, find_function
from regnet.studies.custom import CustomNetwork, objective_of
from regnet.studies.store import Row
from regnet.training.input import Images
from regnet.training.loop import start
from regnet.training.run import Run
from regnet.training.session import Options

KEPT: Final = ("epoch", "loss", "train_top1", "top1", "average_top1", "seconds", "test_seconds")
"""Values that are saved for each epoch."""

_BRIEF: Final = 60.0
"""If the objective takes less than this many seconds for the first network, it is called again, to
see whether it is deterministic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A network to train."""

    row: Row
    run: Run | None
    """None if an objective evaluates the networks."""
    objective: str = ""
    code: str | None = None
    """Folder to import the study's functions from, in addition to the installed modules."""

    def __str__(self) -> str:
        return f"network {self.row.number} of {self.row.space}"


def train_network(task: Task, device: str) -> dict[str, Any]:
    """Train a network and return its outcome: an error, or the reason why there is none.

    Errors that do not depend on the network are raised, so that they end the study.

    Raises:
        DataError: the images cannot be used.
        OSError: a file cannot be read.
        MissingExtraError: a package that the images need is not installed here.
        FunctionError: a function of the study cannot be imported here.
    """
    began = time.monotonic()
    found: dict[str, Any] = {"host": platform.node()}
    try:
        if task.run is None:
            found |= _judged(task, device)
        else:
            found |= _trained(task, task.run, device)
    except (DataError, OSError, MissingExtraError, FunctionError):
        raise
    except Exception as error:  # noqa: BLE001 - one network must not end the study
        found["reason"] = in_one_line(error)
    finally:
        if device.startswith("cuda"):
            torch.cuda.empty_cache()  # Other processes on this GPU may need the memory.
    return found | {"seconds": round(time.monotonic() - began, 2)}


def _trained(task: Task, run: Run, device: str) -> dict[str, Any]:
    """Train a network on images; return its error, its epochs and the facts of the training."""
    images = _images(run.train, run.val, run.train_images, run.val_images)
    build: Any = None
    if task.row.config["kind"] == KIND:
        network = CustomConfig.from_dict(task.row.config)
        build = partial(CustomNetwork, network, task.code, task.row.metrics.get("params"))
    # Large images are decoded by one process per thread that this process may use.
    options = Options(device=device, workers=torch.get_num_threads())
    trained = start(run, None, options=options, images=images, build=build)
    assert trained.best is not None, "a study has images to test on"
    return _facts(task, images, device) | {
        "error": 100 - trained.best,
        "epochs": [{name: row[name] for name in KEPT if name in row} for row in trained.log],
    }


def _judged(task: Task, device: str) -> dict[str, Any]:
    """Call the objective for a network; for the first one, call it twice to see if it repeats."""
    config, began = task.row.config, time.monotonic()
    known: Any = dict(config["parameters"]) if config["kind"] == KIND else config_from_dict(config)
    found = objective_of(task.objective, known, task.row.seed, device, task.code)
    if task.row.number == 0 and time.monotonic() - began < _BRIEF:
        again = objective_of(task.objective, known, task.row.seed, device, task.code)
        found["repeated_error"] = again["error"]
    return found | _facts(task, None, device)


@lru_cache(maxsize=1)
def _images(
    train: str, val: str | None, train_images: int | None, val_images: int | None
) -> Images:
    """Open images once for all networks that a process trains, since decoding them takes long."""
    return Images.open(train, val, train_images=train_images, val_images=val_images)


def fingerprints(images: Images) -> dict[str, str]:
    """Return the fingerprints of the training images (`train`) and the test images (`val`)."""
    sets = {"train": images.train, "val": images.val}
    return {name: found.fingerprint for name, found in sets.items() if found is not None}


def _facts(task: Task, images: Images | None, device: str) -> dict[str, Any]:
    """Return the machine, the images and the code of a training."""
    functions = (task.objective, task.row.config.get("build", ""))
    return {
        **({} if images is None else {"images": fingerprints(images)}),
        "code": _code_fingerprint(tuple(filter(None, functions)), task.code),
        "host": platform.node(),
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@lru_cache(maxsize=8)
def _code_fingerprint(functions: tuple[str, ...], folder: str | None) -> str:
    """Return 16 digits of the SHA-256 of all files that build and train networks.

    The files of the user's functions are included, but not the modules that these import.
    """
    root = Path(__file__).parents[1]
    files = (
        path
        for room in ("design", "nn", "data", "zoo", "training")
        for path in sorted((root / room).glob("*.py"))
    )
    theirs = (inspect.getsourcefile(find_function(name, folder)) for name in functions)
    return digest.of_bytes(
        *(f"{file.parent.name}/{file.name}".encode() + file.read_bytes() for file in files),
        *(Path(file).read_bytes() for file in theirs if file),
    )[:16]
