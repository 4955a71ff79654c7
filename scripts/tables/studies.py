"""Tables about the studies of design spaces, and about what the paper's own would cost."""

import json
from collections.abc import Iterator
from dataclasses import replace

from regnet.spaces import find_space

from .markdown import RESULTS, Document, Tables, table


def order_plan() -> Document:
    """The description of the study."""
    plan: Document = json.loads((RESULTS / "order/study.json").read_text(encoding="utf-8"))
    return plan


def counted(spaces: Document) -> str:
    """How many networks were trained, of how many spaces."""
    counts = [found["models"] for found in spaces.values()]
    each = " to ".join(str(count) for count in dict.fromkeys((min(counts), max(counts))))
    return f"{sum(counts)} networks, {each} of each space"


def order_setting(document: Document) -> str:
    """What was trained, on what, until when."""
    plan = order_plan()
    low, high = plan["spaces"][0]["limits"]["flops"]
    recipe = plan["recipe"]
    return (
        f"{counted(document['spaces'])}, {low / 1e6:.1f} to "
        f"{high / 1e6:.1f} million multiply-adds at 32 pixels, {recipe['epochs']} epochs of "
        f"{plan['train_images']:,} images of CIFAR-10 (JPEG), tested on {plan['val_images']:,}. "
        f"{document['finished'][:10]}, {'; '.join(document['machines'])}"
    )


def order(document: Document) -> Iterator[str]:
    """Spaces of the study, in the paper's order."""
    rows = [
        [
            f"`{name}`",
            f"{replace(find_space(name.removesuffix('_3')), num_stages=3).size:.1e}",
            *(str(found[key]) for key in ("models", "failed")),
            *(f"{found[key]:.1f}" for key in ("minimum", "mean")),
            f"{found['search']['8']['mean']:.1f}",
        ]
        for name, found in document["spaces"].items()
    ]
    yield from table(
        ["space", "networks in it", "trained", "failed", "lowest error, %", "mean error, %",
         "best of 8, %"],
        rows,
    )  # fmt: skip
    yield ""
    yield (
        f"{order_setting(document)}. Best of 8: mean over random draws of 8 networks, with "
        "replacement."
    )


def order_line(document: Document) -> Iterator[str]:
    """The study in a sentence or two."""
    spaces = document["spaces"]
    first, *_, last = spaces
    [pair] = [p for p in document["pairs"] if (p["first"], p["second"]) == (last, first)]
    found = pair["comparison"]
    what = {"better": "lower than", "worse": "higher than"}.get(
        found["verdict"], "not told apart from"
    )
    yield (
        f"{counted(spaces)}, were trained on CIFAR-10. RegNetX has a mean error of "
        f"{spaces[last]['mean']:.1f} %, {what} the "
        f"{spaces[first]['mean']:.1f} % of AnyNetX_A (difference "
        f"{found['difference']:+.1f} points, 95 % {found['low']:+.1f} to {found['high']:+.1f})"
        + ("; with so few networks the interval is rough." if document["warnings"] else ".")
    )


def order_summary(document: Document) -> Iterator[str]:
    """The verdicts about the paper's statements, for the README."""
    plan = order_plan()
    of_order = {space["name"].removesuffix("_3") for space in plan["spaces"]}
    done = sum(n for name, n in document["networks"].items() if name in of_order)
    further = sum(document["networks"].values()) - done
    yield (
        f"[Our study](docs/study-cifar.md) on CIFAR-10 trained {done} networks of the six spaces"
        + (f", and {further} that test one principle each" if further else "")
        + ". It finds (points of mean error, or values, with 95 % intervals; "
        '"at equal depth": adjusted for the number of blocks):'
    )
    yield ""
    rows = []
    for verdict in ("seen", "opposite", "not told apart", "too few networks"):
        found = [one for one in document["findings"] if one["verdict"] == verdict]
        lines = [
            one["statement"] + (f": {finding(one)}" if one["ours"] is not None else "")
            for one in found
        ]
        if verdict in ("seen", "opposite"):
            lines = [
                line + (f"; at equal depth {interval(*equal)}" if equal else "")
                for line, one in zip(lines, found, strict=True)
                for equal in [one["at_equal_depth"]]
            ]
        if lines or verdict in ("seen", "opposite"):
            rows.append([verdict, "<br>".join(lines) or "none"])
    yield "| verdict | statements |"
    yield "| --- | --- |"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def finding(found: Document) -> str:
    """Our number of a finding, with its interval."""
    return interval(
        found["ours"], found["low"], found["high"], "" if found["expects"] == "value" else "+"
    )


def interval(value: float, low: float, high: float, sign: str = "+") -> str:
    """A number with its interval, without a sign at 0.0."""
    shown = (f"{number:{sign}.1f}" for number in (value, low, high))
    return "{} ({} to {})".format(*("0.0" if float(text) == 0 else text for text in shown))


def order_complexity(document: Document) -> Iterator[str]:
    """How deep the networks of each space are, and mean errors at equal depth and complexity."""
    found = document["complexity"]
    rows = [
        [
            f"`{name}`",
            f"{found['depths'][name]:.1f} ({document['mean_depths'][name]:.1f})",
            f"{found['correlation'][name]:+.2f}",
            f"{found['means'][name]:.1f}",
            f"{found['at_equal_depth'][name]:.1f}",
            *(f"{one['means'][name]:.1f}" for one in found["weighted"]),
        ]
        for name in found["means"]
    ]
    heads = [f"at equal {one['metric']} ({one['bins']} bins), %" for one in found["weighted"]]
    yield from table(
        ["space", "mean depth (of 1,000 draws)", "rank correlation of depth and error",
         "mean error, %", f"at {found['depth']:.1f} blocks, %", *heads],
        rows,
    )  # fmt: skip
    yield ""
    yield (
        f"Depth explains {100 * found['explained_by_depth']:.0f} % of the variance of errors, the "
        f"space {100 * found['explained_by_space']:.0f} %, and both together "
        f"{100 * found['explained_with_depth']:.0f} %."
    )


def order_power(document: Document) -> Iterator[str]:
    """What the study cannot show."""
    found = document["complexity"]
    least = found["detectable"]
    yield (
        f"With {found['fewest']} networks of each space, a difference of {least:.1f} points "
        "would be seen in four of five studies before the correction for several comparisons, and "
        "smaller ones more rarely."
    )


def order_pairs(document: Document) -> Iterator[str]:
    """Spaces of a study against each other."""
    rows = []
    for pair in document["pairs"]:
        found = pair["comparison"]
        rows.append(
            [
                f"`{pair['first']}` - `{pair['second']}`",
                f"{found['difference']:+.1f}",
                f"{found['low']:+.1f} to {found['high']:+.1f}",
                f"{found['p_value']:.4f}",
                f"{found['ks']:.2f}",
                found["verdict"],
            ]
        )
    yield from table(["", "mean errors differ by", "95 %", "p", "KS", "the first is"], rows)


def order_best(document: Document) -> Iterator[str]:
    """What the best networks of each space have in common, by the bootstrap."""
    spaces = document["spaces"]
    rows = []
    for metric in ("d", "wm", "wa", "w0", "b", "g", "w3", "d3"):
        cells = [
            f"{best['median']:.3g} ({best['low']:.3g} to {best['high']:.3g}); "
            f"{found['correlation'][metric]:+.2f}"
            if (best := found["best"].get(metric))
            else ""
            for found in spaces.values()
        ]
        rows.append([metric, *cells])
    yield from table(["", *(f"`{name}`" for name in spaces)], rows)


def principles(document: Document) -> Iterator[str]:
    """The paper's statements, its numbers, ours, and the verdicts."""
    rows = []
    for found in document["findings"]:
        sign = "" if found["expects"] == "value" else "+"
        drawn = found["drawn"]
        rows.append(
            [
                f"{found['statement']}, {found['source']}",
                " and ".join(map(str, found["networks"])),
                "" if found["paper"] is None else f"{found['paper']:{sign}.1f}",
                "" if found["ours"] is None else finding(found),
                "" if found["p_value"] is None else f"{found['p_value']:.3f}",
                interval(*found["at_own_depth"]) if found["at_own_depth"] else "",
                interval(*found["at_equal_depth"]) if found["at_equal_depth"] else "",
                interval(*drawn, "") if drawn else "",
                found["verdict"],
            ]
        )
    yield from table(
        ["the paper's statement, or what follows from it", "networks", "paper", "here (95 %)", "p",
         "at each space's mean depth (95 %)", "at equal depth (95 %)", "of all networks (95 %)",
         "verdict"],
        rows,
    )  # fmt: skip
    yield ""
    yield (
        "Differences are points of mean error. "
        f"{sum(document['networks'].values())} networks were trained and {document['failed']} "
        f"failed; {document['repeated'] or 'none'} were trained again with another seed. They took "
        f"{document['hours']:.0f} hours of one core, which often did other work as well; the "
        f"median training took {document['minutes']:.1f} minutes. {document['finished'][:10]}."
    )


def study(document: Document) -> Iterator[str]:
    """What the study with four stages found, as a warning."""
    spaces = {k: found for k, found in document["spaces"].items() if k != "regnetx_refined"}
    means = ", ".join(f"{found['mean']:.1f} % (`{name}`)" for name, found in spaces.items())
    depth = spaces["regnetx"]["correlation"]["d4"]
    yield (
        f"{sum(found['models'] for found in spaces.values())} networks of {len(spaces)} spaces "
        f"were trained. Their mean errors were {means}, and could not be told apart. In RegNetX "
        f"the rank correlation of the error with the depth of the last stage was {depth:+.2f}. "
        f"{document['finished'][:10]}; the data are in `benchmarks/results/study.parquet`."
    )


def reproduce(document: Document) -> Iterator[str]:
    """What the experiments of the paper cost."""
    rows = [
        [
            f"{each['figures']}: {each['what']}",
            f"{each['networks']:,}",
            str(each["epochs"]),
            f"{each['gpu_hours']:,.0f}",
            f"{each['gpu_hours'] / 64 / 24:,.1f}",
        ]
        for each in document["experiments"]
    ]
    columns = ["figure or table", "networks", "epochs", "GPU hours", "days on 64 GPUs"]
    yield from table(columns, rows)
    yield ""
    yield (
        f"Hours of one {document['gpu']}, computed from {document['source']}; all rows together "
        f"take {document['gpu_hours']:,.0f}."
    )


TABLES: Tables = {
    "order/analysis.json": (order, order_line, order_pairs, order_best),
    "order/principles.json": (order_summary, order_complexity, order_power, principles),
    "study.json": (study,),
    "reproduce.json": (reproduce,),
}
