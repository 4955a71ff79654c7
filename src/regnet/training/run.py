"""A training run as a document with everything that determines its result, to repeat it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from regnet import documents, runfolder
from regnet.data import sources
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.documents import build
from regnet.errors import ConfigError
from regnet.training.recipe import Recipe

FILE = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What determines the result of a run: network, images, recipe and seed."""

    model: str | AnyNetConfig | RegNetConfig
    """A name that `create` takes, or a config."""
    recipe: Recipe
    train: str
    """Where the training images are; see `regnet.data.sets.open_set`."""
    val: str | None
    """Where the test images are; None: accuracy is not measured."""
    train_images: int | None = None
    """Number of training images to use, equally from all classes; None: all."""
    val_images: int | None = None
    """Number of test images to use, likewise; None: all."""
    pretrained: bool = False
    """Whether to start from the weights that the name stands for."""
    num_classes: int | None = None
    """Outputs of the classifier; None: the number of classes of the images."""
    in_chans: int | None = None
    """Channels of the images, 1 for gray ones; None: those of the name or the config."""
    image_size: int | None = None
    """Side of the test images in pixels; None: the default of the network."""
    teachers: tuple[str, ...] = ()
    """Names of weights from whose answers the network learns, as `Recipe.distill` says."""
    seed: int = 0
    save_steps: int | None = None
    """Steps between checkpoints, in addition to one after each epoch."""
    calibrate: bool = False
    """Whether to hold out some training images, and to calibrate the result on them at the end."""

    def moved(self, data: str | Path | None, val: str | Path | None) -> "Run":
        """Return the run with new places of its images; None: an unchanged place."""
        train, tests = sources.moved(self.train, self.val, data, val)
        return replace(self, train=train, val=tests)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Run":
        """Build a run from what `to_dict` returns.

        Raises:
            ConfigError: a field is missing, does not exist, or has a value that cannot be used.
        """
        return build(cls, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFacts:
    """Identifies a set of images."""

    source: str
    count: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedOptions:
    """Options that run.json saves, and with which a run is resumed unless others are given."""

    device: torch.device | str = "cpu"
    workers: int | None = None
    """Processes that decode large images; None: one for each core that this process may use."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Whether each process holds the complete network (DDP) or a part of every tensor (FSDP2)."""
    compile: bool = False
    grad_checkpointing: bool = False
    checkpoints: int = 2
    """Number of newest checkpoints to keep on disk."""
    tensorboard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The images, teachers, processes, options and machine of a run."""

    images: Mapping[str, SetFacts]
    """By purpose: `train`, and where there are such images `val` and `calibration`."""
    teachers: Mapping[str, str]
    """Digests of the weights of each teacher, by name."""
    processes: int
    options: SavedOptions
    environment: dict[str, Any]
    start: str = ""
    """Digest of the weights that training started from; empty if they were random."""

    @property
    def conditions(self) -> dict[str, Any]:
        """What the exact bits of the weights depend on, in addition to the run itself."""
        packages = self.environment.get("packages")
        return {
            "threads": self.environment.get("threads"),
            "torch": packages.get("torch") if isinstance(packages, dict) else None,
            "device": self.environment.get("device"),
            "processes": self.processes,
        }


def write(out: Path, run: Run, facts: Facts) -> None:
    """Write run.json: the run, and the facts about its images and machine."""
    kept = replace(run, train=sources.beside(run.train, out), val=sources.beside(run.val, out))
    runfolder.begin(out, FILE, {"run": kept, **documents.plain(facts)})


def read(path: Path) -> tuple[Run, Facts]:
    """Read a run.json, or the one in a folder.

    Returns:
        The run, and the facts that were saved with it.

    Raises:
        ConfigError: there is no such file, or it is damaged.
    """
    document = runfolder.begun(path, FILE, "a run of `regnet train`")
    try:
        run = Run.from_dict(document.pop("run", None))
        folder = path if path.is_dir() else path.parent
        train = sources.from_beside(run.train, folder)
        val = sources.from_beside(run.val, folder)
        return replace(run, train=train, val=val), build(Facts, document)
    except ConfigError as error:
        raise ConfigError(f"{path} does not describe a run ({error})") from error
