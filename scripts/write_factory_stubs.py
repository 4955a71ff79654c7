"""Write src/regnet/zoo/factories.pyi from the variant table, for type checkers and editors.

python scripts/write_factory_stubs.py
"""

import inspect
import re
from pathlib import Path

from regnet.design.variants import VARIANTS
from regnet.zoo.create import create

STUB = Path(__file__).parents[1] / "src/regnet/zoo/factories.pyi"

HEADER = '''"""Written by scripts/write_factory_stubs.py from the variant table: do not edit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from typing_extensions import Unpack

from regnet.nn.model import AnyNet

class _Options(TypedDict, total=False):
'''


def render() -> str:
    """Return the text of the stub file."""
    options = [
        f"    {name}: {_annotation(parameter)}"
        for name, parameter in inspect.signature(create).parameters.items()
        # A factory builds complete networks: the options for feature networks are left out.
        if name not in ("name", "features_only", "out_indices", "absent")
    ]
    functions = [
        f"def {v.factory}(**options: Unpack[_Options]) -> AnyNet: ..." for v in VARIANTS.values()
    ]
    factories = sorted(v.factory for v in VARIANTS.values())
    names = ["__all__ = [", *(f'    "{factory}",' for factory in factories), "]"]
    return (HEADER + "\n".join([*options, "", *functions, "", *names, ""])).replace("'", '"')


def _annotation(parameter: inspect.Parameter) -> str:
    """Return the annotation as text that is valid with the imports of the header."""
    text = inspect.formatannotation(parameter.annotation)
    for module in ("collections.abc.", "pathlib.", "typing."):
        text = text.replace(module, "")
    return re.sub(r"^Optional\[(.*)\]$", r"\1 | None", text)


if __name__ == "__main__":
    STUB.write_text(render(), encoding="utf-8")
