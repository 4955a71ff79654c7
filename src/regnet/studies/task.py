"""One network of a study in the process that trains it."""

import platform
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch

from regnet import digest
from regnet.errors import DataError, MissingExtraError, in_one_line
from regnet.machine import device_name
from regnet.studies.store import Row
from regnet.training.input import Images
from regnet.training.loop import start
from regnet.training.run import Run
from regnet.training.session import Options

KEPT: Final = ("epoch", "loss", "train_top1", "top1", "average_top1", "seconds", "test_seconds")
"""What is kept of each epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A network to train."""

    row: Row
    run: Run

    def __str__(self) -> str:
        return f"network {self.row.number} of {self.row.space}"


def train_network(task: Task, device: str) -> dict[str, Any]:
    """Train a network and say what came out: an error, or a reason why there is none.

    Raises:
        DataError: the images cannot be used, which is no network's fault.
        OSError: likewise.
        MissingExtraError: likewise.
    """
    began, run = time.monotonic(), task.run
    found: dict[str, Any] = {"host": platform.node()}
    try:
        images = _images(run.train, run.val, run.train_images, run.val_images)
        # Large images are decoded by as many processes as this one may use threads.
        options = Options(device=device, workers=torch.get_num_threads())
        trained = start(run, None, options=options, images=images)
        assert trained.best is not None, "a study has images to test on"
        found |= _facts(images, torch.device(device)) | {
            "error": 100 - trained.best,
            "epochs": [{name: row[name] for name in KEPT if name in row} for row in trained.log],
        }
    except (DataError, OSError, MissingExtraError):
        raise
    except Exception as error:  # noqa: BLE001 - one network must not end the study
        found["reason"] = in_one_line(error)
    finally:
        if device.startswith("cuda"):
            torch.cuda.empty_cache()  # for the other processes on this GPU
    return found | {"seconds": round(time.monotonic() - began, 2)}


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


def _facts(images: Images, device: torch.device) -> dict[str, Any]:
    """Where and on what a network was trained."""
    return {
        "images": fingerprints(images),
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
    files = (
        path
        for room in ("design", "nn", "data", "zoo", "training")
        for path in sorted((root / room).glob("*.py"))
    )
    return digest.of_bytes(
        *(f"{file.parent.name}/{file.name}".encode() + file.read_bytes() for file in files)
    )[:16]
