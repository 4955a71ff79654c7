"""Write design spaces for further studies as JSON files, for `regnet study init --space`.

    python benchmarks/spaces.py principles runs/spaces \
        --order benchmarks/results/order/order.parquet
    python benchmarks/spaces.py families runs/spaces

All spaces have three stages, for images of 32 pixels, and widths that follow a quantized line, so
that they differ only in the property that their name states. `principles` has what RegNetX lacks:
smaller bottleneck ratios, depthwise convolutions only, and deeper networks. It also writes the
networks of RegNetX in the table of `--order` with squeeze-excitation added, for `--configs`.
`families` has spaces that resemble RegNetX, RegNetY, EfficientNet, ResNet and ResNeXt.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from regnet.atomic import write_bytes
from regnet.design.config import config_from_dict
from regnet.spaces import Distribution, Space, find_space
from regnet.studies.tables import read_table

LARGEST: Final = 4096
"""A group width above every width of a block, so that convolutions have a single group."""


def values(*given: float) -> Distribution:
    """Return the distribution of these values, all of which are equally likely."""
    return Distribution(kind="values", values=given)


def space(
    name: str,
    *,
    b: Distribution,
    g: Distribution,
    wa: Distribution | None = None,
    **architecture: object,
) -> Space:
    """Return the space RegNetX with three stages and the given ratios, group widths and blocks."""
    base = find_space("regnetx")
    return replace(
        base,
        name=name,
        num_stages=3,
        parameters={**base.parameters, "b": b, "g": g, "wa": wa or base.parameters["wa"]},
        architecture=replace(base.architecture, **architecture),  # type: ignore[arg-type]
    )


ANY_RATIO: Final = Distribution(kind="power2_uniform", low=1, high=4)
ANY_GROUP: Final = Distribution(kind="power2_uniform", low=1, high=32)
SEVERAL: Final = Distribution(kind="power2_uniform", low=2, high=32)

PRINCIPLES: Final = (
    space("b_quarter", b=values(0.25), g=ANY_GROUP),
    space("b_half", b=values(0.5), g=ANY_GROUP),
    space("depthwise", b=values(1), g=values(1)),
    space("as_deep", b=ANY_RATIO, g=ANY_GROUP, wa=Distribution(
        kind="log_uniform", low=4, high=255.9, quantum=0.1)),
)  # fmt: skip
"""Spaces with bottleneck ratios and group widths of which RegNetX has none or few, and RegNetX with
deeper networks, nearly as deep as those of AnyNetX_E. With so few multiply-adds, the slopes from 8
on that RegNetX has leave only shallow ones. Squeeze-excitation has no space here: it is compared
network by network (`with_squeeze`)."""

FAMILIES: Final = (
    space("regnetx_like", b=values(1), g=SEVERAL),
    space("regnety_like", b=values(1), g=SEVERAL, se_ratio=0.25),
    space(
        "efficientnet_like",
        b=values(1 / 4, 1 / 6),
        g=values(1),
        block="linear_bottleneck",
        shortcut="none",
        activation="silu",
        se_ratio=0.25,
    ),
    space("resnet_like", b=values(4), g=values(LARGEST)),
    space("resnext_like", b=values(2), g=SEVERAL),
)
"""Spaces that resemble the families of the paper's tables 3 and 4."""


def with_squeeze(table: Path, count: int) -> list[dict[str, object]]:
    """Return the first networks of RegNetX in a table, with squeeze-excitation added.

    Each has the number of its counterpart, by which `benchmarks/principles.py` finds the pairs.
    """
    populations = read_table(table)
    name = next((name for name in populations if name.startswith("regnetx")), None)
    if name is None:
        sys.exit(f"{table} has no networks of regnetx")
    rows = sorted(populations[name].rows, key=lambda row: row.number)[:count]
    if [row.number for row in rows] != list(range(count)):
        sys.exit(f"{table} lacks some of the first {count} networks of {name}; give fewer --models")
    return [config_from_dict({**row.config, "se_ratio": 0.25}).to_dict() for row in rows]


def main() -> None:
    """Write the spaces of a study, and for `principles` networks with squeeze-excitation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", choices=("principles", "families"))
    parser.add_argument("folder", type=Path, help="folder of the files; it is created")
    parser.add_argument("--order", type=Path, help="table that has the networks of RegNetX")
    parser.add_argument("--models", type=int, default=24, help="number of these networks to use")
    args = parser.parse_args()
    if (args.study == "principles") != (args.order is not None):
        parser.error("principles needs --order, and only principles uses it")
    args.folder.mkdir(parents=True, exist_ok=True)
    documents: dict[str, object] = {
        found.name: found.to_dict()
        for found in (PRINCIPLES if args.study == "principles" else FAMILIES)
    }
    if args.study == "principles":
        documents["with_se"] = with_squeeze(args.order, args.models)
    for name, document in documents.items():
        path = args.folder / f"{name}.json"
        write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())
        print(path)


if __name__ == "__main__":
    main()
