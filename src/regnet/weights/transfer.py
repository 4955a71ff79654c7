"""Bring a file from a URL to the disk: resumed, verified, then moved into place in one step.

The bytes collect in a hidden file beside the target, under a lock, so that processes which want
the same file wait for one download, and one that was killed goes on where it stopped.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from regnet.errors import WeightsError
from regnet.weights.files import look_whole
from regnet.weights.integrity import sha256_of

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
    asked = retry_after(response)
    asked = backoff if asked is None else asked
    return asked if asked <= LONGEST_WAIT else None


def retry_after(response: Any) -> float | None:
    """Seconds that a server asks to wait, given as a number or as a date; None if it does not."""
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
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        if target.exists():
            if not sha256 or sha256_of(target).startswith(sha256):
                return
            target.unlink()  # damaged, and nobody has noticed before
        part = target.with_name(f".{target.name}.part")
        if not sha256:
            part.unlink(missing_ok=True)  # nothing could tell whether the rest belongs to it
        for last in (False, True):
            try:
                fetched = _Fetched(
                    url, part, size=size, provable=sha256 is not None, headers=headers or {}
                )
                fetched.fill(name or target.name)
                _check(part, url, size=size, sha256=sha256)
                break
            except Damaged as error:
                part.unlink(missing_ok=True)
                if last:
                    raise
                _log.warning("%s; fetching it once more", error)
        part.replace(target)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Alone with a file and its download, among processes."""
    from huggingface_hub.utils import WeakFileLock

    with WeakFileLock(target.with_name(f".{target.name}.lock")):
        yield


def _check(part: Path, url: str, *, size: int | None, sha256: str | None) -> None:
    found = part.stat().st_size
    if size is not None and found != size:
        raise Damaged(f"{url} sent {found:,} bytes instead of {size:,}")
    if not sha256:
        # No one has published what it should be; it must at least be a file of weights.
        try:
            look_whole(part)
        except WeightsError as error:
            reason = str(error).removeprefix(f"{part}: ")
            raise Damaged(f"{url} sent no file of weights: {reason}") from error
    elif not (digest := sha256_of(part)).startswith(sha256):
        raise Damaged(
            f"{url} sent other bytes than were published: their SHA-256 begins with "
            f"{digest[:12]}, not {sha256[:12]}"
        )


class _Fetched:
    """A file on its way to the disk."""

    def __init__(
        self,
        url: str,
        part: Path,
        *,
        size: int | None,
        provable: bool,
        headers: Mapping[str, str],
    ) -> None:
        self.url, self.part, self.size, self.headers = url, part, size, headers
        self.provable = provable
        """Whether a SHA-256 will tell if the pieces belong together."""
        self.etag: str | None = None

    @property
    def arrived(self) -> int:
        """Bytes on the disk."""
        return self.part.stat().st_size if self.part.exists() else 0

    def fill(self, name: str) -> None:
        """Append to the part what it lacks, however often the connection breaks."""
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
                before = self.arrived
                if self.size is not None and before > self.size:
                    self.part.unlink()
                    before = 0
                if self.size is not None and before == self.size:
                    return
                try:
                    self._stream(before, bar)
                    return
                except httpx.HTTPError as error:
                    failures = 1 if self.arrived > before else failures + 1
                    wait = _wait(error, failures)
                    if wait is None or failures >= ATTEMPTS:
                        raise
                    if not (self.provable or self.etag):
                        self.part.unlink(missing_ok=True)  # what comes next may be another file
                    _log.info("%s; going on in %.1f s", error or type(error).__name__, wait)
                    time.sleep(wait)
                except OSError:
                    self.part.unlink(missing_ok=True)  # a full disk is no place for it
                    raise

    def _stream(self, offset: int, bar: Any) -> None:
        """One request for the bytes from `offset` on."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session, hf_raise_for_status

        asked = {**self.headers, "Accept-Encoding": "identity"}
        if offset:
            asked["Range"] = f"bytes={offset}-"
            if self.etag:
                asked["If-Range"] = self.etag  # a file that has changed comes whole
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream(
            "GET", self.url, headers=asked, timeout=timeout, follow_redirects=True
        ) as response:
            if response.status_code == 416:
                raise Damaged(f"{self.url} has fewer bytes than had arrived from it before")
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            resumed = response.status_code == 206
            self._check_headers(response, offset if resumed else 0)
            arrived = bar.n = offset if resumed else 0
            with self.part.open("ab" if resumed else "wb") as file:
                for chunk in response.iter_bytes():  # as they come: nothing waits in a buffer
                    file.write(chunk)
                    arrived += len(chunk)
                    bar.update(len(chunk))
                    if self.size is not None and arrived > self.size:
                        raise Damaged(f"{self.url} sends more than {self.size:,} bytes")

    def _check_headers(self, response: Any, offset: int) -> None:
        """Take down what the answer says of the file; refuse what does not go with the request."""
        content_range = response.headers.get("Content-Range", "")
        if offset and not content_range.startswith(f"bytes {offset}-"):
            raise Damaged(f"{self.url} answered with another part of the file than was asked for")
        etag = response.headers.get("ETag", "")
        self.etag = etag if etag and not etag.startswith("W/") else None
        length = response.headers.get("Content-Length")
        if length is None:
            if self.size is None and not self.provable:
                raise Damaged(f"{self.url} does not say how long the file is")
            return
        total = int(length) + offset
        if self.size is not None and total != self.size:
            raise Damaged(f"{self.url} announces {total:,} bytes instead of {self.size:,}")
        self.size = total
        _check_space(self.part, int(length))


def _check_space(part: Path, needed: int) -> None:
    free = None
    with suppress(OSError):
        free = shutil.disk_usage(part.parent).free
    if free is not None and free < needed:
        raise OSError(
            28, f"no space left: {needed:,} bytes are needed, {free:,} are free", str(part.parent)
        )
