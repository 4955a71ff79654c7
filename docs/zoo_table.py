"""The `zoo` directive: the catalog of weights as one table that sorts and filters."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from regnet.bench.document import read
from regnet.design.complexity import complexity
from regnet.design.variants import VARIANTS
from regnet.weights.catalog import checkpoints
from regnet.weights.licenses import LICENSES

LATENCIES = Path(__file__).parents[1] / "benchmarks/results/zoo.json"
COLUMNS = (
    ("weights", "text"), ("top-1 %", "number"), ("ms", "number"), ("GFLOPs", "number"),
    ("license", "text"), ("image", "number"), ("M params", "number"), ("M activations", "number"),
)  # fmt: skip
"""What one chooses by comes first, so that it is visible without scrolling."""

FIRST_FLOPS = 16
"""GFLOPs up to which networks are shown at first, under licenses that allow any use."""


def rows() -> Iterator[tuple[str, ...]]:
    """A row per checkpoint, of `COLUMNS`; flops for the checkpoint's image size."""
    measured = read(LATENCIES).latencies
    for row in checkpoints().values():
        variant = VARIANTS[row.variant]
        side = row.preprocess.size[0]
        cost = complexity(variant.config, side)
        ms = measured.get(row.variant) if side == variant.image_size else None
        yield (
            row.id,
            f"{row.top1:.2f}" if row.top1 else "",
            f"{ms:.2f}" if ms else "",
            f"{cost.flops / 1e9:.3f}",
            row.license_terms.name,
            str(side),
            f"{cost.params / 1e6:.2f}",
            f"{cost.activations / 1e6:.2f}",
        )


def render() -> str:
    """The table and its filters as HTML."""
    found = sorted(rows(), key=lambda row: -float(row[1] or 0))
    head = "".join(f'<th data-kind="{kind}">{html.escape(name)}</th>' for name, kind in COLUMNS)
    free = {terms.name for terms in LICENSES.values() if terms.permissive}
    body = "\n".join(
        f"<tr{' data-free' if row[4] in free else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in found
    )
    options = "".join(
        f"<option>{html.escape(name)}</option>" for name in sorted({row[4] for row in found})
    )
    return f"""
<form class="zoo" onsubmit="return false">
<label>name <input id="zoo-name" type="search" placeholder="regnety"></label>
<label>license <select id="zoo-license"><option value="">any</option>
<option value="*" selected>free for any use</option>{options}</select></label>
<label>GFLOPs up to
<input id="zoo-flops" type="number" min="0" step="0.1" value="{FIRST_FLOPS}"></label>
<label>top-1 from <input id="zoo-top1" type="number" min="0" max="100" step="0.1"></label>
<label>ms up to <input id="zoo-ms" type="number" min="0" step="1"></label>
<output id="zoo-count"></output>
</form>
<div class="zoo-scroll"><table id="zoo" class="docutils"><thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


class Zoo(SphinxDirective):
    """The table."""

    def run(self) -> list[nodes.Node]:
        """As a node of raw HTML; it changes with the results."""
        self.env.note_dependency(str(LATENCIES))
        return [nodes.raw("", render(), format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register."""
    app.add_directive("zoo", Zoo)
    app.add_js_file("zoo.js")
    app.add_css_file("zoo.css")
    return {"parallel_read_safe": True}
