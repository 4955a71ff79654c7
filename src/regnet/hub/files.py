"""Files of Hub repositories, in the cache of huggingface_hub, where other libraries find them too.

The answer of a server decides where a file is stored: in the folder of which commit, and as which
blob. The client of huggingface_hub uses these values without checking them. This module checks the
answer that it uses, and a value that is not in the form of the Hub never becomes part of a path.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from regnet import digest
from regnet.atomic import write_bytes
from regnet.errors import WeightsError, printable
from regnet.hub.transfer import MOST, Check, anything, retrying, transfer

RepoType = Literal["model", "dataset"]

SMALL: Final = 64 * 2**20
"""Size limit, in bytes, of a file without weights, such as `config.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository of the Hub at a revision, and the cache folder for its files."""

    name: str
    """`owner/name`."""
    type: RepoType = "model"
    revision: str = "main"
    cache: Path
    also: str = ""
    """A branch or tag that stands for the revision, so that the cache can be asked for it."""
    token: str | bool | None = field(default=None, repr=False)
    """For private and gated repositories; None: the token of the user who is logged in."""

    def __post_init__(self) -> None:
        check_name(self.revision, "revision")
        if self.also:
            check_name(self.also, "revision")

    @property
    def folder(self) -> Path:
        """The folder of the repository in the cache.

        Raises:
            ValueError: the name is not a valid repository name.
        """
        from huggingface_hub.file_download import repo_folder_name
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(self.name)
        return self.cache / repo_folder_name(repo_id=self.name, repo_type=self.type)

    def cached(self, name: str) -> Path | None:
        """Return the path of a file in the cache, or None if it is not there."""
        from huggingface_hub import try_to_load_from_cache

        check_name(name, "file")
        found = try_to_load_from_cache(
            self.name, name, cache_dir=self.cache, revision=self.revision, repo_type=self.type
        )
        return Path(found) if isinstance(found, str) else None

    def get(self, name: str, intact: Callable[[Path], bool]) -> Path:
        """Return a file from the cache, or download it; only for revisions that never change.

        Args:
            name: name of the file in the repository.
            intact: a quick test of a file in the cache; one that fails it is verified, and
                downloaded again if it is damaged.
        """
        found = self.cached(name)
        return found if found and intact(found) else self.fetch(name)

    def fetch(
        self,
        name: str,
        *,
        sha256: str | None = None,
        most: int = MOST,
        check: Check = anything,
        label: str | None = None,
        again: bool = False,
        attempts: int | None = None,
    ) -> Path:
        """Download a file, unless the version that the server announces is in the cache.

        Args:
            name: name of the file in the repository.
            sha256: the SHA-256 that the file must have, or its first digits; None: the SHA-256 that
                the Hub declares, if any.
            most: size limit in bytes.
            check: called with the file before it enters the cache, if no SHA-256 is known.
            label: text of the progress bar; None: the name of the file.
            again: download the file even if it is in the cache.
            attempts: how often to ask the server for the version; None: several times.

        Raises:
            WeightsError: the answer of the server cannot be used, or the bytes differ from what it
                announced.
            HfHubHTTPError: the server does not answer, or refuses the request.
            OSError: the disk is full or cannot be written.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        check_name(name, "file")
        folder = self.folder
        url = hf_hub_url(self.name, name, repo_type=self.type, revision=self.revision)
        found = retrying(
            lambda: get_hf_file_metadata(url, token=self.token, library_name="regnet"), attempts
        )
        commit, etag = found.commit_hash or "", found.etag or ""
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise WeightsError(f"{url}: the server did not name a commit but {_shown(commit)}")
        declared = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None
        if declared and sha256 and not declared.startswith(sha256):
            raise WeightsError(
                f"{url} is not the file that was published: its SHA-256 begins with "
                f"{declared[:12]}, not {sha256[:12]}"
            )
        if (found.size or 0) > most:
            raise WeightsError(f"{url} has {found.size:,} bytes; the limit is {most:,}")
        # The Hub names blobs by SHA-256 or by git's SHA-1. Any other name might lead out of the
        # folder, so it is replaced by a digest.
        known = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag)
        blob = folder / "blobs" / (etag if known else digest.of_bytes(f"{url} {etag}".encode()))
        transfer(
            url,
            blob,
            size=found.size,
            sha256=sha256 or declared,
            sha1=etag if re.fullmatch(r"[0-9a-f]{40}", etag) and most <= SMALL else None,
            headers=build_hf_headers(token=self.token, library_name="regnet"),
            name=label or name,
            most=most,
            check=check,
            again=again,
        )
        path = folder / "snapshots" / commit / name
        _point(path, blob)
        for revision in {self.revision, self.also} - {commit, ""}:
            reference = folder / "refs" / revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(reference, commit.encode())
        return path


def check_name(name: str, kind: str) -> None:
    """Refuse a name that would lead out of its folder.

    Args:
        name: name of a file or a revision, as a server or a user gives it; `/` separates folders.
        kind: what the name is for ("file" or "revision"), for the message.

    Raises:
        WeightsError: the name is not a plain relative path.
    """
    parts = PurePosixPath(name).parts
    plain = parts and name == "/".join(parts) and not any(c in name for c in "\\:\0")
    if not plain or name.startswith("/") or ".." in parts:
        raise WeightsError(f"a {kind} cannot have the name {_shown(name)}; use a relative path")


def _shown(name: str) -> str:
    text = repr(printable(name))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _point(path: Path, blob: Path) -> None:
    """Make a file of a snapshot point to a blob by a link, or copy it on systems without links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.resolve() == blob.resolve():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        draft.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        shutil.copyfile(blob, draft)
    draft.replace(path)
