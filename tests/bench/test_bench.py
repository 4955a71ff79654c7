"""The benchmark, from floors to the command."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from regnet.bench.compare import compare_documents, read
from regnet.bench.floors import Ceilings, floor
from regnet.bench.report import render
from regnet.bench.runner import DEFAULT_MODELS, PAIRINGS, Case, expand, run, speedups
from regnet.design.config import RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.engines import optimize
from regnet.errors import ConfigError
from tests.cli.test_cli import refused, regnet
from tests.engines.test_engines import Wrong

CPU = torch.device("cpu")
SMALL = RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, num_classes=7)

# ms at 224 x 224, batch 256, halves, for 4.3 TB/s and 790 TFLOP/s: worked out independently.
FLOORS = {
    "regnety_016": (2.95, 2.21),
    "regnety_040": (4.85, 3.77),
    "regnety_080": (7.93, 6.38),
    "regnetx_032": (3.25, 3.25),
}


@pytest.mark.parametrize("name", FLOORS)
def test_floors(name):
    ceilings = Ceilings(bytes_per_second=4.3e12, flops_per_second=790e12)
    found = floor(VARIANTS[name].config, 224, 256, ceilings, element_bytes=2)
    assert 1e3 * found.epilogue == pytest.approx(FLOORS[name][0], rel=0.003)
    assert 1e3 * found.fused == pytest.approx(FLOORS[name][1], rel=0.003)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(SMALL.to_json())
    return str(path)


def cases(model, **options):
    return [Case(model=model, input_size=32, batch_size=2, **options)]


def test_a_row_has_what_a_reader_needs(config_file):
    done = run(cases(config_file), device=CPU, seconds=0.1)
    [row] = done.rows
    assert row.reason is None
    assert row.latency_ms == pytest.approx(
        1e3 * sorted(row.seconds)[len(row.seconds) // 2], rel=0.5
    )
    assert row.images_per_second == pytest.approx(2e3 / row.latency_ms)
    assert row.output_error < 1e-5
    assert row.top1_agreement == 1
    assert 0 < row.floor_fused_ms < row.latency_ms
    assert row.floor_fused_ms <= row.floor_epilogue_ms
    document = json.loads(json.dumps(done.to_dict()))
    assert document["schema"] == 1
    for key in ("cpu", "packages", "threads", "load", "date", "command"):
        assert key in document["environment"]


def test_a_training_step_can_be_timed(config_file):
    [row] = run(cases(config_file, train=True), device=CPU, seconds=0.1).rows
    assert row.latency_ms > 0


def test_what_fails_is_a_row_and_the_rest_goes_on(config_file, monkeypatch):
    monkeypatch.setattr(optimize, "ENGINES", (Wrong(), *optimize.ENGINES))
    todo = [
        *cases("none.json"),
        *cases(config_file, engine="wrong"),
        *cases(config_file, engine="cuda_graph"),
        *cases(config_file),
    ]
    rows = run(todo, device=CPU, seconds=0.1).rows
    assert rows[0].reason.startswith("FileNotFoundError")
    assert rows[1].reason.startswith("wrong: its outputs differ")
    assert not rows[1].seconds
    assert rows[2].reason == "for CUDA devices only"
    assert rows[3].latency_ms > 0
    text = render(run(todo, device=CPU, seconds=0.05).to_dict())
    assert "wrong: its outputs differ" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_default_is_the_papers_comparison():
    assert expand(DEFAULT_MODELS) == list(DEFAULT_MODELS)
    for efficientnet, ours, *errors in PAIRINGS:
        assert {efficientnet, ours} < set(DEFAULT_MODELS)
        assert all(15 < error < 30 for error in errors)
    assert expand(["efficientnet_b*"]) == [f"efficientnet_b{n}" for n in range(8)]
    assert expand(["regnety_016.tv2_in1k"]) == ["regnety_016.tv2_in1k"]
    with pytest.raises(ConfigError, match="no network fits 'vit'"):
        expand(["vit"])


def test_pairs_are_compared():
    todo = [Case(model=name, input_size=32) for name in ("efficientnet_b0", "regnety_004")]
    done = run(todo, device=CPU, seconds=0.1)
    [(pair, batch)] = speedups(done)
    assert (pair, batch) == ("efficientnet_b0 / regnety_004", "1")


def test_documents_are_compared(tmp_path, config_file):
    before = run(cases(config_file), device=CPU, seconds=0.2).to_dict()
    slower = json.loads(json.dumps(before))
    slower["rows"][0]["seconds"] = [1.2 * s for s in before["rows"][0]["seconds"]]
    [change] = compare_documents(before, slower)
    assert change.ratio == pytest.approx(1 / 1.2)
    assert change.verdict == "1.20x slower"
    assert compare_documents(before, before)[0].verdict == "no difference shown"
    path = tmp_path / "a.json"
    path.write_text('{"schema": 7}')
    with pytest.raises(ConfigError, match="schema 7; this version reads 1"):
        read(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not a document of regnet bench"):
        read(path)


# The command


def test_the_command(tmp_path, config_file):
    out, page = tmp_path / "a.json", tmp_path / "a.html"
    args = ("--models", config_file, "--input-size", "32", "--seconds", "0.1")
    done = regnet("bench", *args, "--out", out, "--html", page, "--engine", "eager,folded")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(out.read_text())["rows"]) == 2
    assert "<table>" in page.read_text()
    again = regnet("bench", *args, "--against", out)
    assert "verdict" in again.stdout
    both = regnet("bench", "compare", out, out, "--json")
    assert {change["verdict"] for change in json.loads(both.stdout)} == {"no difference shown"}
    [row] = json.loads(regnet("bench", *args, "--json").stdout)["rows"]
    assert row["latency_ms"] > 0


def test_python_m_is_the_same_command(config_file):
    done = subprocess.run(
        [sys.executable, "-m", "regnet.bench", "--models", config_file, "--input-size", "32",
         "--seconds", "0.05"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "folded" in done.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--models", "vit"], ["no network fits 'vit'"]),
        (["--engine", "tvm"], ["there is no engine 'tvm'; there are eager"]),
        (["--precision", "int3"], ["precision must be one of fp32, bf16, fp16; got 'int3'"]),
        (["--batch-size", "0"], ["needs whole numbers such as 1,16, got '0'"]),
        (["--device", "tpu"], ["there is no device 'tpu'"]),
        (["--against", "none.json"], ["none.json: not a document of regnet bench"]),
        (["compare", "none.json", "none.json"], ["not a document of regnet bench"]),
    ],
)
def test_wrong_usage(args, words, tmp_path):
    refused(regnet("bench", *args, cwd=tmp_path), 2, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is there")
def test_cuda_without_a_gpu():
    [line] = refused(regnet("bench", "--device", "cuda"), 2, "torch sees no CUDA GPU here; use --d")
    assert line.startswith("error: ")


def test_ctrl_c_keeps_what_was_measured(tmp_path, config_file):
    out = tmp_path / "a.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "regnet.bench", "--models", config_file, "--input-size", "32",
         "--batch-size", ",".join(map(str, range(1, 60))), "--seconds", "0.3", "--out", str(out)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # Whoever runs the tests in the background has Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert "small.json batch 1 fp32 folded" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after" in error
    document = json.loads(out.read_text())
    assert not document["complete"]
    assert 1 <= len(document["rows"]) < 59
