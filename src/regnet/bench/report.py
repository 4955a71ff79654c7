"""The benchmark report: one HTML file with a sortable table and plots, which works offline."""

import json
from typing import Final

from regnet import pages
from regnet.bench.document import Document, Row

COLUMNS: Final = (
    ("network", "text"), ("batch", "number"), ("precision", "text"), ("ran", "text"),
    ("image", "number"), ("GFLOPs", "number"), ("M activations", "number"), ("ms", "number"),
    ("95 %", "text"), ("p90 ms", "number"), ("images/s", "number"), ("% of floor", "number"),
    ("top-1 error %", "number"), ("note", "text"),
)  # fmt: skip
PAIR_COLUMNS: Final = ("A", "B", "batch", "precision", "A's time / B's", "95 %", "verdict")


def render(document: Document) -> str:
    """Return the report of a benchmark run, as HTML."""
    environment = document.environment
    return pages.render(
        "regnet.bench",
        "report.html",
        title=f"regnet bench: {environment['device']}, {environment['date']}",
        columns=COLUMNS,
        rows=[list(cells(row).values()) for row in document.rows],
        pair_columns=PAIR_COLUMNS,
        pairs=[
            (
                pair.a, pair.b, pair.batch_size, pair.precision, f"{pair.ratio:.2f}",
                f"{pair.low:.2f}-{pair.high:.2f}", pair.verdict,
            )
            for pair in document.pairs
        ],
        facts=json.dumps(environment, indent=1),
        points=[
            {
                "name": row.case.name,
                "batch": row.case.batch_size,
                "ms": row.latency_ms / row.case.batch_size,
                "acts": row.activations / 1e6,
                "error": row.top1_error,
            }
            for row in document.rows
            if row.latency_ms
        ],
    )  # fmt: skip


def cells(row: Row) -> dict[str, str]:
    """Return the cells of a row as text, by the names of `COLUMNS`.

    A cell is empty if its value is not known.
    """
    case, latency, floor = row.case, row.latency_ms, row.floor_fused_ms
    measured = latency is not None
    share = 100 * floor / latency if floor and latency and not case.train else None
    texts = (
        case.name,
        str(case.batch_size),
        case.precision,
        row.ran_as,
        str(row.image_size or ""),
        f"{row.flops / 1e9:.3f}",
        f"{row.activations / 1e6:.2f}",
        f"{latency:.3f}" if measured else "",
        f"{row.low_ms:.2f}-{row.high_ms:.2f}" if measured else "",
        f"{row.p90_ms:.2f}" if measured else "",
        f"{row.images_per_second:.1f}" if measured else "",
        f"{share:.0f}" if share else "",
        f"{row.top1_error:.1f}" if row.top1_error else "",
        row.reason or row.problem or ("" if row.steady else "not steady"),
    )
    return dict(zip((name for name, _ in COLUMNS), texts, strict=True))
