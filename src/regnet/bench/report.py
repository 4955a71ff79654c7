"""The benchmark as one HTML file: a table that sorts, and plots; it needs no network."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

COLUMNS: Final = (
    ("network", "text"), ("batch", "number"), ("precision", "text"), ("ran", "text"),
    ("image", "number"), ("GFLOPs", "number"), ("M activations", "number"), ("ms", "number"),
    ("95 %", "text"), ("p90 ms", "number"), ("images/s", "number"), ("% of floor", "number"),
    ("top-1 error %", "number"), ("note", "text"),
)  # fmt: skip
PAIR_COLUMNS: Final = ("A", "B", "batch", "precision", "A's time / B's", "95 %", "verdict")


def render(document: dict[str, Any]) -> str:
    """The report of a document of `regnet bench`."""
    points = [
        {
            "name": row["case"]["model"],
            "batch": row["case"]["batch_size"],
            "ms": row["latency_ms"] / row["case"]["batch_size"],
            "acts": row["activations"] / 1e6,
            "error": row["top1_error"],
        }
        for row in document["rows"]
        if row["latency_ms"]
    ]
    environment = document["environment"]
    head = "".join(f'<th data-kind="{kind}">{html.escape(name)}</th>' for name, kind in COLUMNS)
    body = _table_rows([list(cells(row).values()) for row in document["rows"]])
    pairs = _table_rows([
        [
            pair["a"], pair["b"], str(pair["batch_size"]), pair["precision"],
            f"{pair['ratio']:.2f}", f"{pair['low']:.2f}-{pair['high']:.2f}", pair["verdict"],
        ]
        for pair in document["pairs"]
    ])  # fmt: skip
    pair_head = "".join(f"<th>{html.escape(name)}</th>" for name in PAIR_COLUMNS)
    # As an escape, "<" can neither end the script nor begin a comment.
    data = json.dumps(points).replace("<", "\\u003c")
    title = f"regnet bench: {environment['device']}, {environment['date']}"
    return _PAGE.format(
        title=html.escape(title), head=head, body=body, pair_head=pair_head, pairs=pairs,
        hidden="" if document["pairs"] else " hidden", data=data,
        facts=html.escape(json.dumps(environment, indent=1)), style=_STYLE, script=_SCRIPT,
    )  # fmt: skip


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of the document by the names of `COLUMNS`, as people read it; empty where unknown."""
    case, latency, floor = row["case"], row["latency_ms"], row["floor_fused_ms"]
    share = floor and latency and not case["train"]
    texts = (
        case["model"],
        str(case["batch_size"]),
        case["precision"],
        "train" if case["train"] else row["ran"] or case["engine"],
        str(row["input_size"] or ""),
        f"{row['flops'] / 1e9:.3f}",
        f"{row['activations'] / 1e6:.2f}",
        f"{latency:.3f}" if latency else "",
        f"{row['low_ms']:.2f}-{row['high_ms']:.2f}" if latency else "",
        f"{row['p90_ms']:.2f}" if latency else "",
        f"{row['images_per_second']:.1f}" if latency else "",
        f"{100 * floor / latency:.0f}" if share else "",
        f"{row['top1_error']:.1f}" if row["top1_error"] else "",
        row["reason"] or ("" if row["steady"] else "not steady"),
    )
    return dict(zip((name for name, _ in COLUMNS), texts, strict=True))


def _table_rows(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )


_STYLE: Final = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { cursor: pointer; text-align: left; border-bottom: 2px solid #888; white-space: nowrap }
td { border-bottom: 1px solid #ddd; white-space: nowrap } th, td { padding: .25rem .5rem }
td:last-child { white-space: normal } .wide { overflow-x: auto }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; margin: 2rem 0 }
svg { flex: 1 1 28rem; height: 24rem; border: 1px solid #ccc }
svg text { font: 11px system-ui, sans-serif } pre { white-space: pre-wrap; color: #555 }
"""

_SCRIPT: Final = """
const table = document.querySelector("table");
table.querySelectorAll("th").forEach((th, column) => th.addEventListener("click", () => {
  const up = th.dataset.up !== "1"; th.dataset.up = up ? "1" : "0";
  const value = row => { const text = row.cells[column].textContent;
    if (th.dataset.kind === "text") return text;
    return text === "" ? Infinity : Number(text); };
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const x = value(a), y = value(b); return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
  table.tBodies[0].append(...rows);
}));
function plot(id, points, x, y, xlabel, ylabel) {
  const svg = document.getElementById(id), w = 560, h = 384, m = 50;
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  const make = (tag, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    svg.append(node); return node; };
  points = points.filter(p => p[x] && p[y]);
  if (!points.length) { make("text", {x: m, y: h / 2}, "nothing to plot"); return; }
  const range = key => { const v = points.map(p => p[key]);
    const low = Math.min(...v), high = Math.max(...v), pad = (high - low || high) * 0.1;
    return [Math.max(0, low - pad), high + pad]; };
  const [x0, x1] = range(x), [y0, y1] = range(y);
  const px = v => m + (v - x0) / (x1 - x0) * (w - 2 * m);
  const py = v => h - m - (v - y0) / (y1 - y0) * (h - 2 * m);
  make("path", {d: `M${m} ${m}V${h - m}H${w - m}`, fill: "none", stroke: "#888"});
  for (let i = 0; i <= 4; i++) {
    const vx = x0 + (x1 - x0) * i / 4, vy = y0 + (y1 - y0) * i / 4;
    make("text", {x: px(vx), y: h - m + 16, "text-anchor": "middle"}, vx.toPrecision(3));
    make("text", {x: m - 6, y: py(vy) + 4, "text-anchor": "end"}, vy.toPrecision(3)); }
  make("text", {x: w / 2, y: h - 10, "text-anchor": "middle"}, xlabel);
  make("text", {x: 12, y: 24}, ylabel);
  for (const p of points) {
    const color = p.name.startsWith("efficientnet") ? "#d1495b" :
      p.name.startsWith("regnet") ? "#00798c" : "#888";
    make("circle", {cx: px(p[x]), cy: py(p[y]), r: 5, fill: color});
    make("text", {x: px(p[x]) + 7, y: py(p[y]) + 4}, `${p.name} (${p.batch})`); }
}
plot("accuracy", points, "ms", "error", "ms per image", "top-1 error, %");
plot("activations", points, "acts", "ms", "activations, M", "ms per image");
"""

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="generator" content="regnet">
<link rel="icon" href="data:,"><style>{style}</style></head>
<body><h1>{title}</h1>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
<div class="plots"><svg id="accuracy"></svg><svg id="activations"></svg></div>
<h2{hidden}>In turn, in the same run</h2>
<div class="wide"{hidden}><table class="pairs"><thead><tr>{pair_head}</tr></thead><tbody>
{pairs}
</tbody></table></div>
<h2>Environment</h2><pre>{facts}</pre>
<script>const points = {data};{script}</script></body></html>
"""
