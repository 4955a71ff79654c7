"""Describe the machine of a measurement: its hardware, its software, and how busy it is."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

PACKAGES: Final = (
    "regnet", "torch", "triton", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu",
    "openvino", "nncf", "torchao", "torch-tensorrt", "timm", "torchvision",
)  # fmt: skip

GPU_FACTS: Final = (
    "driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw",
    "clocks_event_reasons.active", "utilization.gpu",
)  # fmt: skip


class Waiting:
    """Measures how much processor time this process had to wait for, since the object was created.

    The threads of the process are observed themselves, because the load of the machine says little:
    a busy machine may be busy with this process alone.
    """

    BUSY: Final = 0.1
    """Share of the time; if more was lost than this, measurements mean little."""

    def __init__(self) -> None:
        self._before, self._used = _waited(), _processors()
        self._throttled, self._began = _throttled(), time.monotonic()

    @property
    def share(self) -> float | None:
        """Share of the time in which threads were ready but did not run; None if it is unknown."""
        now = _waited()
        run = sum(now[t][0] - self._before.get(t, (0, 0))[0] for t in now)
        wait = sum(now[t][1] - self._before.get(t, (0, 0))[1] for t in now)
        return wait / (run + wait) if run + wait else None

    @property
    def problem(self) -> str | None:
        """Why measurements mean little; None if the machine is not known to be busy.

        Waiting threads alone are not a problem, because a process with many threads waits for
        itself. Other processes must have used processors as well.
        """
        passed = max(time.monotonic() - self._began, 1e-9)
        if (throttled := _throttled() - self._throttled) > self.BUSY * passed:
            part = throttled / passed
            return f"the container's quota of processors was used up {part:.0%} of the time"
        now = _processors()
        if self._used is None or now is None or now.all <= self._used.all:
            return None
        total = now.all - self._used.all
        if (stolen := (now.stolen - self._used.stolen) / total) > self.BUSY:
            return f"the machine is busy: its host took {stolen:.0%} of the processors"
        others = (now.used - self._used.used - now.own + self._used.own) / total
        if self.share is None or min(self.share, others) <= self.BUSY:
            return None
        return f"the machine is busy: others used {others:.0%} of the processors"


class _Seconds(NamedTuple):
    """Seconds of all processors: in total, used, used by this process, and taken by the host."""

    all: float
    used: float
    own: float
    stolen: float


def _processors() -> _Seconds | None:
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
        ticks = [int(word) for word in line.split()[1:9]]
    except (OSError, ValueError):
        return None
    hertz = os.sysconf("SC_CLK_TCK")
    idle, stolen = ticks[3] + ticks[4], ticks[7] if len(ticks) > 7 else 0
    own = os.times()
    return _Seconds(
        all=sum(ticks) / hertz,
        used=(sum(ticks) - idle - stolen) / hertz,
        own=own.user + own.system,
        stolen=stolen / hertz,
    )


def _throttled() -> float:
    """Return the seconds for which the control group's quota stopped this process; 0 if none."""
    try:
        text = Path("/sys/fs/cgroup/cpu.stat").read_text(encoding="ascii")
        facts = dict(line.split() for line in text.splitlines())
        return int(facts.get("throttled_usec", 0)) / 1e6
    except (OSError, ValueError):
        return 0.0


def _waited() -> dict[str, tuple[int, int]]:
    """Return the nanoseconds for which each thread ran, and waited to run, as Linux counts them."""
    found = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            run, wait, _ = map(int, path.read_text(encoding="ascii").split())
        except (OSError, ValueError):  # the thread has ended, or the kernel does not count
            continue
        found[path.parent.name] = run, wait
    return found


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a reader needs to judge or repeat a measurement on a device, as data for JSON."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *map(_shown, sys.argv[1:])],
        "commit": _commit(),
        **what_decides_speed(device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "gpu": gpu_state(device),
    }


def _shown(argument: str) -> str:
    """Return an argument with paths cut to their last name, as documents are shown to others."""
    option, equals, value = (
        argument.partition("=") if argument.startswith("-") else ("", "", argument)
    )
    return option + equals + (Path(value).name if value.startswith(("/", "..", "~")) else value)


def what_decides_speed(device: torch.device) -> dict[str, Any]:
    """Return device, processor, threads and versions; equal values should mean equal times."""
    return {
        "device": device_name(device),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
    }


def device_name(device: torch.device) -> str:
    """Return the model name of a device, as the device reports it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return str(_cpu()["model"])
    return device.type


def gpu_state(device: torch.device) -> dict[str, str] | None:
    """Return clocks, temperature, power and throttle reasons of a CUDA device, from nvidia-smi.

    The result is None for other devices, or if nvidia-smi does not answer.
    """
    if device.type != "cuda":
        return None
    told = _told(
        "nvidia-smi",
        f"--id={_gpu_id(device)}",
        f"--query-gpu={','.join(GPU_FACTS)}",
        "--format=csv,noheader",
    )
    values = [value.strip() for value in told.split(",")] if told else []
    return dict(zip(GPU_FACTS, values, strict=True)) if len(values) == len(GPU_FACTS) else None


def _gpu_id(device: torch.device) -> str:
    """Return the UUID of a GPU, because the numbers of nvidia-smi ignore CUDA_VISIBLE_DEVICES."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


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
    if package == "torch":
        return str(torch.__version__)  # unlike the metadata of the package, this names the build
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of this package, or None unless it runs from its own repository."""
    folder = Path(__file__).parent
    if not _told("git", "-C", str(folder), "ls-files", "--error-unmatch", "machine.py"):
        return None
    return _told("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12")


def _told(*command: str) -> str | None:
    """Return what a program prints, or None if it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
