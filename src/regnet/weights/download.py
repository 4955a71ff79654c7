"""Bring published weights to this machine: from the Hub or a URL, or from the cache.

Files of the Hub lie in the Hub client's own cache, where other libraries find them too; other
files lie in `regnet` beside it. A file is verified before it enters the cache, and whenever it is
taken from there (`integrity`).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from regnet import digest
from regnet.errors import WeightsError
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
    "ways out: HF_ENDPOINT names a mirror of the Hub, HF_HUB_OFFLINE=1 takes the cache alone, "
    "checkpoint_path= takes a file that you have, and regnety_cifar needs no network"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """How to get files."""

    cache_dir: Path | None = None
    """The Hub client's cache; None: as its environment variables say."""
    local_files_only: bool = False
    """Take what is in the cache, and do not ask the network."""
    force_download: bool = False
    """Fetch weights again, also where the cache has them."""
    token: str | bool | None = None
    """For private and gated repositories; None: the one that is logged in."""

    @property
    def offline(self) -> bool:
        """Whether the network must not be asked."""
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    @property
    def hub_cache(self) -> Path:
        """Folder of the Hub's files."""
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_HUB_CACHE)

    def repository(self, name: str, revision: str | None) -> Repository:
        """Return a repository of models, at a revision; None: main."""
        return Repository(
            name=name, revision=revision or "main", cache=self.hub_cache, token=self.token
        )

    @property
    def url_cache(self) -> Path:
        """Folder of files from elsewhere."""
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_HOME) / "regnet"


def fetch(row: Checkpoint, how: Fetch | None = None) -> Path:
    """The checkpoint's file, verified; of a sharded one, its index, with all shards beside it.

    Raises:
        WeightsError: it cannot be had; the message says why and what to do.
    """
    how = how or Fetch()
    if how.force_download and how.offline:
        raise WeightsError(f"{row.id} cannot be fetched again while the network is not to be used")
    if row.is_local:
        path = data_dir() / (row.file or "")
        if row.sha256:
            verify(path, row.sha256)  # nothing is written beside it
        return path
    with _explained(row.id, row.source, how, revision=row.revision):
        return _from_hub(row, how) if row.repo else _from_url(row, how)


def fetch_file(repo: str, name: str, revision: str | None, how: Fetch | None = None) -> Path:
    """A small file of a repository of the Hub, such as its `config.json`.

    Raises:
        WeightsError: it cannot be had; the message says why and what to do.
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
                f"{name} is not in the cache {how.hub_cache}, and the network is not to be used"
            )
        try:
            return repository.fetch(name, most=SMALL)
        except errors.EntryNotFoundError as error:
            raise WeightsError(f"the repository has no {name}") from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise  # an answer, and it says no
        except http_client().HTTPError:
            if held is None:
                raise
            return held


def cached_files(row: Checkpoint, how: Fetch | None = None) -> list[Path]:
    """The checkpoint's files that are on this machine, unverified."""
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
        # What is in the cache comes first: finding out that a file with a better name does not
        # exist would need the network.
        if (path := _cached(row, name, how)) and _usable(path, row.sha256, row, how):
            return _with_shards(row, path, how)
    if how.offline:
        raise WeightsError(
            f"it is not in the cache {how.hub_cache}, and the network is not to be used"
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
        # Shards of the very commit that the index is of.
        row = replace(row, revision=path.parent.name)
        for name in shard_names(path):
            shard = None if how.force_download else _cached(row, name, how)
            if shard and _usable(shard, None, row, how):
                continue
            if how.offline:
                raise WeightsError(f"{name} is not in the cache, and the network is not to be used")
            _download(row, name, None, how)
    return path


def _cached(row: Checkpoint, name: str, how: Fetch) -> Path | None:
    return _repository(row, how).cached(name)


def _usable(path: Path, sha256: str | None, row: Checkpoint, how: Fetch) -> bool:
    """Whether a cached file is whole; one that is not is removed, unless we are offline."""
    if intact(path, sha256 or declared_sha256(path)):
        return True
    if how.offline:
        raise WeightsError(
            f"its file in the cache is damaged: {path}; go online once, and it is fetched again"
        )
    with locked(path.resolve()):
        if intact(path, sha256 or declared_sha256(path)):
            return True  # another process has fetched it again meanwhile
        _log.warning("%s: its file in the cache was damaged and is fetched again: %s", row.id, path)
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
    """The layout of weights; an index of shards, which is JSON, is checked where it is read."""
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
    # Names repeat between folders of a server (model_final_checkpoint_phase0.torch).
    folder = digest.of_bytes(url.encode())[:16]
    return how.url_cache / (parts.hostname or "") / folder / Path(parts.path).name


def _from_url(row: Checkpoint, how: Fetch) -> Path:
    path = _url_path(row, how)
    if not how.force_download and path.is_file() and _usable(path, row.sha256, row, how):
        return path
    if how.offline:
        raise WeightsError(f"it is not in the cache: {path}, and the network is not to be used")
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
    """Turn whatever the network and the disk raise into one line about this checkpoint."""
    from huggingface_hub import constants, errors

    httpx = http_client()
    where = where.replace("https://huggingface.co", constants.ENDPOINT)
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise WeightsError(
            f"{name}: nobody is logged in; `hf auth login`, or pass token="
        ) from error
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{name}: {where} is gated: ask for access there, then `hf auth login` or token="
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{name}: {where} does not exist, or is private and needs a token (`hf auth login` "
            f"or token=); {WAYS_OUT}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{name}: {where} has no revision {revision}") from error
    except httpx.HTTPError as error:
        raise WeightsError(f"{name}: {where}: {_reason(error)}; {WAYS_OUT}") from error
    except (ValueError, UnicodeError) as error:  # a proxy or a token that cannot be
        raise WeightsError(f"{name}: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise WeightsError(
            f"{name}: cannot write {error.filename or how.hub_cache}: {error.strerror or error}; "
            "HF_HOME or cache_dir= name another place for the cache"
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
        return "the server does not answer in time (HF_HUB_DOWNLOAD_TIMEOUT is longer if you like)"
    return f"the connection failed ({str(error) or type(error).__name__})"


# Verification on demand


def verify_cached(row: Checkpoint, how: Fetch | None = None) -> list[Verified]:
    """`verify_file` for each file of a checkpoint that is on this machine."""
    results = []
    for path in cached_files(row, how):
        main = not path.name.endswith(INDEX_SUFFIX) and row.sha256
        result = verify_file(path, row.sha256 if main else None)
        results.append(replace(result, against="the table") if main else result)
    return results
