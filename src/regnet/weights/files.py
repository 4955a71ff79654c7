"""Read the tensors of checkpoint files: memory-mapped, complete or refused, never running code.

A checkpoint is a safetensors file, several of them (shards) with an index, or a file of
`torch.save`. The latter is read with `weights_only=True`, which allows tensors and plain containers
and runs no code.
"""

import errno
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regnet import documents
from regnet.atomic import writing
from regnet.errors import WeightsError, shell
from regnet.paths import LFS_ADVICE, is_lfs_pointer
from regnet.weights import inert
from regnet.weights.inert import LEGACY_MAGIC
from regnet.weights.integrity import unreadable

ZIP_MAGIC: Final = b"PK\x03\x04"

INDEX_SUFFIX: Final = ".index.json"
"""The end of the file name of a sharded checkpoint's index."""

_DTYPES: Final = "|".join(
    name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)
)

_SETTINGS: Final = re.compile(
    r"(builtins|__builtin__)\.(list|dict|tuple|str|int|float|bool)"
    r"|argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w+|pathlib\._local\.\w+|datetime\.\w+"
    r"|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray|dtypes\.\w+)"
    rf"|_codecs\.encode|torch\.(device|torch_version\.TorchVersion|{_DTYPES})|(\w+\.)+AttributeDict"
    r"|omegaconf\.\S+|yacs\.config\.CfgNode|easydict\.EasyDict|typing\.Any|collections\.Counter"
)
"""Classes of the settings and metrics that training scripts save with their weights."""


def read_object(path: Path, *, ignore_objects: bool = False) -> Any:
    """Return the content of a checkpoint: named tensors, and whatever was saved around them.

    Safetensors and zip files are memory-mapped: their bytes are read when they are used, and
    changes of the tensors do not change the file.

    Args:
        path: the file, the index of a sharded checkpoint, or a folder that contains either.
        ignore_objects: leave out objects that are neither tensors nor plain containers, instead of
            refusing the file. Their code never runs, and settings are always left out.

    Raises:
        WeightsError: the file does not exist, is damaged, or is not a checkpoint.
    """
    path = _file_in(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path, ignore_objects=ignore_objects)
    return _read_file(path, ignore_objects=ignore_objects)


def _start_of(path: Path) -> bytes:
    """Return the first bytes of a file, which identify its format."""
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise unreadable(path, error) from error


def _read_file(path: Path, *, ignore_objects: bool) -> Any:
    start = _start_of(path)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start[:4] == ZIP_MAGIC or start.startswith(LEGACY_MAGIC):
        return _read_pickle(path, ignore_objects=ignore_objects)
    raise _no_weights(path, start)


def _no_weights(path: Path, start: bytes) -> WeightsError:
    if is_lfs_pointer(start):
        return WeightsError(f"{path}: {LFS_ADVICE}")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return WeightsError(f"{path}: a web page, not weights; its download may need a login")
    return WeightsError(f"{path}: neither a safetensors file nor a file of torch.save")


def look_whole(path: Path) -> None:
    """Check by its layout that a file is one of weights, and not cut short.

    Raises:
        WeightsError: the file has another format, or is damaged.
    """
    start = _start_of(path)
    try:
        if start[8:9] == b"{":
            check_plain(_read_safetensors(path), path)
        elif start[:4] == ZIP_MAGIC:
            _check_zip(path)
        elif not start.startswith(LEGACY_MAGIC):
            raise _no_weights(path, start)
    except (MemoryError, WeightsError):
        raise
    except Exception as error:  # encrypted, of a later version, names that cannot be decoded, ...
        raise WeightsError(f"{path}: not a readable torch file ({_line(error)})") from error


def check_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that each tensor is dense, not quantized, on the CPU, and not larger than its memory.

    Raises:
        WeightsError: a tensor fails this check.
    """
    for name, value in tensors.items():
        plain = value.layout == torch.strided and not value.is_quantized
        if not plain or value.device.type != "cpu":
            raise WeightsError(
                f"{path}: {name} is not a plain tensor ({value.layout}, {value.device})"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(f"{path}: {name} claims more values than the file has")
        if len(name) > 300:
            raise WeightsError(f"{path}: the name of a tensor is {len(name):,} characters long")


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in USUAL_NAMES:
        if (path / name).is_file():
            return path / name
    raise WeightsError(f"{path}: this folder contains none of {', '.join(USUAL_NAMES)}")


USUAL_NAMES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of checkpoints in folders and repositories, in order of preference."""


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that an index lists.

    Raises:
        WeightsError: the file is not an index, or lists files outside its folder.
    """
    try:
        names = sorted(set(_weight_map(index).values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: not an index of a sharded checkpoint ({error})") from error
    for name in names:
        if (
            not isinstance(name, str)
            or not re.fullmatch(r"[\w-][\w.-]*", name)
            or (name.endswith(INDEX_SUFFIX))
        ):
            raise WeightsError(f"{index}: lists the file {name!r}, which is not in its folder")
    return names


def _weight_map(index: Path) -> dict[str, Any]:
    """Return the file name of each tensor."""
    found: dict[str, Any] = documents.load(index, "an index of a sharded checkpoint")["weight_map"]
    return found


def _read_shards(index: Path, *, ignore_objects: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in shard_names(index):
        part = _read_file(index.parent / name, ignore_objects=ignore_objects)
        if not isinstance(part, Mapping):
            raise WeightsError(f"{index}: {name} contains no named tensors")
        if twice := tensors.keys() & part.keys():
            raise WeightsError(f"{index}: {min(twice)} is in two shards")
        tensors |= part
    if missing := _weight_map(index).keys() - tensors.keys():
        raise WeightsError(f"{index}: {min(missing)} is in none of the shards")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        # The tensors keep the memory mapped after the file object is closed.
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except MemoryError:
        raise
    except Exception as error:  # sizes beyond 64 bits, for example, are a TypeError
        raise WeightsError(f"{path}: not a readable safetensors file ({_line(error)})") from error


def _read_pickle(path: Path, *, ignore_objects: bool) -> Any:
    try:
        zipped = zipfile.is_zipfile(path)  # inside `try`, because it can raise errors too
        if zipped:
            _check_zip(path)
        if not ignore_objects:
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
            except pickle.UnpicklingError as error:
                if not re.search(r"GLOBAL (\S+)", str(error)):
                    raise
        loaded, objects = inert.read(path)
    except (WeightsError, MemoryError):
        raise
    except Exception as error:
        raise WeightsError(f"{path}: not a readable torch file ({_line(error)})") from error
    if not ignore_objects and (strange := sorted(o for o in objects if not _SETTINGS.fullmatch(o))):
        again = ("regnet", "weights", "convert", path, "OUT.safetensors", "--ignore-objects")
        raise WeightsError(
            f"{path}: contains Python objects besides its tensors ({strange[0]}), which could run "
            f"code; {shell(*again)} saves the tensors and runs no code"
        )
    return loaded


def _check_zip(path: Path) -> None:
    """Compare each part of a zip file with its checksum; torch does not for mapped files."""
    with zipfile.ZipFile(path) as archive:
        if any(part.filename.endswith("/constants.pkl") for part in archive.infolist()):
            raise WeightsError(
                f"{path}: a TorchScript program, not a state dict; save its state dict"
            )
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise WeightsError(f"{path}: its parts are compressed, which torch.save never does")
        if damaged := archive.testzip():
            raise WeightsError(f"{path}: the file is damaged: the checksum of {damaged} is wrong")


def _line(error: BaseException) -> str:
    """Return the first sentence of an error."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
    return text if len(text) <= 200 else f"{text[:200]}..."


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, completely or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    kept, seen = {}, set()
    for name, value in tensors.items():
        value = value.detach()
        # The format has no views, so a tensor that shares memory or is not contiguous is copied.
        memory = value.untyped_storage().data_ptr()
        whole = value.is_contiguous() and memory not in seen
        seen.add(memory)
        kept[name] = value if whole else value.clone(memory_format=torch.contiguous_format)
    with writing(path) as temporary:
        try:
            save_file(kept, temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(errno.EIO, f"cannot be written, is the disk full? ({error})") from error
