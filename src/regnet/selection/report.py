"""Write the report of `regnet choose` as one HTML file that works offline."""

import json
from functools import partial

from regnet import pages
from regnet.figures import inside_page
from regnet.selection.choose import Chosen, milliseconds
from regnet.selection.plot import draw


def render(found: Chosen) -> str:
    """Return the report as HTML; without matplotlib it has no plot."""
    return pages.render(
        "regnet.selection",
        "choice.html",
        found=found,
        picture=inside_page(partial(draw, found)),
        time=milliseconds,
        facts=json.dumps(found.environment, indent=1),
    )
