"""Write the tables of the documentation from the files that benchmarks wrote.

    python scripts/write_tables.py [--check]

A table stands between `<!-- table NAME -->` and `<!-- end -->`, and is made from
benchmarks/results/NAME.json, or from that of NAME's first word. --check changes nothing, and fails
if a table is not that of its file.
"""

import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from regnet.bench.document import read
from regnet.bench.networks import PAPER_ERRORS
from regnet.design.complexity import complexity
from regnet.design.config import RegNetConfig, config_from_dict
from regnet.design.variants import VARIANTS
from regnet.spaces import find_space
from regnet.timing import Comparison
from regnet.weights.catalog import default_checkpoint

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
ELSEWHERE = {
    "prior": ROOT / "src/regnet/selection/prior.json",
    "order": RESULTS / "order/analysis.json",
    "order_line": RESULTS / "order/analysis.json",
    "order_summary": RESULTS / "order/principles.json",
    "order_complexity": RESULTS / "order/principles.json",
    "order_power": RESULTS / "order/principles.json",
    "order_pairs": RESULTS / "order/analysis.json",
    "order_best": RESULTS / "order/analysis.json",
    "principles": RESULTS / "order/principles.json",
    "gpu_headline": RESULTS / "gpu/headline.json",
    "gpu_line": RESULTS / "gpu/headline.json",
}
PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Document = Mapping[str, Any]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Markdown; the first column left, numbers right."""
    yield f"| {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * (len(columns) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def origin(document: Document) -> str:
    """Date, hardware and versions, in one line."""
    facts = document["environment"]
    versions = ", ".join(
        f"{name} {facts['packages'][name].partition('+')[0]}"
        for name in ("torch", "onnxruntime", "openvino", "nncf", "torchao")
        if name in facts["packages"]
    )
    flags = " ".join(flag for flag in facts["cpu"].get("flags", ()) if flag != "avx2")
    return (
        f"{facts['date'][:10]}, {facts['device']}, {facts['threads']} threads ({flags}), {versions}"
    )


def cpu_peers(document: Document) -> Iterator[str]:
    """`optimize` against each runtime by hand."""
    labels = list(document["rows"][0]["against"])
    rows = []
    for row in document["rows"]:
        against = [row["against"].get(label) for label in labels]
        rows.append(
            [
                f"{row['model']}, batch {row['batch_size']}, {row['allowed']} allowed",
                row["winner"],
                *("" if found is None else f"{found['ratio']:.2f}" for found in against),
                f"{row['native']}: {1 / row['without_openvino']['ratio']:.2f}",
            ]
        )
    yield from table(["", "chosen", *labels, "without OpenVINO"], rows)
    yield ""
    yield (
        "Each number is the time of a runtime divided by that of `regnet.optimize`. The last "
        "column shows the fastest engine that needs only PyTorch, and its time divided by "
        "OpenVINO's. "
        f"{origin(document)}."
    )


def fused(document: Document) -> Iterator[str]:
    """The engine of own kernels against the library's."""
    others = {"cuda_graph": "library", "padded_cuda_graph": "library, padded"}
    rows = []
    for row in document["rows"]:
        found = [row["against"].get(name) for name in others]
        rows.append(
            [
                f"{row['model']}, batch {row['batch_size']}",
                f"{row['ms']:.2f}",
                f"{row['images_per_second']:,.0f}",
                f"{row['floor_ms'] / row['ms']:.0%}",
                *(f"{f['ratio']:.2f} ({f['low']:.2f}-{f['high']:.2f})" if f else "" for f in found),
            ]
        )
    yield from table(["", "ms", "images/s", "share of the floor", *others.values()], rows)
    yield ""
    yield (
        f"{document['precision']}, 224 pixels, in CUDA graphs. The last columns are the library's "
        "time divided by that of our own kernels, with 95 % intervals. The floor is computed from "
        f"{document['bytes_per_second'] / 1e12:.2f} TB/s and "
        f"{document['flops_per_second'] / 1e12:.0f} TFLOP/s. {origin(document)}."
    )


def int8(document: Document) -> Iterator[str]:
    """Agreement, accuracy and speed of int8, with bounds and without."""
    forms = {"openvino": "OpenVINO (NNCF)", "torch": "PyTorch (torchao)"}
    rows = []
    for row in document["rows"]:
        start = [row["network"], forms[row["format"]], f"{row['bound']:.0%}"]
        if "refused" in row:
            rows.append([*start, "not written", "", "", ""])
            continue
        ratio = row["times_as_fast_as_fp32"]
        rows.append(
            [
                *start,
                f"{row['agreement']:.1%}",
                f"{row['top1']:.2f}",
                str(row["export"]["layers_in_float"]),
                f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})",
            ]
        )
    yield from table(
        ["network", "int8 of", "`min_agreement`", "same class as fp32", "top-1, %",
         "layers in float", "times as fast as fp32"],
        rows,
    )  # fmt: skip
    yield ""
    yield (
        f"`{document['model']}` on {document['images']:,} test images of CIFAR-10, in batches of "
        f'100. The top-1 accuracy of fp32 is {document["top1_fp32"]:.2f} %. "One large channel" '
        "is the same function, in which one channel is so large that few of the 256 values remain "
        f"for the others. {origin(document)}."
    )


def streams(document: Document) -> Iterator[str]:
    """What a stream per core gains, by the images that it takes at once."""
    names = {"onnx_runtime": "ONNX Runtime", "openvino": "OpenVINO"}
    rows = [
        [
            names[row["engine"]],
            str(row["piece"]),
            f"{row['times_as_fast']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
        ]
        for row in document["rows"]
    ]
    yield from table(["engine", "images per stream", "times as fast as no streams"], rows)
    yield ""
    yield (
        f"{document['model']}, batches of {document['batch']}, {document['streams']} streams; "
        f"95 % intervals in brackets. {origin(document)}."
    )


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


def race(document: Document) -> Iterator[str]:
    """The race and the exhaustive one."""
    rows = []
    for row in document["rows"]:
        low, high = row["interval"]
        rows.append(
            [
                f"{row['model']}, batch {row['batch_size']}",
                f"{row['seconds']:.0f}",
                f"{row['exhaustive_seconds']:.0f}",
                row["winner"],
                row["exhaustive_winner"],
                f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})" + ("*" if row["problem"] else ""),
            ]
        )
    header = ["", "seconds", "exhaustive", "winner", "exhaustive", "time over the other's (95 %)"]
    yield from table(header, rows)
    yield ""
    busy = any(row["problem"] for row in document["rows"])
    yield f"{origin(document)}.{' An asterisk means that the machine was busy.' if busy else ''}"


def race_16(document: Document) -> Iterator[str]:
    """The same for batches of 16."""
    return race(document)


def finetune(document: Document) -> Iterator[str]:
    """The recipe against others."""
    ways = list(dict.fromkeys(row["way"] for row in document["rows"]))
    rows = []
    for name in dict.fromkeys(row["set"] for row in document["rows"]):
        cells = []
        for way in ways:
            runs = [r["top1"] for r in document["rows"] if (r["set"], r["way"]) == (name, way)]
            cell = f"{sum(runs) / len(runs):.1f}"
            for found in document["differences"]:
                if (found["set"], found["over"]) == (name, way):
                    cell += (
                        f" ({found['points']:+.1f}; {found['low']:+.1f} to {found['high']:+.1f})"
                    )
            cells.append(cell)
        rows.append([name, *cells])
    yield from table(["top-1, %", *ways], rows)
    yield ""
    seeds = len({row["seed"] for row in document["rows"]})
    yield (
        f"Means of {seeds} seeds. shapes: synthetic images of six classes; photos: real photos of "
        "many objects, divided into two arbitrary classes (chance: 50 %). The brackets show by how "
        f"many points `finetune` is better, with the 95 % interval of paired differences. "
        f"{origin(document)}."
    )


def predict(document: Document) -> Iterator[str]:
    """A collection: decoder, engine, both; streams; memory."""
    found = document["throughput"]
    rows = found["rounds"]
    names = {"decode": "decoding alone", "engine": "the engine alone", "both": "a collection"}
    yield from table(
        ["images/s, median", *names.values(), "share of the sequential limit"],
        [
            [
                f"{found['model']}, {found['engine']}, {found['processes']} processes",
                *(f"{statistics.median(row[kind] for row in rows):.0f}" for kind in names),
                f"{found['share']:.2f}",
            ]
        ],
    )
    yield ""
    gain, (low, high) = document["streams"]["gain"], document["streams"]["interval"]
    memory = document["memory"]
    megabytes = [row["mb"] for row in memory["rows"]]
    busy = f" ({document['streams']['problem']})" if document["streams"]["problem"] else ""
    yield (
        f'`optimize(goal="throughput")` of {document["streams"]["model"]} chose '
        f"{document['streams']['winner']}, which ran at {gain:.2f} times the speed of the engine "
        f"chosen without streams (95 % {low:.2f} to {high:.2f}){busy}. While regnety_cifar "
        f"predicted {memory['images']:,} images, all processes together took "
        f"{min(megabytes):,.0f} to {max(megabytes):,.0f} MB of memory. {origin(document)}."
    )


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


def families(document: Document) -> Iterator[str]:
    """The paper's comparison in miniature."""
    rows = []
    for network in document["networks"]:
        found = [r["top1"] for r in document["runs"] if r["family"] == network["family"]]
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        rows.append(
            [
                network["family"],
                f"{network['flops'] / 1e6:.1f}",
                f"{network['params'] / 1e6:.2f}",
                f"{network['activations'] / 1e6:.3f}",
                *(f"{ms:.2f}" for ms in network["latency_ms"].values()),
                f"{statistics.mean(found):.2f}{spread}",
                f"{len(found)}",
            ]
        )
    batches = [f"ms, batch {batch}" for batch in document["networks"][0]["latency_ms"]]
    yield from table(
        ["", "flops, M", "params, M", "activations, M", *batches, "top-1, %", "seeds"], rows
    )
    yield ""
    yield (
        f"{document['recipe']['epochs']} epochs of CIFAR-10 (JPEG); mean ± standard deviation "
        f"over seeds; latency in float32 on eager PyTorch with folded norms. {origin(document)}."
    )


def train(document: Document) -> Iterator[str]:
    """Training throughput beside a textbook's loop."""
    rows = [
        [name, f"{speed:.0f}", f"{document['over_textbook'][name]:.2f}"]
        for name, speed in document["images_per_second"].items()
    ]
    yield from table(["loop", "images/s", "over the textbook's"], rows)
    yield ""
    yield (
        f"{document['model']} on CIFAR-10, batches of {document['batch_size']}. {origin(document)}."
    )


def sampling(document: Document) -> Iterator[str]:
    """How long it takes to sample a population."""
    rows = [
        [f"`{name}`", f"{document['combinations'][name]:.1e}", f"{1e3 * seconds:.0f}"]
        for name, seconds in document["median_seconds"].items()
    ]
    yield from table(["space", "combinations", "ms to sample"], rows)
    yield ""
    flops = document["flops"] / 1e6
    yield (
        f"{document['networks']} networks of {0.9 * flops:.0f} to {flops:.0f} million "
        f"multiply-adds, on one core. {origin(document)}."
    )


def population(document: Document) -> Iterator[str]:
    """What would make populations train faster on a CPU."""
    rows = []
    for change, median in document["medians"].items():
        ratios = [row[change] for row in document["rows"] if change in row]
        first = statistics.median(
            row[f"{change}, first"] for row in document["rows"] if change in row
        )
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([change, f"{median:.2f}", spread, str(len(ratios)), f"{first:.1f}"])
    yield from table(
        ["change", "times as fast, median", "over networks", "networks", "first 3 steps, s"], rows
    )
    yield ""
    yield (
        "Random networks of AnyNetX_A and RegNetX with three stages, 3.6 to 4.0 million "
        "multiply-adds at 32 pixels, batch 128, one thread, timed with and without the change in "
        f"alternation. Without it, training reached {document['images_per_second']:.0f} images/s "
        f"(median). {origin(document)}."
    )


EPOCH: Final = {"CIFAR-10, 20,000 images": (20_000, 3.8e6), "ImageNet": (1_281_167, 400e6)}
"""Images of an epoch, and multiply-adds of a network, of studies whose cost is told."""


def population_cost(document: Document) -> Iterator[str]:
    """How long studies take on CPUs, from the speed that was measured."""
    speed = document["images_per_second"]
    first = "torch.compile, first"
    compiling = statistics.median(row[first] for row in document["rows"] if first in row)
    network = 8 * 20_000 / speed
    yield (
        f"Eight epochs of 20,000 images take {network:.0f} s. `torch.compile` would save "
        f"{network * (1 - 1 / document['medians']['torch.compile']):.0f} s of them, and compiling "
        f"a network takes {compiling:.0f} s even from a warm cache, so we left it out. More "
        "machines do help: networks are independent of each other, and `--executor ray` gives one "
        "to each free core."
    )
    yield ""
    measured = EPOCH["CIFAR-10, 20,000 images"][1]
    rows = []
    for name, models, epochs in (
        ("CIFAR-10, 20,000 images", 64, 8),
        ("CIFAR-10, 20,000 images", 500, 8),
        ("ImageNet", 500, 10),
    ):
        images, flops = EPOCH[name]
        hours = 6 * models * epochs * images / (speed * measured / flops) / 3600
        rows.append(
            [
                f"6 spaces of {models} networks, {epochs} epochs of {name}",
                f"{flops / 1e6:.3g}",
                f"{hours:,.0f}",
                *(f"{hours / cores:,.1f}" for cores in (64, 640)),
            ]
        )
    yield from table(
        ["study", "multiply-adds, M", "hours on one core", "on 64 cores", "on 640 cores"], rows
    )
    yield ""
    yield (
        f"Computed from {speed:.0f} images/s of a core at {measured / 1e6:.1f} million "
        "multiply-adds, as measured above, in proportion to the multiply-adds. The last row has "
        "the paper's size, for which you would use GPUs."
    )


def gpu_resources(document: Document) -> Iterator[str]:
    """Registers, shared memory, spills and waits of old and new kernels."""
    rows = []
    layers: dict[tuple[str, str], list[Document]] = {}
    for row in document["rows"]:
        if row["model"] == document["networks"][0]["model"]:
            layers.setdefault((row["kernel"], row["layer"]), []).append(row)
    changed = [found for found in layers.values() if any(row["new"] for row in found)]
    changed.sort(key=lambda found: -found[0]["times"] * min(r["predicted_ms"] for r in found))
    for found in changed[:8]:
        for row in sorted(found, key=lambda row: row["new"]):
            numbers = (
                row["registers"], row["shared"] // 1024, row["spills"], row["waits"],
                row["blocks"], round(1e3 * row["predicted_ms"]),
            )  # fmt: skip
            way = f"{'new' if row['new'] else 'old'}: `{row['way'].strip('_')}`"
            rows += [[f"{row['kernel']} {row['layer']}", way, *map(str, numbers)]]
    yield from table(
        ["layer", "way", "registers", "shared, KB", "spills", "waits", "blocks per processor",
         "predicted, µs"],
        rows,
    )  # fmt: skip
    yield ""
    totals = "; ".join(
        f"{row['model']} {row['old_ms']:.2f} ms with the old ways and {row['all_ms']:.2f} with all"
        for row in document["networks"]
    )
    yield (
        f"Compiled for sm_90 without a GPU, batch {document['batch_size']}, fp16, 224 pixels. "
        f"The sums over all kernels are predicted, not measured: {totals}. "
        f"Triton {document['environment']['packages']['triton']}, "
        f"{document['environment']['date'][:10]}."
    )


def gpu_headline(document: Document) -> Iterator[str]:
    """RegNets by own kernels against timm's and against EfficientNets."""
    ours = {
        (row["model"], row["batch_size"]): row
        for row in document["rows"]
        if "rival" not in row and "reason" not in row
    }
    best: dict[tuple[str, int, str], Document] = {}
    for row in document["rows"]:
        if "ratio" in row:
            mode = "eager" if row["mode"] == "eager" else "compiled"
            name = row["rival"] if row["rival"] != row["model"] else f"timm, {mode}"
            three = row["model"], row["batch_size"], name
            if three not in best or row["ratio"] < best[three]["ratio"]:
                best[three] = row
    rows = []
    for (model, batch), row in ours.items():
        share = row["floor_ms"] / row["ms"]
        rows.append(
            [
                f"{model}, batch {batch}", f"{row['ms']:.2f}", f"{row['images_per_second']:,.0f}",
                f"{share:.0%}",
                "; ".join(
                    f"{name} {found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"
                    for (m, b, name), found in best.items()
                    if (m, b) == (model, batch)
                ),
            ]
        )  # fmt: skip
    yield from table(
        ["", "ms", "images/s", "share of the floor", "time of rivals over it, 95 %"], rows
    )
    yield ""
    yield (
        f"{document['precision']}, 224 pixels (EfficientNets at their own sizes). Each rival has "
        f"the fastest layout and mode that was measured for it. {origin(document)}."
    )


def gpu_line(document: Document) -> Iterator[str]:
    """The headline in a sentence, for the README."""
    rows = [row for row in document["rows"] if "ratio" in row and row["batch_size"] == 256]
    for row in rows[:1]:
        rival = "timm's" if row["rival"] == row["model"] else row["rival"]
        yield (
            f"On one {document['environment']['device']}, {row['model']} by our own kernels: "
            f"{rival} ({row['mode']}) takes {row['ratio']:.2f} times as long (95 % "
            f"{row['low']:.2f} to "
            f"{row['high']:.2f}; batch 256, half precision; [all](docs/benchmark.md))."
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
    yield f"{order_setting(document)}. Best of 8: mean over random draws of 8 networks."


def order_plan() -> Document:
    """The description of the study, with the networks that it will have."""
    plan: Document = json.loads((RESULTS / "order/study.json").read_text(encoding="utf-8"))
    return plan


def order_setting(document: Document) -> str:
    """What was trained, on what, until when."""
    plan = order_plan()
    done = sum(found["models"] + found["failed"] for found in document["spaces"].values())
    low, high = plan["spaces"][0]["limits"]["flops"]
    recipe = plan["recipe"]
    return (
        f"{done} of {len(plan['spaces']) * plan['models']} networks, {low / 1e6:.1f} to "
        f"{high / 1e6:.1f} million multiply-adds at 32 pixels, {recipe['epochs']} epochs of "
        f"{plan['train_images']:,} images of CIFAR-10 (JPEG), tested on {plan['val_images']:,}. "
        f"{document['finished'][:10]}, {'; '.join(document['machines'])}"
    )


def order_line(document: Document) -> Iterator[str]:
    """The study in a sentence or two."""
    spaces, plan = document["spaces"], order_plan()
    first, *_, last = spaces
    [pair] = [p for p in document["pairs"] if (p["first"], p["second"]) == (last, first)]
    found = pair["comparison"]
    what = {"better": "lower than", "worse": "higher than"}.get(
        found["verdict"], "not told apart from"
    )
    done, all_of_them = sum(x["models"] for x in spaces.values()), len(spaces) * plan["models"]
    yield (
        f"So far {done} of {all_of_them} networks of six design spaces are trained on "
        f"CIFAR-10. RegNetX has a mean error of {spaces[last]['mean']:.1f} %, {what} the "
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
        f"{done} of {len(plan['spaces']) * plan['models']} networks of the six spaces are trained"
        + (f", and {further} that test one principle each" if further else "")
        + ". So far [the study](docs/study-cifar.md) finds (points of mean error, or "
        'values, with 95 % intervals; "at equal depth": adjusted for the number of blocks):'
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
            f"{found['depths'][name]:.1f}",
            f"{found['correlation'][name]:+.2f}",
            f"{found['means'][name]:.1f}",
            f"{found['at_equal_depth'][name]:.1f}",
            *(f"{one['means'][name]:.1f}" for one in found["weighted"]),
        ]
        for name in found["means"]
    ]
    heads = [f"at equal {one['metric']} ({one['bins']} bins), %" for one in found["weighted"]]
    yield from table(
        ["space", "mean depth", "rank correlation of depth and error", "mean error, %",
         f"at {found['depth']:.1f} blocks, %", *heads],
        rows,
    )  # fmt: skip
    yield ""
    yield (
        f"Which space a network is from explains {100 * found['explained_by_space']:.0f} % of the "
        "variance of errors; space and depth together explain "
        f"{100 * found['explained_with_depth']:.0f} %."
    )


def order_power(document: Document) -> Iterator[str]:
    """What the study cannot show."""
    least = document["complexity"]["detectable"]
    yield (
        f"With {order_plan()['models']} networks of each space, a difference of {least:.1f} points "
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
                interval(*found["at_equal_depth"]) if found["at_equal_depth"] else "",
                interval(*drawn, "") if drawn else "",
                found["verdict"],
            ]
        )
    yield from table(
        ["the paper's statement", "networks", "paper", "here (95 %)", "p", "at equal depth (95 %)",
         "of all networks (95 %)", "verdict"],
        rows,
    )  # fmt: skip
    yield ""
    yield (
        "Differences are points of mean error. "
        f"{sum(document['networks'].values())} networks were trained and {document['failed']} "
        f"failed. The median training took {document['minutes']:.1f} minutes on one of two cores "
        f"that did other work as well. {document['finished'][:10]}."
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


def zoo(document: Document) -> Iterator[str]:
    """Default weights of the networks measured, the most accurate at each latency."""
    measured = read(RESULTS / "zoo.json").latencies
    defaults = [
        (measured[name], row) for name in measured if (row := default_checkpoint(name)) is not None
    ]
    rows, best = [], 0.0
    for ms, row in sorted(defaults, key=lambda pair: pair[0]):
        if (row.top1 or 0) > best:
            best = row.top1 or 0
            cost = complexity(VARIANTS[row.variant].config, row.preprocess.size[0])
            if not 0.39e9 < cost.flops < 4e9:
                continue
            rows.append(
                [
                    f"`{row.id}`",
                    row.license_terms.name,
                    f"{row.top1:.2f}",
                    f"{cost.flops / 1e9:.2f}",
                    f"{cost.params / 1e6:.1f}",
                    f"{cost.activations / 1e6:.1f}",
                    f"{ms:.1f}",
                ]
            )
    yield from table(
        ["weights", "license", "top-1, %", "GFLOPs", "M params", "M activations", "ms"], rows
    )
    yield ""
    yield f"Top-1 as published. {zoo_origin(document)}"


def zoo_origin(document: Document) -> str:
    """What the milliseconds are."""
    engines = sorted({row["case"]["engine"] for row in document["rows"]})
    return (
        f"Milliseconds: median of a batch of one in float32, on the faster of "
        f"{' and '.join(engines)}. {origin(document)}."
    )


def zoo_note(document: Document) -> Iterator[str]:
    """The same, below the table of all weights."""
    yield zoo_origin(document)


def zoo_pairs(document: Document) -> Iterator[str]:
    """RegNets and the EfficientNets that the paper compares them with, in turn."""
    rows = [
        [
            f"`{pair['b']}` ({PAPER_ERRORS[pair['b']]} %) beside "
            f"`{pair['a']}` ({PAPER_ERRORS[pair['a']]} %)",
            pair["ran_b"],
            f"{pair['ratio']:.2f} ({pair['low']:.2f} to {pair['high']:.2f})",
            pair["verdict"].partition(",")[0],
        ]
        for pair in document["pairs"]
    ]
    yield from table(["RegNetY beside EfficientNet (paper's errors)", "engine", "speed", ""], rows)


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


TABLES: Mapping[str, Callable[[Document], Iterator[str]]] = {
    function.__name__: function
    for function in (
        cpu_peers,
        fused,
        int8,
        verdicts,
        claims,
        claims_line,
        race,
        race_16,
        finetune,
        predict,
        streams,
        choose,
        families,
        train,
        sampling,
        population,
        population_cost,
        gpu_resources,
        gpu_headline,
        gpu_line,
        search,
        search_data,
        prior,
        study,
        order,
        order_line,
        order_summary,
        order_complexity,
        order_power,
        order_pairs,
        order_best,
        principles,
        reproduce,
        zoo,
        zoo_note,
        zoo_pairs,
        walk,
        walk_choose,
        walk_bench,
        walk_study,
        checks,
        peers,
    )
}


def wrapped(lines: Iterator[str]) -> Iterator[str]:
    """The same lines; sentences below tables are wrapped as the pages are."""
    inside_code = False
    for line in lines:
        inside_code ^= line.startswith("```")
        if inside_code or line.startswith(("|", "#", "```")):
            yield line
        else:
            yield from textwrap.wrap(line, 100, break_long_words=False, break_on_hyphens=False) or [
                ""
            ]


def rendered(text: str) -> str:
    """The text with every table as its file has it."""

    def fill(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        path = ELSEWHERE.get(name, RESULTS / f"{name}.json")
        if not path.exists():
            path = RESULTS / f"{name.partition('_')[0]}.json"
        if not path.exists():  # not measured yet: the place stays empty
            return start + end
        document = json.loads(path.read_text(encoding="utf-8"))
        return start + "\n".join(wrapped(TABLES[name](document))) + "\n" + end

    return PLACE.sub(fill, text)


def main() -> None:
    """Write, or check."""
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            stale.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(after, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"not as the results say: {', '.join(stale)}; run scripts/write_tables.py")


if __name__ == "__main__":
    main()
