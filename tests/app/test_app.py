"""Tests of the explorer, driven in a real browser as a person would use it."""

import contextlib
import functools
import http.client
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import regnet
from regnet import app, documents
from regnet.app import reports
from regnet.app.guard import Guard
from regnet.app.page import _config, _parameterized, _values
from regnet.bench.document import Case
from regnet.bench.report import render
from regnet.bench.runner import run
from regnet.design.config import RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError
from regnet.selection.device import learn
from tests.marks import linux, posix

PHOTO = Path(__file__).parents[2] / "docs/photos/chelsea.png"
PATIENCE = 60_000

# gradio uses functions that pandas has deprecated; other tests check our own warnings.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def free_port():
    with socket.socket() as probe:
        probe.bind((app.HOST, 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def explorer():
    """The address of an explorer that learns a device from few networks and accepts up to 1 MB."""
    patch = pytest.MonkeyPatch()
    patch.setattr("regnet.app.page.learn", functools.partial(learn, probes=6))
    page = app.launch(port=free_port(), upload_mb=1)
    yield page.local_url
    page.close()
    patch.undo()


@pytest.fixture
def page(explorer, chromium):
    page = chromium.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_default_timeout(PATIENCE)
    page.goto(explorer)
    page.wait_for_selector("#widths svg")
    yield page
    page.context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith((explorer, "data:", "blob:"))] == []


def cells(page, table):
    return page.locator(f"#{table} [role=gridcell]").all_inner_texts()


def until(page, condition):
    """Wait until a condition holds, as a person would wait to see it."""
    for _ in range(PATIENCE // 100):
        if condition():
            return
        page.wait_for_timeout(100)
    pytest.fail("the condition was not met in time")


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def warning(page):
    page.wait_for_selector(".toast-body")
    return page.inner_text(".toast-body")


@pytest.mark.browser
def test_a_published_network_is_shown_as_it_is(page):
    config = regnet.info("regnety_016").config
    assert f"widths {list(config.widths)}, depths {list(config.depths)}" in page.inner_text("#told")
    assert cells(page, "cost")[1] == "1,612.1"
    assert cells(page, "near")[0] == "regnety_016"


@pytest.mark.browser
def test_moving_a_slider_changes_plot_and_numbers(page):
    plot, cost = page.locator("#widths").inner_html(), cells(page, "cost")
    slider = page.get_by_label("range slider for d", exact=True)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    until(
        page, lambda: page.locator("#widths").inner_html() != plot and cells(page, "cost") != cost
    )
    assert cells(page, "cost")[-1] == "26"
    config = RegNetConfig(depth=26, w0=48, wa=20.71, wm=2.65, group_width=24, se_ratio=0.25)
    assert f"widths {list(config.widths)}" in page.inner_text("#told")


@pytest.mark.browser
def test_the_config_can_be_downloaded(page):
    page.get_by_text("Config, usable").click()
    with page.expect_download() as download:
        page.locator("#download").click()
    text = Path(download.value.path()).read_text()
    assert regnet.config_from_json(text) == regnet.info("regnety_016").config


@pytest.mark.browser
def test_impossible_parameters_show_the_reason(page):
    field = page.get_by_label("number input for w0", exact=True)
    field.fill("50")
    field.press("Tab")
    until(page, lambda: "w0" in page.inner_text("#told"))
    assert "50" in page.inner_text("#told")
    assert page.locator("#widths svg").count() == 0


@pytest.mark.browser
@pytest.mark.long
def test_latency_is_predicted_for_a_learned_device(page):
    size = page.get_by_label("number input for image", exact=True)
    size.fill("64")
    size.press("Tab")
    page.locator("#learn").click()
    until(page, lambda: "predicted on this device" in page.inner_text("#latency"))
    assert re.match(r"\d+\.\d ms predicted .* off by \d+%", page.inner_text("#latency"))


@pytest.mark.browser
def test_a_photo_gets_its_label_and_a_wrong_file_a_reason(page, tmp_path):
    tab(page, "Classify")
    page.set_input_files("#photo input[type=file]", PHOTO)
    page.wait_for_selector("#classes h2")
    assert page.inner_text("#classes h2") == "cat"
    wrong = tmp_path / "wrong.jpg"
    wrong.write_text("no image")
    page.get_by_label("Remove file").or_(page.get_by_label("Clear")).first.click()
    page.set_input_files("#photo input[type=file]", wrong)
    assert "wrong.jpg: not an image" in warning(page)
    assert page.locator("#classes h2").count() == 0


@pytest.mark.browser
def test_a_file_above_the_size_limit_is_refused(page, tmp_path):
    tab(page, "Classify")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(2_000_000))
    page.set_input_files("#photo input[type=file]", large)
    assert "exceed the maximum allowed size" in warning(page)


@pytest.mark.browser
def test_a_report_opens_in_a_sandbox(page, bench_document, tmp_path):
    report = tmp_path / "report.html"
    report.write_text(render(bench_document))
    tab(page, "Reports")
    page.set_input_files("#report-file input[type=file]", report)
    frame = page.frame_locator("#report iframe")
    frame.locator("td", has_text="regnetx_002").first.wait_for()
    assert page.locator("#report iframe").get_attribute("sandbox") == "allow-scripts"


@pytest.fixture(scope="module")
def bench_document():
    todo = [Case(model="regnetx_002", image_size=32, engine="folded")]
    return run(todo, device=torch.device("cpu"), seconds=0.1)


def test_documents_become_reports(bench_document, tmp_path):
    path = tmp_path / "bench.json"
    documents.write(path, bench_document)
    assert reports.page(path) == render(bench_document)


def test_a_report_with_a_long_title_is_recognized(bench_document, tmp_path):
    device = "a machine with a long name " * 60
    environment = {**bench_document.environment, "device": device}
    path = tmp_path / "bench.html"
    path.write_text(render(replace(bench_document, environment=environment)))
    assert device in reports.page(path)


@pytest.mark.parametrize("lacking", ["device", "threads", "date"])
def test_a_document_that_says_too_little_is_refused_by_its_name(bench_document, tmp_path, lacking):
    environment = {k: v for k, v in bench_document.environment.items() if k != lacking}
    path = tmp_path / "bench.json"
    documents.write(path, replace(bench_document, environment=environment))
    with pytest.raises(ConfigError, match=rf"^bench\.json: its environment lacks '{lacking}'"):
        reports.page(path)


@pytest.mark.parametrize(
    ("port", "host", "status"),
    [
        (80, b"127.0.0.1", 200),  # browsers leave the default port out
        (80, b"localhost:80", 200),
        (7860, b"127.0.0.1:7860", 200),
        (7860, b"127.0.0.1", 403),
        (80, b"example.org", 403),
    ],
)
def test_the_default_port_may_be_left_out(port, host, status):
    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"host", host), (b"origin", b"http://" + host)]
    answer = Guard(inner, port=port)({"type": "http", "headers": headers}, None, send)
    with pytest.raises(StopIteration):  # nothing in it waits, and playwright has its own loop
        answer.send(None)
    assert sent[0]["status"] == status


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("page.html", b"<html></html>", "page.html: neither a report"),
        ("photo.png", b"\x89PNG\xff", "^photo.png: not a report"),
        ("other.json", b"{}", "not a document of `regnet bench --out`"),
    ],
)
def test_other_files_are_refused_as_reports(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        reports.page(path)


def test_a_port_in_use_is_reported():
    with socket.socket() as taken:
        taken.bind((app.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = rf"^port {port} cannot be used \(address already in use\); choose another$"
        with pytest.raises(ConfigError, match=message):
            app.launch(port=port)


def listeners(port):
    """Return the addresses at which a process listens to a port, in hexadecimal."""
    lines = [
        line.split()
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
    ]
    local = [line[1].split(":") for line in lines if line[3] == "0A"]
    return {address for address, where in local if int(where, 16) == port}


def ask(address, **headers):
    """Return the status of a request with these headers."""
    with contextlib.closing(http.client.HTTPConnection(address.split("/")[2])) as connection:
        connection.request("GET", "/", headers=headers)
        return connection.getresponse()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": "127.0.0.1.evil.example:7860"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://localhost:1"},
        {"Origin": ""},
    ],
)
def test_other_hosts_and_origins_are_refused(explorer, headers):
    assert ask(explorer, **headers).status == 403


def test_pages_of_its_own_are_served_with_a_policy(explorer):
    answer = ask(explorer, Origin=explorer.rstrip("/"))
    assert answer.status == 200
    assert "frame-src 'none'" in answer.headers["Content-Security-Policy"]
    assert (
        ask(explorer, Host=explorer.split("/")[2].replace("127.0.0.1", "localhost")).status == 200
    )


@pytest.fixture
def beacon():
    """The address of a server, and the list of requests that it received."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


LOADS = """
<img src='{0}/img'><script src='{0}/script'></script><script>fetch('{0}/fetch')</script>
<script>navigator.sendBeacon('{0}/beacon')</script><script>new Image().src = '{0}/image'</script>
<script>open('{0}/open')</script><link rel='stylesheet' href='{0}/style'>
<link rel='prefetch' href='{0}/prefetch'><iframe src='{0}/frame'></iframe>
"""


@pytest.mark.browser
@pytest.mark.parametrize(
    "attack",
    [
        LOADS,
        "<script>location = '{0}/location'</script>",
        "<meta http-equiv='refresh' content='0; url={0}/refresh'>",
        "<form action='{0}/form'></form><script>document.forms[0].submit()</script>",
    ],
    ids=["loads", "location", "refresh", "form"],
)
def test_a_report_reaches_no_server(explorer, chromium, beacon, tmp_path, attack):
    address, asked = beacon
    path = tmp_path / "r.html"
    path.write_text(f"<html><head>{reports.GENERATOR}</head>{attack.format(address)}<p>end</p>")
    page = chromium.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(explorer)
    tab(page, "Reports")
    page.set_input_files("#report-file input", path)
    page.wait_for_selector("#report iframe")
    page.wait_for_timeout(700)
    page.close()
    assert asked == []


@pytest.mark.browser
def test_a_message_is_shown_as_text_and_not_as_html(page, beacon, tmp_path):
    address, asked = beacon
    path = tmp_path / "r.json"
    path.write_text(json.dumps(documents.sealed({f"<img src='{address}/x'>": 1, "schema": 3})))
    tab(page, "Reports")
    page.set_input_files("#report-file input", path)
    warning(page)
    page.wait_for_timeout(300)
    assert asked == []


@posix
def test_temporary_files_are_removed_on_sigterm(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "regnet", "app", "--no-open", "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        run.stdout.readline()
        assert list(tmp_path.glob("regnet-explorer-*"))
        run.terminate()
        run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("regnet-explorer-*"))


@linux
def test_only_this_machine_can_connect():
    port = free_port()
    command = [sys.executable, "-m", "regnet", "app", "--no-open", "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            assert run.stdout.readline().strip() == f"http://127.0.0.1:{port}/"
            assert listeners(port) == {"0100007F"}  # 127.0.0.1 in the kernel's notation
        finally:
            run.kill()


def test_only_networks_that_the_controls_can_represent_are_offered():
    offered = [name for name in VARIANTS if _parameterized(name)]
    assert {"regnety_016", "regnetx_002"} <= set(offered)
    for name in offered:
        assert _config(*_values(name)) == VARIANTS[name].config
    # These have other roundings, norms or activations.
    assert not {"regnetx_004_tv", "regnety_008_tv", "regnety_040_sgn"} & set(offered)
