"""Tests that the state of the process, such as warning filters, is restored."""

import logging
import os
import random
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from regnet.quiet import quiet


def test_threads_leave_filters_and_levels_as_they_were():
    names = ("tests.one", "tests.two")
    before = list(warnings.filters)
    levels = [logging.getLogger(name).level for name in names]

    def work(seed):
        rng = random.Random(seed)
        for _ in range(50):
            name = rng.choice(names)
            with quiet(name):
                assert logging.getLogger(name).level == logging.ERROR
                warnings.warn("not to be seen", stacklevel=1)
                time.sleep(rng.uniform(0, 1e-3))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert list(warnings.filters) == before
    assert [logging.getLogger(name).level for name in names] == levels


REPORTS = """
import multiprocessing.process, socket, sys
import torch

seen = []
multiprocessing.process.BaseProcess.start = lambda process: seen.append(f"process {process}")
socket.getaddrinfo = lambda host, *rest, **more: seen.append(f"host {host}") or []

import regnet

network = regnet.create("regnety_cifar", pretrained=True).eval()
images = torch.randn(8, 3, 32, 32)
regnet.export(network, sys.argv[1], precision="int8", images=images, min_agreement=0)
print(seen)
"""


@pytest.mark.slow
def test_openvino_and_nncf_send_no_reports(tmp_path):
    """A report would start a process; without the precaution several are started."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST")}
    command = [sys.executable, "-c", REPORTS, str(tmp_path / "a.xml")]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
