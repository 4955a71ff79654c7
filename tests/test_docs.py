"""What README and CONTRIBUTING say is run."""

import re
from pathlib import Path

import pytest

from regnet.design import variants

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "weights").glob("*.md")]


def code_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_of_the_readme_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    [example] = code_blocks(ROOT / "README.md")
    names = {}
    exec(example, names)
    assert capsys.readouterr().out.startswith("cat\n")
    assert names["fit"].exact
    assert names["model"].num_classes == 10


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
