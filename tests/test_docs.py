"""Tests that run the examples of the README, of CONTRIBUTING and of the docs."""

import html
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
import typer
from safetensors.torch import save
from typer.testing import CliRunner

import regnet
import regnet.studies
from regnet.cli.main import app
from regnet.design import variants
from regnet.errors import LicenseWarning
from regnet.weights.catalog import checkpoints
from regnet.weights.formats import FORMATS, from_native
from tests.marks import slow_fixture

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "weights").glob("*.md")]


PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(path, *languages):
    """Yield language and text of a document's code blocks, in order."""
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [(language, text) for language, text in found if language in languages]


def code_blocks(path):
    return [text for _, text in blocks(path, "python")]


def commands(text):
    """Yield the arguments of each `regnet` command of a block; a backslash continues a line."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("regnet ")]


def name_of(path):
    return str(path.relative_to(ROOT))


PRINTED = {
    "docs/benchmark.md": "folded fp32",
    "docs/paper-by-hand.md": "[ 24  56 152 368] [1 1 4 7]",
    "docs/export.md": "regnety_cifar.pt2: torch fp32, any batch and size",
    "docs/train.md": "0.125 ",
    "docs/tutorials/classify.md": "cat",
}
"""Texts that the output of a page's examples must contain."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # exporters and process pools have their own tests
@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python", "sh")], ids=name_of)
def test_the_examples_of_a_page_run(path, monkeypatch, capsys, tmp_path):
    """Run the examples and commands of a page in order, in a folder like a clone."""
    monkeypatch.chdir(tmp_path)
    for folder in ("docs", "benchmarks"):
        Path(folder).symlink_to(ROOT / folder)
    names = {}
    for language, text in blocks(path, "python", "sh"):
        if language == "python":
            exec(text, names)
            continue
        for arguments in commands(text):
            done = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert done.exit_code == 0, (arguments, done.output)
    assert PRINTED.get(name_of(path), "") in capsys.readouterr().out
    if name_of(path) == "docs/benchmark.md":
        assert names["logits"].shape == (4, 10)


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if blocks(p, "")], ids=name_of)
def test_commands_that_need_the_readers_data_can_be_parsed(path):
    for _, text in blocks(path, ""):
        for arguments in commands(text):
            command, context = typer.main.get_command(app), None
            while isinstance(command, click.Group):
                context = click.Context(command, parent=context)
                _, command, arguments = command.resolve_command(context, arguments)
            command.make_context(command.name, [a for a in arguments if a != "..."], context)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_lines_are_short_enough_to_read_side_by_side(path):
    inside_code, long = False, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        inside_code ^= line.startswith("```")
        if not inside_code and not line.lstrip().startswith("|") and len(line) > 100:
            long.append(number)
    assert long == []
    if path.name == "README.md" and path.parent == ROOT:
        assert number <= 150


@pytest.fixture(scope="module")
@slow_fixture
def built(tmp_path_factory):
    """The documentation, built as by `make docs`."""
    folder = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", ROOT / "docs", folder],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.xdist_group("sphinx")
def test_every_public_name_is_documented(built):
    from sphinx.util.inventory import InventoryFile

    with (built / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda _base, place: place)
    known = {name for kind, entries in inventory.items() if kind[:3] == "py:" for name in entries}
    for module in (regnet, regnet.studies):
        public = {f"{module.__name__}.{name}" for name in module.__all__}
        plain = {"regnet.errors", "regnet.studies.statistics"}
        factories = {f"regnet.{name}" for name in regnet.zoo.factories.__all__}
        assert public - plain - factories <= known
    assert {f"regnet.zoo.factories.{name}" for name in regnet.zoo.factories.__all__} <= known


@pytest.mark.xdist_group("sphinx")
@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_page_is_on_the_site(path, built):
    """Sphinx has pages of its own, such as search.html, which replace one of the same name."""
    place = path.relative_to(ROOT / "docs")
    if place.parts[0] == "photos":
        return
    title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").replace("`", "")
    text = (built / place.with_suffix(".html")).read_text(encoding="utf-8")
    found = re.search(r"<h1>(.*?)<a ", text, re.DOTALL)
    assert found
    assert html.unescape(re.sub(r"<[^>]+>", "", found[1])).replace("\u2019", "'") == title


@pytest.mark.browser
@pytest.mark.xdist_group("sphinx")
def test_the_table_of_the_zoo_sorts_and_filters(built, chromium):
    page = chromium.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((built / "zoo.html").as_uri())
    page.set_viewport_size({"width": 1280, "height": 900})
    # The table first shows weights that may be used for anything and are not huge, with the columns
    # by which readers choose.
    first = regnet.list_models("*", pretrained=True, license="commercial", max_flops=16e9)
    assert page.inner_text("#zoo-count") == f"{len(first)} of {len(checkpoints())}"
    license_head = page.locator("#zoo th", has_text="license").bounding_box()
    assert license_head["x"] + license_head["width"] <= 1280
    page.select_option("#zoo-license", "")
    page.fill("#zoo-flops", "")
    assert page.inner_text("#zoo-count") == f"{len(checkpoints())} of {len(checkpoints())}"

    def column(title):
        heads = page.locator("#zoo th").all_inner_texts()
        at = [head.strip(" ▲▼") for head in heads].index(title) + 1
        return page.locator(f"#zoo tbody tr:not([hidden]) td:nth-child({at})").all_inner_texts()

    page.fill("#zoo-name", "regnety")
    page.select_option("#zoo-license", "*")
    page.fill("#zoo-flops", "4")
    page.locator("#zoo th", has_text="GFLOPs").click()
    expected = regnet.list_models("regnety*", pretrained=True, license="commercial", max_flops=4e9)
    assert sorted(column("weights")) == sorted(expected)
    flops = [float(text) for text in column("GFLOPs")]
    assert flops == sorted(flops)
    page.locator("#zoo th", has_text="GFLOPs").click()
    assert [float(text) for text in column("GFLOPs")] == flops[::-1]
    assert complaints == []
    page.close()


def test_the_readmes_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    [example] = code_blocks(ROOT / "README.md")
    names = {}
    exec(example, names)
    assert capsys.readouterr().out.startswith("cat\n")
    assert names["model"].num_classes == 10
    assert names["own"].config is names["config"]


@pytest.mark.slow
def test_the_weights_of_the_guide_load(monkeypatch, hub, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    [(_, example)] = blocks(ROOT / "docs/weights.md", "py")  # the other example needs the Hub
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


@pytest.mark.parametrize(
    "script",
    [
        "write_tables.py",
        "draw_architecture.py",
        pytest.param("write_notebook.py", marks=pytest.mark.slow),  # needs jupytext
    ],
)
def test_generated_files_are_up_to_date(script):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_row_in_contributing_adds_a_variant():
    [row] = code_blocks(ROOT / "CONTRIBUTING.md")
    variant = eval(row.removeprefix("yield "), vars(variants))
    assert variant.name == "regnetx_001"
    assert variant.factory == "regnet_x_100mf"
    assert variant.label == "RegNetX-100MF"
    assert "facebook/regnet-x-001" in variant.aliases
    assert variant.config.depths


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_point_to_existing_files(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        place = target.partition("#")[0]  # anchors are checked by Sphinx
        assert target.startswith("https://") or (path.parent / place).exists(), target
