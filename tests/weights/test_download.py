"""Tests of downloads by the real Hub client from a local Hub, with the faults of real networks."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import regnet
from regnet.design.config import RegNetConfig
from regnet.errors import LicenseWarning, WeightsError
from regnet.hub import transfer
from regnet.nn.model import AnyNet
from regnet.weights.catalog import Checkpoint, find_checkpoint
from regnet.weights.download import Fetch, cached_files, fetch, verify_cached
from regnet.weights.unwrap import read_tensors
from tests.hub_server import COMMIT, Hub, cached_blobs
from tests.marks import linux

REPO = "timm/regnetx_002.pycls_in1k"
ROW = find_checkpoint("regnetx_002")
DATA = save({"a": torch.randn(750_000, generator=torch.Generator().manual_seed(0))})


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)


@pytest.fixture
def served(hub: Hub) -> Hub:
    hub.repos[REPO] = {"model.safetensors": DATA}
    return hub


def get(cache: Path, row: Checkpoint = ROW, **options: object) -> bytes:
    return fetch(row, Fetch(cache_dir=cache, **options)).read_bytes()


def url_row(hub: Hub, data: bytes = DATA, *, sha256: bool = True) -> Checkpoint:
    digest = hashlib.sha256(data).hexdigest()[:8]
    hub.files[f"weights-{digest}.pth"] = data
    url = hub.url(f"weights-{digest}.pth")
    return replace(ROW, repo=None, file=None, url=url, sha256=digest if sha256 else None)


def test_a_pretrained_model_equals_that_of_the_hub(hub, cache):
    torch.manual_seed(1)
    original = AnyNet(regnet.info("regnetx_002").config)
    hub.repos[REPO] = {"model.safetensors": save(original.state_dict())}
    model = regnet.create("regnetx_002", pretrained=True, cache_dir=cache)
    for name, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.pretrained_cfg["tag"] == "pycls_in1k"
    assert model.pretrained_cfg["label_names"][0] == "tench"
    assert len(cached_blobs(cache)) == 1

    before = len(hub.requests)
    regnet.create("regnetx_002", pretrained=True, cache_dir=cache, local_files_only=True)
    regnet.create("regnetx_002.pycls_in1k", pretrained=True, cache_dir=cache)
    assert len(hub.requests) == before, "a cached file needs no internet access"


def test_the_hub_clients_own_cache_is_used(served, cache):
    from huggingface_hub import hf_hub_download, scan_cache_dir

    path = hf_hub_download(REPO, "model.safetensors", cache_dir=cache)
    before = len(served.requests)
    assert fetch(ROW, Fetch(cache_dir=cache)) == Path(path)
    assert len(served.requests) == before
    shutil.rmtree(cache)
    assert get(cache) == DATA
    found = scan_cache_dir(cache)
    assert [repo.repo_id for repo in found.repos] == [REPO]
    assert not found.warnings


FAULTS = {
    "503 twice": [(503, {}), (503, {})],
    "429 with Retry-After": [(429, {"Retry-After": "0.2"})],
    "429 without": [(429, {})],
    "truncated": ["truncate"],
    "truncated thrice": ["truncate"] * 3,
    "reset": ["reset"],
    "reset thrice": ["reset"] * 3,
    "stalled": ["stall"],
    "slow": ["drip"],
    "wrong bytes once": ["wrong"],
    "everything": ["truncate", (503, {}), "reset", (429, {"Retry-After": "0"}), "stall"],
}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hub", "url"])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_temporary_faults_end_in_the_right_bytes(served, cache, faults, source):
    row = ROW if source == "hub" else url_row(served)
    served.faults = list(faults)
    assert get(cache, row) == DATA
    assert not served.faults
    if any(fault in ("truncate", "reset", "stall") for fault in faults):
        assert served.ranges(), "the download is resumed where it stopped"


def test_temporary_faults_of_the_metadata_are_retried_too(served, cache):
    served.head_faults = [(503, {}), (429, {"Retry-After": "0"}), (500, {})]
    assert get(cache) == DATA


@pytest.mark.parametrize("source", ["hub", "url"])
@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["wrong"] * 2, "did not send the file that was published: the SHA-256 of its bytes"),
        (
            [(503, {})] * 9,
            "the server answers 503 Service Unavailable; alternatives: weights from another",
        ),
        ([(429, {"Retry-After": "3600"})], "answers 429 Too Many Requests, and asks to wait 3600"),
        ([(403, {})], "the server answers 403"),
    ],
)
def test_permanent_faults_are_one_clear_error(served, cache, source, faults, message):
    row = ROW if source == "hub" else url_row(served)
    served.faults = list(faults)
    with pytest.raises(WeightsError, match=message) as caught:
        get(cache, row)
    assert str(caught.value).startswith("regnetx_002.pycls_in1k: ")
    assert "\n" not in str(caught.value)
    served.faults = []
    assert get(cache, row) == DATA, "the damaged file is not in the cache"


@pytest.mark.slow
def test_a_server_that_stops_sending_is_one_clear_error(served, cache, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    served.faults = ["stall"] * 30
    served.repos[REPO] = {"model.safetensors": DATA[:1]}  # of one byte, half is nothing
    with pytest.raises(WeightsError, match="does not answer in time"):
        get(cache)


def test_a_missing_repository_is_one_clear_error(hub, cache):
    with pytest.raises(WeightsError, match=f"{REPO} does not exist, or is private and needs"):
        get(cache)


def test_a_missing_file_is_one_clear_error(hub, cache):
    hub.repos[REPO] = {}
    with pytest.raises(WeightsError, match=r"has none of model\.safetensors"):
        get(cache)
    with pytest.raises(WeightsError, match="the server answers 404"):
        get(cache, replace(ROW, repo=None, url=hub.url("none.pth")))


def test_a_gated_repository_is_one_clear_error(served, cache):
    served.gated.add(REPO)
    with pytest.raises(
        WeightsError, match="is gated; request access there, then run `hf auth login`"
    ):
        get(cache)


def test_a_missing_revision_is_one_clear_error(served, cache):
    with pytest.raises(WeightsError, match="has no revision v9"):
        get(cache, replace(ROW, revision="v9"))
    assert get(cache, replace(ROW, revision=COMMIT)) == DATA


def test_a_token_is_sent_only_to_the_hub(served, cache):
    served.tokens[REPO] = "hf_secret"
    with pytest.raises(WeightsError, match="needs a token"):
        get(cache)
    assert get(cache, token="hf_secret") == DATA
    with_token = [p for _, p, h in served.requests if h.get("authorization") == "Bearer hf_secret"]
    assert with_token
    assert not [path for path in with_token if path.startswith("/cdn/")]


def test_a_missing_file_in_offline_mode_is_one_clear_error(served, cache):
    with pytest.raises(WeightsError, match=r"not in the cache .* network access is disabled; al"):
        get(cache, local_files_only=True)
    with pytest.raises(WeightsError, match="not in the cache"):
        get(cache, url_row(served), local_files_only=True)
    assert not served.requests


def test_an_unreachable_server_is_one_clear_error(hub, cache):
    row = replace(ROW, repo=None, url="http://127.0.0.1:9/weights.pth")
    with pytest.raises(WeightsError, match="the connection failed"):
        get(cache, row)


@pytest.mark.parametrize("source", ["hub", "url"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_in_the_cache_is_fetched_again(served, cache, caplog, source, damage):
    row = ROW if source == "hub" else url_row(served)
    path = fetch(row, Fetch(cache_dir=cache)).resolve()
    data = bytearray(DATA)
    data[1_000_000] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": DATA[:-1], "empty": b""}[damage])
    with pytest.raises(WeightsError, match=r"its file in the cache is damaged: .* run once online"):
        get(cache, row, local_files_only=True)
    assert not verify_cached(row, Fetch(cache_dir=cache))[0].whole
    assert get(cache, row) == DATA
    assert "downloading again a file that was damaged" in caplog.text
    assert verify_cached(row, Fetch(cache_dir=cache))[0].whole


def test_damage_of_a_file_without_a_published_hash_is_detected(served, cache):
    row = url_row(served, sha256=False)
    path = fetch(row, Fetch(cache_dir=cache))
    path.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(WeightsError, match="damaged"):
        get(cache, row, local_files_only=True)


def test_a_file_without_a_published_hash_must_look_like_weights(served, cache):
    row = url_row(served, b"<html>Log in to this network</html>", sha256=False)
    with pytest.raises(WeightsError, match="sent no file of weights: a web page"):
        get(cache, row)
    name = row.url.rpartition("/")[2]
    served.files[name] = DATA[:-1000]
    with pytest.raises(WeightsError, match="sent no file of weights"):
        get(cache, row)
    served.files[name] = DATA
    assert get(cache, row) == DATA, "the damaged file is not in the cache"


@pytest.mark.parametrize("sha256", [True, False])
def test_two_versions_of_a_file_are_not_joined(served, cache, sha256):
    row = url_row(served, sha256=False)
    served.newer = save({"a": torch.ones(750_000)})
    if sha256:
        row = replace(row, sha256=hashlib.sha256(served.newer).hexdigest())
    served.faults = ["swap"]
    assert get(cache, row) == served.newer


@pytest.mark.parametrize("wait", ["-1", "Thu, 01 Jan 1970 00:00:00 GMT", "soon"])
def test_odd_values_of_retry_after_are_tolerated(served, cache, wait):
    served.faults = [(503, {"Retry-After": wait})]
    assert get(cache) == DATA


def test_a_file_that_does_not_match_the_table_is_not_downloaded(served, cache):
    with pytest.raises(WeightsError, match="is not the file that was published"):
        get(cache, replace(ROW, sha256="0" * 64))
    assert not [path for _, path, _ in served.requests if path.startswith("/cdn/")]


def test_a_verified_file_is_not_hashed_again(served, cache, monkeypatch):
    path = fetch(ROW, Fetch(cache_dir=cache))
    monkeypatch.setattr("regnet.weights.integrity.sha256_of", lambda _: pytest.fail("read again"))
    assert fetch(ROW, Fetch(cache_dir=cache)) == path


def test_a_download_can_be_forced(served, cache):
    row = url_row(served)
    path = fetch(row, Fetch(cache_dir=cache))
    asked = len(served.requests)
    fetch(row, Fetch(cache_dir=cache))
    assert len(served.requests) == asked
    assert fetch(row, Fetch(cache_dir=cache, force_download=True)) == path
    assert len(served.requests) > asked
    with pytest.raises(WeightsError, match="cannot be downloaded again, because network access is"):
        fetch(row, Fetch(cache_dir=cache, force_download=True, local_files_only=True))


def test_an_interrupted_download_is_resumed_by_the_next_process(served, cache):
    served.faults = ["truncate", (403, {})]
    with pytest.raises(WeightsError, match="403"):
        get(cache)
    served.requests.clear()
    assert get(cache) == DATA
    assert set(served.ranges()) == {f"bytes={len(DATA) // 2}-"}


def test_shards_are_downloaded_with_their_index(hub, cache):
    torch.manual_seed(0)
    config = RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, num_classes=4)
    tensors = AnyNet(config).state_dict()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    weight_map = {name: file for file, part in halves.items() for name in part}
    hub.repos["o/sharded"] = {
        file: save({name: tensors[name] for name in part}) for file, part in halves.items()
    } | {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}
    row = replace(ROW, repo="o/sharded", file=None)
    found = read_tensors(fetch(row, Fetch(cache_dir=cache)))
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    shard = cached_files(row, Fetch(cache_dir=cache))[1].resolve()
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    found = read_tensors(fetch(row, Fetch(cache_dir=cache)))
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_restricted_weights_warn_once_and_are_never_the_default(hub, cache):
    with pytest.raises(WeightsError, match="all weights of regnety_1280 have a restricted license"):
        regnet.create("regnety_1280", pretrained=True)
    row = replace(find_checkpoint("regnety_1280", "seer"), repo=None, url=hub.url("none"))
    from regnet.weights.licenses import warn_if_restricted

    with pytest.warns(LicenseWarning, match="SEER license .*MODEL_LICENSE.md before you use"):
        warn_if_restricted(row.id, row.license_terms, source=row.source)
    warn_if_restricted(row.id, row.license_terms, source=row.source)  # a warning would be an error


# Tests in separate processes

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from regnet.errors import WeightsError
from regnet.weights.catalog import find_checkpoint
from regnet.weights.download import Fetch, fetch
try:
    path = fetch(find_checkpoint("regnetx_002"), Fetch(cache_dir=Path(sys.argv[1])))
except WeightsError as error:
    sys.exit(f"WeightsError: {error}")
print(path)
"""


def start(cache: Path, *wrapper: str) -> "subprocess.Popen[str]":
    command = [*wrapper, sys.executable, "-c", SCRIPT, str(cache)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_cold_processes_download_once(served, cache):
    served.seconds_per_chunk = 0.02
    processes = [start(cache) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert {Path(out.strip()).read_bytes() == DATA for out, _ in outputs} == {True}
    assert sum(path.startswith("/cdn/") for _, path, _ in served.requests) == 1


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from regnet.zoo import loading  # whatever a download needs is imported before the clock starts
from regnet.weights.catalog import find_checkpoint
from regnet.weights.download import Fetch, fetch
import huggingface_hub, huggingface_hub.utils, huggingface_hub.file_download
row, rng = find_checkpoint("regnetx_002"), random.Random(0)
round = killed = 0
while killed < 20:
    round += 1
    cache = Path(sys.argv[1]) / str(round)
    child = os.fork()
    if not child:
        fetch(row, Fetch(cache_dir=cache))
        os._exit(0)
    time.sleep(rng.uniform(0, 0.6))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed += os.WIFSIGNALED(status)
    # A process that comes after; forked, so that nothing of the Hub client lives on.
    child = os.fork()
    if not child:
        path = fetch(row, Fetch(cache_dir=cache))
        os._exit(0 if path.stat().st_size == int(sys.argv[2]) else 1)
    assert os.waitpid(child, 0)[1] == 0, "the next call failed"
print(round)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_working_cache(served, cache):
    served.seconds_per_chunk = 0.01  # 46 chunks: half a second
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(cache), str(len(DATA))],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rounds = range(1, int(done.stdout) + 1)
    blobs = [blob for n in rounds for blob in cached_blobs(cache / str(n))]
    assert len(blobs) == len(rounds)
    assert all(blob.read_bytes() == DATA for blob in blobs)


def in_mount(cache: Path, mount: str) -> tuple[str, ...]:
    """Return a command that runs its arguments with a separate file system mounted."""
    cache.mkdir(exist_ok=True)
    wrapper = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    script = f'{mount} && exec "$@"'
    probe = subprocess.run([*wrapper, script, "sh", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip(f"this system allows no private mounts: {probe.stderr.decode().strip()}")
    return (*wrapper, script, "sh")


@linux
def test_a_full_disk_is_one_clear_error(served, cache):
    process = start(cache, *in_mount(cache, f"mount -t tmpfs -o size=2m tmpfs {cache}"))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith("WeightsError: regnetx_002.pycls_in1k: cannot write")
    assert "no space left" in last.lower()
    assert "set HF_HOME or cache_dir= to another folder" in last


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_download_is_one_clear_error(served, cache):
    # The size is unknown before the download, so the free space cannot be checked in advance.
    mount = f"mount -t tmpfs -o size=4m tmpfs {cache} && head -c 2000000 /dev/zero > {cache}/other"
    process = start(cache, *in_mount(cache, mount))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No space left" in error or "no space left" in error


@pytest.mark.slow
def test_a_read_only_cache_serves_its_files_or_is_one_clear_error(served, cache):
    read_only = f"mount --bind {cache} {cache} && mount -o remount,bind,ro {cache}"
    process = start(cache, *in_mount(cache, read_only))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    last = error.strip().splitlines()[-1]
    assert "WeightsError: regnetx_002.pycls_in1k: cannot write" in last
    assert "Read-only file system" in last

    get(cache)
    for record in cache.glob("**/.*.verified"):
        record.unlink()
    process = start(cache, *in_mount(cache, read_only))
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert Path(out.strip()).read_bytes() == DATA
