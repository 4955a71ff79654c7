"""Devices by name, and the cores of this machine."""

import os

import torch

from regnet.errors import ConfigError


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of this name.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"there is no device {str(name)!r}; use cpu, cuda, cuda:1 or mps"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device cuda: torch sees no CUDA GPU here; use cpu, or install a CUDA build "
            "of torch where there is one"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: torch sees {torch.cuda.device_count()} CUDA GPUs here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device mps: not available here; use cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device {name}: use cpu, cuda or mps")
    return device


def core_count() -> int:
    """Return how many cores this process may use; processes of `torchrun` share them equally."""
    own = getattr(os, "sched_getaffinity", None)
    cores = len(own(0)) if own else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
