"""JSON documents that decide a result: written whole with a digest, verified and typed when read.

A document is a JSON object. Its field `sha256` is the digest of all other fields, so that a flipped
bit, a hand-made change and a merge of two files are noticed. `build` turns a document back into the
dataclass that wrote it and names the field whose value does not fit.
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

MOST_BYTES: Final = 64 * 2**20
"""No JSON file that this library reads is larger; one that is, or never ends, is not read."""

_NUMBERS: Final = {int: (int,), float: (int, float)}


def plain(value: Any) -> Any:
    """Return the JSON form of a dataclass, a path or a device; for `json.dumps(default=...)`.

    Raises:
        TypeError: the value has none.
    """
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        # Not asdict: a value inside may have a form of its own.
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Path) or type(value).__module__ == "torch":
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def sealed(values: Any) -> dict[str, Any]:
    """Return the JSON form of a document, with its digest."""
    body: dict[str, Any] = json.loads(json.dumps(values, default=plain))
    body.pop(DIGEST, None)
    return {**body, DIGEST: digest.of_json(body)}


def write(path: Path, values: Any) -> None:
    """Write a document, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    write_bytes(path, (json.dumps(sealed(values), indent=1) + "\n").encode())


def read(path: Path, what: str) -> dict[str, Any]:
    """Return the fields of a document, without the digest.

    Args:
        path: the file.
        what: what the document should be, for messages: "a document of `regnet bench`".

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file cannot be read, is not such a document, or is not as it was written.
    """
    return unsealed(load(path, what), path, what)


def text_of(path: Path, what: str) -> str:
    """Return the text of a file that someone else may have written.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file cannot be read, is no text, or is too large.
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
    """Return what a JSON file holds, whoever wrote it.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(text_of(path, what))
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not {what} ({error})") from error


def unsealed(values: Any, path: Path, what: str) -> dict[str, Any]:
    """Return the fields of a document that has been parsed, as `read` does."""
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not {what} (it is not a JSON object)")
    body: dict[str, Any] = dict(values)
    expected = body.pop(DIGEST, None)
    if expected is None:
        raise ConfigError(f"{path}: not {what} (it has no {DIGEST})")
    if expected != digest.of_json(body):
        raise ConfigError(
            f"{path}: not as it was written: its {DIGEST} does not fit; take a copy of the original"
        )
    return body


def line(values: Any) -> bytes:
    """Return a document as one line, for files that grow."""
    return json.dumps(sealed(values)).encode() + b"\n"


def lines(path: Path, what: str, *, skip_damaged: bool = False) -> list[dict[str, Any]]:
    """Return the documents of a file that has one in each line.

    A line without an end was cut short by a kill, and is left out.

    Args:
        path: the file.
        what: what a line should be, for messages.
        skip_damaged: leave damaged lines out instead of refusing the file.

    Raises:
        ConfigError: a line is not as it was written.
        OSError: the file cannot be read.
    """
    found = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            values = json.loads(text)
            if values.pop(DIGEST) != digest.of_json(values):
                raise ValueError("it is not as it was written")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if skip_damaged:
                continue
            raise ConfigError(f"{path}: line {number} is not {what} as it was written") from error
        found.append(values)
    return found


def build(kind: Callable[..., T], values: Any, *, name: str = "") -> T:
    """Return the dataclass whose fields a JSON object has.

    Args:
        kind: the dataclass. Fields may be numbers, text, truth values, None, literals, tuples,
            mappings, unions, dataclasses, and classes with a `from_dict`.
        values: a JSON object.
        name: of the object, for messages.

    Raises:
        ConfigError: a field is missing, not known, or has a value of another type.
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
    """The value of one field; ConfigError where it does not fit."""
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
        pass  # a truth value is no number
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
