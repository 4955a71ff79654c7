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
"""What is kept of each epoch."""

_BRIEF: Final = 60.0
"""Seconds that an objective may take for the first network to be asked a second time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A network to train."""

    row: Row
    run: Run | None
    """None where an objective judges networks."""
    objective: str = ""
    code: str | None = None
    """Folder in which functions of the study are looked for as well."""

    def __str__(self) -> str:
        return f"network {self.row.number} of {self.row.space}"


def train_network(task: Task, device: str) -> dict[str, Any]:
    """Train a network and say what came out: an error, or a reason why there is none.

    Raises:
        DataError: the images cannot be used, which is no network's fault.
        OSError: likewise.
        MissingExtraError: likewise.
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
            torch.cuda.empty_cache()  # for the other processes on this GPU
    return found | {"seconds": round(time.monotonic() - began, 2)}


def _trained(task: Task, run: Run, device: str) -> dict[str, Any]:
    """The error of a network that is trained on images, and its epochs."""
    images = _images(run.train, run.val, run.train_images, run.val_images)
    build: Any = None
    if task.row.config["kind"] == KIND:
        network = CustomConfig.from_dict(task.row.config)
        build = partial(CustomNetwork, network, task.code, task.row.metrics.get("params"))
    # Large images are decoded by as many processes as this one may use threads.
    options = Options(device=device, workers=torch.get_num_threads())
    trained = start(run, None, options=options, images=images, build=build)
    assert trained.best is not None, "a study has images to test on"
    return _facts(task, images, device) | {
        "error": 100 - trained.best,
        "epochs": [{name: row[name] for name in KEPT if name in row} for row in trained.log],
    }


def _judged(task: Task, device: str) -> dict[str, Any]:
    """What the objective of a study gives for a network; for the first one, whether it repeats."""
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
    """Opened, and decoded, once for all networks that a process trains."""
    return Images.open(train, val, train_images=train_images, val_images=val_images)


def fingerprints(images: Images) -> dict[str, str]:
    """Which images these are, by what they are for."""
    sets = {"train": images.train, "val": images.val}
    return {name: found.fingerprint for name, found in sets.items() if found is not None}


def _facts(task: Task, images: Images | None, device: str) -> dict[str, Any]:
    """Where and on what a network was trained."""
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
    """SHA-256 over the files that decide how a network is built and trained, 16 digits.

    Of a user's functions those are the files that hold them; what they import is not looked at.
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
