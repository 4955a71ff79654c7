"""`regnet weights`: download, verify, inspect and convert weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regnet.cli.arguments import AsJson, check_outputs
from regnet.cli.output import print_error, print_json, print_table, scaled, stderr, stdout
from regnet.errors import WeightsError, shell

if TYPE_CHECKING:
    from regnet.weights.catalog import Checkpoint
    from regnet.weights.integrity import Verified

Key = Annotated[
    str | None,
    typer.Option(help="Key of the network in the file, such as model_ema, if there are several."),
]

app = typer.Typer(
    no_args_is_help=True,
    help="Download, verify, inspect and convert weights.",
    add_completion=False,
)

CacheDir = Annotated[
    Path | None, typer.Option(help="Cache folder of the Hub client. Default: as HF_HOME says.")
]


@app.command()
def fetch(
    names: Annotated[
        list[str], typer.Argument(help="Checkpoints, or variants for their default weights.")
    ],
    *,
    cache_dir: CacheDir = None,
) -> None:
    """Download weights into the cache, verify them, and print their paths.

    Example: regnet weights fetch regnety_016.tv2_in1k
    """
    from regnet.weights.download import Fetch
    from regnet.weights.download import fetch as bring
    from regnet.weights.licenses import warn_if_restricted

    for row in _rows(names):
        warn_if_restricted(row.id, row.license_terms, source=row.source)
        stdout.print(str(bring(row, Fetch(cache_dir=cache_dir))))


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Checkpoints, variants or files. Default: all published weights in the cache."
        ),
    ] = None,
    *,
    sha256: Annotated[
        str | None, typer.Option(help="SHA-256 that the file must have, or its first digits.")
    ] = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """Read weights on this machine and compare their SHA-256 with the expected one.

    Example: regnet weights verify regnety_cifar.cifar10
    """
    from regnet.weights.catalog import checkpoints
    from regnet.weights.download import Fetch, verify_cached
    from regnet.weights.integrity import Verified, verify_file

    files = [Path(name) for name in names or () if Path(name).is_file()]
    if sha256 is not None and len(files) != 1:
        raise typer.BadParameter("needs the path of one file that exists", param_hint="--sha256")
    rows = _rows([name for name in names or () if not Path(name).is_file()])
    how = Fetch(cache_dir=cache_dir)
    results: list[Verified] = [verify_file(path, sha256) for path in files]
    for row in rows if names else checkpoints().values():
        found = verify_cached(row, how)
        if names and not found:
            raise WeightsError(
                f"{row.id} is not on this machine; download it with "
                f"{shell('regnet', 'weights', 'fetch', row.id)}"
            )
        results += found
    if as_json:
        print_json(results)
    else:
        print_table(
            ("", "against", "SHA-256", "~file"),
            [
                (
                    _state(result),
                    result.against,
                    result.sha256[:16],
                    result.path,
                )
                for result in results
            ],
        )
    for result in results:
        if not result.whole:
            print_error(f"{result.path} is damaged: its SHA-256 does not match {result.against}")
    if not all(result.whole for result in results):
        raise typer.Exit(1)


def _state(found: "Verified") -> str:
    if not found.whole:
        return "DAMAGED"
    return "unknown" if found.against == "nothing" else "intact"


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A file, an index of shards, or a folder.")],
    *,
    key: Key = None,
    ignore_objects: Annotated[
        bool, typer.Option("--ignore-objects", help="Ignore everything but tensors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a file of weights holds: format, architecture, classes and tensors.

    Example: regnet weights inspect model.safetensors
    """
    from regnet.weights.convert import inspect as look

    found = look(file, key=key, ignore_objects=ignore_objects)
    if as_json:
        print_json(found)
        return
    facts = {
        "format": found.format or f"unknown: {found.problem}",
        "networks": ", ".join(name or "one" for name in found.networks) or "none recognized",
        "variant": " or ".join(found.variants) or "no published one",
        "classes": str(found.num_classes or "no classifier"),
        "channels": str(found.in_chans or "unknown"),
        "tensors": f"{found.tensors:,}, {scaled(found.parameters)} parameters",
        "types": ", ".join(found.dtypes),
        "bytes": f"{found.bytes:,}",
        "SHA-256": found.sha256 or "see the shards",
    }
    for key, value in facts.items():
        stdout.print(f"{key:12s}{value}")


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A file, an index of shards, or a folder.")],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    *,
    to: Annotated[
        str, typer.Option(help="timm, torchvision, pycls, transformers, classy, vissl, swag.")
    ] = "timm",
    bgr: Annotated[
        bool | None,
        typer.Option("--bgr/--rgb", help="Channel order of the input file's stem, if unusual."),
    ] = None,
    key: Key = None,
    ignore_objects: Annotated[
        bool,
        typer.Option("--ignore-objects", help="Ignore everything but tensors, and run nothing."),
    ] = False,
) -> None:
    """Rewrite weights as safetensors with the tensor names of another library.

    Example: regnet weights convert RegNetY-1.6GF_dds_8gpu.pyth regnety_016.safetensors
    """
    check_outputs(out)
    from regnet.weights.convert import convert_file

    done = convert_file(file, out, to=to, key=key, bgr=bgr, ignore_objects=ignore_objects)
    stderr.print(f"wrote {out}: {done.tensors:,} tensors, {done.source} to {done.target}")


def _rows(names: list[str]) -> "list[Checkpoint]":
    from regnet.weights.catalog import find_checkpoint
    from regnet.zoo.resolver import find_model

    rows = []
    for name in names:
        variant, row = find_model(name)
        rows.append(row or find_checkpoint(variant.name))
    return rows
