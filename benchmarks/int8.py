"""Measure agreement, accuracy and speed of the embedded network in int8; writes JSON.

    python benchmarks/int8.py --data PATH/cifar10 --out benchmarks/results/int8.json

The int8 networks are calibrated on training images of CIFAR-10, and judged on all 10,000 test
images. They are exported without a bound on the agreement ("plain") and with one ("bounded"), which
is also judged on training images; to meet the bound, the export leaves layers in float. A second
network computes the same function, but one of its channels is so large that int8 rounds away all
others: the bounds exist for such networks. The script needs pyarrow, nncf (for OpenVINO) and
torchao (for PyTorch) in addition to the package.
"""

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regnet
from regnet.atomic import write_bytes
from regnet.data.sets import ImageSet, open_set
from regnet.engines.base import Runner, Target
from regnet.engines.formats import FORMATS
from regnet.errors import EngineError
from regnet.machine import environment
from regnet.nn.model import AnyNet
from regnet.timing import compare

CPU = Target(device=torch.device("cpu"))
IMAGES = 1300  # the export calibrates the ranges on 300 and judges the agreement on 1,000
BATCH = 100
OUTLIER = 3000.0
BOUNDS = {"plain": 0.0, "bounded": 0.99}
FORMS = ("openvino", "torch")


def with_outlier(model: AnyNet) -> AnyNet:
    """Return the same function with one channel multiplied before a ReLU and divided after it."""
    model = copy.deepcopy(model)
    block: Any = model.get_submodule("s1.b1")
    first, second = block.conv1, block.conv2.conv
    with torch.no_grad():
        first.bn.weight[0] *= OUTLIER
        first.bn.bias[0] *= OUTLIER
        second.weight[: len(second.weight) // second.groups, 0] /= OUTLIER
    return model


def tensors(images: ImageSet, look: regnet.Preprocess, count: int) -> Tensor:
    """Return the first `count` images of a set, preprocessed."""
    return torch.stack([look(images.open(index)) for index in range(count)])


def answers(runner: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the predicted class of each image."""
    with torch.inference_mode():
        return torch.cat([runner(piece) for piece in images.split(BATCH)]).argmax(1)


def written(
    model: AnyNet, form: str, precision: Any, images: Tensor | None, bound: float
) -> tuple[dict[str, Any], Runner]:
    """Export the network to a file; return the report of the export, and a runner of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{FORMATS[form].suffix}"
        done = regnet.export(
            model,
            path,
            format=form,
            precision=precision,
            example=torch.zeros(BATCH, 3, 32, 32),
            dynamic=False,
            images=images,
            min_agreement=bound,
        )
        facts = asdict(done) | {"path": path.name, "layers_in_float": len(done.floats)}
        return facts, FORMATS[form].load(path, CPU)


def main() -> None:
    """Export, judge and time each network, and write the document after each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000, help="number of test images")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model = regnet.create("regnety_cifar", pretrained=True).eval()
    look = regnet.preprocess(model)
    train_set, test_set = (open_set(args.data, split) for split in ("train", "val"))
    seen = tensors(train_set, look, IMAGES)
    images = tensors(test_set, look, args.images)
    labels = torch.from_numpy(test_set.labels)[: len(images)]
    wanted = answers(model, images)
    document: dict[str, Any] = {
        "environment": environment(CPU.device),
        "model": "regnety_cifar.cifar10",
        "images": len(images),
        "top1_fp32": 100 * (wanted == labels).float().mean().item(),
        "rows": [],
    }
    for network, candidate in (("as it is", model), ("one large channel", with_outlier(model))):
        for form in FORMS:
            _, peer = written(candidate, form, "fp32", None, 0)
            for name, bound in BOUNDS.items():
                row = {"network": network, "format": form, "bound": bound, "way": name}
                document["rows"].append(row)
                try:
                    row["export"], runner = written(candidate, form, "int8", seen, bound)
                except EngineError as error:
                    row["refused"] = str(error).partition(": ")[2]
                    continue
                found = answers(runner, images)
                row["agreement"] = (found == wanted).float().mean().item()
                row["top1"] = 100 * (found == labels).float().mean().item()
                pieces = list(images[: 3 * BATCH].split(BATCH))
                speed = compare(runner, peer, pieces, pairs=20, seconds=2)
                row["times_as_fast_as_fp32"] = [speed.median, speed.low, speed.high]
                write_bytes(args.out, json.dumps(document, indent=1).encode())
                print(json.dumps({k: v for k, v in row.items() if k != "export"}), flush=True)
    write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
