"""Tests that documents are read back exactly as they were written, or refused."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet import digest, documents
from regnet.documents import build
from regnet.errors import ConfigError

VALUES = {"a": 1, "b": [1.5, None, True], "c": {"deep": "ä"}, "nan": float("nan")}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "a.json"
    documents.write(path, VALUES)
    return path


def test_a_document_is_read_back_as_it_was_written(written):
    assert repr(documents.read(written, "a document")) == repr(VALUES)
    assert documents.sealed(VALUES)["sha256"] == json.loads(written.read_text())["sha256"]


@given(st.data())
def test_no_flipped_bit_changes_the_values(written, data):
    """Flip any single bit: the document is refused, or has the same values (white space)."""
    content = bytearray(written.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    damaged = written.with_name("damaged.json")
    damaged.write_bytes(content)
    try:
        found = documents.read(damaged, "a document")
    except ConfigError as error:
        assert str(damaged) in str(error)  # noqa: PT017 - both outcomes are valid
    else:
        assert repr(found) == repr(VALUES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a document"),
        (b"[]", "it is not a JSON object"),
        (b"{}", "it has no sha256"),
        (b"\xff", "not a document"),
        (b'{"a": 1, "sha256": "0"}', "not as it was written"),
        (b"[" * 100_000, "not a document"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "b.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        documents.read(path, "a document")
    with pytest.raises(ConfigError, match="Is a directory"):
        documents.read(tmp_path, "a document")
    with pytest.raises(FileNotFoundError):
        documents.read(tmp_path / "none.json", "a document")


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part of `Outer`."""

    ratio: float


@dataclass(frozen=True, kw_only=True)
class Outer:
    """One field of each kind."""

    name: str
    count: int = 0
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()
    pair: tuple[int, str] = (0, "")
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    by_name: dict[str, int] = field(default_factory=dict)
    anything: Any = None


def test_a_dataclass_survives_json():
    outer = Outer(
        name="x", count=3, inner=Inner(ratio=1.0), inners=(Inner(ratio=2.5),), pair=(1, "b"),
        kind="b", flag=True, by_name={"k": 1}, anything=[1],
    )  # fmt: skip
    assert build(Outer, json.loads(json.dumps(outer, default=documents.plain))) == outer
    assert build(Inner, {"ratio": 2}).ratio == 2.0, "an integer is accepted as a float"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "lacks the field 'name'"),
        ({"name": "x", "nmae": 1}, "has no field 'nmae'; it has name, count"),
        ({"name": 3}, "name cannot be 3"),
        ({"name": "x", "count": True}, "count cannot be True"),
        ({"name": "x", "count": 1.5}, "count cannot be 1.5"),
        ({"name": "x", "inner": {"ratio": "1"}}, "inner.ratio cannot be '1'"),
        ({"name": "x", "inners": [{"ratio": 1}, 2]}, r"inners\[1\]: must be a JSON object"),
        ({"name": "x", "pair": [1]}, "pair must have 2 values, got 1"),
        ({"name": "x", "kind": "c"}, "kind cannot be 'c'"),
        ({"name": "x", "by_name": {"k": "v"}}, "by_name.k cannot be 'v'"),
        ("text", "must be a JSON object, got 'text'"),
    ],
)
def test_values_that_do_not_fit_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Outer, values)


def test_digests_equal_those_of_the_sha256_standard(tmp_path):
    """Golden values: FIPS 180-2, appendix B.1, and the empty message."""
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest.of_bytes(b"a", b"bc") == digest.of_file(tmp_path / "abc") == abc
    assert digest.of_bytes().startswith("e3b0c44298fc1c14")
    assert digest.of_json({"b": 1, "a": [2]}) == digest.of_json({"a": [2], "b": 1})


def test_paths_and_devices_have_a_json_form():
    import torch

    assert documents.sealed({"p": Path("a/b"), "d": torch.device("cpu")})["p"] == "a/b"
    with pytest.raises(TypeError, match="object has no JSON form"):
        documents.sealed({"x": object()})


def test_a_file_that_is_too_large_or_never_ends_is_not_read(tmp_path):
    large = tmp_path / "config.json"
    with large.open("wb") as file:
        file.truncate(300 * 2**20)
    for path in (large, Path("/dev/zero")):
        if path.exists():
            with pytest.raises(ConfigError, match="more than 67,108,864 bytes"):
                documents.load(path, "a config")
