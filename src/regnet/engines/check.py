"""Check a runner's answers against eager float32 before anything is timed."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from regnet.engines.base import Engine, Runner, Target, relative_error, tolerance
from regnet.engines.outputs import each

INPUT_SETS: Final = 3
"""Inputs that take turns, so that nothing can be remembered from the last call."""


def answers(model: nn.Module, inputs: Sequence[Tensor]) -> list[Any]:
    """What a model in evaluation mode gives for each input, in true float32."""
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
    """A runner, and whether its answers are right."""

    runner: Runner | None = None
    seconds: float | None = None
    error: float | None = None
    """See `worst_error`."""
    reason: str | None = None
    """Why it must not be used; None if it may."""


def build_checked(
    engine: Engine,
    model: nn.Module,
    inputs: Sequence[Tensor],
    reference: Sequence[Any],
    target: Target,
) -> Built:
    """Build a runner and compare its answers; whatever the engine raises is passed on."""
    if obstacle := engine.obstacle(target):
        return Built(reason=obstacle)
    start = time.perf_counter()
    runner = engine.build(model, inputs[0], target)
    seconds = time.perf_counter() - start
    error = worst_error(runner, inputs, reference)
    return Built(runner=runner, seconds=seconds, error=error, reason=wrong(error, target))


def wrong(error: float, target: Target) -> str | None:
    """What is told of outputs that differ more than the target allows; None if they do not."""
    if error <= tolerance(target):
        return None
    return f"wrong: its outputs differ by {error:.1e}"  # nan is wrong too


def worst_error(runner: Runner, inputs: Sequence[Tensor], reference: Sequence[Any]) -> float:
    """The largest relative error over several inputs; each is asked twice.

    The second answer must be the first: an engine that hands out its own memory would change it.
    """
    once = [runner(x) for x in inputs]
    again = [runner(x) for x in inputs]
    pairs = zip([*once, *again], [*reference, *reference], strict=True)
    errors = [relative_error(found, expected) for found, expected in pairs]
    return max(errors) if all(math.isfinite(e) for e in errors) else math.nan
