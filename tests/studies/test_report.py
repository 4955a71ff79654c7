"""Tests of the report of a study in a real browser, and of its plots."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from regnet.cli.main import app
from regnet.errors import printable
from regnet.spaces.paper import SPACES, find_space
from regnet.studies.analysis import analyze
from regnet.studies.population import Population
from regnet.studies.report import render, save_plots
from regnet.studies.store import Row
from regnet.studies.study import Study
from regnet.studies.tables import read_table
from regnet.training.recipe import find_recipe

DEVICE = "a <!--<script> </script> CPU"


@pytest.fixture(scope="module")
def study() -> Study:
    spaces = tuple(find_space(name, flops=400e6) for name in ("anynetx_a", "regnetx"))
    return Study(
        spaces=spaces, models=12, train="images", val="images", recipe=find_recipe("dds-short")
    )


@pytest.fixture(scope="module")
def populations(study: Study) -> dict[str, Population]:
    """Populations with made-up errors: deeper networks are better, and the second space by 5 %."""
    import numpy as np

    found = {}
    for shift, space in enumerate(study.spaces):
        rows = []
        for row in study.rows(space.name):
            error = 60 - row.metrics["d"] / 4 - 5 * shift
            epochs = [
                {"epoch": n, "loss": 1.0, "train_top1": 40.0, "top1": 100 - error - 5 + n}
                for n in range(1, 6)
            ]
            outcome = {
                "error": error, "epochs": epochs, "seconds": 2.0, "device": DEVICE,
                "threads": 1, "torch": "2", "finished": "2026-01-01T00:00:00Z",
            }  # fmt: skip
            rows.append(Row(**{f: getattr(row, f) for f in (
                "id", "space", "number", "config", "metrics", "seed")}, status="done",
                attempts=1, outcome=outcome))  # fmt: skip
        found[space.name] = Population(
            space=space,
            errors=np.array([row.outcome["error"] for row in rows if row.outcome]),
            metrics={n: np.array([row.metrics[n] for row in rows]) for n in space.metric_names},
            rows=tuple(rows),
        )
    return found


@pytest.fixture
def page(
    study: Study, populations: dict[str, Population], tmp_path: Path, chromium: Any
) -> Iterator[Any]:
    path = tmp_path / "report.html"
    path.write_text(render(study, populations))
    page = chromium.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


@pytest.mark.browser
def test_curves_points_and_intervals_are_drawn(page: Any) -> None:
    assert page.locator("#edf path.edf").count() == 2
    metrics = page.locator("#metrics figure")
    names = len(SPACES["anynetx_a"].metric_names) - 3
    assert metrics.count() == names
    assert page.locator("#metrics circle").count() == 12 * names
    assert page.locator("#metrics rect.interval").count() == names
    assert page.locator("#complexity circle").count() == 3 * 24
    assert "better" in page.locator("#pairs").inner_text()
    assert page.locator("#refined tbody tr").count() > 6
    assert page.locator("#extremes figure").count() == 12
    assert DEVICE in page.locator("#machines").inner_text()


@pytest.mark.browser
def test_the_best_networks_are_shown_next_to_published_ones_of_their_size(page: Any) -> None:
    rows = page.locator("#structures tbody tr")
    names = [row.locator("td").first.inner_text() for row in rows.all()]
    assert [name.split()[0] for name in names[:6]] == 3 * ["anynetx_a"] + 3 * ["regnetx"]
    # The spaces contain networks of 400 MF; these three are the nearest published ones.
    assert names[6] in ("regnetx_004", "regnety_004")
    published = rows.filter(has_text="regnetx_004").locator("td").all_inner_texts()
    # Table 5 of the paper: 22 blocks, g = 16, w_m = 2.54, b = 1. They have no error of this study.
    assert published[1] == ""
    assert published[4:] == ["22", "1, 2, 7, 12", "32, 64, 160, 384", "2.54", "16", "1"]


@pytest.mark.browser
def test_a_space_can_be_hidden_and_another_shown(page: Any) -> None:
    page.locator("#legend input").first.uncheck()
    assert page.locator("#edf path.edf").count() == 1
    assert page.locator("#complexity circle").count() == 3 * 12
    page.locator("#space").select_option("regnetx")
    names = len(SPACES["regnetx"].metric_names) - 3
    assert page.locator("#metrics figure").count() == names
    page.locator("#legend input").last.uncheck()
    assert page.locator("#edf path.edf").count() == 0


@pytest.mark.browser
def test_a_point_shows_its_network(page: Any) -> None:
    page.locator("#metrics circle").first.dispatch_event("click")  # another point may cover it
    text = page.locator("#detail").inner_text()
    assert text.startswith("anynetx_a number 0: ")
    assert '"kind":"anynet"' in text
    assert page.locator("#detail svg").count() == 2
    page.locator("#extremes figure").last.click()
    assert page.locator("#detail").inner_text().startswith("regnetx number ")


@pytest.mark.browser
def test_a_table_of_another_tool_has_a_report(
    tmp_path: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a table has no folder for its report
    table = tmp_path / "mine.csv"
    table.write_text("space,error,width\na,40,16\na,42.5,32\nb,30,8\nb,31,9\n")
    command = ["study", "report", str(table), "--plots", str(tmp_path / "plots")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    plots = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert plots == ["edf.svg", "search.svg", "space-a.svg", "space-b.svg"]
    page = chromium.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(Path("report.html").absolute().as_uri())
    assert "fewer than 16 networks in a, b" in page.locator("#warnings").inner_text()
    assert page.locator("#edf path.edf").count() == 2
    page.locator("#metrics circle").first.dispatch_event("click")
    assert page.locator("#detail p").inner_text() == "a number 0: 40.00 % error"
    shown = [text for text in page.locator("h2").all_inner_texts() if text]
    assert [page.locator(f"#{name}").is_hidden() for name in (
        "costs", "structure", "beside", "learning", "next")] == [True] * 5  # fmt: skip
    assert "The study" not in shown
    assert complaints == []
    page.close()


def test_the_report_contains_the_analysis(study: Study, populations: dict[str, Population]) -> None:
    text = render(study, populations, seed=3)
    assert text == render(study, populations, seed=3)
    result = analyze(populations, seed=3).spaces["regnetx"]
    assert f'"minimum": {result.minimum}' in text
    assert "{{" not in text


@pytest.mark.parametrize(
    "names", [("a/b", "/../../up"), ("cost $5^$", "w$_$"), ("_hidden", "a\x01b"), ("n" * 300, "ü")]
)
def test_plots_have_names_from_outside_letter_by_letter(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    """Space names in tables of other tools may contain anything, and write only into the folder."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    rows = [
        {"space": name, "error": 40.0 + at, "flops": 1e6 + at, "w$_$": at}
        for name in names for at in range(6)
    ]  # fmt: skip
    table = tmp_path / "in/mine.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    folder = tmp_path / "out/plots"
    paths = save_plots(read_table(table), folder)
    assert len(paths) == len(set(paths)) == 4
    assert set(tmp_path.rglob("*.svg")) == set(paths)
    assert all(path.parent == folder for path in paths)
    for path in paths:
        ElementTree.parse(path)
    edf = (folder / "edf.svg").read_text()
    assert all(printable(name)[:20] in edf for name in names)


@pytest.mark.slow
def test_plots_are_written(populations: dict[str, Population], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    paths = save_plots(populations, tmp_path / "plots")
    names = ["curves.svg", "edf.svg", "networks.svg", "search.svg", "space-anynetx_a.svg",
             "space-regnetx.svg"]  # fmt: skip
    assert sorted(path.name for path in paths) == names
    for path in paths:
        assert "<svg" in path.read_text()
