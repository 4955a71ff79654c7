"""The design spaces of the paper by name, and the constraints that the paper derives for them.

Source: Radosavovic et al., Designing Network Design Spaces (2020), sections 3.2, 3.3, 4 and 5.
Where the paper does not give a distribution, this module uses that of pycls (`sweep/config.py`).
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np

from regnet.design.complexity import population_complexity
from regnet.design.config import ArchitectureConfig
from regnet.errors import ConfigError, unknown
from regnet.spaces.distributions import Distribution
from regnet.spaces.sampling import BoolArray, Sample
from regnet.spaces.space import Relation, Space

WIDE_GROUPS: Final = Distribution(kind="power2_or_log_uniform", low=8, high=128, quantum=8)
"""Group widths as pycls draws them: multiples of 8 up to 128. The paper says only that group widths
grow with flops, and gives examples."""

DEPTHS: Final = (12, 28)
"""Range of the depths of the best networks (section 5; section 4 allows up to 40 blocks)."""

LEAST_WM: Final = 2.0
"""The smallest wm of the best networks (section 4)."""


def _anynetx(name: str, **relations: Relation) -> Space:
    return Space(
        name=name,
        family="anynet",
        parameters={
            "d_i": Distribution(kind="log_uniform", low=1, high=16),
            "w_i": Distribution(kind="log_uniform", low=8, high=1024, quantum=8),
            "b_i": Distribution(kind="power2_uniform", low=1, high=4),
            "g_i": Distribution(kind="power2_uniform", low=1, high=32),
        },
        relations=relations,
    )


_REGNETX: Final = Space(
    name="regnetx",
    family="regnet",
    parameters={
        "d": Distribution(low=1, high=63),
        "w0": Distribution(kind="log_uniform", low=8, high=248, quantum=8),
        "wa": Distribution(kind="log_uniform", low=8, high=255.9, quantum=0.1),
        "wm": Distribution(kind="log_uniform", low=1.5, high=3, quantum=0.001),
        "b": Distribution(kind="power2_uniform", low=1, high=4),
        "g": Distribution(kind="power2_uniform", low=1, high=32),
    },
)
"""The RegNetX space: d < 64, w0 < 256, wa < 256 and 1.5 <= wm <= 3 (section 3.3).

The paper gives neither the distributions nor the smallest wa; these are from pycls."""

_SHARED: Final[Mapping[str, Relation]] = {"b_i": "equal", "g_i": "equal"}

SPACES: Final[Mapping[str, Space]] = {
    space.name: space
    for space in (
        _anynetx("anynetx_a"),
        _anynetx("anynetx_b", b_i="equal"),
        _anynetx("anynetx_c", **_SHARED),
        _anynetx("anynetx_d", **_SHARED, w_i="increasing"),
        _anynetx("anynetx_e", **_SHARED, w_i="increasing", d_i="increasing"),
        _REGNETX,
        replace(_REGNETX, name="regnety", architecture=ArchitectureConfig(se_ratio=0.25)),
        # RegNetZ (Dollár et al., Fast and Accurate Model Scaling, 2021) has inverted bottlenecks
        # without an activation at their end, and draws the image size as well.
        replace(
            _REGNETX,
            name="regnetz",
            parameters={
                **_REGNETX.parameters,
                "b": Distribution(kind="values", values=(0.25,)),
                "r": Distribution(kind="log_uniform", low=128, high=448, quantum=16),
            },
            architecture=ArchitectureConfig(
                block="linear_bottleneck", shortcut="none", activation="silu", se_ratio=0.25
            ),
        ),
    )
}
"""The paper's spaces by name, without constraints."""


def find_space(
    name: str,
    *,
    flops: float | None = None,
    tolerance: float = 0.1,
    final: bool = False,
    num_stages: int | None = None,
    image_size: int | None = None,
    **architecture: Any,
) -> Space:
    """Return a space by name, or the part of it with a given number of flops.

    Args:
        name: a key of `SPACES`.
        flops: the most multiply-adds of a network; the least is `(1 - tolerance) * flops`. The
            paper uses 360 to 400 million. None: no limit.
        tolerance: width of the range of flops, as a fraction of `flops`.
        final: return the space with the constraints of sections 4 and 5, for a RegNet space; see
            `constrained`.
        num_stages: number of stages; None: 4.
        image_size: side of the images in pixels; None: 224.
        architecture: fields of `ArchitectureConfig` that all networks share, such as
            `stem="cifar"`, `stem_width=16`, `num_classes=10` or `se_ratio=0.25`.

    Raises:
        ConfigError: there is no such space or field, or the space has no such part.
    """
    if name not in SPACES:
        raise ConfigError(unknown("space", name, SPACES))
    return part_at(
        SPACES[name], flops=flops, tolerance=tolerance, final=final, num_stages=num_stages,
        image_size=image_size, **architecture,
    )  # fmt: skip


def part_at(
    space: Space,
    *,
    flops: float | None,
    tolerance: float = 0.1,
    final: bool = False,
    num_stages: int | None = None,
    image_size: int | None = None,
    **architecture: Any,
) -> Space:
    """Return the part of any space that the arguments of `find_space` describe.

    Args:
        space: the space.
        flops: the most multiply-adds of a network.
        tolerance: width of the range of flops, as a fraction of `flops`.
        final: return the space with the constraints of sections 4 and 5; see `constrained`.
        num_stages: number of stages; None: as it is.
        image_size: side of the images in pixels; None: as it is.
        architecture: fields of `ArchitectureConfig` to change.

    Raises:
        ConfigError: there is no such field, or the space has no such part.
    """
    known = {field.name for field in fields(ArchitectureConfig)}
    if odd := sorted(set(architecture) - known):
        raise ConfigError(unknown("field of an architecture", odd[0], sorted(known)))
    if num_stages is not None and space.custom:
        raise ConfigError(
            f"{space.name} is built by a function, so its number of stages cannot be chosen"
        )
    space = replace(
        space,
        num_stages=space.num_stages if num_stages is None else num_stages,
        image_size=space.image_size if image_size is None else image_size,
        architecture=replace(space.architecture, **architecture),
    )
    if final:
        if flops is None:
            raise ConfigError("the limits of a constrained space depend on flops; say how many")
        space = constrained(space, flops)
    if flops is not None:
        if not 0 < tolerance <= 1:
            raise ConfigError(f"tolerance must lie in (0, 1], got {tolerance!r}")
        space = space.restrict(flops=((1 - tolerance) * flops, flops))
    return space


def constrained(space: Space, flops: float) -> Space:
    """Return the part of a RegNet space within the paper's constraints.

    Networks have b = 1, depths within `DEPTHS` and a wm of at least `LEAST_WM`, at most
    `most_params` parameters and at most `most_activations` activations. Group widths are drawn from
    `WIDE_GROUPS`. If the space has only one bottleneck ratio, as RegNetZ, that ratio stays.

    Args:
        space: the RegNet space.
        flops: multiply-adds of the networks, on which the limits depend.

    Raises:
        ConfigError: the space is not a RegNet space.
    """
    if space.family != "regnet":
        raise ConfigError(
            f"{space.name} is not a RegNet space and has no constrained part; "
            "use regnetx, regnety or regnetz"
        )
    b: dict[str, Any] = {} if space.parameters["b"].count == 1 else {"b": 1.0}
    wider = replace(space, parameters={**space.parameters, "g": WIDE_GROUPS})
    return replace(
        wider.restrict(
            d=DEPTHS,
            wm=(LEAST_WM, None),
            params=(None, float(most_params(flops))),
            activations=(None, float(most_activations(flops))),
            **b,
        ),
        name=f"{space.name}_final",
    )


def most_params(flops: Any) -> Any:
    """Return the most parameters of the best networks: 3.0 M + 5.5 M per GF (figure 13)."""
    return 3.0e6 + 5.5e6 * flops / 1e9


def most_activations(flops: Any) -> Any:
    """Return the most activations of the best networks: 6.5 M times the root of GF (figure 12)."""
    return 6.5e6 * np.sqrt(flops / 1e9)


def search_space(name: str = "regnety") -> Space:
    """Return the space that `regnet.search` draws from: the paper's constraints at any flops.

    The flops of each network limit its parameters and activations. All three are counted for
    ImageNet (224 pixels, 1000 classes, the paper's stem), even if the search is for other images,
    classes or another stem.

    Args:
        name: "regnetx" or "regnety".

    Raises:
        ConfigError: the name is another one.
    """
    known = ("regnetx", "regnety")
    if name not in known:
        raise ConfigError(unknown("space to search", name, known))
    parameters = {
        **SPACES[name].parameters,
        "b": Distribution(kind="values", values=(1.0,)),
        "g": WIDE_GROUPS,
    }
    space = replace(SPACES[name], name=f"{name}_search", parameters=parameters)
    return space.restrict(d=DEPTHS, wm=(LEAST_WM, None)).where(
        "the paper's limits of parameters and activations", _within_paper_limits
    )


def _within_paper_limits(networks: Sample) -> BoolArray:
    architecture = replace(
        networks.space.architecture, num_classes=1000, in_chans=3, stem="simple", stem_width=32
    )
    cost = population_complexity(networks.population, architecture, 224)
    few = cost.params <= most_params(cost.flops)
    return np.asarray(few & (cost.activations <= most_activations(cost.flops)))
