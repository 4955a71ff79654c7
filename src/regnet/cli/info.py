"""`regnet info`: one variant, from its parameters to its stages and its cost."""

from pathlib import Path
from typing import Annotated

import typer

from regnet.cli.output import print_json, print_table, scaled, stderr, stdout


def command(
    name: Annotated[str, typer.Argument(help="A variant or one of its aliases.")],
    *,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images to count for, in pixels.", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the block widths into this file (.svg, .png, .pdf).")
    ] = None,
) -> None:
    """Show the config, stages and complexity of a variant.

    Example: regnet info regnety_016
    """
    from regnet.design.config import RegNetConfig
    from regnet.zoo.listing import info

    row = info(name, input_size=image_size)
    if plot is not None:
        from regnet.plot import save_block_widths

        save_block_widths(row.config, plot, title=row.label)
        stderr.print(f"wrote {plot}")
    anynet = row.config.anynet()
    if as_json:
        blocks = anynet.blocks()
        print_json(
            {"info": row, "stages": list(anynet.to_dict()["stages"]), "blocks": list(blocks)}
        )
        return
    stdout.print(f"{row.label}  ({row.name}, factory {row.factory})\n")
    if isinstance(row.config, RegNetConfig):
        print(row.config.explain())
    else:
        print_table(
            (">stage", ">depth", ">width", ">group width", ">bottleneck ratio", ">stride"),
            [
                (
                    str(number),
                    str(stage.depth),
                    str(stage.width),
                    str(stage.group_width),
                    f"{stage.bottleneck_ratio:.3g}",
                    str(stage.stride),
                )
                for number, stage in enumerate(anynet.stages, 1)
            ],
        )
    print()
    cost = row.complexity
    facts = {
        "blocks": f"{anynet.block}, {anynet.activation}, {anynet.norm} norm, {anynet.shortcut}"
        + (f", squeeze-excitation {anynet.se_ratio:g}" if anynet.se_ratio else ""),
        "stem": f"{anynet.stem}, {anynet.stem_width} channels",
        "head": f"{anynet.num_features} features, {anynet.num_classes} classes",
        "flops": f"{scaled(cost.flops)} at {row.input_size} x {row.input_size} ({cost.flops:,})",
        "params": f"{scaled(cost.params)} ({cost.params:,})",
        "activations": f"{scaled(cost.activations)} ({cost.activations:,})",
        "weights": " ".join(row.checkpoints) or "none in this version",
        "aliases": ", ".join(row.aliases) or "none",
    }
    for key, value in facts.items():
        stdout.print(f"{key:12s}{value}")
