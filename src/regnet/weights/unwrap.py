"""Find the network inside a checkpoint, whatever else the training script saved with it.

There is no list of training scripts. Any group of tensors with the names and shapes of a network in
a known format is a network, below any keys and behind any prefix. Moving averages are preferred to
the weights that they average.
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
from regnet.weights.formats import STEM_WEIGHTS, closest, to_native
from regnet.weights.identify import Signature, num_classes, signature_of_shapes
from regnet.weights.inert import Ignored

_DEPTH: Final = 6
"""The most containers around a network, and the most parts of a prefix."""
_FEWEST: Final = 5
"""A network has at least as many tensors."""
_DEEPEST: Final = 30
"""The most levels of nested modules."""
_AVERAGE: Final = re.compile(r"(?<![a-z])(ema|swa|polyak)(?![a-z])|average|shadow|EMA")
_NO_AVERAGE: Final = re.compile(r"(?<![a-z])(non?|not|without|raw)[_.-]*(?=ema|swa|average)")
_NO_WEIGHTS: Final = re.compile(
    r"momentum|(?<![a-z])(optim\w*|grads?|gradients|exp_avg\w*|velocity)"
)
"""Keys of tensors that have the shapes of weights but are not weights, such as momentum."""
_INSIDE: Final = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts that torch.compile, FSDP and activation checkpointing insert into names."""

_log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """What the shapes tell about a network."""

    signature: Signature
    num_classes: int
    """Outputs of the classifier; 0 if there is none."""
    in_chans: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A network inside a checkpoint."""

    key: str
    """Its place in the checkpoint: the keys that lead to it and the prefix of its names, joined by
    dots."""
    tensors: dict[str, Tensor]
    """Its tensors, with the names of its library."""
    kind: Kind
    left_out: tuple[str, ...]
    """Names of tensors beside the network that do not belong to it."""
    average: bool
    """Whether it is a moving average of weights."""


def read_tensors(
    path: Path,
    *,
    key: str | None = None,
    wanted: Kind | None = None,
    ignore_objects: bool = False,
) -> dict[str, Tensor]:
    """Return the tensors of the network in a file, with the names of its library.

    Args:
        path: the file, the index of a sharded checkpoint, or a folder that contains either.
        key: key of the network, as in `Found.key`, if there are several; None: one of the kind
            `wanted`, a moving average before the weights that it averages.
        wanted: the preferred kind of network; others are used only if there is none of this kind.
        ignore_objects: see `regnet.weights.files.read_object`.

    Raises:
        WeightsError: the file does not exist, is damaged, or does not contain the network.
    """
    return tensors_in(
        read_object(path, ignore_objects=ignore_objects), path, key=key, wanted=wanted
    )


def tensors_in(
    loaded: Any, path: Path, *, key: str | None = None, wanted: Kind | None = None
) -> dict[str, Tensor]:
    """Return the tensors of the network in a loaded checkpoint, as `read_tensors` does.

    Args:
        loaded: what `read_object` returned.
        path: the file, for messages.
        key: see `read_tensors`.
        wanted: see `read_tensors`.

    Raises:
        WeightsError: the checkpoint does not contain the network.
    """
    found = networks(loaded)
    if key is not None:
        chosen = next((row for row in found if row.key == key), None)
        if chosen is None:
            there = ", ".join(repr(row.key) for row in found) or "none"
            raise WeightsError(f"{path}: no network at {key!r}; available keys: {there}")
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
                "%s holds %d networks; %r is used, checkpoint_key= (or --key) selects another: %s",
                path, len(found), chosen.key, ", ".join(others),
            )  # fmt: skip
    if chosen.left_out:
        more = f" and {len(chosen.left_out) - 3} more" if len(chosen.left_out) > 3 else ""
        shown = ", ".join(chosen.left_out[:3]) + more
        _log.warning("%s: tensors outside the network are left out: %s", path, shown)
    check_plain(chosen.tensors, path)
    return chosen.tensors


def networks(loaded: Any) -> list[Found]:
    """Return the networks in a loaded checkpoint, in order of preference."""
    found = [row for keys, tensors in _mappings(loaded) for row in _networks_in(keys, tensors)]
    worse = isinstance(loaded, Mapping) and _average_is_worse(loaded)
    return sorted(
        found,
        key=lambda row: (
            bool(_NO_WEIGHTS.search(row.key)),
            # An average of the parameters alone lacks the running statistics of a network.
            not any(name.endswith("running_mean") for name in row.tensors),
            row.average == worse,
        ),
    )


def _mappings(
    loaded: Any, keys: tuple[str, ...] = (), seen: frozenset[int] = frozenset()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield each group of named tensors, with the keys that lead to it."""
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
    # ClassyVision and VISSL save the classifier of a network in a separate mapping.
    apart = _tensors(loaded.get("trunk"))
    if apart:
        yield keys, apart | _tensors(loaded.get("heads"))
    for name, part in loaded.items():
        if not isinstance(part, Tensor) and not (apart and name in ("trunk", "heads")):
            yield from _mappings(part, (*keys, str(name)), seen)


def _tensors(loaded: Any) -> dict[str, Tensor]:
    """Return the named tensors in a mapping; none if it is not a mapping."""
    if not isinstance(loaded, Mapping):
        return {}
    return {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _module_state(module: Ignored, depth: int = 0) -> dict[str, Any] | None:
    """Return the state dict of a pickled module; None for other objects."""
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
    """Yield the networks among named tensors, by the prefix of their names."""
    plain = {_INSIDE.sub("", name): value for name, value in tensors.items()}
    rows: list[tuple[str, dict[str, Tensor], Kind]] = []
    for choose in (dict, _without_siblings):
        for prefix in [] if rows else _prefixes(plain):
            if any(prefix.startswith(other) for other, _, _ in rows):
                continue
            inner = choose(
                {n.removeprefix(prefix): v for n, v in plain.items() if n.startswith(prefix)}
            )
            if (kind := _kind(inner)) is not None:
                rows.append((prefix, inner, kind))
    used = {prefix + name for prefix, inner, _ in rows for name in inner}
    left_out = [n for n, v in plain.items() if v.numel() > 1 and n not in used]
    # PyTorch's AveragedModel has a counter, `n_averaged`, beside the averaged module.
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


def _without_siblings(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without modules beside those of a network, such as a head of one's own.

    Nothing is left out of a module that the network has: there it would be missing.
    """
    if len(tensors) < _FEWEST:
        return tensors
    try:
        _, _, strangers = closest(tensors)
    except WeightsError:
        return tensors
    beside = {name.partition(".")[0] for name in strangers}
    known = {name.partition(".")[0] for name in tensors.keys() - set(strangers)}
    return {n: v for n, v in tensors.items() if n.partition(".")[0] not in beside - known}


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return all prefixes of names that end with a dot, and the empty one; short ones first."""
    found = {"": None}  # a dict, unlike a set, preserves the order of the file
    for name in tensors:
        parts = name.split(".")[:-1][:_DEPTH]
        for count in range(1, len(parts) + 1):
            found[".".join(parts[:count]) + "."] = None
    return sorted(found, key=lambda prefix: prefix.count("."))


def _kind(tensors: dict[str, Tensor]) -> Kind | None:
    """Return the kind of a complete network in a known format; None for anything else."""
    if len(tensors) < _FEWEST:
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
    """Return whether pycls found the moving average of the weights no better than the weights."""
    plain, average = loaded.get("test_err"), loaded.get("ema_err")
    better = isinstance(plain, float) and isinstance(average, float) and average < plain
    return "ema_state" in loaded and "model_state" in loaded and not better


def _flat(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return the largest group of named tensors in a file without a known network.

    The caller, who knows what it needs, reports what is wrong with them.
    """
    found = [(len(tensors), keys, tensors) for keys, tensors in _mappings(loaded)]
    if not found:
        raise WeightsError(f"{path}: contains no state dict, but a {type(loaded).__name__}")
    _, keys, tensors = max(found, key=lambda row: row[0])
    if not keys and isinstance(loaded, Mapping) and len(tensors) < len(loaded):
        shown = ", ".join(str(name) for name in loaded if name not in tensors)
        raise WeightsError(
            f"{path}: a state dict has only named tensors; this one also has {shown}"
        )
    check_plain(tensors, path)
    return tensors
