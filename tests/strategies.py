"""Random architectures: RegNets of the paper's search space, and small AnyNets of any kind."""

from typing import Any

from hypothesis import strategies as st

from regnet.design.config import AnyNetConfig, RegNetConfig, StageConfig


def powers_of_two(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high).map(lambda exponent: 2**exponent)


def ratios() -> st.SearchStrategy[float]:
    """Bottleneck ratios, including those of inverted bottlenecks."""
    return st.sampled_from((0.25, 0.5, 1.0, 2.0, 4.0))


def regnet_parameters(max_depth: int = 63) -> st.SearchStrategy[dict[str, Any]]:
    """Parameters in the ranges of the paper, section 3.3."""
    return st.fixed_dictionaries(
        {
            "depth": st.integers(1, max_depth),
            "w0": st.integers(1, 31).map(lambda k: 8 * k),
            "wa": st.floats(0, 255),
            "wm": st.floats(1.5, 3.0),
            "group_width": powers_of_two(0, 6),
            "bottleneck_ratio": ratios(),
        }
    )


def regnets() -> st.SearchStrategy[RegNetConfig]:
    return st.builds(
        lambda parameters, rounding, se: RegNetConfig(**parameters, rounding=rounding, se_ratio=se),
        regnet_parameters(),
        st.sampled_from(("half_even", "divisible")),
        st.sampled_from((0.0, 0.25)),
    )


@st.composite
def anynets(draw: st.DrawFn) -> AnyNetConfig:
    """Small networks of every kind of stem, block, shortcut, norm and head."""
    block = draw(
        st.sampled_from(
            ("bottleneck", "linear_bottleneck", "preact_bottleneck", "basic", "vanilla")
        )
    )
    norm = draw(st.sampled_from(("batch", "batch", "group", "evonorm_s0a")))
    unit = 8 if norm == "batch" else 16
    stems = ("simple", "cifar", "resnet")
    if block != "preact_bottleneck":
        stems += ("deep",) if norm != "batch" else ("deep", "tiered")
    has_se = block not in ("basic", "vanilla") and draw(st.booleans())
    stages = []
    for _ in range(draw(st.integers(1, 4))):
        ratio = draw(st.sampled_from((0.25, 0.5, 1.0, 2.0)))
        # The bottleneck width is a multiple of the group width and fits the norm.
        group_width = draw(powers_of_two(0, 3))
        inner = unit * draw(st.integers(1, 4)) * max(1, round(1 / ratio))
        stages.append(
            StageConfig(
                depth=draw(st.integers(1, 3)),
                width=round(inner * ratio),
                group_width=group_width,
                bottleneck_ratio=ratio,
                stride=draw(st.sampled_from((1, 2))),
            )
        )
    if norm != "batch" and any(stage.width % unit for stage in stages):
        stages = [
            StageConfig(depth=s.depth, width=unit * max(1, s.width // unit), stride=s.stride)
            for s in stages
        ]
    return AnyNetConfig(
        stages=tuple(stages),
        stem=draw(st.sampled_from(stems)),
        stem_width=draw(st.sampled_from((16, 32))),
        block=block,
        shortcut=draw(st.sampled_from(("conv1x1", "avg_pool", "none"))),
        se_ratio=0.25 if has_se else 0.0,
        se_from=draw(st.sampled_from(("input", "bottleneck"))),
        activation=draw(st.sampled_from(("relu", "silu"))),
        norm=norm,
        head_width=draw(st.sampled_from((0, 48))),
        output_stride=draw(st.sampled_from((None, 4, 8, 16))),
        num_classes=draw(st.sampled_from((0, 7))),
        in_chans=draw(st.sampled_from((1, 3))),
    )
