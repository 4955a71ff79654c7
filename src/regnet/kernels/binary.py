"""Compiled kernels: their keys and resources, and the compilation of many without a GPU."""

import importlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

HOPPER: Final = ("cuda", 90, 32)
"""Backend, compute capability (9.0) and threads per warp of an H100 or H200."""

REGISTERS: Final = 65536
"""Registers of a multiprocessor of an H100 or H200, as are the next three limits."""

SHARED: Final = 227 * 1024
"""Bytes of shared memory of a multiprocessor that blocks can use."""

RESERVED: Final = 1024
"""Bytes of shared memory that the system reserves for each block."""

THREADS: Final = 2048
"""Maximum number of threads of a multiprocessor."""

_LARGE: Final = 2**31
"""The smallest number that Triton passes as a 64-bit integer, which needs a binary of its own."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The resources that a binary needs."""

    registers: int
    """Registers per thread."""
    spills: int
    """Bytes per thread that do not fit into registers."""
    shared: int
    """Bytes of shared memory per block."""
    waits: int
    """Places in the code that wait for a matrix product."""

    def blocks_per_multiprocessor(self, threads: int) -> int:
        """Return how many blocks of `threads` threads run on a multiprocessor at the same time."""
        # Registers are allocated to a thread in units of 8; 32 is the limit of blocks.
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * threads)
        by_shared = SHARED // (self.shared + RESERVED)
        return max(1, min(by_registers, by_shared, THREADS // threads, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """Everything that determines a compiled kernel; equal ones are compiled once."""

    module: str
    kernel: str
    args: tuple[str | int | float, ...]
    """For each tensor its type. For each number a placeholder of the same type, because kernels are
    not specialized on numbers."""
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int

    @classmethod
    def of(
        cls,
        kernel: Any,
        args: Sequence[Any],
        constants: Mapping[str, Any],
        warps: int,
        stages: int,
    ) -> "Binary":
        """Return the binary of a kernel that is launched with these arguments."""

        def typed(value: Any) -> str | int | float:
            if isinstance(value, torch.Tensor):
                return str(value.dtype).removeprefix("torch.")
            if isinstance(value, float):
                return 0.5
            return _LARGE if value >= _LARGE else 2

        return cls(
            module=kernel.fn.__module__,
            kernel=kernel.fn.__name__,
            args=tuple(map(typed, args)),
            constants=tuple(sorted(constants.items())),
            warps=warps,
            stages=stages,
        )

    def compiled(self) -> Any:
        """Compile the kernel for the active target, or load it from Triton's cache on disk."""
        kernel = getattr(importlib.import_module(self.module), self.kernel)
        args = [getattr(torch, a) if isinstance(a, str) else a for a in self.args]
        return kernel.warmup(
            *args,
            grid=(1,),
            **dict(self.constants),
            num_warps=self.warps,
            num_stages=self.stages,
        )


def compile_all(
    binaries: Iterable[Binary],
    target: tuple[str, int, int] = HOPPER,
    *,
    workers: int | None = None,
) -> dict[Binary, Resources | None]:
    """Compile binaries in parallel processes; no GPU is needed.

    Triton saves them in its cache on disk, from which this process loads them at their launch.

    Args:
        binaries: the binaries to compile.
        target: backend, compute capability and threads per warp.
        workers: number of processes; None: one per core, at most 16.

    Returns:
        The resources of each binary; None for one that could not be compiled. A binary whose
        process died is missing.
    """
    todo = list(dict.fromkeys(binaries))
    count = min(workers or min(os.cpu_count() or 1, 16), len(todo))
    found: dict[Binary, Resources | None] = {}
    if not todo:
        return found

    def work(part: Sequence[Binary]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps({"target": target, "binaries": [asdict(b) for b in part]}),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            _log.warning(
                "a process that compiles kernels failed; they are compiled when they are timed: %s",
                done.stderr[-500:],
            )
        for line in done.stdout.splitlines():
            if line.startswith("["):  # other lines are output of the compiler
                number, resources = json.loads(line)
                found[part[number]] = resources and Resources(**resources)

    with ThreadPoolExecutor(count) as pool:  # each thread waits for its process
        list(pool.map(work, [todo[start::count] for start in range(count)]))
    return found


def resources_of(kernel: Any) -> Resources:
    """Return the resources of a compiled kernel, read with the tools that Triton includes."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(kernel.asm["cubin"])
        text = subprocess.run(
            [tools / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True
        ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if usage is None:
        raise RuntimeError(f"cuobjdump reported no registers: {text!r}")
    return Resources(
        registers=int(usage[1]),
        spills=int(usage[2]),
        shared=kernel.metadata.shared,
        waits=len(re.findall(r"wgmma\.wait_group", kernel.asm["ptx"])),
    )


class _Target:
    """A stand-in for the GPU that Triton queries for what to compile for."""

    def __init__(self, target: Sequence[Any]) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*self.target)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def _main() -> None:
    """Compile the binaries listed on standard input, and print each one's number and resources."""
    from triton.runtime import driver

    asked = json.load(sys.stdin)
    driver.set_active(_Target(asked["target"]))
    for number, values in enumerate(asked["binaries"]):
        constants = tuple((name, value) for name, value in values.pop("constants"))
        binary = Binary(**{**values, "args": tuple(values["args"]), "constants": constants})
        try:
            needs: Any = asdict(resources_of(binary.compiled()))
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything
            sys.stderr.write(f"{binary}: {error}\n")
            needs = None
        sys.stdout.write(json.dumps([number, needs]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
