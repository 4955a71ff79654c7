"""Settings of the documentation: `make docs` builds it, and warnings are errors."""

import sys
from pathlib import Path

import regnet

sys.path.insert(0, str(Path(__file__).parent))

project = "regnet"
author = "the regnet developers"
copyright = f"2026, {author}"
release = version = regnet.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "zoo_table",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "photos/README.md"]
default_role = "code"  # docstrings have names between single backticks

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"regnet {release}"
html_static_path = ["_static"]
