"""Write the notebook version of docs/paper-by-hand.md, and the figures of the page.

    python scripts/write_notebook.py [--check]

The page is the source: its Python blocks become code cells. The figures are redrawn from the
current results. --check writes nothing and fails if the notebook does not match the page.
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Final

import jupytext
import matplotlib

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs/paper-by-hand.md"
NOTEBOOK: Final = PAGE.with_suffix(".ipynb")
FIGURES: Final = ROOT / "docs/paper"


def notebook(text: str) -> str:
    """Return the page as a notebook, without outputs."""
    # A notebook shows figures by itself: leave out saving them and the links to the saved files.
    text = re.sub(r"^(figure\.savefig\(.*|!\[.*\]\(paper/.*)\n", "", text, flags=re.MULTILINE)
    # The code reads files by paths relative to the root of the clone, but a notebook runs in docs/.
    start = (
        "```python\nimport os\n\nif os.path.basename(os.getcwd()) == 'docs':\n"
        "    os.chdir(os.pardir)  # the root of the clone\n```\n\n"
    )
    text = text.replace("```python\n", start + "```python\n", 1)
    found = jupytext.reads(text, fmt="md")
    found.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    for number, cell in enumerate(found.cells):
        cell.metadata = {}
        cell["id"] = f"cell-{number}"  # a random id would change the file on every run
    written: str = jupytext.writes(found, fmt="ipynb")
    return written.rstrip("\n") + "\n"


def draw(text: str) -> None:
    """Run the code of the page, with its figures saved in docs/paper."""
    os.environ |= {"MPLBACKEND": "agg", "SOURCE_DATE_EPOCH": "0"}
    # Without a fixed salt, the ids in an SVG file would change on every run.
    matplotlib.rcParams["svg.hashsalt"] = PAGE.name
    names: dict[str, object] = {}
    FIGURES.mkdir(exist_ok=True)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    code = code.replace('.savefig("', f'.savefig("{FIGURES}/')
    os.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, str(PAGE), "exec"), names)


def main() -> None:
    """Write the notebook and the figures, or with --check compare the notebook with its file."""
    text = PAGE.read_text(encoding="utf-8")
    found = notebook(text)
    if "--check" in sys.argv[1:]:
        if not NOTEBOOK.exists() or NOTEBOOK.read_text(encoding="utf-8") != found:
            sys.exit(f"{NOTEBOOK.name} is out of date; run scripts/write_notebook.py")
        return
    NOTEBOOK.write_text(found, encoding="utf-8")
    draw(text)


if __name__ == "__main__":
    main()
