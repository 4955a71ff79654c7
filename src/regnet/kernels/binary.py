"""Compiled kernels: what determines one, what it needs, and compiling many without a GPU."""

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
"""Backend, architecture and threads of a warp of an H100 or H200."""

REGISTERS: Final = 65536
"""Of a multiprocessor."""

SHARED: Final = 227 * 1024
"""Bytes of shared memory of a multiprocessor that blocks can use."""

RESERVED: Final = 1024
"""Bytes of shared memory that the system takes for each block."""

THREADS: Final = 2048
"""Of a multiprocessor, at most."""

_LARGE: Final = 2**31

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a binary needs."""

    registers: int
    """Per thread."""
    spills: int
    """Bytes per thread that do not fit into registers."""
    shared: int
    """Bytes of shared memory per block."""
    waits: int
    """Places where matrix products are waited for."""

    def blocks_per_multiprocessor(self, threads: int) -> int:
        """Return how many blocks of so many threads run at once on a multiprocessor."""
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * threads)
        by_shared = SHARED // (self.shared + RESERVED)
        return max(1, min(by_registers, by_shared, THREADS // threads, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """What decides a binary; equal ones are compiled once."""

    module: str
    kernel: str
    args: tuple[str | int | float, ...]
    """Of tensors their types; of numbers, which are not specialized, one of the same type."""
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
        """Return the binary of a kernel that is called so."""

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
        """Compile it for the active target, or take it from Triton's cache on disk."""
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
    """Compile binaries in processes of their own; no GPU is needed.

    Triton keeps them in its cache on disk, where this process finds them when it launches them.

    Args:
        binaries: what to compile.
        target: backend, architecture and threads of a warp.
        workers: processes; None: one per core, 16 at most.

    Returns:
        What each needs; None if it could not be compiled. A binary is missing if its process died.
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
            _log.warning("kernels could not be compiled ahead: %s", done.stderr[-500:])
        for line in done.stdout.splitlines():
            if line.startswith("["):  # compilers may print, too
                number, resources = json.loads(line)
                found[part[number]] = resources and Resources(**resources)

    with ThreadPoolExecutor(count) as pool:  # each thread waits for its process
        list(pool.map(work, [todo[start::count] for start in range(count)]))
    return found


def resources_of(kernel: Any) -> Resources:
    """Return what a compiled kernel needs, as the tools that come with Triton tell."""
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
        raise RuntimeError(f"cuobjdump tells nothing of registers: {text!r}")
    return Resources(
        registers=int(usage[1]),
        spills=int(usage[2]),
        shared=kernel.metadata.shared,
        waits=len(re.findall(r"wgmma\.wait_group", kernel.asm["ptx"])),
    )


class _Target:
    """Stands for a GPU when Triton asks what to compile for."""

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
    """Compile what standard input names, and print a line for each: its number and its needs."""
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
