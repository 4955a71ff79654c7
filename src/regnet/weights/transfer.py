"""Bring a file from a URL to the disk: resumed, verified, then moved into place in one step.

The bytes collect in a hidden file beside the target, under a lock, so that processes which want
the same file wait for one download, and one that was killed goes on where it stopped.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from regnet.errors import WeightsError
from regnet.weights.files import sha256_of

Result = TypeVar("Result")

ATTEMPTS: Final = 5
"""Tries in a row that bring no byte before a transfer fails."""

BACKOFF: Final = 1.0
"""Seconds to wait after the first failure; twice as long after each further one."""

LONGEST_WAIT: Final = 60.0
"""Seconds; a server that asks for more is reported instead."""

_TRANSIENT: Final = (408, 425, 429, 500, 502, 503, 504)

_log = logging.getLogger(__name__)


class Damaged(WeightsError):
    """What arrived is not what was announced."""


def http_client() -> Any:
    """The HTTP library of the Hub client: httpx, or since 2.0 its successor under another name."""
    from huggingface_hub.utils import httpx

    return httpx


def retrying(call: Callable[[], Result]) -> Result:
    """The result of a call over the network, tried again while the reason to fail may pass.

    Raises:
        httpx.HTTPError, HfHubHTTPError: it failed for good, or too often.
    """
    httpx = http_client()
    attempt = 1
    while True:
        try:
            return call()
        except httpx.HTTPError as error:  # HfHubHTTPError is one
            wait = _wait(error, attempt)
            if wait is None or attempt == ATTEMPTS:
                raise
            _log.info("%s; again in %.1f s", error, wait)
            time.sleep(wait)
            attempt += 1


def _wait(error: Any, attempt: int) -> float | None:
    """Seconds to wait before the next attempt; None where another one is pointless."""
    response = getattr(error, "response", None)
    backoff = min(BACKOFF * 2 ** (attempt - 1), 8.0)
    if response is None:
        return backoff if isinstance(error, http_client().TransportError) else None
    if response.status_code not in _TRANSIENT:
        return None
    try:
        asked = float(response.headers.get("Retry-After", backoff))
    except ValueError:  # a date
        asked = backoff
    return asked if asked <= LONGEST_WAIT else None


def transfer(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
    name: str | None = None,
) -> None:
    """Fetch a file, unless it is there by the time it is our turn.

    Args:
        url: where it is.
        target: where it goes; complete and verified when it appears.
        size: bytes it must have, if known.
        sha256: its SHA-256, or first digits of it, if known.
        headers: for the request; `Authorization` stays with the host of the URL.
        name: what the progress bar shows.

    Raises:
        WeightsError: it is not what was announced, twice in a row.
        OSError: the disk is full or cannot be written.
        httpx.HTTPError: the server does not answer, or with an error.
    """
    from huggingface_hub.utils import WeakFileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return
        part = target.with_name(f".{target.name}.part")
        if not sha256:
            part.unlink(missing_ok=True)  # nothing could tell whether the rest belongs to it
        for last in (False, True):
            try:
                _fill(url, part, size=size, headers=headers or {}, name=name or target.name)
                _check(part, url, size=size, sha256=sha256)
                break
            except Damaged as error:
                part.unlink(missing_ok=True)
                if last:
                    raise
                _log.warning("%s; fetching it once more", error)
        part.replace(target)


def _check(part: Path, url: str, *, size: int | None, sha256: str | None) -> None:
    found = part.stat().st_size
    if size is not None and found != size:
        raise Damaged(f"{url} sent {found:,} bytes instead of {size:,}")
    if sha256 and not (digest := sha256_of(part)).startswith(sha256):
        raise Damaged(
            f"{url} sent other bytes than were published: their SHA-256 begins with "
            f"{digest[:12]}, not {sha256[:12]}"
        )


def _fill(url: str, part: Path, *, size: int | None, headers: Mapping[str, str], name: str) -> None:
    """Append to `part` what it lacks, however often the connection breaks."""
    from huggingface_hub.utils import tqdm

    httpx = http_client()
    failures, etag = 0, None
    with tqdm(
        desc=name, total=size, unit="B", unit_scale=True, disable=None, name="regnet.weights"
    ) as bar:
        while True:
            before = part.stat().st_size if part.exists() else 0
            if size is not None and before > size:
                part.unlink()
                before = 0
            if size is not None and before == size:
                return
            bar.n = before
            try:
                etag = _stream(url, part, before, etag, headers, bar, size)
                return
            except httpx.HTTPError as error:
                arrived = part.exists() and part.stat().st_size > before
                failures = 1 if arrived else failures + 1
                wait = _wait(error, failures)
                if wait is None or failures >= ATTEMPTS:
                    raise
                _log.info("%s; going on in %.1f s", error or type(error).__name__, wait)
                time.sleep(wait)
            except OSError:
                part.unlink(missing_ok=True)  # a full disk is no place for it
                raise


def _stream(
    url: str,
    part: Path,
    offset: int,
    etag: str | None,
    headers: Mapping[str, str],
    bar: Any,
    size: int | None,
) -> str | None:
    """One request for the bytes from `offset` on; returns the file's ETag."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    asked = {**headers, "Accept-Encoding": "identity"}
    if offset:
        asked["Range"] = f"bytes={offset}-"
        if etag and not etag.startswith("W/"):
            asked["If-Range"] = etag  # a file that has changed comes whole
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", url, headers=asked, timeout=timeout, follow_redirects=True
    ) as response:
        if response.status_code == 416:
            part.unlink(missing_ok=True)  # we have more than there is
            raise Damaged(f"{url} has fewer bytes than had arrived from it before")
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        resumed = response.status_code == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise Damaged(f"{url} answered with another part of the file than was asked for")
        if (length := response.headers.get("Content-Length")) is not None:
            bar.total = int(length) + (offset if resumed else 0)
            _check_space(part, int(length))
        bar.n = offset if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_bytes():  # as they come: nothing waits in a buffer
                file.write(chunk)
                bar.update(len(chunk))
                if size is not None and bar.n > size:
                    raise Damaged(f"{url} sends more than the {size:,} bytes it announced")
        return response.headers.get("ETag")


def _check_space(part: Path, needed: int) -> None:
    free = None
    with suppress(OSError):
        free = shutil.disk_usage(part.parent).free
    if free is not None and free < needed:
        raise OSError(
            28, f"no space left: {needed:,} bytes are needed, {free:,} are free", str(part.parent)
        )


def digest_of(text: str) -> str:
    """A short name made of any text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
