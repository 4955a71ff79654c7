"""Find the network inside a checkpoint, whatever a training script wrote around it.

There is no list of wrappers: whatever has names and shapes of a network, in a known format, below
any keys and behind any prefix, is one. Moving averages come before the weights they are of.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor

from regnet.errors import WeightsError
from regnet.weights.files import check_plain, read_object
from regnet.weights.formats import STEM_WEIGHTS, to_native
from regnet.weights.identify import Signature, num_classes, signature_of_shapes
from regnet.weights.inert import Ignored

_DEPTH: Final = 6
"""Most containers around a network, and most parts of a prefix."""
_DEEPEST: Final = 30
"""Most modules inside each other."""
_AVERAGE: Final = re.compile(r"(?<![a-z])(ema|swa|polyak)(?![a-z])|average|shadow|EMA")
_NO_AVERAGE: Final = re.compile(r"(?<![a-z])(non?|not|without|raw)[_.-]*(?=ema|swa|average)")
_NO_WEIGHTS: Final = re.compile(
    r"momentum|(?<![a-z])(optim\w*|grads?|gradients|exp_avg\w*|velocity)"
)
"""Keys of what has the shapes of a network's tensors and is none."""
_INSIDE: Final = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and checkpointing put into the middle of names."""

_log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """Which network it is, as far as shapes tell."""

    signature: Signature
    num_classes: int
    """Outputs of its classifier; 0 for none."""
    in_chans: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A network inside a checkpoint."""

    key: str
    """Where it is: the keys that lead to it and the prefix of its names, joined by dots."""
    tensors: dict[str, Tensor]
    """Its tensors, under the names of its library."""
    kind: Kind
    left_out: tuple[str, ...]
    """Tensors beside it that are none of its own."""
    average: bool
    """Whether it is a moving average of weights."""


def read_tensors(
    path: Path,
    *,
    key: str | None = None,
    wanted: Kind | None = None,
    ignore_objects: bool = False,
) -> dict[str, Tensor]:
    """The tensors of the network in a file, under the names of its library.

    Args:
        path: the file, the index of a sharded checkpoint, or a folder that holds either.
        key: which of several networks, as `Found.key` names it; None: one that is wanted, an
            average before the weights that it is of.
        wanted: what the network should be; others are taken only where there is none such.
        ignore_objects: see `regnet.weights.files.read_object`.

    Raises:
        WeightsError: there is no such file, it is damaged, or it holds no such network.
    """
    return tensors_in(
        read_object(path, ignore_objects=ignore_objects), path, key=key, wanted=wanted
    )


def tensors_in(
    loaded: Any, path: Path, *, key: str | None = None, wanted: Kind | None = None
) -> dict[str, Tensor]:
    """The same of what a file holds; `path` is for messages.

    Raises:
        WeightsError: it holds no such network.
    """
    found = networks(loaded)
    if key is not None:
        chosen = next((row for row in found if row.key == key), None)
        if chosen is None:
            there = ", ".join(repr(row.key) for row in found) or "none"
            raise WeightsError(f"{path}: no network at {key!r}; there are {there}")
    elif not found:
        return _flat(loaded, path)
    else:
        chosen = found[0]
        if wanted is not None:
            chosen = min(
                found,
                key=lambda row: (row.kind.signature != wanted.signature, row.kind != wanted),
            )
        if others := [repr(row.key) for row in found if row is not chosen]:
            _log.warning(
                "%s holds %d networks; %r is taken, checkpoint_key= (or --key) takes another: %s",
                path, len(found), chosen.key, ", ".join(others),
            )  # fmt: skip
    if chosen.left_out:
        more = f" and {len(chosen.left_out) - 3} more" if len(chosen.left_out) > 3 else ""
        shown = ", ".join(chosen.left_out[:3]) + more
        _log.warning("%s: tensors beside the network are left out: %s", path, shown)
    check_plain(chosen.tensors, path)
    return chosen.tensors


def networks(loaded: Any) -> list[Found]:
    """The networks in what a checkpoint holds, the one to prefer first."""
    found = [row for keys, tensors in _mappings(loaded) for row in _networks_in(keys, tensors)]
    worse = isinstance(loaded, Mapping) and _average_is_worse(loaded)
    return sorted(
        found,
        key=lambda row: (
            bool(_NO_WEIGHTS.search(row.key)),
            # An average of parameters alone lacks what the whole network has.
            not any(name.endswith("running_mean") for name in row.tensors),
            row.average == worse,
        ),
    )


def _mappings(
    loaded: Any, keys: tuple[str, ...] = (), seen: frozenset[int] = frozenset()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Each group of tensors by name, with the keys that lead to it."""
    if id(loaded) in seen or len(keys) > _DEPTH:
        return
    seen |= {id(loaded)}
    if isinstance(loaded, Ignored):
        loaded = _module_state(loaded)
    if isinstance(loaded, list | tuple):
        loaded = {str(number): part for number, part in enumerate(loaded[:16])}
    if not isinstance(loaded, Mapping):
        return
    tensors = _tensors(loaded)
    if tensors:
        yield keys, tensors
    # ClassyVision and VISSL keep the classifier of a network apart.
    apart = _tensors(loaded.get("trunk"))
    if apart:
        yield keys, apart | _tensors(loaded.get("heads"))
    for name, part in loaded.items():
        if not isinstance(part, Tensor) and not (apart and name in ("trunk", "heads")):
            yield from _mappings(part, (*keys, str(name)), seen)


def _tensors(loaded: Any) -> dict[str, Tensor]:
    """The tensors in a mapping by name; none in anything else."""
    if not isinstance(loaded, Mapping):
        return {}
    return {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _module_state(module: Ignored, depth: int = 0) -> dict[str, Any] | None:
    """The state dict of a module that was saved whole; None for other objects."""
    state = module.state
    if (
        depth > _DEEPEST
        or not isinstance(state, Mapping)
        or not isinstance(state.get("_modules"), Mapping)
    ):
        return None
    found: dict[str, Any] = {}
    for kind in ("_parameters", "_buffers"):
        part = state.get(kind)
        found |= part if isinstance(part, Mapping) else {}
    for name, child in state["_modules"].items():
        if isinstance(child, Ignored) and (inner := _module_state(child, depth + 1)):
            found |= {f"{name}.{key}": value for key, value in inner.items()}
    return found


def _networks_in(keys: tuple[str, ...], tensors: dict[str, Tensor]) -> Iterator[Found]:
    """The networks among tensors, by the prefix of their names."""
    plain = {_INSIDE.sub("", name): value for name, value in tensors.items()}
    taken: list[str] = []
    rows = []
    for prefix in _prefixes(plain):
        if any(prefix.startswith(other) for other in taken):
            continue
        inner = {n.removeprefix(prefix): v for n, v in plain.items() if n.startswith(prefix)}
        if (kind := _kind(inner)) is not None:
            taken.append(prefix)
            rows.append((prefix, inner, kind))
    left_out = [n for n, v in plain.items() if v.numel() > 1 and not n.startswith(tuple(taken))]
    # torch's AveragedModel counts beside its module.
    averaged = tuple(
        f"{n.removesuffix('n_averaged')}module." for n in plain if n.endswith("n_averaged")
    )
    for prefix, inner, kind in rows:
        key = ".".join([*keys, *([prefix[:-1]] if prefix else [])])
        yield Found(
            key=key,
            tensors=inner,
            kind=kind,
            left_out=tuple(left_out),
            average=prefix.startswith(averaged)
            or bool(_AVERAGE.search(key) and not _NO_AVERAGE.search(key)),
        )


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Beginnings of names that end with a dot, and none at all; the short ones first."""
    found = {"": None}  # in the order of the file
    for name in tensors:
        parts = name.split(".")[:-1][:_DEPTH]
        for count in range(1, len(parts) + 1):
            found[".".join(parts[:count]) + "."] = None
    return sorted(found, key=lambda prefix: prefix.count("."))


def _kind(tensors: dict[str, Tensor]) -> Kind | None:
    """The kind of a whole network in a known format; None of anything else."""
    if len(tensors) < 5:
        return None
    try:
        native, _ = to_native(tensors)
    except WeightsError:
        return None
    shapes = {name: tuple(value.shape) for name, value in native.items()}
    stem = next((shapes[name] for name in STEM_WEIGHTS if name in shapes), ())
    if len(stem) < 2 or not any(name.startswith("s1.") for name in shapes):
        return None
    return Kind(signature_of_shapes(shapes), num_classes(shapes), stem[1])


def _average_is_worse(loaded: Mapping[Any, Any]) -> bool:
    """Whether pycls found the moving average of the weights no better than the weights."""
    plain, average = loaded.get("test_err"), loaded.get("ema_err")
    better = isinstance(plain, float) and isinstance(average, float) and average < plain
    return "ema_state" in loaded and "model_state" in loaded and not better


def _flat(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Tensors by name that are no network of ours; who asked for them says what is wrong."""
    found = [(len(tensors), keys, tensors) for keys, tensors in _mappings(loaded)]
    if not found:
        raise WeightsError(f"{path}: no state dict in it, but a {type(loaded).__name__}")
    _, keys, tensors = max(found, key=lambda row: row[0])
    if not keys and isinstance(loaded, Mapping) and len(tensors) < len(loaded):
        shown = ", ".join(str(name) for name in loaded if name not in tensors)
        raise WeightsError(f"{path}: a state dict has tensors by name; this one has {shown} too")
    check_plain(tensors, path)
    return tensors
