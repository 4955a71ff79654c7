"""Download a file from a URL: resumed, verified, then moved into place in one step.

The bytes are collected in a hidden file beside the target, under a lock. Processes that want the
same file therefore wait for one download, and a download that was killed is resumed where it
stopped. On file systems that ignore locks, as some network file systems do, each process writes a
hidden file of its own.
"""

import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias, TypeVar

from regnet import digest
from regnet.errors import WeightsError, printable

Result = TypeVar("Result")

ATTEMPTS: Final = 5
"""Consecutive attempts without progress after which a transfer fails."""

BACKOFF: Final = 1.0
"""Seconds to wait after the first failure; it doubles after each further one, up to 8 s."""

LONGEST_WAIT: Final = 60.0
"""Seconds; if a server asks to wait longer, the transfer fails and reports it."""

LEAST_SPEED: Final = 1000
"""Bytes per second below which a transfer makes no progress. Repeated bytes do not count."""

PATIENCE: Final = 30.0
"""Seconds over which the speed is measured."""

MOST: Final = 64 * 2**30
"""Size limit of a file in bytes, unless the caller gives another limit."""

RESERVE: Final = 2**30
"""Bytes of the disk that must stay free while a file of unknown length is written."""

Check: TypeAlias = Callable[[Path], None]
"""Raises a WeightsError that says what the server sent if a file is not of the wanted kind."""

_TRANSIENT: Final = (408, 425, 429, 500, 502, 503, 504)

_log = logging.getLogger(__name__)


def anything(_path: Path) -> None:
    """Accept every file."""


class Damaged(WeightsError):
    """The received bytes are not those that were announced."""


def http_client() -> Any:
    """Return the HTTP library of huggingface_hub: httpx, or its successor since version 2.0."""
    from huggingface_hub.utils import httpx

    return httpx


def retrying(call: Callable[[], Result], attempts: int | None = None) -> Result:
    """Return the result of a call over the network; retry it while the error may be temporary.

    Args:
        call: the call.
        attempts: largest number of attempts; None: `ATTEMPTS`.

    Raises:
        httpx.HTTPError, HfHubHTTPError: the error is permanent, or there were too many attempts.
    """
    httpx = http_client()
    attempt = 1
    while True:
        try:
            return call()
        except httpx.HTTPError as error:  # HfHubHTTPError is one
            wait = _wait(error, attempt)
            if wait is None or attempt == (attempts or ATTEMPTS):
                raise
            _log.info("%s; retrying in %.1f s", error, wait)
            time.sleep(wait)
            attempt += 1


def _wait(error: Any, attempt: int) -> float | None:
    """Return the seconds to wait before the next attempt; None if another one is pointless."""
    response = getattr(error, "response", None)
    backoff = min(BACKOFF * 2 ** (attempt - 1), 8.0)
    if response is None:
        return backoff if isinstance(error, http_client().TransportError) else None
    if response.status_code not in _TRANSIENT:
        return None
    asked = retry_after(response)
    asked = backoff if asked is None else asked
    return asked if asked <= LONGEST_WAIT else None


def retry_after(response: Any) -> float | None:
    """Return the seconds that a server asks to wait, as a number or as a date, or None."""
    text = response.headers.get("Retry-After", "")
    with suppress(ValueError):
        return max(0.0, float(text))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None


def transfer(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    sha1: str | None = None,
    headers: Mapping[str, str] | None = None,
    name: str | None = None,
    most: int = MOST,
    check: Check = anything,
    again: bool = False,
) -> None:
    """Download a file, unless it exists by the time this process holds the lock.

    Args:
        url: address of the file.
        target: path of the result; the file is complete and verified when it appears there.
        size: size in bytes that the file must have, if known.
        sha256: SHA-256 of the file, or its first digits, if known.
        sha1: what is probably the SHA-1 of a small file. A file with another one is downloaded
            again, once.
        headers: headers of the request; `Authorization` is sent only to the host of the URL.
        name: text of the progress bar; None: the name of the target.
        most: size limit in bytes.
        check: called with the file before it is moved into place, if no SHA-256 is known.
        again: download the file even if the target exists.

    Raises:
        WeightsError: the bytes are not those that were announced, twice in a row.
        OSError: the disk is full or cannot be written.
        httpx.HTTPError: the server does not answer, or answers with an error.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target), _part_of(target) as part:
        if target.exists() and not again:
            if _matches(target, sha256, sha1):
                return
            target.unlink()  # damaged on the disk
        if not sha256:
            # Without a SHA-256, nothing shows whether an earlier piece is of the same file.
            part.unlink(missing_ok=True)
        for last in (False, True):
            try:
                fetched = _Fetched(
                    url, part, size=size, provable=sha256 is not None, headers=headers or {},
                    most=most,
                )  # fmt: skip
                fetched.fill(name or target.name)
                _check(part, url, size=size, sha256=sha256, check=check)
                if not (last or sha256 or _matches(part, None, sha1)):
                    raise Damaged(f"{url} did not send the file that it announced")
                break
            except Damaged as error:
                part.unlink(missing_ok=True)
                if last:
                    raise
                _log.warning("%s; downloading it once more", error)
        part.replace(target)


@contextmanager
def _part_of(target: Path) -> Iterator[Path]:
    """Yield the file that collects the bytes; remove a link that someone put in its place."""
    part = target.with_name(f".{target.name}.part")
    if _lock_holds(target):
        with suppress(FileNotFoundError):
            found = part.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                part.unlink()  # a link: writing to it would change a file elsewhere
        yield part
        return
    part = part.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _lock_holds(target: Path) -> bool:
    """Return whether the lock that this process holds keeps a second holder out."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(_lock_file(target), timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def _lock_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of a file and its download against other processes."""
    from huggingface_hub.utils import WeakFileLock

    with WeakFileLock(_lock_file(target)):
        yield


def _matches(path: Path, sha256: str | None, sha1: str | None) -> bool:
    """Return whether a file has its digest, if one is known; a SHA-256 says more than a SHA-1."""
    if sha256:
        return digest.of_file(path).startswith(sha256)
    return not sha1 or digest.has_sha1(path, sha1)


def _check(part: Path, url: str, *, size: int | None, sha256: str | None, check: Check) -> None:
    found = part.stat().st_size
    if size is not None and found != size:
        raise Damaged(f"{url} sent {found:,} bytes instead of {size:,}")
    if not sha256:
        # No SHA-256 was published, so the file must at least be of the wanted kind.
        try:
            check(part)
        except WeightsError as error:
            raise Damaged(f"{url} sent {error}") from error
    elif not (sent := digest.of_file(part)).startswith(sha256):
        raise Damaged(
            f"{url} did not send the file that was published: the SHA-256 of its bytes begins with "
            f"{sent[:12]}, not {sha256[:12]}"
        )


class _Fetched:
    """A file that is being downloaded."""

    def __init__(
        self,
        url: str,
        part: Path,
        *,
        size: int | None,
        provable: bool,
        headers: Mapping[str, str],
        most: int,
    ) -> None:
        self.url, self.part, self.size, self.headers = url, part, size, headers
        self.most = most
        self.furthest = self.arrived
        """The most bytes from the beginning of the file that have arrived so far."""
        self.provable = provable
        """Whether a SHA-256 will show if the pieces belong together."""
        self.etag: str | None = None

    @property
    def arrived(self) -> int:
        """Bytes on the disk."""
        return self.part.stat().st_size if self.part.exists() else 0

    def fill(self, name: str) -> None:
        """Download the bytes that are missing, reconnecting whenever the connection breaks."""
        from huggingface_hub.utils import tqdm

        httpx = http_client()
        failures = 0
        with tqdm(
            desc=name,
            total=self.size,
            unit="B",
            unit_scale=True,
            disable=None,
            name="regnet.weights",
        ) as bar:
            while True:
                before, began = self.arrived, time.monotonic()
                if self.size is not None and before > self.size:
                    self.part.unlink()
                    before = 0
                if self.size is not None and before == self.size:
                    self.part.touch()  # an empty file has no bytes to wait for
                    return
                try:
                    self._stream(before, bar)
                    return
                except httpx.HTTPError as error:
                    # Only new bytes that arrive fast enough count as progress. Otherwise a server
                    # that always cuts the file short, or sends a byte now and then, would keep
                    # this loop running forever.
                    gained = self.arrived - self.furthest
                    progress = gained > LEAST_SPEED * (time.monotonic() - began)
                    self.furthest = max(self.furthest, self.arrived)
                    failures = 1 if progress else failures + 1
                    wait = _wait(error, failures)
                    if wait is None or failures >= ATTEMPTS:
                        raise
                    if not (self.provable or self.etag):
                        self.part.unlink(missing_ok=True)  # the next bytes may be of another file
                    _log.info("%s; resuming in %.1f s", error or type(error).__name__, wait)
                    time.sleep(wait)
                except OSError:
                    self.part.unlink(missing_ok=True)  # free the space on a full disk
                    raise

    def _stream(self, offset: int, bar: Any) -> None:
        """Request the bytes from `offset` to the end, and write them."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session, hf_raise_for_status

        asked = {**self.headers, "Accept-Encoding": "identity"}
        if offset:
            asked["Range"] = f"bytes={offset}-"
            if self.etag:
                asked["If-Range"] = self.etag  # if the file has changed, all of it is sent
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream(
            "GET", self.url, headers=asked, timeout=timeout, follow_redirects=True
        ) as response:
            if response.status_code == 416:
                raise Damaged(f"{self.url} has fewer bytes than were received from it before")
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            resumed = response.status_code == 206
            self._check_headers(response, offset if resumed else 0)
            arrived = bar.n = offset if resumed else 0
            with self._open("ab" if resumed else "wb") as file:
                pace = _Pace(arrived)
                for chunk in response.iter_bytes():  # each as it arrives, without a buffer
                    file.write(chunk)
                    arrived += len(chunk)
                    bar.update(len(chunk))
                    if arrived > (self.most if self.size is None else self.size):
                        raise Damaged(f"{self.url} sends more than {arrived - 1:,} bytes")
                    if pace.too_slow(arrived):
                        raise http_client().ReadTimeout(
                            f"fewer than {LEAST_SPEED:,} bytes per second arrive"
                        )
                    if self.size is None:
                        _check_space(self.part, RESERVE)

    def _open(self, mode: Literal["ab", "wb"]) -> BinaryIO:
        """Open the part for writing, and fail if it has become a link to another file."""
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "ab" else os.O_TRUNC)
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        return os.fdopen(os.open(self.part, flags, 0o666), mode)

    def _check_headers(self, response: Any, offset: int) -> None:
        """Store what the answer says about the file; refuse it if it contradicts the request."""
        content_range = response.headers.get("Content-Range", "")
        if offset and not content_range.startswith(f"bytes {offset}-"):
            raise Damaged(f"{self.url} answered with a part of the file that was not requested")
        etag = response.headers.get("ETag", "")
        self.etag = etag if etag and not etag.startswith("W/") else None
        length = response.headers.get("Content-Length")
        if length is None:
            if self.size is None and not self.provable:
                raise Damaged(f"{self.url} does not say how long the file is")
            return
        if not length.isascii() or not length.isdecimal() or len(length) > 15:
            raise Damaged(f"{self.url} announces a length of {printable(length[:40])!r} bytes")
        total = int(length) + offset
        if total > self.most:
            raise Damaged(f"{self.url} announces {total:,} bytes; the limit is {self.most:,}")
        if self.size is not None and total != self.size:
            raise Damaged(f"{self.url} announces {total:,} bytes instead of {self.size:,}")
        self.size = total
        _check_space(self.part, int(length))


class _Pace:
    """Checks in consecutive time windows whether bytes arrive fast enough."""

    def __init__(self, arrived: int) -> None:
        self.arrived, self.began = arrived, time.monotonic()

    def too_slow(self, arrived: int) -> bool:
        seconds = time.monotonic() - self.began
        if seconds < PATIENCE:
            return False
        slow = arrived - self.arrived < LEAST_SPEED * seconds
        self.arrived, self.began = arrived, time.monotonic()
        return slow


def _check_space(part: Path, needed: int) -> None:
    free = None
    with suppress(OSError):
        free = shutil.disk_usage(part.parent).free
    if free is not None and free < needed:
        raise OSError(
            28, f"no space left: {needed:,} bytes are needed, {free:,} are free", str(part.parent)
        )
