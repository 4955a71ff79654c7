"""`regnet info`: show one network, from its parameters to its stages and its cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regnet.cli.arguments import AsJson, Trust, check_outputs
from regnet.cli.output import print_json, print_table, scaled, stderr, stdout
from regnet.paths import expanded

if TYPE_CHECKING:
    from regnet.weights.catalog import Checkpoint


def command(
    name: Annotated[
        str,
        typer.Argument(
            help="A variant, a checkpoint, a folder, a file of weights or an exported file."
        ),
    ],
    *,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels, for counting.", min=1)
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option(help="Plot the block widths (.svg, .png, .pdf).")
    ] = None,
) -> None:
    """Show the config, stages and complexity of a network, and the facts about its weights.

    Example: regnet info regnety_016.tv2_in1k
    """
    check_outputs(plot=plot)
    from regnet.design.config import RegNetConfig
    from regnet.zoo.listing import info, info_of_config
    from regnet.zoo.resolver import is_exported

    file = None
    if is_exported(name):
        from regnet.engines.files import open_file

        file = open_file(expanded(name), trust=trust)
        size = image_size or (file.card.preprocess.size[0] if file.card else 224)
        row = info_of_config(Path(name).stem, file.config, image_size=size)
    else:
        row = info(name, image_size=image_size)
    if plot is not None:
        from regnet.design.plot import save_block_widths

        save_block_widths(row.config, plot, title=row.label)
        stderr.print(f"wrote {plot}")
    anynet = row.config.anynet()
    if as_json:
        blocks = anynet.blocks()
        facts_of_file = file and {
            "runtime": file.runtime,
            "precision": file.precision,
            "shape": file.shape,
            "outputs": file.outputs,
        }
        print_json(
            {
                "info": row,
                "stages": list(anynet.to_dict()["stages"]),
                "blocks": list(blocks),
                "file": facts_of_file,
            }
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
        "flops": f"{scaled(cost.flops)} at {row.image_size} x {row.image_size} ({cost.flops:,})",
        "params": f"{scaled(cost.params)} ({cost.params:,})",
        "activations": f"{scaled(cost.activations)} ({cost.activations:,})",
        "weights": ", ".join(row.checkpoints) or "none published",
        "default": row.default or "none; name the checkpoint that you want",
        "aliases": ", ".join(row.aliases) or "none",
    }
    if file:
        for key in ("weights", "default", "aliases"):
            del facts[key]
        sizes = zip(("batch", "channels", "height", "width"), file.shape, strict=True)
        facts["file"] = f"{file.runtime}, {file.precision}; it takes images of " + ", ".join(
            f"any {axis}" if size is None else f"{axis} {size}" for axis, size in sizes
        )
    for key, value in facts.items():
        stdout.print(f"{key:12s}{value}")
    if row.checkpoint:
        _print_weights(row.checkpoint)


def _print_weights(row: "Checkpoint") -> None:
    stdout.print(f"\n{row.id}\n")
    terms, setting = row.license_terms, row.preprocess
    facts = {
        "source": row.source + (f" at {row.revision}" if row.revision else ""),
        "SHA-256": row.sha256 or "as the server declares",
        "origin": row.origin,
        "known as": row.upstream,
        "format": row.format + (", channels in the order BGR" if row.bgr else ""),
        "license": f"{terms.name}  {terms.link}",
        "classes": f"{row.num_classes or 'none'}  {row.labels or ''}",
        "images": f"{setting.size[0]} x {setting.size[1]}, crop {setting.crop_pct:g}, "
        f"{setting.interpolation}, mean {setting.mean}, std {setting.std}",
        "larger test": row.test
        and f"{row.test.size[0]} x {row.test.size[1]}, crop {row.test.crop_pct:g}",
        "accuracies": row.metrics_source,
        "note": row.note,
    }
    for key, value in facts.items():
        if value:
            stdout.print(f"{key:12s}{value}")
    if row.metrics:
        stdout.print()
        print_table(
            ("data set", ">image", ">crop", ">top-1", ">top-5"),
            [
                (
                    metric.dataset,
                    str(metric.image_size or ""),
                    f"{metric.crop_pct:g}" if metric.crop_pct else "",
                    f"{metric.top1:.2f}",
                    f"{metric.top5:.2f}" if metric.top5 else "",
                )
                for metric in row.metrics
            ],
        )
