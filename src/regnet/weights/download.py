"""Get published weights from the cache, or download them from the Hub or from an address.

Files of the Hub are saved in the cache of huggingface_hub, where other libraries find them too.
Other files are saved in the folder `regnet` beside it. A file is verified before it enters the
cache, and each time it is taken from there (`integrity`).
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from regnet import digest
from regnet.errors import NotFoundError, WeightsError
from regnet.hub.files import SMALL, Repository
from regnet.hub.transfer import Check, anything, http_client, locked, retry_after, transfer
from regnet.weights.catalog import Checkpoint, data_dir
from regnet.weights.files import INDEX_SUFFIX, USUAL_NAMES, look_whole, shard_names
from regnet.weights.integrity import (
    Verified,
    declared_sha256,
    forget,
    intact,
    verify,
    verify_file,
)

_log = logging.getLogger(__name__)

WAYS_OUT = (
    "alternatives: weights from another publisher (regnet list --pretrained), HF_ENDPOINT with a "
    "mirror for weights of the Hub, a local file as checkpoint_path=, or regnety_cifar, which "
    "needs no download"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Options of how to get files."""

    cache_dir: Path | None = None
    """The cache of huggingface_hub; None: the folder that its environment variables name."""
    local_files_only: bool = False
    """Use only files in the cache, without network access."""
    force_download: bool = False
    """Download weights again even if they are in the cache."""
    token: str | bool | None = None
    """For private and gated repositories; None: the token of the user who is logged in."""

    @property
    def offline(self) -> bool:
        """Whether network access is disabled."""
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    @property
    def hub_cache(self) -> Path:
        """Folder of the files of the Hub."""
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_HUB_CACHE)

    def repository(self, name: str, revision: str | None) -> Repository:
        """Return a model repository at a revision; None: main."""
        return Repository(
            name=name, revision=revision or "main", cache=self.hub_cache, token=self.token
        )

    @property
    def url_cache(self) -> Path:
        """Folder of the files from other servers."""
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_HOME) / "regnet"


def fetch(row: Checkpoint, how: Fetch | None = None) -> Path:
    """Return a checkpoint's verified file; if it is sharded, its index, with all shards beside it.

    Args:
        row: the checkpoint.
        how: options; None: the defaults.

    Raises:
        WeightsError: the file cannot be obtained; the message says why and what to do.
    """
    how = how or Fetch()
    if how.force_download and how.offline:
        raise WeightsError(
            f"{row.id} cannot be downloaded again, because network access is disabled"
        )
    if row.is_local:
        path = data_dir() / (row.file or "")
        if row.sha256:
            verify(path, row.sha256)  # unlike `intact`, it writes nothing into the package
        return path
    with _explained(row.id, row.source, how, revision=row.revision):
        return _from_hub(row, how) if row.repo else _from_url(row, how)


def _json(path: Path) -> None:
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{path.stat().st_size:,} bytes that are not JSON") from error


def fetch_file(repo: str, name: str, revision: str | None, how: Fetch | None = None) -> Path:
    """Return a small file of a repository of the Hub, such as its `config.json`.

    Args:
        repo: the repository, `owner/name`.
        name: name of the file in the repository.
        revision: commit, branch or tag; None: main.
        how: options; None: the defaults.

    Raises:
        WeightsError: the file cannot be obtained; the message says why and what to do.
    """
    how = how or Fetch()
    with _explained(repo, f"https://huggingface.co/{repo}", how, revision=revision):
        from huggingface_hub import errors

        repository = how.repository(repo, revision)
        held = repository.cached(name)
        if how.offline:
            if held:
                return held
            raise WeightsError(
                f"{name} is not in the cache {how.hub_cache}, and network access is disabled"
            )
        try:
            # If the file is in the cache, it is not worth waiting for a server that is down.
            return repository.fetch(
                name, most=SMALL, attempts=1 if held else None, again=how.force_download,
                check=_json if name.endswith(".json") else anything,
            )  # fmt: skip
        except errors.EntryNotFoundError as error:
            raise NotFoundError(f"the repository has no {name}") from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise  # the server answered; the cached file does not replace its answer
        except (http_client().HTTPError, OSError):  # no answer, or a cache that is read-only
            if held is None:
                raise
            return held


def cached_files(row: Checkpoint, how: Fetch | None = None) -> list[Path]:
    """Return the files of a checkpoint that are on this machine, without verifying them."""
    how = how or Fetch()
    if row.repo:
        found = [_cached(row, name, how) for name in _names(row)]
        main = next((path for path in found if path), None)
        if main and main.name.endswith(INDEX_SUFFIX):
            row = replace(row, revision=main.parent.name)
            shards = [_cached(row, name, how) for name in shard_names(main)]
            return [main, *(path for path in shards if path)]
        return [main] if main else []
    path = _url_path(row, how) if row.url else data_dir() / (row.file or "")
    return [path] if path.is_file() else []


def _names(row: Checkpoint) -> tuple[str, ...]:
    return (row.file,) if row.file else USUAL_NAMES


# The Hub


def _from_hub(row: Checkpoint, how: Fetch) -> Path:
    for name in () if how.force_download else _names(row):
        # Any usual name in the cache is accepted: finding out whether the repository has a file
        # with a preferred name would need the network.
        if (path := _cached(row, name, how)) and _usable(path, row.sha256, row, how):
            return _with_shards(row, path, how)
    if how.offline:
        raise WeightsError(
            f"it is not in the cache {how.hub_cache}, and network access is disabled"
        )
    for name in _names(row):
        if path := _download_if_there(row, name, how):
            return _with_shards(row, path, how)
    raise WeightsError(f"{row.source} has none of {', '.join(_names(row))}")


def _download_if_there(row: Checkpoint, name: str, how: Fetch) -> Path | None:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return _download(row, name, row.sha256, how)
    except EntryNotFoundError:
        return None


def _with_shards(row: Checkpoint, path: Path, how: Fetch) -> Path:
    if path.name.endswith(INDEX_SUFFIX):
        # Take the shards from the same commit as the index.
        row = replace(row, revision=path.parent.name)
        for name in shard_names(path):
            shard = None if how.force_download else _cached(row, name, how)
            if shard and _usable(shard, None, row, how):
                continue
            if how.offline:
                raise WeightsError(f"{name} is not in the cache, and network access is disabled")
            _download(row, name, None, how)
    return path


def _cached(row: Checkpoint, name: str, how: Fetch) -> Path | None:
    return _repository(row, how).cached(name)


def _usable(path: Path, sha256: str | None, row: Checkpoint, how: Fetch) -> bool:
    """Return whether a cached file is intact; a damaged file is deleted, or an error if offline."""
    if intact(path, sha256 or declared_sha256(path)):
        return True
    if how.offline:
        raise WeightsError(
            f"its file in the cache is damaged: {path}; run once online to download it again"
        )
    with locked(path.resolve()):
        if intact(path, sha256 or declared_sha256(path)):
            return True  # another process has downloaded it again in the meantime
        _log.warning("%s: downloading again a file that was damaged in the cache: %s", row.id, path)
        forget(path)
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    return False


def _download(row: Checkpoint, name: str, sha256: str | None, how: Fetch) -> Path:
    path = _repository(row, how).fetch(
        name, sha256=sha256, check=_check_of(name), label=row.id, again=how.force_download
    )
    if not intact(path, sha256 or declared_sha256(path)):
        path.resolve().unlink(missing_ok=True)
        raise WeightsError(f"{path} has changed while it was read")
    return path


def _check_of(name: str) -> Check:
    """Return the check of a file's layout; an index of shards (JSON) is checked when read."""
    return anything if name.endswith(INDEX_SUFFIX) else _look_whole


def _look_whole(path: Path) -> None:
    try:
        look_whole(path)
    except WeightsError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise WeightsError(f"no file of weights: {reason}") from error


def _repository(row: Checkpoint, how: Fetch) -> Repository:
    return how.repository(row.repo or "", row.revision)


# Other places


def _url_path(row: Checkpoint, how: Fetch) -> Path:
    url = row.url or ""
    parts = urlsplit(url)
    # The digest of the address is part of the path, because folders of a server have files of the
    # same name (model_final_checkpoint_phase0.torch).
    folder = digest.of_bytes(url.encode())[:16]
    return how.url_cache / (parts.hostname or "") / folder / Path(parts.path).name


def _from_url(row: Checkpoint, how: Fetch) -> Path:
    path = _url_path(row, how)
    if not how.force_download and path.is_file() and _usable(path, row.sha256, row, how):
        return path
    if how.offline:
        raise WeightsError(f"it is not in the cache: {path}, and network access is disabled")
    transfer(
        row.url or "",
        path,
        size=row.size,
        sha256=row.sha256,
        name=row.id,
        check=_look_whole,
        again=how.force_download,
    )
    if not intact(path, row.sha256):
        raise WeightsError(f"{path} has changed while it was read")
    return path


# What can go wrong


@contextmanager
def _explained(name: str, where: str, how: Fetch, *, revision: str | None = None) -> Iterator[None]:
    """Convert errors of the network and of the disk to one line about this checkpoint."""
    from huggingface_hub import constants, errors

    httpx = http_client()
    where = where.replace("https://huggingface.co", constants.ENDPOINT)
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise WeightsError(
            f"{name}: no user is logged in; run `hf auth login`, or pass token="
        ) from error
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{name}: {where} is gated; request access there, then run `hf auth login` "
            "or pass token="
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{name}: {where} does not exist, or is private and needs a token (run `hf auth login` "
            f"or pass token=); {WAYS_OUT}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{name}: {where} has no revision {revision}") from error
    except NotFoundError as error:
        raise NotFoundError(f"{name}: {error}; {WAYS_OUT}") from error
    except httpx.HTTPError as error:
        raise WeightsError(f"{name}: {where}: {_reason(error)}; {WAYS_OUT}") from error
    except (ValueError, UnicodeError) as error:  # for example a malformed proxy or token
        raise WeightsError(f"{name}: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise WeightsError(
            f"{name}: cannot write {error.filename or how.hub_cache}: {error.strerror or error}; "
            "set HF_HOME or cache_dir= to another folder for the cache"
        ) from error
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}; {WAYS_OUT}") from error


def _reason(error: Any) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        wait = retry_after(response)
        later = f", and asks to wait {wait:.0f} s" if wait else ""
        return f"the server answers {response.status_code} {response.reason_phrase}{later}"
    if isinstance(error, http_client().TimeoutException):
        return "the server does not answer in time (raise HF_HUB_DOWNLOAD_TIMEOUT to wait longer)"
    return f"the connection failed ({str(error) or type(error).__name__})"


# Verification on demand


def verify_cached(row: Checkpoint, how: Fetch | None = None) -> list[Verified]:
    """Apply `verify_file` to each file of a checkpoint that is on this machine."""
    results = []
    for path in cached_files(row, how):
        main = not path.name.endswith(INDEX_SUFFIX) and row.sha256
        result = verify_file(path, row.sha256 if main else None)
        results.append(replace(result, against="the table") if main else result)
    return results
