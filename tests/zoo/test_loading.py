"""Tests that loading needs the memory of about one checkpoint, however it is stored."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from regnet.design.config import RegNetConfig
from regnet.nn.model import AnyNet
from tests.marks import linux

# Like SEER's largest networks, its last stage is by far the largest; 190 MB.
CONFIG = RegNetConfig(depth=8, w0=256, wa=220.0, wm=2.4, group_width=128, se_ratio=0.25)

WORKER = """
import sys
import torch
import regnet
from regnet.design.config import config_from_json

def own():  # without pages that are mapped from files, which the system can drop at any time
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

regnet.create("regnety_cifar", pretrained=True)  # whatever is imported on the way
before = own()
model = regnet.create(config_from_json(sys.argv[1]), checkpoint_path=sys.argv[2])
for value in model.state_dict().values():
    value.view(-1)[::512].double().sum()  # every page
print(own() - before)
"""


def stored(tmp_path, how, tensors):
    if how == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors")
    elif how == "sharded":
        names = list(tensors)
        weight_map = {}
        for number in range(5):
            part = names[number::5]
            save_file({name: tensors[name] for name in part}, tmp_path / f"{number}.safetensors")
            weight_map |= dict.fromkeys(part, f"{number}.safetensors")
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(
            tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=how == "zip"
        )
    return sum(value.nbytes for value in tensors.values())


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    "how",
    ["safetensors", "sharded", "zip", pytest.param("legacy", marks=pytest.mark.long)],
)
def test_loading_takes_the_memory_of_one_checkpoint(tmp_path, how):
    size = stored(tmp_path, how, AnyNet(CONFIG).state_dict())
    done = subprocess.run(
        [sys.executable, "-c", WORKER, CONFIG.to_json(), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout) / size
    assert 0.9 < grown < 1.15, f"{grown:.2f} times the file"
