"""Render reports as single HTML files from Jinja2 templates beside the code that fills them."""

from importlib import resources
from typing import Any


def render(room: str, template: str, **values: Any) -> str:
    """Return a page.

    Text is escaped, and `{{ value | tojson }}` is safe inside a script. A name that the template
    uses and `values` lacks is an error.

    Args:
        room: the package that holds the template, such as "regnet.bench".
        template: name of its file.
        values: what the template shows.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    text = resources.files(room).joinpath(template).read_text("utf-8")
    return environment.from_string(text).render(values)
