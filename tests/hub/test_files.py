"""Tests of a hostile server: its answers never lead out of the cache, and every download ends."""

import os
from pathlib import Path

import pytest

from regnet.data.sets import fetch as fetch_set
from regnet.data.sets import open_set
from regnet.errors import DataError, RegNetError, WeightsError
from regnet.hub import transfer
from regnet.hub.files import Repository, check_name
from regnet.weights.catalog import find_checkpoint
from regnet.weights.download import Fetch, fetch, fetch_file
from regnet.zoo.resolver import find_source
from tests.hub_server import COMMIT, Hub
from tests.marks import posix

REPO = "owner/name"
NAME = "config.json"
IN_HEADERS = ["../../../../x", "../x", "/tmp/regnet-x", "a/../../x", "..", "C:\\x", ""]
OUT = [*IN_HEADERS, "a\0b"]  # no HTTP header can contain the last one


@pytest.fixture
def served(hub: Hub) -> Hub:
    hub.repos[REPO] = {NAME: b"{}", "data.bin": b"x" * 5000}
    return hub


def inside(cache: Path) -> list[str]:
    """Check that all files around the cache, with links resolved, are in it; return their names."""
    found = []
    for path in cache.parent.rglob("*"):
        assert path.resolve().is_relative_to(cache), path
        found.append(path.name)
    return found


@pytest.mark.parametrize("name", [NAME, "data.bin"])
@pytest.mark.parametrize("text", ["../../../../x", "/tmp/regnet-x", "..", "a/b", "x" * 300, "W/x"])
def test_no_etag_becomes_a_path(served, cache, name, text):
    repository = Repository(name=REPO, cache=cache)
    served.metadata = [{"ETag": text, "X-Linked-Etag": text}] * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "BACKOFF", 0.01)
        path = repository.fetch(name)
    assert path.read_bytes() == served.repos[REPO][name]
    inside(cache)
    assert not Path("/tmp/regnet-x").exists()


@pytest.mark.parametrize("text", [*IN_HEADERS, "0" * 39, "0" * 41, "main", COMMIT.upper()])
def test_no_commit_becomes_a_path(served, cache, text):
    served.metadata = [{"X-Repo-Commit": text}]
    with pytest.raises(WeightsError, match="did not name a commit"):
        Repository(name=REPO, cache=cache).fetch(NAME)
    assert not cache.exists() or not inside(cache)


def test_a_later_hostile_answer_is_not_used(served, cache):
    """The first answer is checked and decides; later answers are not used."""
    good: dict[str, str] = {}
    hostile = {"ETag": "../../../../x", "X-Linked-Etag": "../../x", "X-Repo-Commit": "../../y"}
    served.metadata = [good, *[hostile] * 5]
    path = Repository(name=REPO, cache=cache).fetch(NAME)
    assert path == cache / "models--owner--name/snapshots" / COMMIT / NAME
    inside(cache)


def test_small_files_and_data_sets_are_fetched_as_safely(served, cache, monkeypatch):
    hostile = {"ETag": "../../../../x", "X-Linked-Etag": "../../../../x"}
    served.metadata = [dict(hostile) for _ in range(4)]
    assert fetch_file(REPO, NAME, None, Fetch(cache_dir=cache)).read_bytes() == b"{}"
    inside(cache)
    served.repos["datasets/owner/name"] = {"data/train.parquet": b"PAR1"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    served.metadata = [dict(hostile) for _ in range(4)]
    with pytest.raises(DataError):
        open_set("hf:owner/name", "train")
    inside(cache)
    served.repos["datasets/owner/name"] = {"../../../train.parquet": b"PAR1"}
    with pytest.raises(DataError):
        open_set("hf:owner/name", "train")
    inside(cache)


@pytest.mark.parametrize("damage", [b'{"a": 2}', b'{"a"', b""])
def test_a_damaged_small_file_in_the_cache_is_replaced(served, cache, damage):
    served.repos[REPO][NAME] = b'{"a": 1}'
    path = fetch_file(REPO, NAME, None, Fetch(cache_dir=cache))
    path.resolve().write_bytes(damage)
    assert fetch_file(REPO, NAME, None, Fetch(cache_dir=cache)).read_bytes() == b'{"a": 1}'


def test_a_wrong_small_file_does_not_enter_the_cache(served, cache):
    served.repos[REPO][NAME] = b'{"a": 1}'
    served.faults = ["wrong"]
    assert fetch_file(REPO, NAME, None, Fetch(cache_dir=cache)).read_bytes() == b'{"a": 1}'
    served.faults = ["wrong"] * 2
    again = Fetch(cache_dir=cache, force_download=True)
    with pytest.raises(WeightsError, match="not JSON"):
        fetch_file(REPO, NAME, None, again)
    served.repos[REPO][NAME] = b'{"a": 3}'
    assert fetch_file(REPO, NAME, None, again).read_bytes() == b'{"a": 3}'


def test_an_etag_that_is_no_digest_is_not_held_against_a_file(served, cache):
    served.metadata = [{"ETag": "0123456789" * 4} for _ in range(9)]
    assert fetch_file(REPO, NAME, None, Fetch(cache_dir=cache)).read_bytes() == b"{}"


def test_a_cut_data_set_in_the_cache_is_replaced(served, cache, monkeypatch):
    data = b"PAR1" + b"x" * 100 + b"PAR1"
    served.repos["datasets/owner/name"] = {"data/train.parquet": data}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    [path] = fetch_set("owner/name", "train")
    path.resolve().write_bytes(data[:50])
    [again] = fetch_set("owner/name", "train")
    assert again.read_bytes() == data


@pytest.mark.parametrize("name", OUT)
def test_no_file_name_leads_out_of_the_cache(cache, name):
    with pytest.raises(WeightsError, match="a file cannot have the name"):
        check_name(name, "file")
    with pytest.raises(WeightsError, match="a revision cannot have the name"):
        Repository(name=REPO, revision=name, cache=cache)


@pytest.mark.parametrize("revision", ["../../x", "/x"])
def test_no_revision_leads_out_of_the_cache(served, cache, revision):
    with pytest.raises(RegNetError):
        find_source(
            f"hf-hub:{REPO}", revision=revision, pretrained=True, how=Fetch(cache_dir=cache)
        )
    assert not cache.exists() or not inside(cache)


def test_the_hub_client_finds_what_was_fetched(served, cache):
    from huggingface_hub import hf_hub_download

    path = Repository(name=REPO, revision="main", cache=cache).fetch(NAME)
    before = len(served.requests)
    assert hf_hub_download(REPO, NAME, cache_dir=cache, local_files_only=True) == str(path)
    assert Repository(name=REPO, cache=cache).cached(NAME) == path
    assert len(served.requests) == before


def test_a_file_above_the_size_limit_is_refused(served, cache):
    with pytest.raises(WeightsError, match="has 5,000 bytes; the limit is 100"):
        Repository(name=REPO, cache=cache).fetch("data.bin", most=100)


@posix
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_in_a_shared_cache_overwrites_nothing(served, tmp_path, link):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    target = tmp_path / "cache/file"
    target.parent.mkdir()
    link(victim, target.with_name(".file.part"))
    served.files["file"] = b"x" * 5000
    transfer.transfer(served.url("file"), target)
    assert victim.read_bytes() == b"precious"
    assert target.read_bytes() == b"x" * 5000


def test_two_downloads_never_share_a_file_where_locks_do_not_work(served, tmp_path, monkeypatch):
    parts = []
    monkeypatch.setattr(transfer, "_lock_holds", lambda _: False)
    for _ in range(2):
        with transfer._part_of(tmp_path / "file") as part:
            part.touch()
            parts.append(part)
    assert parts[0] != parts[1]
    assert not list(tmp_path.iterdir())


def test_a_working_lock_is_recognized(tmp_path):
    with transfer.locked(tmp_path / "file"):
        assert transfer._lock_holds(tmp_path / "file")


def test_a_download_that_is_cut_off_every_time_ends(served, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "BACKOFF", 0.001)
    served.files["file"] = b"x" * 500_000
    served.faults = ["truncate"] * 100
    with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|reset|closed"):
        transfer.transfer(served.url("file"), tmp_path / "file")
    assert len(served.faults) > 80


def test_a_download_that_only_drips_ends(served, tmp_path, monkeypatch):
    for name, value in {"PATIENCE": 0.2, "BACKOFF": 0.001, "LEAST_SPEED": 10**7}.items():
        monkeypatch.setattr(transfer, name, value)
    served.files["file"] = b"x" * 5_000_000
    served.seconds_per_chunk = 0.05
    with pytest.raises(transfer.http_client().ReadTimeout, match="bytes per second arrive"):
        transfer.transfer(served.url("file"), tmp_path / "file", sha256="0" * 64)


def test_a_body_of_infinite_length_ends(served, tmp_path):
    served.files["file"] = b"x" * 5000
    served.faults = ["endless"] * 3
    with pytest.raises(transfer.Damaged, match="sends more than"):
        transfer.transfer(served.url("file"), tmp_path / "file", sha256="0" * 64, most=10**6)
    assert not list(tmp_path.glob(".*.part"))


def test_offline_mode_uses_the_cache(served, cache):
    fetch_file(REPO, NAME, None, Fetch(cache_dir=cache))
    offline = Fetch(cache_dir=cache, local_files_only=True)
    assert fetch_file(REPO, NAME, None, offline).read_bytes() == b"{}"
    with pytest.raises(WeightsError, match="not in the cache"):
        fetch_file(REPO, "other.json", None, offline)
    with pytest.raises(WeightsError, match="not in the cache"):
        fetch(find_checkpoint("regnetx_002"), offline)


@pytest.mark.parametrize("fault", [(500, {}), (429, {"Retry-After": "3600"})])
def test_the_cache_is_used_if_the_server_does_not_answer(served, cache, monkeypatch, fault):
    monkeypatch.setattr(transfer, "BACKOFF", 0.001)
    fetch_file(REPO, NAME, None, Fetch(cache_dir=cache))
    served.head_faults = [fault] * 9
    assert fetch_file(REPO, NAME, None, Fetch(cache_dir=cache)).read_bytes() == b"{}"
    served.head_faults = [fault] * 9
    with pytest.raises(WeightsError, match=f"the server answers {fault[0]}"):
        fetch_file(REPO, "other.json", None, Fetch(cache_dir=cache))


def test_a_deleted_repository_is_not_read_from_the_cache(served, cache):
    fetch_file(REPO, NAME, None, Fetch(cache_dir=cache))
    del served.repos[REPO]
    with pytest.raises(WeightsError, match="does not exist, or is private"):
        fetch_file(REPO, NAME, None, Fetch(cache_dir=cache))
