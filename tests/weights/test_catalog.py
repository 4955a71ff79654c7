"""Tests of the table of published weights, and of the script that updates it."""

import hashlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import regnet
from regnet.design.variants import VARIANTS
from regnet.errors import WeightsError
from regnet.weights.catalog import (
    COLLECTIONS,
    checkpoints,
    data_dir,
    default_checkpoint,
    find_checkpoint,
    label_sets,
)
from regnet.weights.convert import convert_file
from regnet.weights.files import write_safetensors
from regnet.weights.formats import FORMATS
from regnet.weights.integrity import verify
from regnet.weights.licenses import LICENSES
from tests.hub_server import COMMIT

ROOT = Path(__file__).parents[2]
ROWS = list(checkpoints().values())
EMBEDDED = [row for row in ROWS if row.collection == "embedded"]


def test_the_table_has_all_published_checkpoints():
    counts = {name: sum(row.collection == name for row in ROWS) for name in COLLECTIONS}
    assert counts == {
        "embedded": 1, "timm": 74, "torchvision": 34, "pycls": 24, "transformers": 32, "vissl": 14,
        "swag": 6,
    }  # fmt: skip


def test_the_documents_have_the_counts_of_the_table():
    counts = {name: sum(row.collection == name for row in ROWS) for name in COLLECTIONS}
    text = " ".join((ROOT / "docs/weights.md").read_text(encoding="utf-8").split())
    for name in ("timm", "torchvision", "pycls", "transformers"):
        assert f"{counts[name]} of {name}" in text
    assert f"{counts['vissl']} of VISSL and {counts['swag']} of SWAG" in text
    total = len(ROWS) - counts["embedded"]
    for path in ("docs/weights.md", "README.md", "CHANGELOG.md"):
        assert f"{total} published checkpoints" in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_rows_are_complete(row):
    assert row.variant in VARIANTS
    assert row.format in FORMATS
    assert row.license in LICENSES
    assert (row.repo is not None) + (row.url is not None) + (row.collection == "embedded") == 1
    assert row.origin or row.command
    assert row.num_classes in (0, 10, 1000, 11821)
    assert not row.label_names or len(row.label_names) == row.num_classes
    if row.metrics:
        assert row.metrics_source
    assert all(0 < metric.top1 <= 100 for metric in row.metrics)
    if row.url and (named := re.search(r"-([0-9a-f]{8})\.pth$", row.url)):
        assert row.sha256 == named[1]


def test_the_default_weights_are_the_best_with_a_free_license():
    for variant in VARIANTS:
        chosen = default_checkpoint(variant)
        rivals = [
            row for row in ROWS
            if row.variant == variant and row.license_terms.permissive
            and row.collection in ("timm", "embedded")
        ]  # fmt: skip
        if chosen is None:
            assert not rivals
            continue
        assert chosen.license_terms.permissive
        assert all((chosen.top1 or 0) >= (row.top1 or 0) for row in rivals)
    assert default_checkpoint("regnety_016").tag == "tv2_in1k"
    assert default_checkpoint("regnety_160").tag == "lion_in12k_ft_in1k"
    assert default_checkpoint("regnety_1280") is None


@pytest.mark.parametrize(
    ("variant", "tag", "message"),
    [
        ("regnety_cifar", "v2", "regnety_cifar has no weights tagged 'v2'; it has cifar10"),
        ("resnet50", None, "no weights of resnet50 are published"),
        ("regnety_1280", None, "all weights of regnety_1280 have a restricted license"),
        (
            "regnety_2560",
            None,
            r"name the weights as regnety_2560.TAG, where TAG is .*seer_ft_in1k \(SEER license",
        ),
    ],
)
def test_unknown_weights_are_refused(variant, tag, message):
    with pytest.raises(WeightsError, match=message):
        find_checkpoint(variant, tag)


def test_label_sets_have_the_names_of_their_classes():
    assert label_sets()["imagenet-1k"][281] == "tabby"
    assert len(label_sets()["imagenet-1k"]) == 1000


@pytest.mark.parametrize("row", EMBEDDED, ids=lambda r: r.id)
def test_embedded_files_match_the_table(row):
    path = data_dir() / row.file
    verify(path, row.sha256)
    assert path.stat().st_size == row.size
    assert row.size <= 1.5e6
    assert len(row.label_names) == row.num_classes


@pytest.mark.parametrize("row", EMBEDDED, ids=lambda r: r.id)
def test_model_card_states_the_figures_of_the_table(row):
    card = (data_dir() / row.file).with_suffix(".md").read_text(encoding="utf-8")
    assert f"**{row.metrics[0].top1:.2f} %**" in card
    assert row.command in card
    assert row.sha256 in card


def test_embedded_checkpoint_reaches_90_percent():
    assert find_checkpoint("regnety_cifar").metrics[0].top1 >= 90


# The script


@pytest.fixture
def update(tmp_path, monkeypatch):
    """A function that runs the script on a copy of the tables."""
    functions = runpy.run_path(str(ROOT / "scripts/update_catalog.py"))
    for collection in COLLECTIONS:
        text = (data_dir() / f"{collection}.json").read_text(encoding="utf-8")
        (tmp_path / f"{collection}.json").write_text(text, encoding="utf-8")
    functions["main"].__globals__["WEIGHTS"] = tmp_path

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["update_catalog.py", *args])
        functions["main"]()
        return {
            f"{row['variant']}.{row['tag']}": row
            for name in COLLECTIONS
            for row in json.loads((tmp_path / f"{name}.json").read_text())
        }

    run.script = functions
    return run


def test_the_tables_are_formatted_as_the_script_writes_them(update, capsys):
    update("--check")
    assert capsys.readouterr().out == "185 rows, 0 files changed\n"


@pytest.fixture
def published(hub, tmp_path, monkeypatch):
    """Tables with only one small row per publisher, and a server that has their files."""
    state = regnet.create("regnetx_002").state_dict()
    write_safetensors(state, tmp_path / "timm.safetensors")
    tables = {}
    for collection, format, host in (
        ("timm", "timm", "repo"), ("transformers", "transformers", "repo"),
        ("torchvision", "torchvision", "url"), ("pycls", "pycls", "url"),
        ("vissl", "vissl", "url"), ("swag", "classy", "url"),
    ):  # fmt: skip
        path = tmp_path / f"{collection}.safetensors"
        convert_file(tmp_path / "timm.safetensors", path, to=format)
        row = {
            "variant": "regnetx_002", "tag": collection, "format": format, "license": "mit",
            "num_classes": 0 if format in ("vissl", "classy") else 1000, "preprocess": {},
            "bgr": format == "pycls",
        }  # fmt: skip
        if host == "repo":
            row["repo"] = f"owner/{collection}"
            hub.repos[row["repo"]] = {"model.safetensors": path.read_bytes()}
        else:
            row["url"] = hub.url(f"{collection}.pth")
            hub.files[f"{collection}.pth"] = path.read_bytes()
        tables[collection] = [row]
        (tmp_path / f"{collection}.json").write_text(json.dumps([row]))
    (tmp_path / "embedded.json").write_text("[]")
    return tables


def test_pinning_fetches_verifies_loads_and_resumes(update, published, hub, tmp_path, capsys):
    args = ["--pin", "--state", str(tmp_path / "pin.jsonl"), "--cache", str(tmp_path / "cache")]
    hub.faults = ["truncate", (503, {})]
    rows = update(*args)
    assert "6 rows: 6 pinned and loaded" in capsys.readouterr().out
    for collection in published:
        row = rows[f"regnetx_002.{collection}"]
        assert (row.get("revision") == COMMIT) == ("repo" in row)
        data = {**hub.files, **hub.repos.get(row.get("repo"), {})}
        held = data.get(f"{collection}.pth") or data["model.safetensors"]
        assert row["sha256"] == hashlib.sha256(held).hexdigest()
        assert row["size"] == len(held)
    assert not [
        p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size > 1e6
    ]
    asked = len(hub.requests)
    assert update(*args) == rows
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda hub, row: row.update(license="apache-2.0"), "states the license 'mit', our"),
        (lambda hub, row: hub.repos.clear(), "401"),
        (
            lambda hub, row: hub.repos.update({row["repo"]: {"x.bin": b"x"}}),
            "none of the files model",
        ),
        (
            lambda hub, row: hub.repos[row["repo"]].update({"model.safetensors": b"no"}),
            "neither a safetensors file",
        ),
        (lambda hub, row: row.update(variant="regnety_002"), "regnety_002"),
    ],
    ids=["license", "gone", "no weights", "no tensors", "another network"],
)
def test_a_row_that_cannot_be_pinned_is_unchanged(
    update, published, hub, tmp_path, capsys, damage, problem
):
    [row] = published["timm"]
    damage(hub, row)
    (tmp_path / "timm.json").write_text(json.dumps([row]))
    args = ["--pin", f"{row['variant']}.t[io]*", "--state", str(tmp_path / "pin.jsonl"),
            "--cache", str(tmp_path / "cache")]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        update(*args)
    assert ended.value.code == 1
    [told] = [line for line in capsys.readouterr().out.splitlines() if ".timm: " in line]
    assert problem in told
    assert json.loads((tmp_path / "timm.json").read_text()) == [
        {k: v for k, v in row.items() if v is not False}
    ]


def test_logits_are_compared_with_the_publishers(update, published, tmp_path, monkeypatch, capsys):
    """Stand-ins replace the publishers' libraries, which are not installed."""
    libraries = update.script["pin"].__globals__["LIBRARIES"]
    changed = regnet.create("regnetx_002", pretrained=False)
    monkeypatch.setitem(libraries, "timm", lambda row, path, how: load(row, path))
    monkeypatch.setitem(libraries, "torchvision", lambda row, path, how: changed)
    args = ["--pin", "*.t[io]*", "--state", str(tmp_path / "pin.jsonl"),
            "--cache", str(tmp_path / "cache")]  # fmt: skip
    with pytest.raises(SystemExit):
        update(*args)
    out = capsys.readouterr().out
    assert "regnetx_002.torchvision: logits differ from those of torchvision by" in out
    assert "2 rows: 1 pinned and loaded, 1 compared with their publisher's library (largest" in out


def load(row, path):
    return regnet.create(row.variant, checkpoint_path=path)


def test_accuracies_are_read_from_timms_result_files(update, tmp_path):
    header = "model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation\n"
    for name in runpy.run_path(str(ROOT / "scripts/update_catalog.py"))["RESULTS"]:
        line = "regnety_016.tv2_in1k,224,81.5,18.5,95.5,4.5,11.20,0.965,bicubic\n"
        (tmp_path / name).write_text(header + line)
    row = update("--timm-results", str(tmp_path))["regnety_016.tv2_in1k"]
    assert [metric["top1"] for metric in row["metrics"]] == [81.5] * 6


def test_torch_hub_can_use_the_entry_points():
    model = torch.hub.load(str(ROOT), "regnet_x_200mf", source="local", device="meta")
    assert model.num_features == 368
    names = runpy.run_path(str(ROOT / "hubconf.py"))
    assert all(callable(names[variant.factory]) for variant in VARIANTS.values())
