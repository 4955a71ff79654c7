"""Measure how fast a collection is predicted, compared with decoding and the engine alone; JSON.

    python benchmarks/predict.py --photos photos/ --cifar cifar10/ --out predict.json

- throughput: images per second of decoding alone (d), of the engine alone (e) and of both (p), in
  alternation, each with one process per core; the goal is p >= 0.9 / (1/d + 1/e)
- streams: `optimize(goal="throughput")` with and without streams, in alternation (A B B A)
- memory: memory of all processes while the embedded network predicts 100,000 images

Parts that are already in --out are not measured again.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch

import regnet
from regnet.atomic import write_bytes
from regnet.data.collection import chunks
from regnet.devices import core_count
from regnet.engines import optimize
from regnet.executors import Died, ProcessPool
from regnet.machine import environment
from regnet.prediction import part as parts
from regnet.prediction.collection import BATCH_SIZE, predict_collection
from regnet.prediction.part import Facts, Part, Question, look_at, predict_part
from regnet.timing import compare

CPU = torch.device("cpu")
MODEL = "regnetx_004"
Kind = Literal["decode", "engine", "both"]
ROUNDS = 5
PART = 96
"""Images per part. The parts are small, so that all processes finish at about the same time."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part of the collection, and whether to decode it, run the engine on it, or both."""

    kind: Kind
    part: Part


def work(step: Step, device: str) -> tuple[float, float, int]:
    """Do a step; return its start time, its end time, and its number of images."""
    part, question = step.part, step.part.question
    runner, look, _ = parts._opened(
        question, part.facts.engine, part.facts.streams, part.facts.weights, device
    )
    start = time.monotonic()
    if step.kind == "both":
        predict_part(part, device)
    elif step.kind == "decode":
        for index in range(len(part.chunk)):
            look(part.chunk.open(index))
    else:
        batch = torch.randn(question.batch_size, 3, *look.size)
        with torch.inference_mode():
            for _ in range(0, len(part.chunk), question.batch_size):
                runner(batch)
    return start, time.monotonic(), len(part.chunk)


def rate(kind: Kind, work_parts: list[Part]) -> float:
    """Return the images per second of all processes together, without their warm-up steps."""
    warm = [Step(kind=kind, part=part) for part in work_parts[: 2 * core_count()]]
    rest = [Step(kind=kind, part=part) for part in work_parts]
    found = [row for _, row in ProcessPool(threads=1).run(work, iter([*warm, *rest]))]
    counted = [row for row in found[len(warm) :] if not isinstance(row, Died)]
    seconds = max(end for _, end, _ in counted) - min(start for start, _, _ in counted)
    return sum(count for *_, count in counted) / seconds


def throughput(photos: Path, folder: Path) -> dict[str, Any]:
    """Measure the throughput of decoder, engine and both, in alternation."""
    regnet.create(MODEL).save_pretrained(folder / "model")
    many, places = folder / "many", sorted(p for p in photos.rglob("*") if p.is_file())
    many.mkdir()
    for number in range(8 * PART * core_count()):
        (many / f"{number:05d}.jpg").symlink_to(places[number % len(places)].absolute())
    question = Question(
        model=str(folder / "model"), features=False, half=False, topk=None, engine="auto",
        precision="fp32", batch_size=BATCH_SIZE, trust=False,
    )  # fmt: skip
    [(_, facts)] = ProcessPool(1, threads=1).run(look_at, iter([question]))
    assert isinstance(facts, Facts)
    work_parts = [
        Part(number=n, chunk=chunk, question=question, facts=facts, file=folder / f"{n}.parquet")
        for n, chunk in enumerate(chunks([str(many)], PART))
    ]
    rows: list[dict[str, float]] = []
    kinds: tuple[Kind, ...] = ("decode", "engine", "both")
    for number in range(ROUNDS):
        order = kinds if number % 2 else kinds[::-1]
        found: dict[str, float] = {kind: rate(kind, work_parts) for kind in order}
        best = 1 / (1 / found["decode"] + 1 / found["engine"])
        rows.append({**found, "share": found["both"] / best})
        print(json.dumps(rows[-1]), flush=True)
    return {
        "model": MODEL, "engine": facts.engine, "processes": core_count(), "rounds": rows,
        "share": statistics.median(row["share"] for row in rows),
    }  # fmt: skip


def streams() -> dict[str, Any]:
    """Compare the throughput with and without streams, in alternation."""
    model = regnet.create(MODEL).eval()
    fast = regnet.optimize(model, goal="throughput", refresh=True, progress=False)
    with mock.patch.object(optimize, "STREAMS", ()):
        plain = regnet.optimize(model, goal="throughput", refresh=True, progress=False)
    inputs = [torch.randn(64, 3, 224, 224) for _ in range(2)]
    found = compare(
        lambda x: list(fast.map(x.split(16))), lambda x: list(plain.map(x.split(16))), inputs,
        pairs=20, seconds=30.0,
    )  # fmt: skip
    return {
        "model": MODEL, "winner": str(fast.report.winner), "without": str(plain.report.winner),
        "gain": found.median, "interval": [found.low, found.high], "problem": found.problem,
        "report": str(fast.report).splitlines(),
    }  # fmt: skip


def memory(cifar: Path, folder: Path) -> dict[str, Any]:
    """Measure the memory of all processes after each tenth of 100,000 images."""
    files = [str(path) for path in sorted(cifar.rglob("*.parquet"))]
    rows: list[dict[str, float]] = []

    def step(what: str, done: int, total: int) -> None:
        if what == "predicting" and 10 * done // total > len(rows):
            rows.append({"images": done, "mb": sum(_private()) / 1e6})
            print(json.dumps(rows[-1]), flush=True)

    found = predict_collection([*files, *files][:4], folder / "out.parquet", on_images=step)
    return {"images": found.images, "seconds": round(found.seconds, 1), "rows": rows}


def _private() -> Iterator[int]:
    """Yield the memory of this process and of each child in bytes, with shared pages divided up."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            if int(place.name) == os.getpid() or int(fields[1]) == os.getpid():
                text = (place / "smaps_rollup").read_text()
                yield next(1024 * int(line.split()[1]) for line in text.splitlines()
                           if line.startswith("Pss:"))  # fmt: skip
        except OSError:
            continue


def main() -> None:
    """Measure the parts that are missing, and write the document after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    document: dict[str, Any] = {"environment": environment(CPU)}
    if args.out.exists():
        document |= json.loads(args.out.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as name:
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "throughput": lambda: throughput(args.photos, Path(name)),
            "streams": streams,
            "memory": lambda: memory(args.cifar, Path(name)),
        }
        for what, measured in ways.items():
            if what not in document:
                document[what] = measured()
                print(json.dumps({what: document[what]}), flush=True)
                write_bytes(args.out, json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
