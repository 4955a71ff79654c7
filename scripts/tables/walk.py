"""What the recorded walk from a fresh clone shows, whole and in parts."""

import re
from collections.abc import Callable, Iterator

from .markdown import Document, Tables


def walk(document: Document) -> Iterator[str]:
    """What a new user does, and sees."""
    yield (
        f"{document['date'][:10]}, {document['cores']} cores, "
        f"{document['seconds'] / 60:.0f} minutes in all."
    )
    for step in document["steps"]:
        yield f"\n## {step['what'][0].upper()}{step['what'][1:]} ({step['seconds']:.0f} s)\n"
        yield "```text"
        first, *rest = step["command"].splitlines()
        yield "\n".join([f"$ {first}", *rest])
        yield from step["output"]
        yield "```"


def _step(document: Document, begins: str, keep: Callable[[str], bool]) -> Iterator[str]:
    """A step of the walk whose command holds these words, with the lines that are worth showing."""
    step = next(step for step in document["steps"] if begins in step["command"])
    command = step["command"].splitlines()[0].partition("&& ")
    yield "```text"
    yield f"$ {(command[2] or command[0]).strip()}"
    yield from filter(keep, step["output"])
    yield "```"


def walk_choose(document: Document) -> Iterator[str]:
    """What `regnet choose` says."""
    yield from _step(
        document,
        "regnet choose",
        lambda line: not line.startswith(("measuring networks", "~", "  image =")),
    )


def walk_bench(document: Document) -> Iterator[str]:
    """What `regnet bench` says of a network and its exported files, without progress."""
    yield from _step(document, "regnet bench --models", lambda line: " batch 1 " not in line)


def walk_study(document: Document) -> Iterator[str]:
    """What a small study says, without its progress."""
    yield from _step(
        document,
        "regnet study init",
        lambda line: bool(re.match(r"space |first |(anynetx_a|regnetx) +[\da]", line)),
    )


TABLES: Tables = {
    "walk.json": (walk, walk_choose, walk_bench, walk_study),
}
