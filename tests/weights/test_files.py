"""Tests that files of weights are read completely or refused, and never run code."""

import contextlib
import json
import os
import pickle
import random
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from regnet.design.config import RegNetConfig
from regnet.errors import WeightsError
from regnet.nn.model import AnyNet
from regnet.weights.convert import inspect
from regnet.weights.files import look_whole
from regnet.weights.inert import LEGACY_MAGIC
from regnet.weights.integrity import sha256_of, verify
from regnet.weights.unwrap import read_tensors

CONFIG = RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, num_classes=4)
STATE = AnyNet(CONFIG).state_dict()


def same(found, expected=STATE):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype
        for name, value in expected.items()
    )


WRAPPED = {
    "plain": STATE,
    "model": {"model": STATE, "epoch": 3},
    "state_dict": {"state_dict": STATE, "arch": "x"},
    "average first": {"state_dict": {}, "state_dict_ema": STATE},
    "parallel": {f"module.{name}": value for name, value in STATE.items()},
    "compiled": {f"_orig_mod.{name}": value for name, value in STATE.items()},
    "pycls": {"model_state": STATE, "optimizer_state": {"lr": 0.1}, "epoch": 100},
    "pycls, average better": {
        "model_state": {}, "ema_state": STATE, "test_err": 25.0, "ema_err": 24.0,
    },
    "pycls, average worse": {
        "model_state": STATE, "ema_state": {}, "test_err": 24.0, "ema_err": 25.0,
    },
    "ClassyVision": {"classy_state_dict": {"base_model": {"model": {"trunk": STATE}}}},
    "VISSL": {"classy_state_dict": {"base_model": {"model": {
        "trunk": {k: v for k, v in STATE.items() if "head" not in k},
        "heads": {k: v for k, v in STATE.items() if "head" in k},
    }}}},
    "ordered": OrderedDict(STATE),
    "compiled and parallel": {f"module._orig_mod.{k}": v for k, v in STATE.items()},
    "parallel and compiled": {f"_orig_mod.module.{k}": v for k, v in STATE.items()},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("saved", WRAPPED.values(), ids=WRAPPED)
def test_torch_files_give_their_state_dict(tmp_path, saved, zipped):
    path = tmp_path / "model.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(path))
    assert same(read_tensors(path, ignore_objects=True))


@pytest.mark.parametrize("saved", [[1, 2], {}, {"a": 1, "b": torch.ones(1)}, 7, {"model": [1]}])
def test_files_without_a_state_dict_are_refused(tmp_path, saved):
    path = tmp_path / "model.pth"
    torch.save(saved, path)
    with pytest.raises(WeightsError, match="state dict"):
        read_tensors(path)


def test_safetensors_are_read_from_a_folder_or_a_file(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    assert same(read_tensors(tmp_path / "model.safetensors"))
    assert same(read_tensors(tmp_path))
    with pytest.raises(WeightsError, match=r"this folder contains none of model\.safetensors"):
        read_tensors(tmp_path.parent)


def test_changing_the_tensors_does_not_change_the_file(tmp_path):
    for name, write in (("a.safetensors", save_file), ("a.pth", torch.save)):
        write(STATE, tmp_path / name)
        before = sha256_of(tmp_path / name)
        for value in read_tensors(tmp_path / name).values():
            value.zero_()
        assert sha256_of(tmp_path / name) == before
        assert same(read_tensors(tmp_path / name))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "not an index"),
        ('{"weight_map": {"a": "../secret"}}', "'../secret', which is not in its folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "which is not in its folder"),
        ('{"weight_map": {"a": 7}}', "7, which is not in its folder"),
        ('{"weight_map": {"a": "model.safetensors"}}', "a is in none of the shards"),
        ('{"weight_map": {"a": "x.index.json"}}', "which is not in its folder"),
        ('{"weight_map": {"a": ".."}}', "which is not in its folder"),
        ("[" * 100_000, "not an index"),
        ("{", "not an index"),
    ],
)
def test_bad_indexes_are_refused(tmp_path, index, message):
    save_file({"b": torch.ones(1)}, tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(WeightsError, match=message):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x02.", bytes(100)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=str(path)):
        read_tensors(path)
    with pytest.raises(WeightsError, match="No such file"):
        read_tensors(tmp_path / "none")


def test_verification_detects_a_single_flipped_bit(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    digest = sha256_of(path)
    verify(path, digest)
    verify(path, digest[:8])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="the file is damaged"):
        verify(path, digest)
    with pytest.raises(WeightsError, match="No such file"):
        verify(tmp_path / "none", "0")


# Pickles that would run code


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class Options(dict):
    """A stand-in for the objects that training scripts put into checkpoints."""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["beside", "instead", "inside"])
def test_a_malicious_pickle_runs_nothing(tmp_path, where, zipped):
    path, target = tmp_path / "model.pth", tmp_path / "executed"
    payload = Payload(target)
    saved = {"beside": {"model": STATE, "x": payload}, "instead": payload}.get(
        where, {"model": dict(STATE) | {"x": payload}}
    )
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"could run code; `regnet weights convert .* --ignore"):
        read_tensors(path)
    if where != "instead":
        assert same(read_tensors(path, ignore_objects=True))
    else:
        with pytest.raises(WeightsError, match="state dict"):
            read_tensors(path, ignore_objects=True)
    assert not target.exists()


def test_a_bare_pickle_runs_nothing(tmp_path):
    path, target = tmp_path / "model.pth", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"model": STATE, "x": Payload(target)}))
    for ignore in (False, True):
        with pytest.raises(WeightsError):
            read_tensors(path, ignore_objects=ignore)
    assert not target.exists()


class Rewriter(torch.nn.Module):
    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    @torch.jit.export
    def __getstate__(self):
        return (self.target, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.target = state[0]
        self.training = state[1]
        torch.from_file(state[0], shared=True, size=4, dtype=torch.uint8).fill_(88)

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_program_is_not_run(tmp_path):
    path, target = tmp_path / "model.pth", tmp_path / "victim"
    target.write_bytes(b"precious")
    torch.jit.script(Rewriter(str(target))).save(path)
    target.write_bytes(b"precious")
    for ignore in (False, True):
        with pytest.raises(WeightsError, match="a TorchScript program, not a state dict"):
            read_tensors(path, ignore_objects=ignore)
    assert target.read_bytes() == b"precious"


def test_a_pickle_cannot_change_torchs_functions(tmp_path):
    """BUILD sets attributes of any object on the stack, such as the defaults of a function."""
    evil = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__N\x85s\x86b."
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", evil)
        archive.writestr("model/version", "3")
    before = torch._utils._rebuild_tensor_v2.__defaults__
    for ignore in (False, True):
        with pytest.raises(WeightsError):
            read_tensors(path, ignore_objects=ignore)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_a_pickle_cannot_allocate_memory_by_naming_a_size(tmp_path):
    path = tmp_path / "model.pth"
    claims = (10**10).to_bytes(8, "little")
    for made in (b"\x96", b"\x8e", b"\x8d"):  # BYTEARRAY8, BINBYTES8, BINUNICODE8
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", b"\x80\x05" + made + claims + b".")
            archive.writestr("model/version", "3")
        attempt(path, path.read_bytes(), "claims", ignore_objects=True)
        attempt(
            path, LEGACY_MAGIC + b"\x80\x05" + made + claims + b".", "claims", ignore_objects=True
        )


def test_names_of_a_million_characters_are_refused_at_once(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a" * 1_000_000: torch.zeros(2)}, path)
    began = time.monotonic()
    for read in (read_tensors, look_whole, inspect):
        with pytest.raises(WeightsError, match="name of a tensor is 1,000,000 characters long"):
            read(path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("shape", [[0, 2**63], [2**63], [-1], [1.5], [2**32, 2**32]])
def test_impossible_shapes_are_refused(tmp_path, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (read_tensors, look_whole):
        with pytest.raises(WeightsError):
            read(path)


def test_unusual_zip_files_are_refused(tmp_path):
    """Encrypted files, those of a later version, or with undecodable names: refused or complete."""
    torch.save(STATE, tmp_path / "plain.pth")
    whole = (tmp_path / "plain.pth").read_bytes()
    central = whole.index(b"PK\x01\x02")
    path = tmp_path / "odd.pth"
    for at, value in ((8, 1), (8, 0x21), (6, 99), (9, 8), (10, 99), (24, 255), (20, 255)):
        data = bytearray(whole)
        data[central + at] = value
        if at < 12:
            data[at - 2] = value  # the same in the local header
        path.write_bytes(data)
        with contextlib.suppress(WeightsError):
            look_whole(path)
        with contextlib.suppress(WeightsError):
            assert same(read_tensors(path)), "a file that is not refused is complete"


def test_a_tensor_that_claims_more_values_than_its_file_has_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1).expand(10_000_000)}, path)
    with pytest.raises(WeightsError, match="a claims more values than the file has"):
        read_tensors(path)
    torch.save({"a": torch.eye(3).to_sparse()}, path)
    with pytest.raises(WeightsError, match="a is not a plain tensor"):
        read_tensors(path)


def test_objects_that_contain_tensors_are_left_out_completely(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": STATE, "options": Options(a=STATE, b=[1])}, path)
    with pytest.raises(WeightsError, match="contains Python objects besides its tensors"):
        read_tensors(path)
    assert same(read_tensors(path, ignore_objects=True))


def test_compressed_parts_are_refused(tmp_path):
    torch.save({"a": torch.zeros(10_000_000)}, tmp_path / "plain.pth")
    path = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in plain.namelist():
            bomb.writestr(part, plain.read(part))
    with pytest.raises(WeightsError, match="its parts are compressed"):
        read_tensors(path)


# Damage anywhere in a file. It is refused or, if the format has no checksums, gives other numbers
# in the same tensors.

SEEDS = {"safetensors": save(STATE)}
for _zipped in (True, False):
    _path = Path(os.environ["HF_HOME"]) / "seed.pth"
    torch.save(STATE, _path, _use_new_zipfile_serialization=_zipped)
    SEEDS["zip" if _zipped else "legacy"] = _path.read_bytes()


def attempt(path: Path, data: bytes, kind: str, **options: bool) -> None:
    """Check that reading damaged bytes takes little time and memory, and raises only our errors."""
    path.write_bytes(data)
    began = time.monotonic()
    import resource  # not available on Windows

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with contextlib.suppress(WeightsError):
            look_whole(path)
        found = read_tensors(path, **options)
    except WeightsError:
        pass
    else:
        # A zip file has checksums of all its members; other damage is harmless.
        assert kind != "zip" or data == SEEDS["zip"] or same(found)
        for value in found.values():
            assert value.nbytes <= len(data)
    assert time.monotonic() - began < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kilobytes"


def damaged(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    out = bytearray(data)
    # Half of the flips hit the beginning and the end, where the structure of the file is.
    ends = [rng.randrange(min(4000, len(out))), -1 - rng.randrange(min(4000, len(out)))]
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.choice([*ends, rng.randrange(len(out))])
        out[place] = rng.choice((out[place] ^ (1 << rng.randrange(8)), 0, 255, rng.randrange(256)))
    return bytes(out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SEEDS)
def test_damaged_files_are_refused_or_read_the_same_names(tmp_path, kind):
    rng = random.Random(1)
    for _ in range(60):
        attempt(tmp_path / "model.bin", damaged(SEEDS[kind], rng), kind)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_are_refused_in_many_tries(tmp_path, kind, seed):
    rng = random.Random(1000 + seed)
    for _ in range(250):
        attempt(tmp_path / "model.bin", damaged(SEEDS[kind], rng), kind)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from(sorted(SEEDS)), st.integers(0, 2000))
def test_arbitrary_bytes_are_refused_or_read(tmp_path, data, kind, keep):
    attempt(tmp_path / "model.bin", SEEDS[kind][:keep] + data, kind)
