"""Load the tensors of a checkpoint into a model, strictly and without a second copy of them.

A model built on the device "meta" has no values. It takes the checkpoint's own tensors, which are
mapped from the file, unless users may write to that file. Every difference between the two is an
error that names the cause, except for the differences that an `Adaptation` allows: another
classifier, or another number of image channels.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from numbers import Integral

import torch
from torch import Tensor

from regnet.errors import ConfigError, WeightsError
from regnet.nn.init import init_weights
from regnet.nn.model import AnyNet
from regnet.weights.formats import STEM_WEIGHTS
from regnet.weights.identify import (
    identify,
    num_classes,
    signature_of_config,
    signature_of_shapes,
)

HEAD = ("head.fc.weight", "head.fc.bias")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """The differences allowed between a checkpoint and the model that loads it; by default none."""

    classifier: bool = False
    """Whether a classifier with another number of classes is initialized anew."""
    classes: Sequence[int] | None = None
    """Rows of the checkpoint's classifier to load, in this order; None: all."""
    channels: bool = False
    """Whether the stem is adapted to another number of image channels; see `adapt_stem`."""
    unused: Collection[str] = ()
    """Modules whose weights may be missing, because the model does not keep the modules."""


def load_tensors(
    model: AnyNet,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    allow: Adaptation | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    detached: bool = False,
) -> None:
    """Replace the tensors of a model by these.

    Args:
        model: a model on any device, including "meta". Its parameters are replaced, not written to.
        tensors: the tensors, under the names of the model's state dict.
        source: name of their origin, for messages.
        allow: the differences to allow; None: none.
        device: device to move the tensors to.
        dtype: floating-point type of the parameters; None: torch's default.
        detached: copy tensors that are mapped from a file or share memory. A mapped tensor changes
            when its file is written to, and reading it ends the process if the file was cut short.

    Raises:
        WeightsError: the tensors do not fit, or are not finite in this type; the model is then
            unchanged.
        ConfigError: `classes` contains an index that the checkpoint does not have.
    """
    allow = allow or Adaptation()
    dtype = dtype or torch.get_default_dtype()
    plan: list[str] = []
    found = _with_counters({name: value.detach() for name, value in tensors.items()}, model)
    found = _fit_classifier(model, found, allow, plan)
    if allow.channels:
        found = _fit_stem(model, found, plan)
    missing = [name for name in model.state_dict() if name not in found]
    allowed = [name for name in missing if allow.classifier and name in HEAD]
    absent = [name for name in missing if name.partition(".")[0] in allow.unused]
    _check(model, found, [*allowed, *absent], source, tensors)
    state, seen = {}, set()
    for name, value in found.items():
        memory = value.untyped_storage()
        owned = memory.resizable() and memory.data_ptr() not in seen  # a mapping has a fixed size
        seen.add(memory.data_ptr())
        kind = dtype if value.is_floating_point() else value.dtype
        state[name] = value.to(device, kind, copy=detached and not owned)
    for name, value in state.items():
        if value.dtype != found[name].dtype and not is_finite(value):
            raise WeightsError(f"{source}: {name} has values that are too large for {dtype}")
    if allowed:
        model.head.fc.to_empty(device=device).to(dtype)
        init_weights(model.head)
    state |= {name: model.state_dict()[name] for name in (*allowed, *absent)}
    model.load_state_dict(state, strict=True, assign=True)
    _log.info("%s: %d tensors%s", source, len(found), "".join(f"; {step}" for step in plan))


def adapt_stem(weight: Tensor, in_chans: int) -> Tensor:
    """Adapt the weights of a stem to images with another number of channels, by timm's rule.

    For one channel, the weights are summed over red, green and blue, so that a gray image gives the
    same result as its RGB copy. For more, the three channels are repeated in turn and scaled by
    3 / in_chans, so that the scale of the sums stays the same. Half-precision weights become
    float32, so that the result is not rounded twice.

    Args:
        weight: weights (out, 3, H, W).
        in_chans: number of channels of the images.

    Returns:
        Weights (out, in_chans, H, W).
    """
    weight = weight.float() if weight.itemsize < 4 else weight
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    channels = weight.shape[1]
    turns = weight.repeat(1, ceil(in_chans / channels), 1, 1)[:, :in_chans]
    return turns * (channels / in_chans)


def _with_counters(tensors: dict[str, Tensor], model: AnyNet) -> dict[str, Tensor]:
    """Add zeros for batch counters that a converter dropped, and round those that it averaged.

    No computation reads them, so a counter that overflowed in half precision becomes zero, too.
    """
    found = dict(tensors)
    for name in model.state_dict():
        if name.endswith(".num_batches_tracked"):
            count = tensors.get(name, torch.zeros((), dtype=torch.int64))
            if count.is_floating_point() and not count.is_meta:
                count = count.double().nan_to_num(0, 0, 0).round().to(torch.int64)
            found[name] = count
    return found


def _fit_classifier(
    model: AnyNet, tensors: dict[str, Tensor], allow: Adaptation, plan: list[str]
) -> dict[str, Tensor]:
    classes = num_classes({name: tuple(value.shape) for name, value in tensors.items()})
    wanted = model.config.num_classes
    if allow.classes is not None and classes:
        rows = list(allow.classes)
        whole = all(isinstance(row, Integral) and not isinstance(row, bool) for row in rows)
        if not rows or not whole or not all(0 <= row < classes for row in rows):
            raise ConfigError(
                f"classes must lie between 0 and {classes - 1}, those of the checkpoint; got {rows}"
            )
        plan.append(f"{len(rows)} of the {classes} classes loaded")
        return tensors | {name: tensors[name][rows] for name in HEAD if name in tensors}
    if not allow.classifier or (
        wanted == classes and set(HEAD) >= {name for name in tensors if name.startswith("head.fc.")}
    ):
        return tensors
    had = f"classifier of {classes} classes" if classes else "no classifier"
    plan.append(f"{had}, {f'replaced by a new one of {wanted}' if wanted else 'left out'}")
    return {name: value for name, value in tensors.items() if not name.startswith("head.fc.")}


def _fit_stem(model: AnyNet, tensors: dict[str, Tensor], plan: list[str]) -> dict[str, Tensor]:
    channels = model.config.in_chans
    for name in STEM_WEIGHTS:
        if name in tensors and tensors[name].ndim == 4 and tensors[name].shape[1] != channels:
            plan.append(f"stem of {tensors[name].shape[1]} channels adapted to {channels}")
            return tensors | {name: adapt_stem(tensors[name], channels)}
    return tensors


def _check(
    model: AnyNet,
    tensors: Mapping[str, Tensor],
    fresh: Sequence[str],
    source: str,
    original: Mapping[str, Tensor],
) -> None:
    expected = model.state_dict()
    problems = [
        f"{name} has values that are not finite"
        for name, value in tensors.items()
        if not is_finite(value)
    ]
    present = {*tensors, *fresh}
    problems += [f"missing {name}" for name in expected if name not in present]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    for name, value in tensors.items():
        if name not in expected:
            continue
        if value.shape != expected[name].shape:
            problems.append(
                f"{name} has shape {tuple(value.shape)}, "
                f"the model needs {tuple(expected[name].shape)}"
            )
        elif value.is_floating_point() != expected[name].is_floating_point():
            problems.append(f"{name} is {value.dtype}")
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"{source} does not fit the model{_cause(model, original)}: "
            f"{', '.join(problems[:3])}{more}"
        )


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has no NaN and no infinity; unlike `isfinite`, this makes no copy."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    if tensor.itemsize == 1:  # torch computes no norm of float8
        tensor = tensor.float()
    return bool(torch.linalg.vector_norm(tensor, ord=torch.inf).isfinite())


def _cause(model: AnyNet, tensors: Mapping[str, Tensor]) -> str:
    """Return the likely cause of a mismatch and what to do about it; empty if it is unclear."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    found = identify(shapes)
    fits = signature_of_shapes(shapes) == signature_of_config(model.config)
    if found and not fits:
        names = " or ".join(row.name for row in found)
        why = ""
        if any(getattr(row.config, "rounding", None) == "divisible" for row in found):
            why = ", with torchvision's rounding of widths"
        return f" (it holds {names}{why}; create that)"
    stem = next((shapes[name] for name in STEM_WEIGHTS if name in shapes), (0, 0))
    if len(stem) > 1 and stem[1] and stem[1] != model.config.in_chans:
        return f" (its stem takes {stem[1]} channels; pass in_chans={stem[1]})"
    classes = num_classes(shapes)
    if not classes and any(name.startswith("head.fc.") for name in shapes):
        return " (its classifier is not one linear layer; pass num_classes= for a new one, or 0)"
    if fits and classes != model.config.num_classes:
        what = f"its classifier has {classes} classes" if classes else "it has no classifier"
        return f" ({what}; pass num_classes={classes})"
    return ""
