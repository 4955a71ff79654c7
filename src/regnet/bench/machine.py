"""The machine beside the numbers: what it is, what else it does, and what it can do at most."""

import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from regnet.bench.floors import Ceilings
from regnet.engines.base import DTYPES, Precision
from regnet.timing import time_call

PACKAGES = ("regnet", "torch", "triton", "numpy", "onnxruntime", "openvino", "timm", "torchvision")


def environment(device: torch.device) -> dict[str, Any]:
    """Everything that a reader needs to judge or repeat a measurement, JSON-serializable."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "device": device_name(device),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return str(_cpu()["model"])
    return device.type


def _cpu() -> dict[str, Any]:
    facts: dict[str, Any] = {"model": platform.processor() or platform.machine()}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return facts
    values = {key.strip(): value.strip() for key, _, value in (li.partition(":") for li in lines)}
    flags = values.get("flags", "").split()
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
    facts["model"] = values.get("model name", facts["model"])
    facts["flags"] = [flag for flag in wanted if flag in flags]
    facts["count"] = os.cpu_count()
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def measure_ceilings(device: torch.device, precision: Precision) -> Ceilings:
    """How fast this device copies and multiplies; the best of some tries, random numbers."""
    dtype = DTYPES[precision]
    large = device.type != "cpu"
    source = torch.randn((1 << 28) if large else (1 << 25), device=device).to(dtype)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device)
    side = 8192 if large else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    multiply = _best(lambda: a @ b, device)
    return Ceilings(
        bytes_per_second=2 * source.nbytes / copy, flops_per_second=2 * side**3 / multiply
    )


def _best(call: Any, device: torch.device) -> float:
    marker = torch.empty(0, device=device)
    call()
    return min(time_call(lambda _: call(), marker) for _ in range(7))
