"""Tests of OpenVINO in a process that continues after its networks are deleted."""

import subprocess
import sys

import pytest

from tests.marks import posix

pytestmark = pytest.mark.slow

pytest.importorskip("openvino", reason="openvino is not installed")

LETS_GO = """
import gc, os, signal, threading
import torch
import regnet
from regnet.engines.openvino import OpenVINO
from regnet.engines.base import Target

told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
model, images = regnet.create("regnety_cifar", pretrained=True).eval(), torch.zeros(1, 3, 32, 32)
target = Target(device=torch.device("cpu"))
held = [OpenVINO().build(model, images, target) for _ in range(2)]
[runner(images) for runner in held]
held.pop(0)
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
other = threading.Thread(target=lambda: (held.clear(), gc.collect()))
other.start()
other.join()
os.kill(os.getpid(), signal.SIGUSR1)
print("alive", sum(told))
"""


@posix
def test_signals_arrive_after_networks_are_deleted() -> None:
    """Ctrl-C is such a signal, and so is the end of each worker process of a loader."""
    done = subprocess.run([sys.executable, "-c", LETS_GO], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive 2\n"), done.stderr
