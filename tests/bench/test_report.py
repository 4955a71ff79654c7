"""Tests of the benchmark's report in a real browser."""

import pytest
import torch

from regnet.bench.document import Case
from regnet.bench.report import COLUMNS, render
from regnet.bench.runner import run

pytestmark = pytest.mark.browser

MODELS = ("efficientnet_b0", "regnety_004", "regnetx_002")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    todo = [Case(model=name, image_size=32, engine="folded") for name in (*MODELS, "none.json")]
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(run(todo, device=torch.device("cpu"), seconds=0.1)))
    return path


@pytest.fixture
def page(report, chromium):
    page = chromium.new_page()
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(request.url))
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(report.as_uri())
    yield page
    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    page.close()


def column(page, name):
    index = [title for title, _ in COLUMNS].index(name) + 1
    return page.locator(f"table >> nth=0 >> tbody td:nth-child({index})").all_inner_texts()


def test_the_table_sorts(page):
    assert column(page, "network") == [*MODELS, "none.json"]
    head = page.locator("th", has_text="GFLOPs")
    head.click()
    up = column(page, "GFLOPs")
    assert up == sorted(up, key=float)
    head.click()
    assert column(page, "GFLOPs") == up[::-1]
    page.locator("th", has_text="network").first.click()
    assert column(page, "network") == sorted([*MODELS, "none.json"])
    # Rows without a number are always sorted last.
    page.locator("th", has_text="p90 ms").click()
    assert column(page, "p90 ms")[-1] == ""


def test_the_plots_are_there(page):
    for name, points in (("accuracy", 3), ("activations", 3)):
        box = page.locator(f"svg#{name}").bounding_box()
        assert box["width"] > 200
        assert box["height"] > 200
        circles = page.locator(f"svg#{name} circle")
        assert circles.count() == points
        for index in range(points):
            place = circles.nth(index).bounding_box()
            assert box["x"] <= place["x"] <= box["x"] + box["width"]
            assert box["y"] <= place["y"] <= box["y"] + box["height"]
    assert page.locator("svg#accuracy text", has_text="regnety_004").is_visible()


def test_pairs_and_reasons_are_shown(page):
    assert page.locator("table.pairs tbody tr").count() == 1
    assert "none.json" in page.locator("table >> nth=0 >> tbody").inner_text()
    assert any("FileNotFoundError" in note for note in column(page, "note"))
