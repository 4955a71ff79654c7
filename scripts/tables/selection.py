"""Tables about how networks are chosen and searched."""

import json
from collections.abc import Iterator

from regnet.design.config import RegNetConfig, config_from_dict
from regnet.timing import Comparison

from .markdown import RESULTS, ROOT, Document, Tables, origin, table


def _with(judged: Document, which: str) -> str:
    """A network with its accuracy and milliseconds."""
    if not judged[which]:
        return "none"
    ms, top1 = judged[f"{which}_ms"], judged[f"{which}_top1"]
    return f"{judged[which]} ({top1:.2f} %, {ms:.1f} ms)"


def choose(document: Document) -> Iterator[str]:
    """What `regnet choose` took, and whether it was right."""
    rows = []
    for question, judged in zip(document["questions"], document["answers"], strict=True):
        rows.append(
            [
                f"{question['limit_ms']:g} ms",
                f"{question['seconds']:.0f}",
                f"{question['measured']}",
                f"{question['again_seconds'] - question['import_torch_seconds']:.1f}",
                _with(judged, "chosen"),
                _with(judged, "best"),
            ]
        )
    header = ["limit", "time, s", "measured", "second call, s", "pick of `choose`", "best of all"]
    yield from table(header, rows)
    yield ""
    errors = ", ".join(
        f"{engine} {row['median']:.0%}" for engine, row in document["prediction_errors"].items()
    )
    busy = f" {document['problem']}." if document["problem"] else ""
    yield (
        f"Offline. All {document['networks']} networks were measured afterwards, in "
        f'{document["exhaustive_seconds"]:.0f} s; "best of all" is the best of them. "Measured" is '
        "the number of networks that `choose` measured. The second call is timed without "
        "`import torch`. The "
        f"median error of the prediction for networks that were not measured is {errors}.{busy} "
        f"{origin(document)}."
    )


def search(document: Document) -> Iterator[str]:
    """What a search found, and what it found when flops alone stood for quality."""
    before = json.loads((RESULTS / "search_before.json").read_text(encoding="utf-8"))
    found = [("found", document["best"]), ("found by flops alone", before["best"])]
    others = [(row["name"], row) for row in document["published"]]
    rows = []
    for name, row in (*found, *others):
        config = config_from_dict(row["config"])
        assert isinstance(config, RegNetConfig)
        rows.append(
            [
                name,
                f"{row['flops'] / 1e6:.0f}",
                f"{row['worth'] / 1e6:.0f}" if "worth" in row else "",
                f"{row['params'] / 1e6:.2f}",
                f"{row['activations'] / 1e6:.2f}",
                f"{row['latency_ms']:.2f}",
                str(config.depth),
                f"{config.wm:.2f}",
                f"{config.depths[-1]} x {config.widths[-1]}",
            ]
        )
    header = ["", "flops, M", "worth, M", "params, M", "activations, M", "ms", "blocks", "w_m"]
    yield from table([*header, "last stage"], rows)
    yield ""
    against = document["against_rival"]
    verdict = Comparison(**against).verdict("the one found", document["rival"])
    yield (
        f"{document['engine']} {document['precision']}, batch {document['batch_size']}. Before the "
        "network found was measured, it was predicted to take "
        f'{document["best"]["predicted_ms"] or 0:.2f} ms. "Worth" is the flops of an ordinary '
        "published network that is predicted to be as good. Timed in alternation, "
        f"{document['rival']} takes {against['median']:.2f} times as long as the network found "
        f"(95 % interval {against['low']:.2f} to {against['high']:.2f}; a network against itself "
        f"gave {against['control_low']:.2f} to {against['control_high']:.2f}): {verdict}. "
        f"The model of latency was off by {document['fit_error']:.1%} on networks left out of its "
        f"fit, and by {document['prediction_error']:.1%} on finalists (medians). "
        f"{origin(document)}."
    )


def search_data(document: Document) -> Iterator[str]:
    """A search with images: the last round, and the pick beside the best published network."""
    front = [row["name"] for row in document["front"]]
    rows = [
        [
            f"{row['name']}{' (front)' if row['name'] in front else ''}",
            f"{row['error']:.2f}",
            f"{row['latency_ms']:.2f} ({row['low_ms']:.2f} to {row['high_ms']:.2f})",
            f"{row['flops'] / 1e6:.1f}",
            f"{row['params'] / 1e6:.2f}",
            ", ".join(map(str, config_from_dict(row["config"]).depths)),
            ", ".join(map(str, config_from_dict(row["config"]).widths)),
        ]
        for row in document["trained"]
    ]
    yield from table(
        ["last round", "error, %", "ms (95 %)", "flops, M", "params, M", "blocks", "widths"], rows
    )
    found, conditions = document["against_rival"], document["conditions"]
    verdict = "no difference shown"
    if found["low"] > 0 or found["high"] < 0:
        verdict = "better" if found["points"] > 0 else "worse"
    yield ""
    yield (
        f"{document['pick']['name']} beside {document['rival']['name']}, the best published "
        f"network within the limit: {verdict}, {found['points']:+.1f} points (95 % "
        f"{found['low']:+.1f} to {found['high']:+.1f}). Their errors are "
        f"{found['pick_error']:.2f} and {found['rival_error']:.2f} %, from {found['replicas']} "
        "trainings each with new seeds, which were used to select neither. The standard deviation "
        f"between seeds is {document['seed_deviation']:.2f} points. "
        f"{document['candidates']} candidates; {conditions['engine']} {conditions['precision']}, "
        f"batch {conditions['batch_size']}, {conditions['image_size']} pixels. "
        f"{origin(conditions)}."
    )


def prior(document: Document) -> Iterator[str]:
    """How well the prior of the search ranks what it was not fitted to."""
    evidence = document["evidence"]
    networks = evidence["left_out_network_by_space"]
    spaces = evidence["left_out_space_by_space"]
    rows = [[f"`{name}`", f"{networks[name]:.2f}", f"{spaces[name]:.2f}"] for name in networks]
    rows.append(
        ["mean", f"{evidence['left_out_network']:.2f}", f"{evidence['left_out_space']:.2f}"]
    )
    yield from table(["space", "leave one network out", "leave one space out"], rows)
    yield ""
    known = evidence["published"]
    yield (
        f"Rank correlation of predictions with errors; {evidence['networks']} networks of "
        f"{evidence['images']}, {evidence['flops']}, {evidence['date']}. For "
        f"{len(known['networks'])} published RegNetX on ImageNet, the rank correlation with the "
        f"error that their flops do not explain is {known['rank_correlation']:.2f}. The effects of "
        f"the prior are multiplied by {known['scale']:.2f}, so that they spread as that error does."
    )


TABLES: Tables = {
    "choose.json": (choose,),
    "search.json": (search,),
    "search_data.json": (search_data,),
    ROOT / "src/regnet/selection/prior.json": (prior,),
}
