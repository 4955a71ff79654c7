"""Tests of populations in tables: those of this library, plain tables, and those of NDS."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet.design.config import RegNetConfig
from regnet.errors import ConfigError, DataError
from regnet.studies.analysis import analyze
from regnet.studies.report import render
from regnet.studies.tables import read_table, write_table
from tests.command import refused
from tests.command import regnet as command

STUDY = Path(__file__).parents[2] / "benchmarks/results/study.parquet"
PLAIN = (
    "space,error,width,act\na,40,16,relu\na,42.5,32,relu\nb,39,8,silu\na,,64,relu\nb,44,9,silu\n"
)


def test_a_plain_table_is_a_population_of_each_space(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(PLAIN)
    found = read_table(path)
    assert found["a"].errors.tolist() == [40, 42.5]
    assert found["a"].metrics["width"].tolist() == [16, 32]
    assert list(found["b"].metrics) == ["width"], "columns without numbers are not metrics"
    assert [row.number for row in found["a"].failed] == [2]
    analysis = analyze(found)
    assert analysis.spaces["a"].failed == 1
    assert analysis.spaces["b"].correlation == {"width": 1}
    assert (analysis.machines, analysis.finished) == ((), "")


def test_a_table_without_spaces_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "resnets.csv"
    path.write_text("error\n50\n60\n")
    assert list(read_table(path)) == ["resnets"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_written_table_is_read_back(tmp_path: Path, suffix: str) -> None:
    before = read_table(STUDY)
    path = tmp_path / f"table{suffix}"
    assert write_table(before, path) == 320
    after = read_table(path)
    for name, population in before.items():
        assert np.allclose(after[name].errors, population.errors)
        assert after[name].metrics.keys() == population.metrics.keys()
        for metric, values in population.metrics.items():
            assert np.allclose(after[name].metrics[metric], values)
    assert analyze(after).spaces.keys() == before.keys()


def test_last_and_lowest_errors_are_distinguished() -> None:
    last, lowest = read_table(STUDY), read_table(STUDY, "lowest")
    for name, population in last.items():
        assert (population.errors >= lowest[name].errors - 1e-9).all()
    assert (last["anynetx_a"].errors > lowest["anynetx_a"].errors).any()


def test_files_of_nds_are_read(tmp_path: Path) -> None:
    """The file has the fields of the published files (github.com/facebookresearch/nds)."""
    jobs = [
        {
            "job_id": number, "rng_seed": 1, "params": 1e6 * (number + 1), "flops": 1e8,
            "min_test_top1": 5.0 + number, "test_ep_top1": [30.0, 5.0 + number, 6.0 + number],
            "train_ep_top1": [40.0, 3.0, 2.0],
            "net": {"block_type": "res_basic_block", "ds": [2, number], "ws": [16, 32]},
        }
        for number in range(4)
    ]  # fmt: skip
    path = tmp_path / "ResNet-B.json"
    path.write_text(json.dumps(jobs))
    found = read_table(path)["ResNet-B"]
    assert found.errors.tolist() == [6, 7, 8, 9]
    assert set(found.metrics) == {"params", "flops", "ds1", "ds2", "ws1", "ws2"}
    assert found.metrics["ds2"].tolist() == [0, 1, 2, 3]
    assert read_table(path, "lowest")["ResNet-B"].errors.tolist() == [5, 6, 7, 8]
    text = command("study", "analyze", path, code=0).stdout
    assert "ResNet-B" in text
    assert "+1.00" in text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "space,loss\nx,1\n", "has no column 'error'; it has space, loss"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "error\n0.31\n150\n", "errors must be in percent, from 0 to 100; a has 150"),
        ("a.json", "{}", "not a list of jobs"),
        ("a.json", "[{}]", "cannot be read as a table of networks: KeyError: 'min_test_top1'"),
        ("a.json", "[", "cannot be read as a table of networks"),
        ("a.parquet", "x", "cannot be read as a table of networks"),
        ("a.csv", "\0\xff", "cannot be read as a table of networks"),
        ("a.txt", "x", "the file of a table must end in .parquet, .csv, .json"),
    ],
)
def test_other_files_are_refused_in_one_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError) as refusal:
        read_table(path)
    assert message in str(refusal.value)
    refused(command("study", "analyze", path), 1, str(path))


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-1e9, 1e9)), min_size=1, max_size=20))
def test_any_number_survives_a_csv_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_text("error,metric\n" + "".join(f"{e!r},{m!r}\n" for e, m in rows))
    found = read_table(path)["x"]
    assert found.errors.tolist() == [error for error, _ in rows]
    assert found.metrics["metric"].tolist() == [metric for _, metric in rows]


@pytest.mark.parametrize("order", [1, -1])
def test_network_number_0_keeps_its_number(tmp_path: Path, order: int) -> None:
    rows = [f"plain,{n},{40 + n}" for n in range(20)]
    rows += [f"gated,{n},{39.8 + n}" for n in range(20)][::order]
    path = tmp_path / "paired.csv"
    path.write_text("space,number,error\n" + "\n".join(rows) + "\n")
    [pair] = analyze(read_table(path), paired=True).pairs
    assert pair.comparison.difference == pytest.approx(-0.2)
    assert pair.comparison.high == pytest.approx(-0.2)


def test_networks_of_the_same_number_form_no_pairs(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_text("space,number,error\na,0,40\na,0,41\nb,0,42\nb,1,43\n")
    with pytest.raises(ConfigError, match="have the same number, so they form no pairs"):
        analyze(read_table(path), paired=True)


def test_spaces_may_have_numbers_as_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("space,error\n0,40\n1,41\n007,42\n,43\n")
    assert list(read_table(path)) == ["0", "1", "007", "mine"]


def test_a_byte_order_mark_is_not_part_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_text("space,error\na,40\nb,41\n", encoding="utf-8-sig")
    assert list(read_table(path)) == ["a", "b"]


@pytest.mark.parametrize("cell", ["10%", '"12,3"', "n/a"])
def test_an_error_that_is_no_number_is_refused(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(f"space,error\na,40\na,{cell}\n")
    with pytest.raises(DataError, match="is not a number; the cell of a failed network must be e"):
        read_table(path)


def test_a_report_of_networks_without_flops(tmp_path: Path) -> None:
    config = RegNetConfig(depth=4, w0=16, wa=16.0, wm=2.0, group_width=8).to_json()
    cells = [(40, 1e6), (41, ""), (42, 3e6)]
    text = "\n".join(f'a,{e},{f},"{config.replace(chr(34), chr(34) * 2)}"' for e, f in cells)
    path = tmp_path / "mine.csv"
    path.write_text(f"space,error,flops,config\n{text}\n")
    assert "<svg" in render(None, read_table(path))


def test_a_column_with_missing_numbers_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("space,error,flops,depth\na,40,1,3\na,41,,4\nb,42,3,5\n")
    found = read_table(path)
    assert list(found["a"].metrics) == ["depth"]
    assert list(found["b"].metrics) == ["flops", "depth"]
    assert "flops is left out for a, because 1 of 2 networks have no number there" in caplog.text


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_another_tool_can_be_written_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("space,error,flops\na,40.5,1\na,41,2\na,,3\nb,42,3\n")
    found = read_table(str(path))
    assert write_table(found, str(tmp_path / f"ours{suffix}")) == 4
    again = read_table(tmp_path / f"ours{suffix}")
    for name, population in found.items():
        assert again[name].errors.tolist() == population.errors.tolist()
        assert again[name].metrics["flops"].tolist() == population.metrics["flops"].tolist()
        assert len(again[name].failed) == len(population.failed)
