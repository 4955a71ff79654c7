"""Parse spaces and networks given on the command line: names, files and ranges."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from regnet import documents
from regnet.errors import ConfigError, unknown

if TYPE_CHECKING:
    from regnet.spaces import Space
    from regnet.studies.study import Given


def read_space(name: str, **options: Any) -> "Space":
    """Return a space by its name or from a JSON file."""
    from regnet.spaces.paper import find_space, part_at
    from regnet.spaces.space import Space

    if not name.endswith(".json"):
        return find_space(name, **options)
    values = documents.load(Path(name), "a space")
    try:
        return part_at(Space.from_dict(values), **options)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def read_networks(path: Path, image_size: int | None = None) -> "Given":
    """Return the networks in a JSON file: a list of configs, as `AnyNetConfig.to_dict` returns.

    `image_size` is the side of the images at which complexity is counted; None: 224 pixels.
    """
    from regnet.design.config import config_from_dict
    from regnet.studies.study import Given

    try:
        listed = documents.load(path, "a list of networks")
        configs = tuple(config_from_dict(config) for config in listed)
        size = {} if image_size is None else {"image_size": image_size}
        return Given(name=path.stem, configs=configs, **size)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"{path} is not a JSON list of networks: {error}") from error


def restricted(spaces: "list[Space]", restrictions: list[str]) -> "list[Space]":
    """Restrict each space to the ranges that it knows; a name that no space knows is an error."""
    known = {name for space in spaces for name in (*space.parameters, *space.metric_names)}
    for text in restrictions:
        name, limit = _range(text)
        if name not in known:
            raise ConfigError(f"--restrict: {unknown('parameter or metric', name, sorted(known))}")
        ranges: dict[str, Any] = {name: limit}
        spaces = [
            space.restrict(**ranges) if name in (*space.parameters, *space.metric_names) else space
            for space in spaces
        ]
    return spaces


def _range(text: str) -> tuple[str, float | tuple[float | None, float | None]]:
    """Parse a range such as d=12:28, wm=2: or b=1 into a name and its limits."""
    name, equals, value = text.partition("=")
    low, colon, high = value.partition(":")
    try:
        if not equals:
            raise ValueError
        if not colon:
            return name, float(low)
        return name, (float(low) if low else None, float(high) if high else None)
    except ValueError:
        raise ConfigError(
            f"--restrict needs name=low:high, name=low: or name=value; got {text!r}"
        ) from None
