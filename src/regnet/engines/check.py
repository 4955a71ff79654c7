"""Check a runner's outputs against eager float32 before anything is timed."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from regnet.engines.base import Engine, Runner, Target, relative_error, tolerance
from regnet.engines.outputs import each
from regnet.errors import ConfigError

INPUT_SETS: Final = 3
"""Number of inputs, which take turns so that no call can reuse the result of the last one."""


def check_float32(model: nn.Module) -> None:
    """Refuse a model whose weights are not float32, because the reference is computed in float32.

    Raises:
        ConfigError: they are not.
    """
    for tensor in model.parameters():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(
                f"the weights are {kind}, but must be float32; call model.float(), and choose with "
                "precision what the result computes in"
            )


def answers(model: nn.Module, inputs: Sequence[Tensor]) -> list[Any]:
    """Return the outputs of a model in evaluation mode for each input, in float32 without TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        with torch.inference_mode():
            return [each(lambda out: out.float().clone(), model(x)) for x in inputs]
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A runner, and whether its outputs are correct."""

    runner: Runner | None = None
    seconds: float | None = None
    error: float | None = None
    """The largest relative error, see `worst_error`; None if it is not finite."""
    reason: str | None = None
    """Why the runner must not be used; None if it may be used."""


def build_checked(
    engine: Engine,
    model: nn.Module,
    inputs: Sequence[Tensor],
    reference: Sequence[Any],
    target: Target,
) -> Built:
    """Build a runner and compare its outputs with the reference; the engine's errors propagate."""
    if obstacle := engine.obstacle(target):
        return Built(reason=obstacle)
    start = time.perf_counter()
    runner = engine.build(model, inputs[0], target)
    seconds = time.perf_counter() - start
    error = worst_error(runner, inputs, reference)
    reason = wrong(error, target)
    return Built(runner=runner, seconds=seconds, error=finite_or_none(error), reason=reason)


WRONG: Final = "wrong: "
"""Beginning of the reason to reject outputs."""


def wrong(error: float, target: Target) -> str | None:
    """Return the reason to reject outputs with this error; None if the target allows the error."""
    if error <= tolerance(target):
        return None
    # Also if the error is nan.
    return f"{WRONG}its outputs differ by {error:.1e}, more than {tolerance(target):.0e}"


def finite_or_none(error: float) -> float | None:
    """Return an error, or None if it is not finite, which JSON cannot express."""
    return error if math.isfinite(error) else None


def worst_error(runner: Runner, inputs: Sequence[Tensor], reference: Sequence[Any]) -> float:
    """Return the largest relative error over several inputs, each of which is run twice.

    Outputs are compared only after all calls, so that an engine that returns its own memory, and
    overwrites earlier outputs in it, is found out.
    """
    once = [runner(x) for x in inputs]
    again = [runner(x) for x in inputs]
    pairs = zip([*once, *again], [*reference, *reference], strict=True)
    errors = [relative_error(found, expected) for found, expected in pairs]
    return max(errors) if all(math.isfinite(e) for e in errors) else math.nan
