"""Shared code of the plan's parts: networks, their rivals, and a document that grows by rows."""

import argparse
import json
from collections.abc import Callable
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

import regnet
from regnet.atomic import write_bytes
from regnet.design.config import RegNetConfig
from regnet.engines.base import Runner, Target, inference
from regnet.engines.fused import Fused
from regnet.engines.transforms import folded
from regnet.machine import environment

TINY: Final = RegNetConfig(
    w0=16, wa=8, wm=2.0, depth=2, group_width=8, se_ratio=0.25, num_classes=10
)
"""The network of a dry run."""

TINY_SIDE: Final = 9


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the arguments that every part accepts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=200, help="time budget in seconds")
    parser.add_argument("--dry", action="store_true", help="run tiny networks on the CPU")
    parser.add_argument("--data", help="folder with CIFAR-10")
    return parser.parse_args()


class Rows:
    """A JSON document that is written after every row."""

    def __init__(self, out: Path, device: torch.device, **facts: Any) -> None:
        self.out = out
        self.document: dict[str, Any] = {"environment": environment(device), **facts, "rows": []}

    def add(self, **row: Any) -> None:
        """Add a row, print it, and write the document."""
        self.document["rows"].append(row)
        print(json.dumps(row, default=str), flush=True)
        write_bytes(self.out, json.dumps(self.document, indent=1, default=str).encode())


def device(*, dry: bool) -> torch.device:
    """Return the device on which all networks run."""
    return torch.device("cpu" if dry else "cuda")


def network(name: str, *, dry: bool) -> nn.Module:
    """Return one of our networks with random weights, its BatchNorm statistics as if trained."""
    torch.manual_seed(0)
    model = regnet.create(TINY if dry else name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.7, 1.3)
    return model


def timm_network(name: str, *, dry: bool) -> tuple[nn.Module, str]:
    """Return timm's network and its source; a dry run without timm gets one of our networks."""
    if dry and not _importable("timm"):
        return network(name, dry=True), "stand-in"
    import timm

    return timm.create_model("regnety_002" if dry else name).eval(), f"timm {timm.__version__}"


def _importable(package: str) -> bool:
    if util.find_spec(package) is None:
        return False
    try:
        __import__(package)
    except Exception:  # noqa: BLE001 - importing a compiled extension can fail in any manner
        return False
    return True


@lru_cache(maxsize=4)
def images(batch: int, side: int, where: torch.device, count: int = 3) -> list[Tensor]:
    """Return batches of random images in float32, the precision that users pass."""
    rng = torch.Generator(device=where).manual_seed(0)
    return [torch.randn(batch, 3, side, side, generator=rng, device=where) for _ in range(count)]


def own_kernels(model: nn.Module, example: Tensor) -> Runner:
    """Build the engine `fused` in fp16; without a GPU, the network of its kernels alone."""
    if example.is_cuda:
        return Fused().build(model, example, Target(device=example.device, precision="fp16"))
    from regnet.kernels.network import fused

    return inference(fused(folded(model), torch.float16))


def half(
    model: nn.Module, layout: torch.memory_format, mode: str | None, *, dry: bool
) -> Callable[[Tensor], Tensor]:
    """Return a network in fp16 with float32 inputs and outputs: eager (mode None) or compiled."""
    model = model.to(dtype=torch.float16, memory_format=layout)
    call: Callable[..., Tensor] = model
    if mode is not None:
        # Without the reset, torch.compile runs the code eagerly after it has compiled it eight
        # times.
        torch._dynamo.reset()
        backend = {"backend": "eager"} if dry else {"mode": mode}
        call = torch.compile(model, dynamic=False, **backend)

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return call(x.to(dtype=torch.float16, memory_format=layout)).float()

    return run
