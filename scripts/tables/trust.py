"""Tables about tests, and about how often a measured difference is a false one."""

from collections.abc import Iterator

from .markdown import Document, Tables, origin, table


def verdicts(document: Document) -> Iterator[str]:
    """How often the benchmark's verdicts are right."""
    same, slower = document["same"], document["slower by 5 %"]
    yield (
        f"{document['model']} against itself: a difference was shown in "
        f"{same['differences_shown']} of {same['runs']} runs. Against itself slowed by 5 %: in "
        f"{slower['differences_shown']} of {slower['runs']} runs, with medians of "
        f"{min(slower['medians']):.3f} to {max(slower['medians']):.3f}. {origin(document)}."
    )


def claims(document: Document) -> Iterator[str]:
    """How often commands say that a network differs from itself."""
    rows = []
    for way in dict.fromkeys(row["way"] for row in document["rows"]):
        found = {row["loaded"]: row for row in document["rows"] if row["way"] == way}
        cells = [f"{len(found[k]['claims'])} of {found[k]['repeats']}" for k in (False, True)]
        rows.append([f"`{way}`", *cells])
    yield from table(["", "as it was", "loaded on purpose"], rows)
    yield ""
    yield f"{document['model']} against itself. {origin(document)}."


def claims_line(document: Document) -> Iterator[str]:
    """The same in a sentence."""

    def rate(rows: list[Document]) -> tuple[int, int]:
        return sum(len(row["claims"]) for row in rows), sum(row["repeats"] for row in rows)

    two = [row for row in document["rows"] if row["way"] == "bench compare"]
    others = [row for row in document["rows"] if row["way"] != "bench compare"]
    claimed, count = rate(document["rows"])
    yield (
        f"A difference was claimed between identical networks in {claimed} of {count} comparisons "
        f"({claimed / count:.1%}), half of them on a loaded machine. `bench compare`, which reads "
        "two separate runs, did so in {} of {}, ".format(*rate(two))
        + "and the commands that alternate in {} of {}.".format(*rate(others))
    )


def checks(document: Document) -> Iterator[str]:
    """What the two test targets cost."""
    names = {"first": "with set-up", "again": "set up already"}
    rows = [
        [
            f"`{row['target']}`, {names[row['run']]}",
            f"{row['passed']:,}",
            f"{row['seconds'] / 60:.1f}",
            f"{row['processor_seconds']:,.0f}",
        ]
        for row in document["rows"]
    ]
    yield from table(["", "tests", "minutes", "processor seconds"], rows)
    yield ""
    facts = document["environment"]
    yield f"{facts['date'][:10]}, {facts['device']}, {document['cores']} cores."


def peers(document: Document) -> Iterator[str]:
    """Tests of other libraries on networks of this one."""
    rows = []
    for name, suite in document["suites"].items():
        passed, failed = suite.get("passed", 0), suite.get("failure", 0) + suite.get("error", 0)
        why = "; ".join(f"{count}: {reason}" for reason, count in suite["reasons"].items())
        rows.append([name, f"{passed}", f"{suite.get('skipped', 0)}", f"{failed}", why])
    yield from table(["", "passed", "skipped by the suite", "failed", "why"], rows)
    yield ""
    versions = ", ".join(f"{name} {found}" for name, found in document["versions"].items())
    yield f"{versions}; {origin(document)}."


TABLES: Tables = {
    "verdicts.json": (verdicts,),
    "claims.json": (claims, claims_line),
    "checks.json": (checks,),
    "peers.json": (peers,),
}
