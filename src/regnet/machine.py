"""Describe the machine beside the numbers: hardware, software, and how busy it is."""

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
    """How much of its processors this process did not get, since it was made.

    What the process itself saw decides: a host may be busy elsewhere, or with this process alone.
    """

    BUSY: Final = 0.1
    """Part of its time from which on measurements mean little."""

    def __init__(self) -> None:
        self._before, self._used = _waited(), _processors()
        self._throttled, self._began = _throttled(), time.monotonic()

    @property
    def share(self) -> float | None:
        """Part of its threads' time that they were ready and did not run; None: not known here."""
        now = _waited()
        run = sum(now[t][0] - self._before.get(t, (0, 0))[0] for t in now)
        wait = sum(now[t][1] - self._before.get(t, (0, 0))[1] for t in now)
        return wait / (run + wait) if run + wait else None

    @property
    def problem(self) -> str | None:
        """What to say of a busy machine; None for one that is not known to be busy.

        Waiting alone is none: a process with many threads waits for itself.
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
    """Of all processors: in all, in use, in use by this process, and taken by the host."""

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
    """Seconds that the control group's quota kept it from running; 0 where there is no quota."""
    try:
        text = Path("/sys/fs/cgroup/cpu.stat").read_text(encoding="ascii")
        facts = dict(line.split() for line in text.splitlines())
        return int(facts.get("throttled_usec", 0)) / 1e6
    except (OSError, ValueError):
        return 0.0


def _waited() -> dict[str, tuple[int, int]]:
    """Nanoseconds that each thread ran, and waited to run, as Linux counts them."""
    found = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            run, wait, _ = map(int, path.read_text(encoding="ascii").split())
        except (OSError, ValueError):  # it has ended, or the kernel does not count
            continue
        found[path.parent.name] = run, wait
    return found


def environment(device: torch.device) -> dict[str, Any]:
    """Everything that a reader needs to judge or repeat a measurement, JSON-serializable."""
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
    """A path of this machine by its name alone: documents are shown to others."""
    option, equals, value = (
        argument.partition("=") if argument.startswith("-") else ("", "", argument)
    )
    return option + equals + (Path(value).name if value.startswith(("/", "..", "~")) else value)


def what_decides_speed(device: torch.device) -> dict[str, Any]:
    """Device, processor, threads and versions: where they are the same, so should times be."""
    return {
        "device": device_name(device),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
    }


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return str(_cpu()["model"])
    return device.type


def gpu_state(device: torch.device) -> dict[str, str] | None:
    """Clocks, temperature, power and throttle reasons of a CUDA device, as nvidia-smi says."""
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
    """What nvidia-smi calls it: numbers there ignore CUDA_VISIBLE_DEVICES."""
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
        return str(torch.__version__)  # names the build too, unlike the package's metadata
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this package, where it runs from its own repository."""
    folder = Path(__file__).parent
    if not _told("git", "-C", str(folder), "ls-files", "--error-unmatch", "machine.py"):
        return None
    return _told("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12")


def _told(*command: str) -> str | None:
    """What a program prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
