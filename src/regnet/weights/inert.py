"""Read the tensors of a `torch.save` file that also contains other objects, without running code.

`torch.load` can be made to run code by more than its unpickler: TorchScript archives, old tar
files, or state that is set on functions. This module therefore reads the two layouts that matter,
zip and legacy, with a pickle reader that knows only tensors and plain containers. Every other class
or function that a file names becomes an empty object that ignores everything done to it.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final

import torch
from torch import Tensor

LEGACY_MAGIC: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of the files that `torch.save` wrote before it used zip archives."""

_DTYPES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Ignored:
    """Stands for an object that was left out."""

    state: object = None
    """Attributes of the object, from which the tensors of a pickled module can be read."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __call__(self, *_args: object, **_kwargs: object) -> "Ignored":
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _value: object) -> None:
        """Ignore the value."""

    def extend(self, _values: object) -> None:
        """Ignore the values."""

    def add(self, _value: object) -> None:
        """Ignore the value."""


class _Named:
    """A function or type that a file may name; a file cannot set state on it."""

    __slots__ = ("call", "dtype")

    def __init__(
        self, call: Callable[..., Any] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.call, self.dtype = call, dtype

    def __call__(self, *args: Any) -> Any:
        return self.call(*args) if self.call else self

    def __setstate__(self, _state: object) -> None:
        raise pickle.UnpicklingError("sets the state of a function")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: object) -> Tensor | Ignored:
    """Rebuild a tensor like `torch._utils._rebuild_tensor_v2`, inside its storage's bounds."""
    if not isinstance(storage, Tensor):
        return Ignored()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(storage)):
        raise ValueError("a tensor is larger than its storage")
    return torch.as_strided(storage, tuple(size), tuple(stride), storage.storage_offset() + offset)


_KNOWN: Final = {
    ("collections", "OrderedDict"): _Named(OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2"): _Named(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Named(lambda data, *_: data),
    ("torch._utils", "_rebuild_parameter_with_state"): _Named(lambda data, *_: data),
    ("collections", "defaultdict"): _Named(lambda *_: {}),
    ("builtins", "set"): _Named(lambda *items: [*items]),
    ("__builtin__", "set"): _Named(lambda *items: [*items]),
    ("torch", "Size"): _Named(tuple),
} | {("torch", name): _Named(dtype=dtype) for name, dtype in _DTYPES.items()}


class _Bounded:
    """A file that refuses to read more bytes at once than it has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > self.size:
            raise pickle.UnpicklingError(f"a value of {count:,} bytes in a file of {self.size:,}")
        return self.file.read(count)


class _Reader(pickle._Unpickler):  # the Python version, whose memo is a dict
    """A pickle reader that finds only what tensors consist of."""

    def __init__(
        self, file: BinaryIO, storage: Callable[[str, torch.dtype, int], Any], size: int
    ) -> None:
        """Create a reader.

        Args:
            file: the pickle.
            storage: returns the memory of a tensor for its key, type and number of values.
            size: size of the file in bytes; a value that claims to be longer is refused.
        """
        super().__init__(_Bounded(file, size), encoding="utf-8")
        self.storage = storage
        self.objects: set[str] = set()
        """Names of the classes and functions that were left out."""

    # BYTEARRAY8 allocates memory of a size that the file names; `torch.save` never writes it.
    dispatch: ClassVar = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            self.objects.add(f"{module}.{name}")
            return Ignored
        return known

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class, which old files save with its source code
            return pid[1]
        kind, named, key, _location, count = pid[:5]
        if kind != "storage" or not isinstance(named, _Named) or named.dtype is None:
            return Ignored()
        return self.storage(str(key), named.dtype, int(count))


def read(path: Path) -> tuple[Any, set[str]]:
    """Read what `torch.save` wrote, with `Ignored` for what is neither tensor nor plain container.

    Returns:
        The content, and the names of the classes and functions that were left out.

    Raises:
        UnpicklingError, ValueError, and any other error that a damaged pickle causes.
    """
    mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def part(start: int, dtype: torch.dtype, count: int) -> Tensor:
        stop = start + count * dtype.itemsize
        if count < 0 or stop > len(mapped):
            raise ValueError("a tensor is larger than the file")
        values = mapped[start:stop]
        # Tensors need the alignment of their type, which the legacy layout does not ensure.
        return (values.clone() if start % dtype.itemsize else values).view(dtype)

    if zipfile.is_zipfile(path):
        return _read_zip(path, part)
    return _read_legacy(path, part)


def _read_zip(path: Path, part: Callable[[int, torch.dtype, int], Tensor]) -> tuple[Any, set[str]]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise ValueError("a TorchScript program, not a state dict")
        [pickled] = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("written on a machine with another byte order")

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            info = archive.getinfo(f"{root}data/{key}")
            if info.file_size < count * dtype.itemsize:
                raise ValueError("a tensor is larger than its part of the archive")
            with archive.open(info) as file:
                start = file._orig_compress_start  # type: ignore[attr-defined]  # start of the data
            return part(start, dtype, count)

        with archive.open(pickled) as file:
            size = archive.getinfo(pickled).file_size
            reader = _Reader(file, storage, size)  # type: ignore[arg-type]  # binary
            return reader.load(), reader.objects


def _read_legacy(
    path: Path, part: Callable[[int, torch.dtype, int], Tensor]
) -> tuple[Any, set[str]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(len(LEGACY_MAGIC))
        sizes: dict[str, int] = {}

        def first(key: str, dtype: torch.dtype, count: int) -> Ignored:
            sizes[key] = count * dtype.itemsize
            return Ignored()

        # The first two pickles are the protocol version, and byte order and sizes of the machine.
        for _ in range(2):
            _Reader(file, first, size).load()
        start = file.tell()
        _Reader(file, first, size).load()
        keys = [str(key) for key in _Reader(file, first, size).load()]
        places, position = {}, file.tell()
        for key in keys:
            places[key] = position + 8  # after its count, 8 bytes
            position = places[key] + sizes[key]
        file.seek(start)
        reader = _Reader(file, lambda key, dtype, count: part(places[key], dtype, count), size)
        return reader.load(), reader.objects
