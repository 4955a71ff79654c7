"""torch.compile and AOTInductor: one program for the whole network, weights frozen into it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from regnet.engines.base import DTYPES, Runner, Target, half_obstacle
from regnet.engines.eager import casting
from regnet.engines.transforms import channels_last, folded


class Compiled:
    """torch.compile with frozen weights, channels last."""

    name = "compiled"

    def obstacle(self, target: Target) -> str | None:
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        model = channels_last(folded(model), DTYPES[target.precision])
        # A graph of its own: compiled code is kept by function, and models share theirs.
        run = casting(torch.compile(lambda x: model(x), fullgraph=True, dynamic=False), target)
        with _frozen():
            run(example)  # compiles
        return run


class AOTInductor:
    """A compiled package without Python in the loop: torch.export and AOTInductor."""

    name = "aot_inductor"

    def obstacle(self, target: Target) -> str | None:
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        dtype = DTYPES[target.precision]
        model = channels_last(folded(model), dtype)
        x = example.to(dtype=dtype, memory_format=torch.channels_last)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder, _frozen():
            program = torch.export.export(model, (x,))
            package = torch._inductor.aoti_compile_and_package(
                program, package_path=str(Path(folder) / "model.pt2")
            )
            loaded = torch._inductor.aoti_load_package(package)
        return casting(loaded, target)


@contextmanager
def _frozen() -> Iterator[None]:
    """Weights become constants of the compiled program; the setting of before again behind."""
    import torch._inductor.config as settings

    before = settings.freezing
    settings.freezing = True
    try:
        yield
    finally:
        settings.freezing = before
