"""Tables about the published networks."""

from collections.abc import Iterator

from regnet.bench.document import read
from regnet.bench.networks import PAPER_ERRORS
from regnet.design.complexity import complexity
from regnet.design.variants import VARIANTS
from regnet.weights.catalog import default_checkpoint

from .markdown import RESULTS, Document, Tables, origin, table


def zoo(document: Document) -> Iterator[str]:
    """Default weights of the networks measured, the most accurate at each latency."""
    measured = read(RESULTS / "zoo.json").latencies
    defaults = [
        (measured[name], row) for name in measured if (row := default_checkpoint(name)) is not None
    ]
    rows, best = [], 0.0
    for ms, row in sorted(defaults, key=lambda pair: pair[0]):
        if (row.top1 or 0) > best:
            best = row.top1 or 0
            cost = complexity(VARIANTS[row.variant].config, row.preprocess.size[0])
            if not 0.39e9 < cost.flops < 4e9:
                continue
            rows.append(
                [
                    f"`{row.id}`",
                    row.license_terms.name,
                    f"{row.top1:.2f}",
                    f"{cost.flops / 1e9:.2f}",
                    f"{cost.params / 1e6:.1f}",
                    f"{cost.activations / 1e6:.1f}",
                    f"{ms:.1f}",
                ]
            )
    yield from table(
        ["weights", "license", "top-1, %", "GFLOPs", "M params", "M activations", "ms"], rows
    )
    yield ""
    yield f"Top-1 as published. {zoo_origin(document)}"


def zoo_origin(document: Document) -> str:
    """What the milliseconds are."""
    engines = sorted({row["case"]["engine"] for row in document["rows"]})
    return (
        f"Milliseconds: median of a batch of one in float32, on the faster of "
        f"{' and '.join(engines)}. {origin(document)}."
    )


def zoo_note(document: Document) -> Iterator[str]:
    """The same, below the table of all weights."""
    yield zoo_origin(document)


def zoo_pairs(document: Document) -> Iterator[str]:
    """RegNets and the EfficientNets that the paper compares them with, in turn."""
    rows = [
        [
            f"`{pair['b']}` ({PAPER_ERRORS[pair['b']]} %) beside "
            f"`{pair['a']}` ({PAPER_ERRORS[pair['a']]} %)",
            pair["ran_b"],
            f"{pair['ratio']:.2f} ({pair['low']:.2f} to {pair['high']:.2f})",
            pair["verdict"].partition(",")[0],
        ]
        for pair in document["pairs"]
    ]
    yield from table(["RegNetY beside EfficientNet (paper's errors)", "engine", "speed", ""], rows)


TABLES: Tables = {
    "zoo.json": (zoo, zoo_note, zoo_pairs),
}
