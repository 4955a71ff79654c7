"""Everything that determines the result of a training run, as a document that repeats it."""

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
    """Network, images, recipe and seed."""

    model: str | AnyNetConfig | RegNetConfig
    """A name that `create` takes, or a config."""
    recipe: Recipe
    train: str
    """Where the training images are; see `regnet.data.sets.open_set`."""
    val: str | None
    """Where the images are that measure accuracy; None: nothing is measured."""
    train_images: int | None = None
    """How many of the training images are used, equally from all classes; None: all."""
    val_images: int | None = None
    """Of the others likewise."""
    pretrained: bool = False
    """Whether to start from the weights that the name stands for."""
    num_classes: int | None = None
    """None: as many as the images have."""
    in_chans: int | None = None
    """1: the network sees gray images; None: as the name or the config says."""
    image_size: int | None = None
    """Side of the images that measure accuracy, in pixels; None: what suits the network."""
    teachers: tuple[str, ...] = ()
    """Names of weights whose answers are learned from, as `Recipe.distill` says."""
    seed: int = 0
    save_steps: int | None = None
    """Steps between checkpoints, beside one after each epoch."""
    calibrate: bool = False
    """Whether some training images are held out, on which the result is calibrated at the end."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        named = isinstance(self.model, str)
        return {
            "model": self.model if named else self.model.to_dict(),  # type: ignore[union-attr]
            "pretrained": self.pretrained,
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "image_size": self.image_size,
            "train": self.train,
            "val": self.val,
            "train_images": self.train_images,
            "val_images": self.val_images,
            "teachers": self.teachers,
            "seed": self.seed,
            "save_steps": self.save_steps,
            "calibrate": self.calibrate,
            "recipe": self.recipe.to_dict(),
        }

    def moved(self, data: str | Path | None, val: str | Path | None) -> "Run":
        """The same run, where its images lie elsewhere now; None: where they did."""
        train, tests = sources.moved(self.train, self.val, data, val)
        return replace(self, train=train, val=tests)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Run":
        """The run of `to_dict`.

        Raises:
            ConfigError: a field is missing, not known, or has a value that cannot be used.
        """
        return build(cls, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFacts:
    """Which images these are."""

    source: str
    count: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedOptions:
    """Options that a run is resumed with, unless others are asked for."""

    device: torch.device | str = "cpu"
    workers: int | None = None
    """Processes that decode large images; None: as many as this one may use cores."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Each process holds the whole network, or a part of every tensor (FSDP2)."""
    compile: bool = False
    grad_checkpointing: bool = False
    checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    tensorboard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Where and on what a run ran."""

    images: Mapping[str, SetFacts]
    """By what they are for, `train` and `val`."""
    teachers: Mapping[str, str]
    """Digests of their weights."""
    processes: int
    options: SavedOptions
    environment: dict[str, Any]

    @property
    def conditions(self) -> dict[str, Any]:
        """What the bits of the weights depend on, beside the run itself."""
        packages = self.environment.get("packages")
        return {
            "threads": self.environment.get("threads"),
            "torch": packages.get("torch") if isinstance(packages, dict) else None,
            "device": self.environment.get("device"),
            "processes": self.processes,
        }


def write(out: Path, run: Run, facts: Facts) -> None:
    """Write run.json: the run, and facts about where and on what it ran."""
    kept = replace(run, train=sources.beside(run.train, out), val=sources.beside(run.val, out))
    runfolder.begin(out, FILE, {"run": kept, **documents.plain(facts)})


def read(path: Path) -> tuple[Run, Facts]:
    """Return the run of a run.json, or of a folder that holds one, and the facts beside it.

    Raises:
        ConfigError: there is none, or it is not as it was written.
    """
    document = runfolder.begun(path, FILE, "a run of `regnet train`")
    try:
        run = Run.from_dict(document.pop("run", None))
        folder = path if path.is_dir() else path.parent
        train = sources.from_beside(run.train, folder)
        val = sources.from_beside(run.val, folder)
        return replace(run, train=train, val=val), build(Facts, document)
    except ConfigError as error:
        raise ConfigError(f"{path}: not the description of a run ({error})") from error
