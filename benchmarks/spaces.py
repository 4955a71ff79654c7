"""Write design spaces for further studies as JSON files, for `regnet study init --space`.

    python benchmarks/spaces.py principles runs/spaces
    python benchmarks/spaces.py families runs/spaces

All spaces have three stages, for images of 32 pixels, and widths that follow a quantized line, so
that they differ only in the property that their name states. `principles` varies the bottleneck
ratio and the group width of RegNetX. It also writes the same sampled networks without and with
squeeze-excitation, for `--configs` and `study analyze --paired`. `families` has spaces that
resemble RegNetX, RegNetY, EfficientNet, ResNet and ResNeXt.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from regnet.atomic import write_bytes
from regnet.design.config import ArchitectureConfig
from regnet.spaces import Distribution, Space, find_space, sample

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
    space("b_1", b=values(1), g=ANY_GROUP),
    space("b_2", b=values(2), g=ANY_GROUP),
    space("b_4", b=values(4), g=ANY_GROUP),
    space("depthwise", b=values(1), g=values(1)),
    space("grouped", b=values(1), g=SEVERAL),
    space("as_deep", b=ANY_RATIO, g=ANY_GROUP, wa=Distribution(
        kind="log_uniform", low=4, high=255.9, quantum=0.1)),
)  # fmt: skip
"""Spaces of different bottleneck ratios and group widths, and RegNetX with networks about as deep
as those of AnyNetX_E. With so few multiply-adds, the slopes from 8 on that RegNetX has leave only
shallow ones. Squeeze-excitation has no space here: it is compared network by network (`paired`)."""

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


def paired(flops: float, count: int, seed: int) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Yield sampled networks of RegNetX, and the same networks with squeeze-excitation."""
    shared = ArchitectureConfig(stem="cifar", stem_width=16, num_classes=10)
    plain = replace(
        space("x", b=values(1), g=ANY_GROUP).restrict(flops=(0.9 * flops, flops)),
        architecture=shared,
        image_size=32,
    )
    configs = sample(plain, count, seed).configs
    yield "without_se", [config.to_dict() for config in configs]
    yield "with_se", [replace(config, se_ratio=0.25).to_dict() for config in configs]


def main() -> None:
    """Write the spaces of a study, and for `principles` also the paired networks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", choices=("principles", "families"))
    parser.add_argument("folder", type=Path, help="folder of the files; it is created")
    parser.add_argument(
        "--flops", type=float, default=4e6, help="largest flops of the paired networks"
    )
    parser.add_argument("--models", type=int, default=24, help="number of the paired networks")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the paired networks")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    documents: dict[str, object] = {
        found.name: found.to_dict()
        for found in (PRINCIPLES if args.study == "principles" else FAMILIES)
    }
    if args.study == "principles":
        documents |= dict(paired(args.flops, args.models, args.seed))
    for name, document in documents.items():
        path = args.folder / f"{name}.json"
        write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())
        print(path)


if __name__ == "__main__":
    main()
