"""Predictions for a collection of any size: a Parquet file, a row per image.

    predict_collection(["photos/"], "predictions.parquet", "regnety_016.tv2_in1k")

The collection is cut into parts, which any executor works on; a part is a file that is written
whole. What was killed goes on with the parts that are missing.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import Any, Final

import torch

from regnet import digest, runfolder
from regnet.atomic import writing
from regnet.data.collection import Chunk, chunks
from regnet.data.layout import Split
from regnet.engines.base import Precision
from regnet.errors import ConfigError, DataError, ExecutorError, MissingExtraError
from regnet.executors import Died, Executor, ProcessPool
from regnet.machine import environment
from regnet.prediction.images import DEFAULT_MODEL
from regnet.prediction.part import (
    Facts,
    Part,
    Question,
    file_name,
    look_at,
    predict_part,
)
from regnet.zoo.resolver import is_exported

FILE: Final = "prediction.json"
"""What was begun in the folder of parts."""

KEY: Final = b"regnet"
"""Under which a Parquet file says what is in it."""

PART: Final = 512
"""Most images of a part; a kill loses what was done of the parts in work."""

GPU_PART: Final = 16_384

FEW: Final = 2_000
"""For fewer images "auto" takes the engine that is built at once: a race would take longer."""

BATCH_SIZE: Final = 16

GPU_BATCH_SIZE: Final = 256

GROUP: Final = 8_192
"""Rows of a group in the file, about."""

MOST_SHOWN: Final = 80
"""Letters of a value in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What became of a collection."""

    out: Path
    images: int
    """Rows of the file."""
    unreadable: int
    """Of these, those with a reason instead of an answer."""
    resumed: int
    """Rows that were there from before."""
    seconds: float
    engine: str
    model: str


def predict_collection(
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    model: str = DEFAULT_MODEL,
    *,
    features: bool = False,
    half: bool = False,
    topk: int | None = None,
    engine: str = "auto",
    precision: Precision = "fp32",
    batch_size: int | None = None,
    split: Split = "val",
    executor: Executor | None = None,
    trust: bool = False,
    on_images: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> Collected:
    """Classify every image of a collection, or compute its features, into one Parquet file.

    The file has a row per image: `path`, then `indices`, `labels` and `probabilities` of the best
    classes, or `features`, a vector; and `error`, the reason where an image cannot be read. Its
    metadata say under "regnet" which model, preprocessing and versions it is from. Memory does not
    grow with the number of images. Begun again after any end, it repeats no part that is done.

    Args:
        data: image files, folders (at any depth), .tar and .parquet files, `hf:owner/name`.
        out: the Parquet file; unfinished parts lie beside it, in a folder of its name and ".parts".
        model: whatever `create` takes, with weights, or an exported file.
        features: the vector before the classifier, rather than classes.
        half: store features as float16.
        topk: classes per image; None: 5, or all where there are fewer.
        engine: a name; "auto": the fastest of folded eager, ONNX Runtime and OpenVINO, as far as
            they are installed, or folded eager for a few images; "best": the fastest of all.
        precision: to compute in.
        batch_size: images per call; None: 16 on a CPU, 256 on a GPU.
        split: which images of a data set of the Hub.
        executor: who works on the parts; None: a process per core of this machine.
        trust: open .pt2 files too, which can run code.
        on_images: called with what is done, images done, and of all.

    Raises:
        ConfigError: a setting is not possible, or the file holds other predictions.
        DataError: the images cannot be listed.
        EngineError: the engine does not run the model, or its answers are not numbers.
        ExecutorError: parts were not done; those that were, stay.
        MissingExtraError: pyarrow is not installed.
        OSError: something cannot be written.
    """
    if util.find_spec("pyarrow") is None:
        raise MissingExtraError(
            "predictions are written by pyarrow, which is not installed; "
            "pip install 'regnet[train]'"
        )
    out = Path(out)
    if out.suffix != ".parquet":
        raise ConfigError(f"{out}: predictions are written as Parquet; name a file *.parquet")
    if half and not features:
        raise ConfigError("float16 is for features; ask for them, or leave it out")
    if features and topk is not None:
        raise ConfigError("topk is for classes, of which features say nothing; leave it out")
    sources = [str(data)] if isinstance(data, (str, Path)) else list(map(str, data))
    if not sources:
        raise ConfigError("there is nothing to predict; name files, folders or archives")
    start = time.monotonic()
    executor = executor or ProcessPool()
    gpu = _on_gpu(executor)
    question = Question(
        model=model,
        features=features,
        half=half,
        topk=topk,
        engine=engine,
        precision=precision,
        batch_size=batch_size or (GPU_BATCH_SIZE if gpu else BATCH_SIZE),
        trust=trust,
    )
    parts = out.with_name(out.name + ".parts")

    def collection() -> Iterator[Chunk]:
        size = GPU_PART if gpu else PART
        return chunks(sources, size, split=split, without=(out, parts))

    on_images("listing images", 0, 0)
    plan = {file_name(number, chunk): len(chunk) for number, chunk in enumerate(collection())}
    on_images("opening the model", 0, 0)
    count = sum(plan.values())
    if not count:
        raise DataError(f"{', '.join(sources)}: there are no images")
    if engine == "auto" and count < FEW and not is_exported(model):
        question = replace(question, engine="folded")
    facts = _looked(executor, question)
    asked = _asked(replace(question, engine=engine), facts)
    whole = asked | {"images": digest.of_json(list(plan))[:16]}
    with runfolder.owned(parts, "predicting"):
        if out.exists():
            said = _said(out)
            _check_same(out, said, whole)
            return Collected(
                out=out,
                images=count,
                unreadable=said["unreadable"],
                resumed=count,
                seconds=time.monotonic() - start,
                engine=said["engine"],
                model=model,
            )
        facts = _begun(parts, asked, facts)
        there = {name for name in plan if (parts / name).exists()}
        resumed = done = sum(plan[name] for name in there)
        missing = (
            Part(
                number=number,
                chunk=chunk,
                question=question,
                facts=facts,
                file=parts.absolute() / name,
            )
            for (number, chunk), name in zip(enumerate(collection()), plan, strict=True)
            if name not in there
        )
        lost: list[str] = []
        for part, result in executor.run(predict_part, missing):
            if isinstance(result, Died):
                lost.append(f"part {part.number}: {result.reason}")
                continue
            done += result
            on_images("predicting", done, count)
        if lost:
            raise ExecutorError(
                f"{len(lost)} parts were not done ({lost[0]}); the others stay: begin again to go "
                "on with what is missing"
            )
        on_images("joining the parts", count, count)
        here = environment(torch.device("cpu"))
        said = whole | {"engine": facts.engine, "count": count, "environment": here}
        unreadable = _join([parts / name for name in plan], out, said)
        for path in (*parts.glob("*.parquet"), parts / FILE):
            path.unlink()
    return Collected(
        out=out,
        images=count,
        unreadable=unreadable,
        resumed=resumed,
        seconds=time.monotonic() - start,
        engine=facts.engine,
        model=model,
    )


def _on_gpu(executor: Executor) -> bool:
    """Whether an executor works on GPUs."""
    devices = [getattr(executor, "device", ""), *getattr(executor, "devices", ())]
    return any(device.startswith("cuda") for device in devices)


def _looked(executor: Executor, question: Question) -> Facts:
    """What is known of the model, found out where the parts will be worked on."""
    [(_, facts)] = executor.run(look_at, iter([question]))
    if isinstance(facts, Died):
        raise ExecutorError(f"the model cannot be opened: {facts.reason}")
    return facts


def _asked(question: Question, facts: Facts) -> dict[str, Any]:
    """What decides the rows, as JSON."""
    what = "features" if question.features else "classes"
    return {
        "model": question.model,
        "rows": f"{facts.columns} {what}" + (" as float16" if question.half else ""),
        "weights": facts.weights,
        "preprocess": facts.preprocess,
        "precision": question.precision,
        "engine_asked": question.engine,
        "batch_size": question.batch_size,
    }


def _check_same(path: Path, said: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on with, or to overwrite, other predictions.

    Raises:
        ConfigError: they are other ones.
    """
    for name, value in json.loads(json.dumps(asked)).items():
        if name not in ("model", "batch_size") and said.get(name) != value:
            raise ConfigError(
                f"{path} holds other predictions: {name} {_short(said.get(name))}, not "
                f"{_short(value)}; remove it, or name another file"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _begun(parts: Path, asked: Mapping[str, Any], facts: Facts) -> Facts:
    """Begin the folder of parts, or go on with it on the engine that it was begun with."""
    if (parts / FILE).exists():
        begun = runfolder.begun(parts, FILE, "an unfinished prediction")
        _check_same(parts, begun["asked"], asked)
        return replace(facts, engine=begun["engine"], streams=begun["streams"])
    runs = {"engine": facts.engine, "streams": facts.streams}
    runfolder.begin(parts, FILE, {"asked": asked, **runs})
    return facts


def _said(out: Path) -> dict[str, Any]:
    """What a file of predictions says about itself.

    Raises:
        ConfigError: it is none.
    """
    import pyarrow.parquet as parquet

    try:
        said: dict[str, Any] = json.loads(parquet.read_schema(out).metadata[KEY])
        if {"images", "unreadable", "engine"} <= said.keys():
            return said
    except Exception:  # noqa: BLE001 - on damaged files, pyarrow raises whatever it hits
        pass
    raise ConfigError(f"{out} is there, and holds no predictions; remove it, or name another file")


def _join(parts: Sequence[Path], out: Path, said: Mapping[str, Any]) -> int:
    """Make one file of the parts, in order; return how many images could not be read."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    unreadable = 0
    for path in parts:
        errors = parquet.read_table(path, columns=["error"])["error"]
        unreadable += len(errors) - errors.null_count
    text = json.dumps({**said, "unreadable": unreadable})
    schema = parquet.read_schema(parts[0]).with_metadata({KEY: text.encode()})
    with writing(out) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        held: list[pa.Table] = []
        for number, path in enumerate(parts, 1):
            held.append(parquet.read_table(path).cast(schema))
            if number == len(parts) or sum(map(len, held)) >= GROUP:
                writer.write_table(pa.concat_tables(held))
                held.clear()
    return unreadable
