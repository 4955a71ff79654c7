"""Tests of damaged or edited files: one line reports the damage, or the values are the same.

Each run of the tests tries a few cases, and --long many; docs/verification.md has the counts.
"""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import regnet
from regnet import documents
from regnet.bench import document as bench_document
from regnet.bench.compare import compare_documents
from regnet.bench.document import Case, Document, Pair, Row
from regnet.bench.floors import Ceilings
from regnet.bench.report import render
from regnet.data.preprocess import Preprocess
from regnet.data.sets import open_set
from regnet.design.complexity import complexity
from regnet.design.config import RegNetConfig, config_from_json
from regnet.engines.optimize import Candidate, _races
from regnet.errors import RegNetError
from regnet.evaluation.evaluate import evaluate
from regnet.machine import environment
from regnet.spaces.paper import SPACES
from regnet.spaces.sampling import sample
from regnet.spaces.space import Space
from regnet.studies.study import Study
from regnet.training import run as runs
from regnet.training.loop import _check_conditions
from regnet.training.recipe import RECIPES, recipe_from_json
from regnet.training.run import Facts, Run, SavedOptions, SetFacts
from regnet.training.session import Options
from regnet.weights.card import Card
from tests.faults import changed_by_hand, flipped_bits
from tests.marks import linux, times
from tests.pictures import write_folder

CPU = torch.device("cpu")
SMALL = RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, num_classes=3)


@dataclass(frozen=True)
class Kind:
    """A kind of file that is damaged."""

    write: Callable[[Path], Any]
    """Writes a file of this kind and returns its values."""
    use: Callable[[Path], Any]
    """Reads the file as commands do."""
    sealed: bool = True


def _bench_document(path: Path) -> Any:
    row = Row(
        case=Case(model="regnetx_002"), image_size=32, flops=10, params=10, activations=10,
        ran="folded", steady=True, latency_ms=1.0, low_ms=0.9, high_ms=1.1, p90_ms=1.1,
        minimum_ms=0.8, queued_ms=1.0, images_per_second=1000.0, floor_fused_ms=0.1,
        seconds=(0.001, 0.0011, 0.0009) * 5,
    )  # fmt: skip
    pair = Pair(
        a="regnetx_002", b="regnetx_004", ran_a="folded", ran_b="folded", batch_size=1,
        precision="fp32", engine="folded", layout="channels_last", verdict="a is faster",
        ratio=0.5, low=0.4, high=0.6, control=(0.9, 1.1), ratios=(0.5, 0.6),
    )  # fmt: skip
    failed = Row(case=Case(model="regnetx_004"), reason="no")
    ceilings = Ceilings(bytes_per_second=1e9, flops_per_second=1e9)
    document = Document(
        rows=(row, failed, replace(row, case=Case(model=SMALL, batch_size=2))), pairs=(pair,),
        environment=environment(CPU), ceilings={"fp32": ceilings},
    )  # fmt: skip
    documents.write(path, document)
    return documents.read(path, "")


def _use_bench_document(path: Path) -> Any:
    found = bench_document.read(path)
    render(found)
    compare_documents(found, found)
    return found


def _run(path: Path) -> Any:
    facts = Facts(
        images={"train": SetFacts(source="a", count=5, fingerprint="ab")}, teachers={"t": "cd"},
        processes=1, options=SavedOptions(), environment=environment(CPU),
    )  # fmt: skip
    run = Run(model=SMALL, recipe=RECIPES["cifar"], train="a", val=None, teachers=("t",))
    documents.write(path, {"run": run, **documents.plain(facts)})
    return documents.read(path, "")


def _use_run(path: Path) -> Any:
    run, facts = runs.read(path)
    Options.of_run(facts)
    now = replace(facts, environment=environment(CPU))
    _check_conditions(facts, now)
    return run, facts


def _space() -> Space:
    return SPACES["anynetx_a"].restrict(flops=(None, 4e8))


def _study(path: Path) -> Any:
    study = Study(
        spaces=(_space(), SPACES["regnetx"]), models=2, train="a", val="a",
        recipe=RECIPES["cifar"], images={"train": "ab"},
    )  # fmt: skip
    documents.write(path, study)
    return documents.read(path, "")


def _use_study(path: Path) -> Any:
    return Study.from_dict(documents.read(path, "a study"))


def _plain(values: Any) -> Callable[[Path], Any]:
    def write(path: Path) -> Any:
        path.write_text(json.dumps(values))
        return values

    return write


def _use_space(path: Path) -> Any:
    space = Space.from_dict(documents.load(path, "a space"))
    sample(space, 2, 0)
    return space


def _use_config(path: Path) -> Any:
    config = config_from_json(documents.text_of(path, "a config"))
    complexity(config, 64)
    return config


def _choices(path: Path) -> Any:
    row = asdict(Candidate(engine="eager", precision="fp32", layout="channels_last", latency_ms=1))
    documents.write(path, {"rows": [{"race": 0, **row}, {"race": 1, **row}]})
    return documents.read(path, "")


def _use_choices(path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regnet.engines.choices.cache_folder", lambda: path.parent)
        return _races(path.stem)


KINDS = {
    "a bench document": Kind(_bench_document, _use_bench_document),
    "a run": Kind(_run, _use_run),
    "a study": Kind(_study, _use_study),
    "a choice": Kind(_choices, _use_choices),
    "a space": Kind(_plain(_space().to_dict()), _use_space, sealed=False),
    "a config": Kind(_plain(SMALL.to_dict()), _use_config, sealed=False),
    "a recipe": Kind(
        _plain(RECIPES["cifar"].to_dict()),
        lambda path: recipe_from_json(documents.text_of(path, "a recipe")),
        sealed=False,
    ),
}


@pytest.fixture
def bounded() -> Iterator[Callable[[], None]]:
    """Check that the code inside takes little time and memory."""
    import resource  # not available on Windows

    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def check() -> None:
        nonlocal began
        assert time.monotonic() - began < 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000, "kB"
        began = time.monotonic()

    return check


@linux
@times(15, 500)
@pytest.mark.parametrize("kind", KINDS)
def test_edited_values_are_refused_or_usable(
    kind: str, count: int, tmp_path: Path, bounded: Callable[[], None]
) -> None:
    """Even if the digest was updated to match, only our own errors are raised."""
    path, rng = tmp_path / "file.json", random.Random(0)
    values = KINDS[kind].write(path)
    KINDS[kind].use(path)
    for _ in range(count):
        changed = changed_by_hand(values, rng)
        if KINDS[kind].sealed:
            documents.write(path, changed)
        else:
            path.write_text(json.dumps(changed))
        try:
            KINDS[kind].use(path)
        except RegNetError as error:
            assert len(str(error).splitlines()) == 1, changed  # noqa: PT017 - both outcomes are valid
        except Exception as error:
            raise AssertionError(f"{changed}") from error
        bounded()


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.sealed])
@times(30, 500)
def test_flipped_bits_of_documents_are_detected_or_harmless(
    kind: str, count: int, tmp_path: Path
) -> None:
    """A document is refused, or it has the same values because white space was changed."""
    path = tmp_path / "file.json"
    KINDS[kind].write(path)
    whole = KINDS[kind].use(path)
    refused = 0
    for _ in flipped_bits(path, count):
        try:
            found = KINDS[kind].use(path)
        except RegNetError:
            refused += 1
        else:
            assert found in (whole, []), "a damaged choice is made again"
    assert refused > 0 or kind == "a choice"


@linux
@pytest.mark.filterwarnings("ignore::regnet.errors.LicenseWarning")
@times(20, 500)
def test_an_edited_model_folder_is_refused_or_usable(
    count: int, tmp_path: Path, bounded: Callable[[], None]
) -> None:
    folder, rng = tmp_path / "m", random.Random(0)
    regnet.create(SMALL).save_pretrained(folder)
    path = folder / "config.json"
    values = documents.read(path, "")
    for number in range(count):
        changed = changed_by_hand(values, rng)
        if number % 2:  # as timm writes it, without our own fields
            changed = {k: v for k, v in changed.items() if not k.startswith("regnet_")}
            path.write_text(json.dumps(changed))
        else:
            documents.write(path, changed)
        try:
            regnet.preprocess(regnet.create(f"local-dir:{folder}", pretrained=True))
        except RegNetError as error:
            assert len(str(error).splitlines()) == 1, changed  # noqa: PT017 - both outcomes are valid
        except Exception as error:
            raise AssertionError(f"{changed}") from error
        bounded()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder, 12)
    return folder


@times(5, 100)
def test_edited_saved_answers_are_refused_or_usable(
    count: int, pictures: Path, tmp_path: Path
) -> None:
    model, rng = regnet.create(SMALL).eval(), random.Random(0)
    model.card = Card(preprocess=Preprocess(size=(32, 32)), labels=("blue", "green", "red"))
    folder = tmp_path / "kept"
    evaluate(model, pictures, keep=folder)
    for name in ("evaluation.json", "answers-0.jsonl"):
        path = folder / name
        whole = path.read_bytes()
        for _ in range(count):
            if name.endswith(".jsonl"):
                lines = [changed_by_hand(json.loads(line), rng) for line in whole.splitlines()]
                path.write_bytes(b"".join(map(documents.line, lines)))
            else:
                documents.write(path, changed_by_hand(json.loads(whole), rng))
            try:
                evaluate(model, pictures, keep=folder)
            except RegNetError as error:
                assert len(str(error).splitlines()) == 1  # noqa: PT017 - both outcomes are valid
        path.write_bytes(whole)


@linux
@times(30, 500)
def test_damaged_parquet_files_are_refused_or_lose_single_images(
    count: int, tmp_path: Path, bounded: Callable[[], None]
) -> None:
    """A file is refused or loses single images; not all image formats have checksums of pixels."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as parquet

    write_folder(tmp_path / "images", 12)
    images = sorted((tmp_path / "images").rglob("*.png"))
    table = pyarrow.table(
        {"image": [{"bytes": p.read_bytes(), "path": p.name} for p in images],
         "label": [n % 3 for n in range(len(images))]}
    )  # fmt: skip
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, write_page_checksum=True)
    whole = open_set(path)
    labels = whole.labels.tolist()
    pixels = [whole.open(index).tobytes() for index in range(len(whole))]
    for _ in flipped_bits(path, count):
        try:
            found = open_set(path)
            seen = [found.open(index).tobytes() for index in range(len(found))]
        except RegNetError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - both outcomes are valid
        else:
            assert (found.labels.tolist(), seen) == (labels, pixels)
        bounded()
    shutil.rmtree(tmp_path / "images")
