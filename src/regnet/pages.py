"""Render reports as single HTML files, from Jinja2 templates that lie beside their code."""

from importlib import resources
from typing import Any


def render(room: str, template: str, **values: Any) -> str:
    """Return the HTML of a page.

    Text is escaped, and `{{ value | tojson }}` is safe inside a script. It is an error if the
    template uses a name that `values` does not have.

    Args:
        room: the package that contains the template, such as "regnet.bench".
        template: file name of the template.
        values: the values that the template shows, by name.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    text = resources.files(room).joinpath(template).read_text("utf-8")
    return environment.from_string(text).render(values)
