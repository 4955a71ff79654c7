"""Write the tables of the documentation from the files that benchmarks wrote.

    python scripts/write_tables.py [--check]

A table stands between `<!-- table NAME -->` and `<!-- end -->`, where NAME is a function of
scripts/tables. --check changes nothing, and fails if a table is not that of its file.
"""

import json
import re
import sys
import textwrap
from collections.abc import Iterator

from tables import engines, selection, studies, training, trust, walk, zoo
from tables.markdown import RESULTS, ROOT

PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES = {
    function.__name__: (RESULTS / file, function)
    for module in (engines, selection, studies, training, trust, walk, zoo)
    for file, functions in module.TABLES.items()
    for function in functions
}


def wrapped(lines: Iterator[str]) -> Iterator[str]:
    """The same lines; sentences below tables are wrapped as the pages are."""
    inside_code = False
    for line in lines:
        inside_code ^= line.startswith("```")
        if inside_code or line.startswith(("|", "#", "```")):
            yield line
        else:
            yield from textwrap.wrap(line, 100, break_long_words=False, break_on_hyphens=False) or [
                ""
            ]


def rendered(text: str) -> str:
    """The text with every table as its file has it."""

    def fill(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        path, function = TABLES[name]
        if not path.exists():  # not measured yet: the place stays empty
            return start + end
        document = json.loads(path.read_text(encoding="utf-8"))
        return start + "\n".join(wrapped(function(document))) + "\n" + end

    return PLACE.sub(fill, text)


def main() -> None:
    """Write, or check."""
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            stale.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(after, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"not as the results say: {', '.join(stale)}; run scripts/write_tables.py")


if __name__ == "__main__":
    main()
