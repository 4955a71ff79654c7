"""Write populations as tables for other tools, and read tables, also those of other authors."""

import csv
import io
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from regnet import documents
from regnet.atomic import write_bytes, writing
from regnet.data.readers import open_parquet
from regnet.errors import ConfigError, DataError, MissingExtraError, in_one_line
from regnet.paths import expanded
from regnet.studies.population import Population, Select, error_of, repeated
from regnet.studies.store import Row

SUFFIXES: Final = (".parquet", ".csv", ".json")
"""Suffixes of tables that can be read; tables with the first two can also be written."""

_TRAINED: Final = ("seconds", "host", "device", "threads", "torch", "code", "finished")
"""Columns that describe the training of a network."""

_log = logging.getLogger(__name__)

_NO_METRICS: Final = frozenset(
    {"space", "number", "error", "lowest_error", "unit", "reason", "seed", "config", "epochs",
     "also", "repeats_network", "train_images", "val_images", *_TRAINED}
)  # fmt: skip
"""Columns that are not metrics of a network."""


def write_table(populations: Mapping[str, Population], path: str | Path) -> int:
    """Write a table with a row per network that was trained or failed.

    The columns are space, number, the error of the last epoch, the lowest error of any epoch, the
    reason if the network failed, all metrics, the machine and the images of the training, the seed,
    and config and epochs as JSON. Errors of an objective have the column `unit`, which is empty.

    Args:
        populations: the populations by the names of their spaces, as `load` returns them.
        path: file that ends in .csv or .parquet.

    Returns:
        The number of rows.

    Raises:
        ConfigError: the file has another suffix.
        MissingExtraError: Parquet needs pyarrow, which is not installed.
        OSError: the file cannot be written.
    """
    path = expanded(path)
    if path.suffix not in SUFFIXES[:2]:
        raise ConfigError(f"{path}: the file of a table must end in .csv or .parquet")
    rows = []
    for population in populations.values():
        networks = (*population.rows, *population.failed)
        unit = {} if population.unit == "%" else {"unit": population.unit}
        rows += [_cells(row) | unit for row in sorted(networks, key=lambda row: row.number)]
        rows += [
            _cells(row) | unit | {"repeats_network": number} for number, row in population.replicas
        ]
    # Spaces have different metrics; a metric that a space lacks is an empty cell in its rows.
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".csv":
        text = io.StringIO()
        table = csv.DictWriter(text, names)
        table.writeheader()
        table.writerows(rows)
        write_bytes(path, text.getvalue().encode())
        return len(rows)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files need pyarrow, which is not installed; pip install 'regnet[study]', or "
            "write a .csv file"
        ) from error
    columns = {name: [row.get(name) for row in rows] for name in names}
    with writing(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)
    return len(rows)


def _cells(row: Row) -> dict[str, Any]:
    assert row.outcome is not None, "it has been tried"
    outcome = dict(row.outcome)
    images = outcome.get("images", {})
    return {
        "space": row.space,
        "number": row.number,
        "error": None if row.status == "failed" else error_of(row, "last"),
        "lowest_error": outcome.get("error"),
        "reason": outcome.get("reason"),
        **row.metrics,
        **{name: outcome.get(name) for name in _TRAINED},
        **{f"{name}_images": images.get(name) for name in ("train", "val")},
        "seed": row.seed,
        "config": json.dumps(row.config),
        "epochs": json.dumps(outcome.get("epochs")),
        **({"also": json.dumps(outcome["also"])} if "also" in outcome else {}),
    }


def read_table(path: str | Path, select: Select = "last") -> dict[str, Population]:
    """Read the populations of a table, by the names of their spaces.

    There are two kinds of tables:

    - Parquet and CSV files with a row per network, as `write_table` writes them, or any other with
      a column `error` in percent, or with an empty column `unit` beside it. The column `space`
      separates populations; without it the table is one population with the name of the file.
      Every other numeric column is a metric of the network. A network without an error counts as
      failed.
    - JSON files of NDS (Radosavovic et al. 2019, github.com/facebookresearch/nds): a list of jobs
      with `min_test_top1` and `test_ep_top1`, which are errors. The metrics are `params`, `flops`,
      `acts` and the numbers in `net`.

    Args:
        path: the file.
        select: the epoch whose error counts, if the table has both errors.

    Raises:
        DataError: the file cannot be read, or is not such a table.
        MissingExtraError: Parquet needs pyarrow, which is not installed.
    """
    path = expanded(path)
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".json": _read_nds}
    if path.suffix not in readers:
        raise DataError(f"{path}: the file of a table must end in {', '.join(SUFFIXES)}")
    try:
        cells = readers[path.suffix](path)
    except (ConfigError, OSError, ValueError, KeyError, TypeError) as error:
        reason = in_one_line(error, most=150)
        raise DataError(f"{path} cannot be read as a table of networks: {reason}") from error
    if not cells:
        raise DataError(f"{path} has no rows")
    if not any(name in cells[0] for name in ("error", "lowest_error")):
        raise DataError(f"{path} has no column 'error'; it has {', '.join(map(str, cells[0]))}")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in cells:
        space = row.get("space")
        found.setdefault(path.stem if space is None else str(space), []).append(row)
    return {name: _population(path, name, rows, select) for name, rows in found.items()}


def _population(
    path: Path, name: str, cells: Sequence[Mapping[str, Any]], select: Select
) -> Population:
    again = [row for row in cells if _is_number(row.get("repeats_network"))]
    cells = [row for row in cells if not _is_number(row.get("repeats_network"))]
    try:
        errors = [_error(row, select) for row in cells]
        replicas = [(int(row["repeats_network"]), row, _error(row, select)) for row in again]
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if not cells:
        raise DataError(f"{path}: {name} has only trainings that repeat networks")
    done = [n for n, error in enumerate(errors) if error is not None]
    columns = [column for column in cells[0] if column not in _NO_METRICS]
    metrics = {}
    for column in columns:
        values = [cells[n].get(column) for n in done]
        numbers = sum(map(_is_number, values))
        if numbers == len(values) > 0:
            metrics[column] = np.array(values, dtype=np.float64)
        elif numbers:
            _log.warning(
                "%s: %s is left out for %s, because %d of %d networks have no number there",
                path, column, name, len(values) - numbers, len(values),
            )  # fmt: skip
    unit = cells[0].get("unit", "%") or ""
    wrong = [errors[n] for n in done if not 0 <= (errors[n] or 0) <= 100]
    if wrong and unit:
        raise DataError(
            f"{path}: errors must be in percent, from 0 to 100; {name} has {wrong[0]!r}"
        )
    rows = [
        _row(name, number, row, metrics, failed=errors[number] is None)
        for number, row in enumerate(cells)
    ]
    return Population(
        space=None,
        errors=np.array([errors[n] for n in done], dtype=np.float64),
        metrics=metrics,
        rows=tuple(rows[n] for n in done),
        failed=tuple(row for n, row in enumerate(rows) if errors[n] is None),
        replicas=tuple(
            (network, _row(name, 0, row, metrics, failed=error is None))
            for network, row, error in replicas
        ),
        repeats=repeated(
            (number, error)
            for number, error in (
                *((row.number, errors[n]) for n, row in enumerate(rows)),
                *((network, error) for network, _, error in replicas),
            )
            if error is not None
        ),
        select=select,
        unit=str(unit),
    )


def _error(row: Mapping[str, Any], select: Select) -> float | None:
    """Return the error that counts; None if the network failed."""
    epochs = row.get("epochs")
    epochs = json.loads(epochs) if isinstance(epochs, str) else epochs
    lowest = row.get("lowest_error", row.get("error"))
    last = row.get("error", lowest)
    if epochs and "lowest_error" not in row:  # Older tables have the lowest error as `error`.
        last = 100 - float(epochs[-1].get("average_top1", epochs[-1]["top1"]))
    found = lowest if select == "lowest" else last
    if isinstance(found, str):
        raise ValueError(
            f"the error {found!r} is not a number; the cell of a failed network must be empty"
        )
    return float(found) if _is_number(found) else None


def _row(
    space: str, number: int, cells: Mapping[str, Any], metrics: Iterable[str], *, failed: bool
) -> Row:
    def decoded(name: str) -> Any:
        value = cells.get(name)
        return json.loads(value) if isinstance(value, str) else value

    known = {name: cells.get(name) for name in _TRAINED if cells.get(name) is not None}
    if not failed:
        known["error"] = cells.get("lowest_error", cells.get("error"))
    return Row(
        id=0,
        space=space,
        number=int(number if cells.get("number") is None else cells["number"]),
        config=decoded("config") or {},
        metrics={name: cells[name] for name in metrics if _is_number(cells.get(name))},
        seed=int(cells.get("seed") or 0),
        status="failed" if failed else "done",
        outcome=known
        | ({"reason": cells.get("reason")} if failed else {"epochs": decoded("epochs") or []}),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    with open_parquet(path) as file:
        rows: list[dict[str, Any]] = file.read().to_pylist()
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins with a byte order mark
        return [
            {
                name: (text or None) if name == "space" else _value(text)
                for name, text in row.items()
            }
            for row in csv.DictReader(file)
        ]


def _value(text: str | None) -> Any:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _read_nds(path: Path) -> list[dict[str, Any]]:
    jobs: Any = documents.load(path, "a list of jobs")
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise ValueError("not a list of jobs")
    return [
        {
            "space": path.stem,
            "error": job["test_ep_top1"][-1] if job.get("test_ep_top1") else job["min_test_top1"],
            "lowest_error": job["min_test_top1"],
            **{name: job[name] for name in ("params", "flops", "acts") if name in job},
            **_flat(job.get("net", {})),
        }
        for job in jobs
    ]


def _flat(net: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a description; those of a list get names that count from 1."""
    found = {}
    for name, value in net.items():
        values = enumerate(value, 1) if isinstance(value, list) else [("", value)]
        found.update({f"{name}{n}": each for n, each in values if _is_number(each)})
    return found
