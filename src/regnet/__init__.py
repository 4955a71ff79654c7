"""The RegNet library: every published RegNet, and any that you can parameterize."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from regnet.public import *  # noqa: F403 - what type checkers see
    from regnet.public import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        """Return a submodule or a public name, importing it when it is first used.

        Importing torch takes seconds, and code that needs only the math or the tables avoids it.
        """
        if name.isidentifier() and not name.startswith("__") and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        public = import_module(f"{__name__}.public")
        if name != "__all__" and name not in public.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals().setdefault(name, getattr(public, name))

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module(f"{__name__}.public").__all__})
