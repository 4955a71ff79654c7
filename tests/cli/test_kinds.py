"""Tests of every command on every kind of model: it accepts the model or says why it does not.

`python -m tests.cli.test_kinds` writes the table in docs/models.md from the same cases.
"""

import os
import re
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
import torch

import regnet
from regnet.bench.floors import Ceilings
from regnet.errors import RegNetError
from tests.command import regnet as command
from tests.pictures import write_folder

PAGE: Final = Path(__file__).parents[2] / "docs/models.md"
BEGIN, END = "<!-- kinds -->\n", "<!-- end -->"

COMMANDS: Final = ("info", "predict", "evaluate", "bench", "export", "optimize")


def kinds(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Return the kinds of names of a model: the kind, how it is written, and an example."""
    model = regnet.create("regnety_cifar", pretrained=True).eval()
    model.save_pretrained(folder / "mine")
    (folder / "mine.json").write_text(model.config.to_json())
    yield "variant", "`regnety_016`", "regnety_cifar"
    yield "weights of a variant", "`regnety_016.tv2_in1k`", "regnety_cifar.cifar10"
    yield "folder", "`runs/ft/model`", str(folder / "mine")
    yield "folder, by prefix", "`local-dir:runs/ft/model`", f"local-dir:{folder / 'mine'}"
    yield "file of weights", "`mine.safetensors`", str(folder / "mine/model.safetensors")
    yield "file of a config", "`mine.json`", str(folder / "mine.json")
    for suffix in (".onnx", ".xml", ".pt2"):
        regnet.export(model, folder / f"mine{suffix}")
        yield f"exported, {suffix}", f"`mine{suffix}`", str(folder / f"mine{suffix}")


def asked(what: str, name: str, folder: Path) -> str | None:
    """Run a command on a model; return its error message if it refused the model."""
    trust = ["--trust"] if name.endswith(".pt2") and what not in ("export", "optimize") else []
    photos = folder / "photos"
    if what == "optimize":
        try:
            regnet.optimize(name, engines=["eager", "folded"], seconds=0.05, progress=False)
        except RegNetError as error:
            return str(error)
        return None
    words = {
        "info": [name],
        "predict": [photos / "3", "--model", name],
        "evaluate": [photos, "--model", name, "--workers", 0],
        "bench": ["--models", name, "--seconds", 0.05, "--calls", 5, "--engine", "folded"],
        "export": [name, folder / "out.pt2", "--static"],
    }[what]
    done = command(what, *words, *trust)
    if done.returncode == 0:
        return None
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2), done.stderr
    return done.stderr.strip().splitlines()[-1].removeprefix("error: ")


def table() -> str:
    """Run every command on every kind of model, and return the table."""
    lines = [
        f"| kind | written | {' | '.join(COMMANDS)} |",
        "| --- | --- |" + " :-: |" * len(COMMANDS),
    ]
    refusals: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder / "photos", 12, names=("3", "5", "6"))
        # Real ceilings would take seconds to measure.
        ceilings = Ceilings(bytes_per_second=1e10, flops_per_second=1e11)
        with (
            mock.patch.dict(os.environ, {"XDG_CACHE_HOME": name}),
            mock.patch("regnet.bench.runner.measure_ceilings", return_value=ceilings),
        ):
            for kind, written, model in kinds(folder):
                cells = []
                for what in COMMANDS:
                    said = asked(what, model, folder)
                    if said is None:
                        cells.append("yes")
                        continue
                    shown = said.replace(f"{name}/", "")
                    shown = re.sub(r"mine\.(onnx|xml|pt2)", "mine.onnx", shown)
                    cells.append(f"no ({refusals.setdefault(shown, len(refusals) + 1)})")
                lines.append(f"| {kind} | {written} | {' | '.join(cells)} |")
    notes = [
        textwrap.fill(f"{number}. {text}", 100, subsequent_indent="   ", break_on_hyphens=False)
        for text, number in refusals.items()
    ]
    return "\n".join([*lines, "", *notes]) + "\n"


@pytest.mark.slow
def test_every_command_on_every_kind_of_model_is_as_the_table_says() -> None:
    pytest.importorskip("openvino")
    page = PAGE.read_text("utf-8")
    written = page[page.index(BEGIN) + len(BEGIN) : page.index(END)]
    assert table() == written, "run python -m tests.cli.test_kinds"


def test_the_table_names_only_existing_kinds() -> None:
    page = PAGE.read_text("utf-8")
    assert set(re.findall(r"`mine(\.\w+)`", page)) == {
        ".safetensors", ".json", ".onnx", ".xml", ".pt2",
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text[: text.index(BEGIN) + len(BEGIN)] + table() + text[text.index(END) :])
