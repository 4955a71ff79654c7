"""`regnet list`: the variants or their weights, as a table or as JSON."""

from typing import TYPE_CHECKING, Annotated

import typer

from regnet.cli.arguments import AsJson, parse_count
from regnet.cli.output import print_error, print_json, print_table, scaled

if TYPE_CHECKING:
    from regnet.zoo.listing import ModelInfo


def command(
    pattern: Annotated[str, typer.Argument(help="Pattern with * and ?.")] = "*",
    *,
    family: Annotated[str | None, typer.Option(help="Such as regnety; resnext.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="List weights instead of architectures.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(help="Of the weights: apache-2.0, ..., or commercial for all that allow it."),
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="Least ImageNet-1k top-1 accuracy, in percent.")
    ] = None,
    max_flops: Annotated[
        str | None, typer.Option(help="Most multiply-adds, such as 4e9, 4G or 600M.")
    ] = None,
    max_params: Annotated[str | None, typer.Option(help="Most parameters, such as 20M.")] = None,
    sort: Annotated[str, typer.Option(help="name, top1, flops or params.")] = "name",
    as_json: AsJson = False,
) -> None:
    """List the published architectures with their complexity, or the published weights.

    Example: regnet list 'regnety_*' --license commercial --min-top1 80 --max-flops 4G --sort top1
    """
    from regnet.zoo.listing import info, list_models

    names = list_models(
        pattern,
        family=family,
        pretrained=pretrained,
        license=license,
        min_top1=min_top1,
        max_flops=parse_count("--max-flops", max_flops),
        max_params=parse_count("--max-params", max_params),
        sort=sort,  # type: ignore[arg-type]  # checked there
    )
    if not names:
        print_error(f"nothing fits {pattern!r} and the limits; `regnet list` names all variants")
        raise typer.Exit(1)
    infos = [info(name) for name in names]
    if as_json:
        print_json(infos)
    elif any(row.checkpoint for row in infos):
        _print_weights(infos)
    else:
        _print_variants(infos)


def _print_variants(infos: "list[ModelInfo]") -> None:
    print_table(
        ("name", "~paper", ">image", ">flops", ">params", ">activations", ">weights", "~default"),
        [
            (
                row.name,
                row.label,
                str(row.image_size),
                scaled(row.complexity.flops),
                scaled(row.complexity.params),
                scaled(row.complexity.activations),
                str(len(row.checkpoints) or ""),
                row.default or "",
            )
            for row in infos
        ],
    )


def _print_weights(infos: "list[ModelInfo]") -> None:
    rows = []
    for row in infos:
        weights = row.checkpoint
        assert weights is not None, "these rows are of weights"
        rows.append(
            (
                weights.id,
                f"{weights.top1:.2f}" if weights.top1 else "",
                str(weights.preprocess.size[0]),
                scaled(row.complexity.flops),
                scaled(row.complexity.params),
                str(weights.num_classes or ""),
                weights.license,
                weights.source,
            )
        )
    print_table(
        ("weights", ">top-1", ">image", ">flops", ">params", ">classes", "license", "~source"), rows
    )
