"""Draw the rooms of the package and the imports between them, as found in the code.

    python scripts/draw_architecture.py [--check]

A room is a folder or module directly inside the package. The script writes docs/architecture.svg
from the import graph, with one row of boxes for each layer that pyproject.toml declares. An arrow
is left out if a longer path of arrows implies it. --check writes nothing and fails if the drawing
does not match the code.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import grimp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DRAWING = ROOT / "docs/architecture.svg"
WIDTH, HEIGHT, GAP, ROW = 118, 40, 26, 96


def layers() -> list[list[str]]:
    """Return the rooms of each layer, the highest layer first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    [found] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [[name.strip().removeprefix("regnet.") for name in row.split("|")] for row in found]


def imports(rooms: Sequence[str]) -> dict[str, set[str]]:
    """Return the rooms that each room imports directly, leaving out imports from higher layers."""
    graph = grimp.build_graph("regnet", exclude_type_checking_imports=True)
    for room in rooms:
        graph.squash_module(f"regnet.{room}")
    order = {room: place for place, room in enumerate(rooms)}
    return {
        room: {
            name
            for module in graph.find_modules_directly_imported_by(f"regnet.{room}")
            if (name := module.removeprefix("regnet.")) in order and order[name] > order[room]
        }
        for room in rooms
    }


def reduced(edges: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yield the edges that are not implied by a path of two or more other edges."""

    def reachable(room: str) -> set[str]:
        return edges[room].union(*(reachable(below) for below in edges[room]))

    for room, below in edges.items():
        beyond: set[str] = set().union(*(reachable(other) for other in below))
        yield from ((room, other) for other in sorted(below - beyond))


def lines(room: str) -> int:
    """Count the lines of a room's Python files."""
    place = ROOT / "src/regnet" / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def draw() -> str:
    """Return the drawing as the text of an SVG file."""
    rows = layers()
    rooms = [room for row in rows for room in row]
    across = max(len(row) for row in rows) * (WIDTH + GAP) + GAP
    places = {
        room: (
            (across - len(row) * (WIDTH + GAP) + GAP) / 2 + column * (WIDTH + GAP),
            GAP + number * ROW,
        )
        for number, row in enumerate(rows)
        for column, room in enumerate(row)
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {GAP + len(rows) * ROW}" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{across}" height="{GAP + len(rows) * ROW}" fill="#fff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#888"/></marker></defs>',
    ]
    for upper, lower in reduced(imports(rooms)):
        (x1, y1), (x2, y2) = places[upper], places[lower]
        x1, x2, y1 = x1 + WIDTH / 2, x2 + WIDTH / 2, y1 + HEIGHT
        bend = (y2 - y1) / 2
        parts.append(
            f'<path d="M{x1:g} {y1:g}C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}" '
            'fill="none" stroke="#888" marker-end="url(#tip)"/>'
        )
    for room, (x, y) in places.items():
        middle, size = f"{x + WIDTH / 2:g}", f"{max(100, round(lines(room), -2)):,}"
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef4fb" '
            f'stroke="#4a7ebb"/><text x="{middle}" y="{y + 17:g}" font-size="14" '
            f'text-anchor="middle">{room}</text><text x="{middle}" y="{y + 32:g}" '
            f'font-size="10" fill="#666" text-anchor="middle">{size} lines</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Write the drawing, or with --check compare it with the file."""
    drawing = draw()
    if "--check" in sys.argv[1:]:
        if not DRAWING.exists() or DRAWING.read_text(encoding="utf-8") != drawing:
            sys.exit(f"{DRAWING.name} is out of date; run scripts/draw_architecture.py")
    else:
        DRAWING.write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main()
