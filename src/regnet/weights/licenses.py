"""The licenses of published RegNet weights, and whether they allow any use."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from regnet.errors import ConfigError, LicenseWarning, printable, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class License:
    """A license."""

    id: str
    name: str
    link: str
    permissive: bool
    """Whether it allows every use, including commercial use, without asking."""
    hub_id: str
    """The value of the field `license` in a model card on the Hub."""


def _permissive(spdx: str, name: str) -> License:
    link = f"https://spdx.org/licenses/{name}.html"
    return License(id=spdx, name=name, link=link, permissive=True, hub_id=spdx)


LICENSES: Final[Mapping[str, License]] = {
    row.id: row
    for row in (
        _permissive("apache-2.0", "Apache-2.0"),
        _permissive("mit", "MIT"),
        _permissive("bsd-3-clause", "BSD-3-Clause"),
        License(
            id="cc-by-nc-4.0",
            name="CC BY-NC 4.0 (no commercial use)",
            link="https://creativecommons.org/licenses/by-nc/4.0/",
            permissive=False,
            hub_id="cc-by-nc-4.0",
        ),
        License(
            id="seer",
            name="SEER license (research only)",
            link="https://github.com/facebookresearch/vissl/blob/main/projects/SEER/MODEL_LICENSE.md",
            permissive=False,
            hub_id="other",
        ),
        License(
            id="unknown",
            name="license not stated",
            link="",
            permissive=False,
            hub_id="unknown",
        ),
    )
}

_warned: set[str] = set()


def find_license(id: str) -> License:
    """Return the license with this id.

    Raises:
        ConfigError: the table has no license with this id.
    """
    if id not in LICENSES:
        raise ConfigError(unknown("license", id, LICENSES))
    return LICENSES[id]


def license_of(id: str) -> License:
    """Return the license with this id; a license that is not in the table counts as restricted."""
    id = id.lower()  # SPDX writes MIT, the Hub mit
    id = {"seer-license": "seer"}.get(id, id)  # timm's name for it
    other = License(id=id, name=id, link="", permissive=False, hub_id=id)
    return LICENSES.get(id, other)


def warn_if_restricted(checkpoint_id: str, license: License, *, source: str) -> None:
    """Warn once per checkpoint and process if the license restricts the use of the weights."""
    if license.permissive or checkpoint_id in _warned:
        return
    link = license.link or source
    warnings.warn(
        printable(f"{checkpoint_id}: {license.name}; read {link} before you use these weights"),
        LicenseWarning,
        stacklevel=2,
    )
    _warned.add(checkpoint_id)  # not before it: where warnings are errors, each use must raise
