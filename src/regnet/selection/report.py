"""What was chosen, as one HTML file that needs no network."""

import io
import json
from importlib import util

from regnet import pages
from regnet.selection.choose import Chosen, milliseconds
from regnet.selection.plot import draw


def render(found: Chosen) -> str:
    """Return the report; the picture is left out where matplotlib is not installed."""
    return pages.render(
        "regnet.selection",
        "choice.html",
        found=found,
        picture=_picture(found),
        time=milliseconds,
        facts=json.dumps(found.environment, indent=1),
    )


def _picture(found: Chosen) -> str | None:
    if util.find_spec("matplotlib") is None:
        return None
    text = io.StringIO()
    draw(found).savefig(text, format="svg")
    return text.getvalue().partition("<svg")[2]
