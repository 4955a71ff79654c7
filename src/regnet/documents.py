"""Write JSON documents atomically with a digest, and verify and type-check them when they are read.

A document is a JSON object. Its field `sha256` is the digest of all other fields, so that a flipped
bit, a manual edit or a merge of two files is detected. `build` turns a document back into the
dataclass that it was written from, and names the field whose value does not fit.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from regnet import digest
from regnet.atomic import write_bytes
from regnet.errors import ConfigError

T = TypeVar("T")

DIGEST: Final = "sha256"
"""The field of a document that holds its digest."""

MOST_BYTES: Final = 64 * 2**20
"""Largest JSON file that is read. Every file of this library is smaller, and the limit also stops
at a file that never ends, such as a device."""

_NUMBERS: Final = {int: (int,), float: (int, float)}


def plain(value: Any) -> Any:
    """Return the JSON form of a dataclass, a path or a device, for `json.dumps(default=...)`.

    Raises:
        TypeError: the value has no JSON form.
    """
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        # asdict would also convert the values inside, which may have a `to_dict` of their own.
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Path) or type(value).__module__ == "torch":
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def finite(values: Any) -> Any:
    """Return the JSON form of a value, with None for numbers that are not finite."""
    return json.loads(json.dumps(values, default=plain), parse_constant=lambda _: None)


def sealed(values: Any) -> dict[str, Any]:
    """Return the JSON form of a document, with its digest added."""
    body: dict[str, Any] = json.loads(json.dumps(values, default=plain))
    body.pop(DIGEST, None)
    return {**body, DIGEST: digest.of_json(body)}


def write(path: Path, values: Any) -> None:
    """Write a document atomically, with its digest.

    Raises:
        OSError: the file cannot be written; its old content is still there.
    """
    write_bytes(path, (json.dumps(sealed(values), indent=1) + "\n").encode())


def read(path: Path, what: str) -> dict[str, Any]:
    """Return the fields of a document, without the digest.

    Args:
        path: the file.
        what: what the document should be, for error messages: "a document of `regnet bench`".

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file cannot be read, is not a document, or has changed since it was
            written.
    """
    return unsealed(load(path, what), path, what)


def text_of(path: Path, what: str) -> str:
    """Return the text of a file, which may come from anyone.

    Args:
        path: the file.
        what: what the file should be, for error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file cannot be read, is not text in UTF-8, or is larger than `MOST_BYTES`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: not {what} (it has more than {MOST_BYTES:,} bytes)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not {what} ({error})") from error


def load(path: Path, what: str) -> Any:
    """Return the content of a JSON file, which may come from anyone and needs no digest.

    Args:
        path: the file.
        what: what the file should be, for error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file cannot be read, is too large, or is not JSON.
    """
    try:
        return parsed(text_of(path, what))
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not {what} ({error})") from error


def parsed(text: str) -> Any:
    """Return the content of JSON text in which no key is given twice.

    Raises:
        ValueError: the text is not such JSON.
    """
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        again = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {again!r} is given twice")
    return found


def unsealed(values: Any, path: Path, what: str) -> dict[str, Any]:
    """Verify a document that was parsed already, and return its fields as `read` does.

    Args:
        values: the parsed JSON.
        path: where it came from, for error messages.
        what: what the document should be, for error messages.

    Raises:
        ConfigError: it is not a document, or has changed since it was written.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not {what} (it is not a JSON object)")
    body: dict[str, Any] = dict(values)
    expected = body.pop(DIGEST, None)
    if expected is None:
        raise ConfigError(f"{path}: not {what} (it has no {DIGEST})")
    if expected != digest.of_json(body):
        raise ConfigError(
            f"{path}: not as it was written: its {DIGEST} does not match its content; "
            "restore the original file"
        )
    return body


def line(values: Any) -> bytes:
    """Return a document as one line, to append to a file that has a document in each line."""
    return json.dumps(sealed(values)).encode() + b"\n"


def lines(path: Path, what: str, *, skip_damaged: bool = False) -> list[dict[str, Any]]:
    """Return the documents of a file that has a document in each line.

    A last line without a line end is left out: its writer was killed while writing it.

    Args:
        path: the file.
        what: what a line should be, for error messages.
        skip_damaged: leave damaged lines out instead of raising an error.

    Raises:
        ConfigError: a line has changed since it was written.
        OSError: the file cannot be read.
    """
    found = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            values = json.loads(text)
            if values.pop(DIGEST) != digest.of_json(values):
                raise ValueError("its digest does not match")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if skip_damaged:
                continue
            raise ConfigError(f"{path}: line {number} is not {what} as it was written") from error
        found.append(values)
    return found


def build(kind: Callable[..., T], values: Any, *, name: str = "") -> T:
    """Build a dataclass from a JSON object, and check the type of every field.

    Args:
        kind: the dataclass. Its fields may be numbers, text, booleans, None, literals, tuples,
            sequences, mappings, unions, dataclasses, and classes with a `from_dict`.
        values: the JSON object, with the fields of the dataclass as keys.
        name: what error messages call the object.

    Raises:
        ConfigError: a field is missing or unknown, or its value has another type.
    """
    where = f"{name}: " if name else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}must be a JSON object, got {_shown(values)}")
    types = _types(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    if strange := sorted(set(values) - set(known)):
        raise ConfigError(f"{where}has no field {strange[0]!r}; it has {', '.join(known)}")
    required = {
        field.name
        for field in known.values()
        if field.default is MISSING and field.default_factory is MISSING
    }
    if missing := sorted(required - set(values)):
        raise ConfigError(f"{where}lacks the field {missing[0]!r}")
    inside = f"{name}." if name else ""
    return kind(
        **{
            field: _value(types[field], given, f"{inside}{field}")
            for field, given in values.items()
        }
    )


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(kind: Any, given: Any, name: str) -> Any:
    """Return the value of one field; raise a ConfigError if it does not have the type."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return given
    if origin in (Union, UnionType):
        return _any_of(inner, given, name)
    if origin is Literal:
        if given in inner:
            return given
    elif origin is tuple:
        return _tuple(inner, given, name)
    elif origin is not None and issubclass(origin, Sequence):
        if isinstance(given, list | tuple):
            return [_value(inner[0], one, f"{name}[{at}]") for at, one in enumerate(given)]
    elif origin is not None and issubclass(origin, Mapping):
        if isinstance(given, Mapping):
            return {key: _value(inner[1], one, f"{name}.{key}") for key, one in given.items()}
    elif is_dataclass(kind) and isinstance(given, kind):  # type: ignore[arg-type]  # a class
        return given
    elif hasattr(kind, "from_dict"):
        if isinstance(given, Mapping):
            return kind.from_dict(given)
    elif is_dataclass(kind):
        return build(kind, given, name=name)  # type: ignore[arg-type]  # a class, not its object
    elif isinstance(given, bool) and kind is not bool:
        pass  # bool is a subclass of int, but true and false are not numbers in JSON
    elif isinstance(given, _NUMBERS.get(kind, kind)):
        if kind is not float:
            return given
        if isfinite(given):
            return float(given)
    raise ConfigError(f"{name} cannot be {_shown(given)}")


def _any_of(kinds: Sequence[Any], given: Any, name: str) -> Any:
    if given is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    problem = ConfigError(f"{name} cannot be {_shown(given)}")
    for kind in others:
        try:
            return _value(kind, given, name)
        except ConfigError as error:
            problem = error if len(others) == 1 else problem
    raise problem


def _tuple(kinds: Sequence[Any], given: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(given, list | tuple):
        raise ConfigError(f"{name} must be a list, got {_shown(given)}")
    if len(kinds) == 2 and kinds[1] is ...:
        kinds = (kinds[0],) * len(given)
    if len(kinds) != len(given):
        raise ConfigError(f"{name} must have {len(kinds)} values, got {len(given)}")
    return tuple(
        _value(kind, one, f"{name}[{at}]")
        for at, (kind, one) in enumerate(zip(kinds, given, strict=True))
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
