"""What README and CONTRIBUTING say is run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import regnet
from regnet.design import variants
from regnet.errors import LicenseWarning
from regnet.weights.catalog import checkpoints
from regnet.weights.formats import FORMATS, from_native

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "weights").glob("*.md")]


def code_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_of_the_readme_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    example, _ = code_blocks(ROOT / "README.md")
    names = {}
    exec(example, names)
    assert capsys.readouterr().out.startswith("cat\n")
    assert names["fit"].exact
    assert names["model"].num_classes == 10


def test_the_weights_of_the_readme_load(monkeypatch, hub, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    _, example = code_blocks(ROOT / "README.md")
    states = {name: regnet.create(name).state_dict() for name in ("regnety_016", "regnety_160")}
    for id in ("regnety_016.tv2_in1k", "regnety_160.swag_ft_in1k", "regnety_016.transformers"):
        row = checkpoints()[id]
        theirs = from_native(states[row.variant], FORMATS[row.format])
        hub.repos[row.repo] = {"model.safetensors": save(theirs)}
    theirs = from_native(states["regnety_016"], FORMATS["pycls"])
    torch.save({"model_state": theirs}, "RegNetY-1.6GF_dds_8gpu.pyth")
    names = {}
    with pytest.warns(LicenseWarning) as warned:
        exec(example, {"regnet": regnet}, names)
    assert [str(w.message).partition(";")[0] for w in warned] == [
        "regnety_160.swag_ft_in1k: CC BY-NC 4.0 (no commercial use)",
        "regnety_016.transformers: license not stated",
    ]
    assert torch.equal(names["model"].head.fc.weight, states["regnety_016"]["head.fc.weight"])
    assert Path("mine/model.safetensors").exists()


def test_the_example_of_the_benchmarks_runs(capsys):
    [example] = code_blocks(ROOT / "docs/benchmark.md")
    names = {}
    exec(example, names)
    assert "folded fp32" in capsys.readouterr().out
    assert names["logits"].shape == (4, 10)


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_the_exports_runs(monkeypatch, capsys, tmp_path):
    [example] = code_blocks(ROOT / "docs/export.md")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert capsys.readouterr().out.startswith("regnety_cifar.pt2: torch fp32, any batch and size")


def test_the_example_of_training_runs(capsys):
    [example] = code_blocks(ROOT / "docs/train.md")
    exec(example, {})
    assert capsys.readouterr().out.startswith("0.125 ")


def test_the_example_of_studies_runs(capsys):
    [example] = code_blocks(ROOT / "docs/studies.md")
    exec(example, {})
    assert capsys.readouterr().out


def test_tables_are_those_of_the_results():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/write_tables.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_row_of_contributing_makes_a_variant():
    [row] = code_blocks(ROOT / "CONTRIBUTING.md")
    variant = eval(row.removeprefix("yield "), vars(variants))
    assert variant.name == "regnetx_001"
    assert variant.factory == "regnet_x_100mf"
    assert variant.label == "RegNetX-100MF"
    assert "facebook/regnet-x-001" in variant.aliases
    assert variant.config.depths


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target
