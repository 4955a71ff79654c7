"""Checkpoints: everything a run needs to resume exactly, written completely or not at all."""

import errno
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn

from regnet import digest
from regnet.atomic import write_bytes, writing
from regnet.errors import TrainingError
from regnet.process_group import Group
from regnet.training.average import Average

FOLDER: Final = "checkpoints"

DIGITS: Final = 16
"""Number of digits of its SHA-256 in the name of a checkpoint."""

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class State:
    """Everything that training changes.

    Random numbers have no state to save: each comes from a new generator, seeded by its purpose.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    scaler: torch.amp.GradScaler
    epoch: int = 0
    """The next epoch, from 0."""
    step: int = 0
    """The next step of that epoch, from 0."""
    sums: Tensor
    """(3,): sums of loss, hits and images over this process's forward passes of the epoch."""
    seconds: float = 0.0
    """Seconds of training so far in this epoch."""
    best: float = -1.0
    """Highest test accuracy so far, in percent; negative before the first test."""
    unreadable: set[str] = field(default_factory=set)
    """Reasons why images of this epoch could not be read, in this process."""

    def to_dict(self, group: Group) -> dict[str, Any] | None:
        """Return complete tensors on the CPU to the leading process, and None to the others.

        All processes must call it, because they exchange their parts of the tensors.
        """
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
            if self.optimizer.state[parameter]
        }
        model = _whole(self.model.state_dict(), group)
        momentum = _whole(momentum, group)
        average = _whole(self.average.tensors, group) if self.average else None
        sums = group.sum(self.sums.clone()).cpu()
        unreadable = sorted(set().union(*group.gather(self.unreadable)))
        if not group.leads:
            return None
        return {
            "model": model,
            "momentum": momentum,
            "average": average,
            "sums": sums,
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "unreadable": unreadable,
        }

    def restore(self, saved: dict[str, Any], *, leads: bool) -> None:
        """Copy what `to_dict` returned into the existing tensors, on the devices where they are.

        The sums over all processes go to the leading process, so that they count once.
        """
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(_placed(saved["model"][name], tensor))
            if self.average:
                for name, tensor in self.average.tensors.items():
                    tensor.copy_(_placed(saved["average"][name], tensor))
        for name, parameter in self.model.named_parameters():
            if name in saved["momentum"]:
                buffer = _placed(saved["momentum"][name], parameter)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        self.epoch, self.step, self.best = saved["epoch"], saved["step"], saved["best"]
        self.seconds = saved["seconds"]
        if leads:
            self.sums.copy_(saved["sums"])
            self.unreadable.update(saved.get("unreadable", ()))


def save(saved: dict[str, Any], out: Path, *, newest: int) -> Path:
    """Write a checkpoint, then remove older ones.

    Args:
        saved: what `State.to_dict` returned.
        out: the folder of the run.
        newest: number of checkpoints to keep, including this one.

    Returns:
        The path of the checkpoint.

    Raises:
        OSError: the checkpoint cannot be written; earlier ones are unchanged.
    """
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    draft = folder / ".draft.pt"
    with writing(draft) as temporary:
        try:
            torch.save(saved, temporary)
        except RuntimeError as error:  # torch raises it for a full disk
            raise OSError(errno.EIO, f"cannot be written, is the disk full? ({error})") from error
    # torch does not verify what it reads, so `load_last` compares the file with this digest.
    name = f"{saved['epoch']:04d}-{saved['step']:06d}-{digest.of_file(draft)[:DIGITS]}.pt"
    path = draft.replace(folder / name)
    paths = saved_paths(out)
    # Later ones are damaged: the run was resumed from an earlier one.
    last = 1 + next(at for at, other in enumerate(paths) if other.name == name)
    for old in (*paths[: max(0, last - newest)], *paths[last:]):
        old.unlink(missing_ok=True)
    for left in folder.glob(".*.pt*"):  # of processes that were killed while writing
        left.unlink(missing_ok=True)
    return path


def save_weights(saved: dict[str, Any], path: Path) -> None:
    """Write only the weights of a checkpoint; those of the average, if there is one."""
    tensors = saved["average"] or saved["model"]
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(contiguous, {"format": "pt"}))


def saved_paths(out: Path) -> list[Path]:
    """Return the paths of a run's checkpoints, oldest first."""
    found = (out / FOLDER).glob("*.pt")
    named = [path for path in found if re.fullmatch(r"\d+-\d+(-\w+)?\.pt", path.name)]
    return sorted(named, key=lambda path: [int(number) for number in path.stem.split("-")[:2]])


def load_last(out: Path) -> dict[str, Any] | None:
    """Return the newest checkpoint that is not damaged, or None if the run has no checkpoint.

    Raises:
        TrainingError: all checkpoints are damaged.
    """
    paths = saved_paths(out)
    for path in reversed(paths):
        try:
            written = path.stem.split("-")[2:]
            if written != [digest.of_file(path)[:DIGITS]]:
                raise ValueError("its SHA-256 is not the one in its name")
            saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - a damaged pickle raises anything
            [reason, *_] = str(error).splitlines() or [""]
            _log.warning("%s cannot be used (%s); trying an older checkpoint", path, reason)
        else:
            return saved
    if paths:
        raise TrainingError(
            f"{out / FOLDER}: all {len(paths)} checkpoints are damaged; restore a copy of one, or "
            "start a new run"
        )
    return None


def _whole(tensors: Mapping[str, Tensor], group: Group) -> dict[str, Tensor]:
    """Copy tensors to the CPU of the leading process, and gather sharded ones (DTensor)."""
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if group.leads:
            found[name] = whole.detach().to("cpu", copy=True)
    return found


def _placed(whole: Tensor, like: Tensor) -> Tensor:
    """Return a copy of a complete tensor on the device of another, and sharded as that is."""
    moved = whole.to(like.device, copy=True)
    if not hasattr(like, "full_tensor"):
        return moved
    # Imported only for sharded tensors, because the import takes half a second.
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor), "no other tensor is sharded"
    return distribute_tensor(moved, like.device_mesh, like.placements)
