"""A network for a device: limits, measuring on the device, a model of its latency, and the search.

Nothing here trains. It may import `bench`, `engines`, `spaces` and the rooms below; `studies` and
the explorer build on it.
"""

from regnet.selection.limits import Found, Limits, Measured
from regnet.selection.search import search

__all__ = ["Found", "Limits", "Measured", "search"]
