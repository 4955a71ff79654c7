"""Tables about the speed of engines, on CPUs and on GPUs."""

import statistics
from collections.abc import Iterator

from .markdown import Document, Tables, origin, table


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


TABLES: Tables = {
    "cpu_peers.json": (cpu_peers,),
    "race.json": (race,),
    "race_16.json": (race_16,),
    "int8.json": (int8,),
    "streams.json": (streams,),
    "predict.json": (predict,),
    "fused.json": (fused,),
    "gpu_resources.json": (gpu_resources,),
    "gpu/headline.json": (gpu_headline, gpu_line),
}
