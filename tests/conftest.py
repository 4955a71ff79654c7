"""Settings of all tests, and the local Hub that they use instead of the internet."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.hub_server import Hub
from tests.marks import is_slow, slow_fixture

# No time limit, which would test the machine instead of the code. In CI, the examples are always
# the same.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

ROOT = Path(__file__).parent

# The Hub client reads the environment when it is imported, so this must be set before any test
# runs.
_HUB = Hub()
_HOME = tempfile.TemporaryDirectory(prefix="regnet-tests-")
os.environ |= {
    "HF_ENDPOINT": _HUB.endpoint,
    "HF_HOME": _HOME.name,
    "XDG_CACHE_HOME": _HOME.name,
    "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    "HF_HUB_ETAG_TIMEOUT": "5",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "NO_PROXY": "127.0.0.1,localhost",
}
for _name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
@slow_fixture
def chromium():
    """Debian's chromium; if it is missing, tests are skipped, but fail in CI."""
    path = shutil.which("chromium")
    if path is None and not os.environ.get("CI"):
        pytest.skip("Debian's chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests too")
    parser.addoption("--slow", action="store_true", help="run only the slow tests")
    parser.addoption("--long", action="store_true", help="also run the tests that take long")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import the tests of rooms all of whose tests are slow."""
    slow = {ROOT / "app", ROOT / "kernels"}
    return True if collection_path in slow and not with_slow(config) else None


def with_slow(config: pytest.Config) -> bool:
    return any(config.getoption(name) for name in ("--all", "--slow", "--long"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow") or not with_slow(config):
        wanted = bool(config.getoption("--slow"))
        left_out = [item for item in items if is_slow(item) != wanted]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if is_slow(item) == wanted]
    skipped = {}
    if not config.getoption("--long"):
        skipped["long"] = "takes long; run pytest --long"
    if not torch.cuda.is_available():
        skipped["gpu"] = "needs a CUDA GPU; run scripts/gpu_check.sh on a machine with one"
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):  # one process starts the browser
            item.add_marker(pytest.mark.xdist_group("browser"))
        for marker, reason in skipped.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _our_loggers_speak() -> None:
    """Enable our loggers again, which a library that a test imports may have silenced."""
    logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "regnet" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)
    if logging.root.level > logging.WARNING:
        logging.root.setLevel(logging.WARNING)


@pytest.fixture
def hub() -> Iterator[Hub]:
    _HUB.reset()
    yield _HUB
    _HUB.reset()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
