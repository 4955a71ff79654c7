"""Predict one part of a collection, from its images to a Parquet file, in any process."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regnet import digest
from regnet.atomic import writing
from regnet.data.collection import Chunk
from regnet.data.loading import load
from regnet.data.preprocess import Preprocess
from regnet.devices import core_count, find_device
from regnet.engines.base import Precision
from regnet.engines.batches import mapped
from regnet.engines.files import FileNetwork, open_model
from regnet.engines.optimize import QUICK, optimize
from regnet.engines.running import running
from regnet.errors import ConfigError, EngineError, WeightsError
from regnet.nn.model import AnyNet
from regnet.nn.views import digest_of, evaluation_view
from regnet.prediction.images import check_topk, labels_of
from regnet.zoo.create import create, preprocess
from regnet.zoo.resolver import is_exported

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The settings of a prediction, which are the same for all images."""

    model: str
    features: bool
    """Whether to compute the vector before the classifier instead of classes."""
    half: bool
    """Whether to store features as float16."""
    topk: int | None
    """Classes per image; None: 5, or all if the model has fewer."""
    engine: str
    """Name of an engine, "auto" or "best"."""
    precision: Precision
    batch_size: int
    trust: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known about the model once it is open."""

    weights: str
    """First 16 digits of the SHA-256 over its tensors."""
    labels: str
    """The same over the names of its classes."""
    preprocess: dict[str, Any]
    columns: int
    """Classes per row, or length of the feature vector."""
    engine: str
    """Name of the engine that runs the model."""
    streams: int
    """Pieces of a batch that are computed at the same time; 0: all threads compute one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some images of the collection, and the file to write their rows to."""

    number: int
    chunk: Chunk
    question: Question
    facts: Facts
    file: Path


def look_at(question: Question, device: str) -> Facts:
    """Open the model, and find its fastest engine on the machine of this process.

    Raises:
        ConfigError: the settings do not fit the model.
        EngineError: the engine cannot run the model.
        RegNetError: there is no such model.
    """
    where = find_device(device)
    network = _network(question, where)
    classes = network.num_classes
    if question.features:
        columns = network.config.num_features
    elif not classes:
        raise ConfigError(
            "this model has no classifier; add features=True (--features) for its features"
        )
    else:
        columns = check_topk(question.topk, classes)
    labels = () if question.features else labels_of(network)
    engine, streams = _engine(question, network, where)
    return Facts(
        weights=digest_of(network),
        labels=digest.of_json(list(labels))[:16],
        preprocess=preprocess(network).to_timm(),
        columns=columns,
        engine=engine,
        streams=streams,
    )


def _network(question: Question, device: torch.device) -> AnyNet | FileNetwork:
    name = question.model
    if not is_exported(name) and question.features:
        return create(name, pretrained=True, num_classes=0).eval().to(device)
    network = open_model(name, trust=question.trust)
    if isinstance(network, FileNetwork):
        if len(network.outputs) > 1:
            raise ConfigError(
                f"{name} returns {len(network.outputs)} outputs, such as feature maps; predict "
                "with a file of a whole network"
            )
        if question.features and network.num_classes:
            raise ConfigError(
                f"{name} computes classes, and cannot return features; predict with the model that "
                "it was exported from, or export that model with num_classes=0"
            )
        if device.type != "cpu" or question.engine != "auto" or question.precision != "fp32":
            raise ConfigError(
                f"{name} always runs on {network.runtime} on the CPU, in {network.precision}; "
                "leave engine, precision and device out"
            )
        return network
    return network.eval().to(device)


def _shape(question: Question, network: AnyNet | FileNetwork) -> tuple[int, ...]:
    return (question.batch_size, network.config.in_chans, *preprocess(network).size)


def _engine(
    question: Question, network: AnyNet | FileNetwork, device: torch.device
) -> tuple[str, int]:
    """Return the name of the requested engine or of the fastest, and its streams."""
    if isinstance(network, FileNetwork):
        return network.runtime, 0
    if question.engine not in ("auto", "best"):
        view = evaluation_view(network)
        # Building the engine here reports one that cannot run the model before any part begins.
        running(view, _shape(question, network), question.engine, question.precision, device)
        return question.engine, 0
    engines: Any = QUICK.get(device.type, "auto") if question.engine == "auto" else "auto"
    found = optimize(
        network,
        torch.zeros(_shape(question, network), device=device),
        goal="throughput",
        precision=question.precision,
        engines=engines,
        progress=False,
    )
    return found.report.winner.engine, found.report.winner.streams


@lru_cache(maxsize=1)
def _opened(
    question: Question, engine: str, streams: int, weights: str, device: str
) -> tuple[Any, Preprocess, list[str]]:
    """Return the runner, the preprocessing and the class names; built once per process.

    Raises:
        WeightsError: the model's weights are no longer those of which this is the digest.
    """
    where = find_device(device)
    network = _network(question, where)
    if digest_of(network) != weights:
        raise WeightsError(
            f"{question.model} was changed while it was used; predict again, into another file"
        )
    names = [] if question.features else list(labels_of(network))
    if isinstance(network, FileNetwork):
        return network, preprocess(network), names
    view = evaluation_view(network)
    shape = _shape(question, network)
    runner, _ = running(view, shape, engine, question.precision, where, streams)
    return runner, preprocess(network), names


def predict_part(part: Part, device: str) -> int:
    """Write the rows of a part, and return their number.

    The file is written completely or not at all.

    Raises:
        EngineError: an output is not finite.
        OSError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    where, question = find_device(device), part.question
    facts = part.facts
    runner, look, names = _opened(question, facts.engine, facts.streams, facts.weights, device)
    readers = 0 if where.type == "cpu" else core_count()
    answers: list[Any] = [None] * len(part.chunk)
    errors: list[str | None] = [None] * len(part.chunk)
    asked: deque[tuple[int, ...]] = deque()

    def batches() -> Iterator[Tensor]:
        numbers, size = range(len(part.chunk)), question.batch_size
        for loaded in load(part.chunk, numbers, look, batch_size=size, workers=readers):
            for index, reason in loaded.failures:
                errors[index] = reason
            if loaded.images is not None:
                asked.append(loaded.indices)
                yield loaded.images.to(where)

    with torch.inference_mode():
        for found in mapped(runner, batches()):
            indices, outputs = asked.popleft(), found.float().cpu()
            if not outputs.isfinite().all():
                raise EngineError(
                    f"the outputs for {part.chunk.names[indices[0]]} and the images after it are "
                    "not finite; check the weights, or use another precision"
                )
            if question.half and outputs.abs().max() > torch.finfo(torch.float16).max:
                raise EngineError(
                    f"features of {part.chunk.names[indices[0]]} or the images after it are too "
                    "large for float16; leave out --float16 (half=True)"
                )
            for index, row in zip(indices, _rows(outputs, part), strict=True):
                answers[index] = row
    table = pa.table(
        {
            # Names of files need not be UTF-8, but text in a table must be.
            "path": pa.array(
                [os.fsencode(n).decode("utf-8", "backslashreplace") for n in part.chunk.names],
                pa.string(),
            ),
            **_columns(answers, part, names),
            "error": pa.array(errors, pa.string()),
        }
    )
    with writing(part.file) as temporary:
        parquet.write_table(table, temporary)
    return len(table)


def _rows(outputs: Tensor, part: Part) -> Iterator[Any]:
    if part.question.features:
        yield from outputs.half().numpy() if part.question.half else outputs.numpy()
        return
    values, indices = outputs.softmax(1).topk(part.facts.columns, dim=1)
    yield from zip(indices.tolist(), values.tolist(), strict=True)


def _columns(
    answers: Sequence[Any], part: Part, names: Sequence[str]
) -> "dict[str, pyarrow.Array]":
    import pyarrow as pa

    if part.question.features:
        kind = pa.float16() if part.question.half else pa.float32()
        return {"features": pa.array(answers, pa.list_(kind, part.facts.columns))}
    indices = [answer and answer[0] for answer in answers]
    return {
        "indices": pa.array(indices, pa.list_(pa.int32())),
        "labels": pa.array(
            [row and [names[index] for index in row] for row in indices], pa.list_(pa.string())
        ),
        "probabilities": pa.array([a and a[1] for a in answers], pa.list_(pa.float32())),
    }


def file_name(number: int, chunk: Chunk) -> str:
    """Return the name of a part's file, which depends on its images."""
    return f"{number:06d}-{chunk.digest}.parquet"
