"""Inspect a file of weights, and rewrite it with another library's tensor names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from regnet.errors import WeightsError
from regnet.weights.files import read_object, write_safetensors
from regnet.weights.formats import STEM_WEIGHTS, find_format, from_native, to_native
from regnet.weights.identify import identify, num_classes
from regnet.weights.integrity import sha256_of
from regnet.weights.unwrap import networks, read_tensors, tensors_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is in a file of weights."""

    format: str | None
    """Whose names its tensors have; None where no known format fits."""
    problem: str | None
    """Why none fits."""
    networks: tuple[str, ...]
    """Keys of the networks in it, the one that is described first; "" is the file itself."""
    variants: tuple[str, ...]
    """Published architectures with exactly these shapes."""
    num_classes: int
    in_chans: int
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    bytes: int
    sha256: str | None
    """Of the file; None for a sharded checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a conversion did."""

    source: str
    target: str
    tensors: int


def inspect(path: Path, *, key: str | None = None, ignore_objects: bool = False) -> Inspection:
    """What is in a file of weights, an index of shards, or a folder with either.

    Args:
        path: the file, the index or the folder.
        key: which of several networks in it; None: an average, if there is one, or the first.
        ignore_objects: leave out what is neither tensor nor plain container; nothing of it runs.

    Raises:
        WeightsError: it is not readable, or has no network at this key.
    """
    loaded = read_object(path, ignore_objects=ignore_objects)
    tensors = tensors_in(loaded, path, key=key)
    keys = [row.key for row in networks(loaded)]
    format = problem = None
    native: Mapping[str, Tensor] = {}
    try:
        native, found = to_native(tensors)
        format = found.name
    except WeightsError as error:
        problem = str(error)
    shapes = {name: tuple(value.shape) for name, value in native.items()}
    stem = next((shapes[name] for name in STEM_WEIGHTS if name in shapes), ())
    counters = sum(name.endswith("num_batches_tracked") for name in tensors)
    statistics = sum(v.numel() for n, v in tensors.items() if "running_" in n)
    return Inspection(
        format=format,
        problem=problem,
        networks=tuple(sorted(keys, key=lambda name: name != key)) if key else tuple(keys),
        variants=tuple(row.name for row in identify(shapes)),
        num_classes=num_classes(shapes),
        in_chans=stem[1] if len(stem) > 1 else 0,
        tensors=len(tensors),
        parameters=sum(value.numel() for value in tensors.values()) - counters - statistics,
        dtypes=tuple(sorted({str(v.dtype).removeprefix("torch.") for v in tensors.values()})),
        bytes=sum(value.nbytes for value in tensors.values()),
        sha256=sha256_of(path) if path.is_file() and not path.name.endswith(".json") else None,
    )


def convert_file(
    path: Path,
    out: Path,
    *,
    to: str = "timm",
    key: str | None = None,
    bgr: bool | None = None,
    ignore_objects: bool = False,
) -> Conversion:
    """Rewrite weights in any known format as a safetensors file under another library's names.

    Args:
        path: a file of weights, an index of shards, or a folder with either.
        out: the file to write, whole or not at all.
        to: the format.
        key: which of several networks in the file; None: as `inspect` has it.
        bgr: whether the stem of the input takes blue first; None: as usual in its format.
        ignore_objects: leave out what is neither tensor nor plain container; nothing of it runs.

    Raises:
        WeightsError: the input is not readable, or the format cannot hold the network.
        OSError: the output cannot be written.
    """
    target = find_format(to)
    if out.suffix != ".safetensors":
        raise WeightsError(f"{out}: weights are written as safetensors; name it so")
    tensors = read_tensors(path, key=key, ignore_objects=ignore_objects)
    try:
        native, source = to_native(tensors, bgr=bgr)
        converted = from_native(native, target)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    write_safetensors(converted, out)
    return Conversion(source=source.title, target=target.title, tensors=len(converted))
