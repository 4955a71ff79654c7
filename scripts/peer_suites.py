"""Run the model tests of timm, torchvision and segmentation-models on networks of this package.

    python scripts/peer_suites.py --timm DIR --torchvision DIR --smp DIR --out counts.json

Each DIR is a checkout of that project; only its tests are used. The projects themselves, pytest and
this package must be importable. When a suite builds a network by a name that this package knows, it
gets this package's network with random weights. Torchvision's recorded outputs are not compared,
because they belong to its own random weights. EXPECTED lists the tests that are expected to fail,
with the reasons; docs/migration names the same differences.
"""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from regnet.machine import environment

SUITES: Final = {
    "timm": ("tests/test_models.py",),
    "torchvision": ("test/test_models.py",),
    "smp": ("tests/models", "tests/encoders/test_timm_universal.py"),
}
SELECT: Final = {
    "timm": "test_model_",
    "torchvision": "test_classification_model",
    "smp": "not WeightsWarning and not test_dpt and not test_segformer",
}
"""Expression for pytest's -k that selects the tests of a suite that apply to our networks."""

EXPECTED: Final = {
    r"timm.*test_model_(load|features)_pretrained": "downloads weights",
    r"timm.*test_model_inference": "downloads weights",
    r"timm.*forward_intermediates_features": "feature_cls='getter': there is one feature network",
    r"timm.*torchscript_with_features_fx": "feature_cfg=: there is one feature network",
    r"smp.*(hub_mixin|preserve_forward_output)": "downloads weights",
    r"smp.*test_timm_transformer_style": "downloads weights, of another network",
}
"""Patterns of tests that cannot pass, each with the reason."""

SMALL: Final = ("regnetx_002", "regnety_002")
"""Variants that serve as encoders in the tests of segmentation-models."""


def main() -> None:
    """Run the suites whose checkouts are given, and write the counts of their outcomes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in SUITES:
        parser.add_argument(f"--{name}", type=Path, help="a checkout of the project")
    parser.add_argument("--max-flops", default="1G", help="largest networks tested; default 1G")
    parser.add_argument("--prelude", type=Path, help="Python file to run before all imports")
    parser.add_argument("--workers", type=int, default=2, help="number of pytest-xdist processes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    facts = environment(torch.device("cpu"))
    versions = {row: version(row) for row in ("timm", "torchvision", "segmentation-models-pytorch")}
    found: dict[str, Any] = {"environment": facts, "versions": versions, "suites": {}}
    for name in SUITES:
        if (checkout := getattr(options, name)) is not None:
            found["suites"][name] = run(name, checkout.absolute(), options)
            print(json.dumps(found["suites"][name], indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if any(row["unexpected"] for row in found["suites"].values()):
        sys.exit(1)


def run(name: str, checkout: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a suite; count its outcomes and the reasons of failures, and list unexpected ones."""
    environment = dict(
        os.environ,
        PEER_SUITE=name,
        PEER_MAX_FLOPS=options.max_flops,
        PEER_PRELUDE=str(options.prelude.absolute()) if options.prelude else "",
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), str(checkout)]),
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",  # tests that need to download weights fail immediately
    )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "peer_suites", "-o", "addopts="),
                *("-p", "no:cacheprovider", "-n", str(options.workers), f"--junitxml={report}"),
                *("-k", SELECT[name], *SUITES[name]),
            ],
            cwd=checkout, env=environment, check=False, stdout=sys.stderr,
        )  # fmt: skip
        cases = list(ET.parse(report).iter("testcase"))
    outcomes: dict[str, str] = {}
    for case in cases:
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[f"{name}: {case.get('classname')}.{case.get('name')}"] = (kinds or ["passed"])[0]
    failed = [test for test, outcome in outcomes.items() if outcome in ("failure", "error")]
    reasons = Counter(
        next((why for pattern, why in EXPECTED.items() if re.search(pattern, test)), "unexpected")
        for test in failed
    )
    unexpected = [t for t in failed if not any(re.search(p, t) for p in EXPECTED)]
    return {
        "cases": len(outcomes),
        **Counter(outcomes.values()),
        "reasons": dict(reasons),
        "unexpected": unexpected,
    }


# The functions below make this file a pytest plugin, which is loaded in the process of a suite.


_kept: list[dict[str, Any]] = []
"""Names that the prelude defined; they must stay referenced for as long as the process runs."""


def _swap() -> None:
    """Make the suite build our networks instead of its own where the names agree."""
    if prelude := os.environ["PEER_PRELUDE"]:
        _kept.append(runpy.run_path(prelude))
    {"timm": _swap_timm, "torchvision": _swap_torchvision, "smp": _swap_smp}[
        os.environ["PEER_SUITE"]
    ]()


def _names() -> list[str]:
    """Return the names of our networks that timm has as well and that are within --max-flops."""
    import timm

    import regnet

    scale = {"K": 1e3, "M": 1e6, "G": 1e9}
    most = os.environ["PEER_MAX_FLOPS"]
    limit = float(most.rstrip("KMG")) * scale.get(most[-1:], 1)
    there = set(timm.list_models("*"))
    return [name for name in regnet.list_models(max_flops=limit) if name in there]


def _swap_timm() -> None:
    import timm

    import regnet

    ours = _names()

    def list_models(
        filter: str | list[str] = "",
        *,
        exclude_filters: str | list[str] = "",
        pretrained: bool = False,
        include_tags: bool | None = None,
        **_module_or_alias: object,
    ) -> list[str]:
        rows = regnet.list_models(
            filter or "*",
            exclude_filters=exclude_filters,
            pretrained=pretrained,
            include_tags=include_tags,
        )
        return [name for name in rows if name.partition(".")[0] in ours]

    def get_pretrained_cfg_value(name: str, entry: str) -> Any:
        return regnet.create(name, device="meta").default_cfg.get(entry)

    timm.create_model = regnet.create
    timm.list_models = list_models
    timm.list_pretrained = lambda pattern="*": list_models(pattern, pretrained=True)
    timm.get_pretrained_cfg_value = get_pretrained_cfg_value


def _swap_torchvision() -> None:
    from torchvision import models

    import regnet

    theirs = [name for name in models.list_models(models) if name.startswith("regnet_")]
    flops = {name: regnet.info(name).complexity.flops for name in theirs}
    small = [name for name in theirs if flops[name] < 4e9]
    models.list_models = lambda module=None: small if module is models else []
    models.get_model_builder = lambda name: getattr(regnet, name)


def _swap_smp() -> None:
    import timm

    import regnet

    theirs = timm.create_model

    def create_model(name: str, **options: Any) -> Any:
        if not regnet.is_model(name):
            return theirs(name, **options)
        # The Hub is offline, so that no weights can be downloaded.
        return regnet.create(name, **options | {"pretrained": False})

    timm.create_model = create_model


def pytest_collectstart(collector: Any) -> None:
    """Make the decoder tests of segmentation-models use our networks as encoders."""
    if os.environ.get("PEER_SUITE") != "smp":
        return
    kind = getattr(collector, "cls", None)
    for attribute, value in (
        ("test_encoder_name", f"tu-{SMALL[1]}"),
        ("encoder_names", [f"tu-{name}" for name in SMALL]),
    ):
        if kind is not None and hasattr(kind, attribute):
            setattr(kind, attribute, value)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Skip torchvision's recorded outputs: its random weights are drawn differently from ours."""
    for item in items:
        if hasattr(item.module, "_assert_expected"):
            item.module._assert_expected = lambda *_, **__: None


if __name__ == "__main__":
    main()
elif "PEER_SUITE" in os.environ:
    _swap()
