"""Inspect a file of weights, and rewrite it with the tensor names of another library."""

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
    """The contents of a file of weights."""

    format: str | None
    """The library whose names the tensors have; None if they match no known format."""
    problem: str | None
    """Why they match no format."""
    networks: tuple[str, ...]
    """Keys of the networks in the file, the described network first; "" is the file itself."""
    variants: tuple[str, ...]
    """Published architectures with exactly these shapes."""
    num_classes: int
    in_chans: int
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    bytes: int
    sha256: str | None
    """SHA-256 of the file; None for a sharded checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The result of a conversion."""

    source: str
    target: str
    tensors: int


def inspect(path: Path, *, key: str | None = None, ignore_objects: bool = False) -> Inspection:
    """Return the contents of a file of weights, an index of shards, or a folder with either.

    Args:
        path: the file, the index or the folder.
        key: key of the network to describe; None: a moving average if there is one, or the first.
        ignore_objects: leave out objects that are neither tensors nor plain containers, instead of
            refusing the file; their code never runs.

    Raises:
        WeightsError: the file cannot be read, or has no network at this key.
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
    """Convert weights in any known format to a safetensors file with the names of another library.

    Args:
        path: a file of weights, an index of shards, or a folder with either.
        out: the file to write; it is written completely or not at all.
        to: name of the format to convert to.
        key: key of the network to convert; None: the network that `inspect` describes.
        bgr: whether the stem of the input takes blue first; None: as usual in its format.
        ignore_objects: leave out objects that are neither tensors nor plain containers, instead of
            refusing the file; their code never runs.

    Raises:
        WeightsError: the input cannot be read, or the format has no such networks.
        OSError: the output cannot be written.
    """
    target = find_format(to)
    if out.suffix != ".safetensors":
        raise WeightsError(f"{out}: the output must have the extension .safetensors")
    tensors = read_tensors(path, key=key, ignore_objects=ignore_objects)
    try:
        native, source = to_native(tensors, bgr=bgr)
        converted = from_native(native, target)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    write_safetensors(converted, out)
    return Conversion(source=source.title, target=target.title, tensors=len(converted))
