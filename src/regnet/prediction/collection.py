"""Predict a collection of any size into a Parquet file with one row per image.

    predict_collection(["photos/"], "predictions.parquet", "regnety_016.tv2_in1k")

The collection is split into parts, which any executor can process. Each part is a file that is
written completely or not at all. A prediction that was interrupted resumes with the missing parts.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import util
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import torch

from regnet import digest, runfolder
from regnet.atomic import writing
from regnet.data.collection import Chunk, chunks
from regnet.data.layout import Split
from regnet.engines.base import Precision
from regnet.errors import ConfigError, DataError, ExecutorError, MissingExtraError, check_whole
from regnet.executors import Died, Executor, ProcessPool
from regnet.machine import environment
from regnet.paths import expanded
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
"""Name of the file, in the folder of parts, that describes the prediction which began there."""

KEY: Final = b"regnet"
"""Key of the description of the predictions in the metadata of the Parquet file."""

PART: Final = 512
"""Maximum number of images in a part. An interruption loses the results of unfinished parts."""

GPU_PART: Final = 16_384
"""The same where the executor uses GPUs, which take larger batches."""

FEW: Final = 2_000
"""For fewer images, "auto" takes folded eager, because a race would take longer than it saves."""

BATCH_SIZE: Final = 16

GPU_BATCH_SIZE: Final = 256

GROUP: Final = 8_192
"""Approximate number of rows in a row group of the Parquet file."""

MOST_SHOWN: Final = 80
"""Maximum number of characters of a value in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The result of predicting a collection."""

    out: Path
    images: int
    """Rows of the file."""
    unreadable: int
    """Rows that have a reason instead of a prediction, because the image cannot be read."""
    resumed: int
    """Rows that an earlier run had predicted."""
    seconds: float
    engine: str
    """Name of the engine that ran the model."""
    model: str
    """The name that was passed as `model`."""


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

    The file has one row per image. The column `path` is followed by `indices`, `labels` and
    `probabilities` of the most probable classes, or by the vector `features`. The column `error`
    contains the reason where an image cannot be read. The metadata of the file record, under the
    key "regnet", the model, the preprocessing and the versions. Memory does not grow with the
    number of images. Call the function again to resume an interrupted prediction; no finished part
    is repeated.

    Args:
        data: image files, folders (searched at any depth), .tar and .parquet files, and data sets
            of the Hub (`hf:owner/name`); one, or several.
        out: the Parquet file. Unfinished parts are in a folder beside it, whose name is that of the
            file followed by ".parts".
        model: any name with weights that `create` accepts, or the path of an exported file.
        features: compute the vector before the classifier instead of classes.
        half: store features as float16.
        topk: classes per image; None: 5, or all if the model has fewer.
        engine: name of an engine. "auto": the fastest of folded eager, ONNX Runtime and OpenVINO
            that are installed, or on a GPU of folded eager, CUDA graphs and fused kernels; for
            fewer than 2,000 images, folded eager. "best": the fastest of all engines.
        precision: precision of the computation.
        batch_size: images per call; None: 16 on a CPU, 256 on a GPU.
        split: which images of a data set of the Hub to predict.
        executor: executor that processes the parts; None: one process per core of this machine.
        trust: also open .pt2 files, which can run code.
        on_images: called with the current step, the number of finished images, and their total.

    Raises:
        ConfigError: a setting is not allowed, or the file contains other predictions.
        DataError: the images cannot be listed.
        EngineError: the engine cannot run the model, or its outputs are not finite.
        ExecutorError: some parts failed; the finished ones are saved.
        MissingExtraError: pyarrow is not installed.
        OSError: a file cannot be written.
    """
    if util.find_spec("pyarrow") is None:
        raise MissingExtraError(
            "predictions are written with pyarrow, which is not installed; "
            "pip install 'regnet[train]'"
        )
    if not isinstance(model, str):
        raise ConfigError(
            "model must be a name or a file, which each process can open; save yours with "
            f"save_pretrained('mine'), and pass 'local-dir:mine'; got {type(model).__name__}"
        )
    out = expanded(out)
    if out.suffix != ".parquet":
        raise ConfigError(f"{out}: predictions are written as Parquet; name a file *.parquet")
    if half and not features:
        raise ConfigError(
            "float16 is for features; add features=True (--features), or leave it out"
        )
    if features and topk is not None:
        raise ConfigError("topk is for classes, which features do not contain; leave it out")
    sources = [str(data)] if isinstance(data, (str, Path)) else list(map(str, data))
    if not sources:
        raise ConfigError("there is nothing to predict; name files, folders or archives")
    start = time.monotonic()
    executor = executor or ProcessPool()
    gpu = _on_gpu(executor)
    if batch_size is None:
        batch_size = GPU_BATCH_SIZE if gpu else BATCH_SIZE
    question = Question(
        model=model,
        features=features,
        half=half,
        topk=topk,
        engine=engine,
        precision=precision,
        batch_size=check_whole("batch_size", batch_size, least=1),
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
            _remove_parts(parts)  # left by a run that was killed after joining them
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
        there = {name for name, images in plan.items() if _is_whole(parts / name, images)}
        resumed = done = sum(plan[name] for name in there)

        def missing() -> Iterator[Part]:
            for number, (chunk, name) in enumerate(zip_longest(collection(), plan)):
                if chunk is None or file_name(number, chunk) != name:
                    raise DataError(
                        f"{', '.join(sources)}: the images changed while they were predicted; "
                        "predict again"
                    )
                if name not in there:
                    file = parts.absolute() / name
                    yield Part(
                        number=number, chunk=chunk, question=question, facts=facts, file=file
                    )

        lost: list[str] = []
        for part, result in executor.run(predict_part, missing()):
            if isinstance(result, Died):
                lost.append(f"part {part.number}: {result.reason}")
                continue
            done += result
            on_images("predicting", done, count)
        if lost:
            raise ExecutorError(
                f"{len(lost)} parts failed ({lost[0]}); the others are saved: predict again to "
                "process the missing ones"
            )
        on_images("joining the parts", count, count)
        here = environment(torch.device("cpu"))
        said = whole | {"engine": facts.engine, "count": count, "environment": here}
        unreadable = _join([parts / name for name in plan], out, said)
        _remove_parts(parts)
    return Collected(
        out=out,
        images=count,
        unreadable=unreadable,
        resumed=resumed,
        seconds=time.monotonic() - start,
        engine=facts.engine,
        model=model,
    )


def _is_whole(part: Path, images: int) -> bool:
    """Return whether a part is there, with as many rows as images; a damaged one is made again."""
    import pyarrow.parquet as parquet

    try:
        return bool(parquet.read_metadata(part).num_rows == images)
    except Exception:  # noqa: BLE001 - on damaged files, pyarrow raises whatever it hits
        return False


def _remove_parts(parts: Path) -> None:
    drafts = parts.glob(".*.parquet.*")  # of a process that was killed while it wrote
    for path in (*parts.glob("*.parquet"), *drafts, parts / FILE):
        path.unlink(missing_ok=True)


def _on_gpu(executor: Executor) -> bool:
    """Whether an executor uses GPUs."""
    devices = [getattr(executor, "device", ""), *getattr(executor, "devices", ())]
    return any(device.startswith("cuda") for device in devices)


def _looked(executor: Executor, question: Question) -> Facts:
    """Open the model where the parts will be processed, and return what is known about it."""
    [(_, facts)] = executor.run(look_at, iter([question]))
    if isinstance(facts, Died):
        raise ExecutorError(f"the model cannot be opened: {facts.reason}")
    return facts


def _asked(question: Question, facts: Facts) -> dict[str, Any]:
    """Return everything that determines the content of the rows, as JSON."""
    what = "features" if question.features else "classes"
    return {
        "model": question.model,
        "rows": f"{facts.columns} {what}" + (" as float16" if question.half else ""),
        "weights": facts.weights,
        "labels": facts.labels,
        "preprocess": facts.preprocess,
        "precision": question.precision,
        "engine_asked": question.engine,
        "batch_size": question.batch_size,
    }


def _check_same(path: Path, said: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to resume or to overwrite predictions that were made with other settings.

    Raises:
        ConfigError: the settings differ.
    """
    for name, value in json.loads(json.dumps(asked)).items():
        if name not in ("model", "batch_size") and said.get(name) != value:
            raise ConfigError(
                f"{path} contains other predictions: {name} {_short(said.get(name))}, not "
                f"{_short(value)}; remove it, or name another file"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _begun(parts: Path, asked: Mapping[str, Any], facts: Facts) -> Facts:
    """Set up the folder of parts, or resume it with the engine that it was begun with."""
    if (parts / FILE).exists():
        begun = runfolder.begun(parts, FILE, "an unfinished prediction")
        _check_same(parts, begun["asked"], asked)
        return replace(facts, engine=begun["engine"], streams=begun["streams"])
    runs = {"engine": facts.engine, "streams": facts.streams}
    runfolder.begin(parts, FILE, {"asked": asked, **runs})
    return facts


def _said(out: Path) -> dict[str, Any]:
    """Read the description in the metadata of a file of predictions.

    Raises:
        ConfigError: the file contains no predictions.
    """
    import pyarrow.parquet as parquet

    try:
        said: dict[str, Any] = json.loads(parquet.read_schema(out).metadata[KEY])
        if {"images", "unreadable", "engine"} <= said.keys():
            return said
    except Exception:  # noqa: BLE001 - on damaged files, pyarrow raises whatever it hits
        pass
    raise ConfigError(f"{out} exists, and contains no predictions; remove it, or name another file")


def _join(parts: Sequence[Path], out: Path, said: Mapping[str, Any]) -> int:
    """Join the parts into one file, in order, and return how many images could not be read."""
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
