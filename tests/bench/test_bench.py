"""Tests of the benchmark, from floors to the command."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace

import pytest
import torch

from regnet import documents
from regnet.bench import floors
from regnet.bench.compare import compare_documents
from regnet.bench.document import Case, Row, read
from regnet.bench.floors import Ceilings, floor
from regnet.bench.networks import DEFAULT_MODELS, PAIRINGS, expand, load
from regnet.bench.report import render
from regnet.bench.runner import Bench, run
from regnet.cli import bench
from regnet.design.config import RegNetConfig
from regnet.design.layers import network_layers
from regnet.design.variants import VARIANTS
from regnet.engines import optimize
from regnet.errors import ConfigError, WeightsError
from regnet.nn.efficientnet import EFFICIENTNETS, EfficientNet
from regnet.timing import Comparison
from regnet.zoo.create import create as regnet_create
from tests.command import refused, regnet
from tests.engines.test_engines import Wrong
from tests.pictures import write_folder

CPU = torch.device("cpu")
SMALL = RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, num_classes=7)

# Milliseconds at 224 x 224, batch 256, in half precision, for 4.3 TB/s and 790 TFLOP/s; they were
# computed independently of this package.
FLOORS = {
    "regnety_016": (2.95, 2.21),
    "regnety_040": (4.85, 3.77),
    "regnety_080": (7.93, 6.38),
    "regnetx_032": (3.25, 3.25),
}


@pytest.mark.parametrize("name", FLOORS)
def test_floors_equal_those_computed_independently(name):
    ceilings = Ceilings(bytes_per_second=4.3e12, flops_per_second=790e12)
    found = floor(
        network_layers(VARIANTS[name].config.anynet(), 224), 256, ceilings, element_bytes=2
    )
    assert 1e3 * found.epilogue == pytest.approx(FLOORS[name][0], rel=0.003)
    assert 1e3 * found.fused == pytest.approx(FLOORS[name][1], rel=0.003)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(SMALL.to_json())
    return str(path)


ROW = documents.sealed({"row": Row(case=Case(model="regnetx_002"))})["row"]


def cases(model, **options):
    options = {"engine": "folded"} | options
    return [Case(model=model, image_size=32, batch_size=2, **options)]


def test_a_row_has_what_a_reader_needs(config_file):
    done = run(cases(config_file), device=CPU, seconds=0.1)
    [row] = done.rows
    assert row.reason is None
    assert row.latency_ms == pytest.approx(
        1e3 * sorted(row.seconds)[len(row.seconds) // 2], rel=0.5
    )
    assert row.images_per_second == pytest.approx(2e3 / row.queued_ms)
    assert row.output_error < 1e-5
    assert row.top1_agreement == 1
    assert 0 < row.floor_fused_ms < row.latency_ms
    assert row.floor_fused_ms <= row.floor_epilogue_ms
    document = documents.sealed(done)
    assert document["schema"] == 3
    assert row.low_ms <= row.latency_ms <= row.high_ms
    assert row.p99_ms is None
    assert row.queued_ms > 0
    assert row.with_copy_ms is None
    assert row.ran == "folded fp32"
    for key in ("cpu", "commit", "packages", "threads", "load", "date", "command"):
        assert key in document["environment"]


@pytest.mark.slow
def test_a_training_step_can_be_timed(config_file):
    [row] = run(cases(config_file, train=True), device=CPU, seconds=0.1).rows
    assert row.latency_ms > 0


def test_a_network_of_few_classes_and_other_channels_can_be_timed(tmp_path):
    path = tmp_path / "few.json"
    path.write_text(replace(SMALL, num_classes=2, in_chans=1).to_json())
    todo = [Case(model=str(path), image_size=32, batch_size=4, engine="folded")]
    rows = run([*todo, replace(todo[0], train=True)], device=CPU, seconds=0.1).rows
    assert [row.reason for row in rows] == [None, None]


def test_cases_can_be_measured_in_alternation(config_file):
    todo = [*cases(config_file), Case(model="no/such.json"), *cases(config_file, train=True)]
    order = []
    done = run(
        todo, device=CPU, seconds=0.1, calls=50, in_turn=True,
        on_row=lambda row: order.append(row.case),
    )  # fmt: skip
    assert order == todo
    assert [row.reason is None for row in done.rows] == [True, False, True]
    for row in (done.rows[0], done.rows[2]):
        assert row.low_ms <= row.latency_ms <= row.high_ms
        assert row.reference_ms[0] <= row.reference_ms[1]
        assert 25 <= len(row.seconds) <= 50, "five calls or more in each of five rounds"


def test_an_unfinished_document_is_passed_on_after_each_case(config_file):
    kept = []
    run(cases(config_file) * 2, device=CPU, seconds=0.05, on_document=kept.append)
    assert [(len(d.rows), d.complete) for d in kept] == [(1, False), (2, False)]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from the compiler, about torch
@pytest.mark.parametrize("engine", ["auto", "cuda_graph", "compiled"])
def test_rows_and_pairs_on_a_gpu(engine):
    todo = [
        Case(model=name, image_size=64, batch_size=2, engine=engine, precision="fp16")
        for name in ("efficientnet_b0", "regnety_004")
    ]
    done = run(todo, device=torch.device("cuda"), seconds=0.2)
    assert [row.reason for row in done.rows] == [None, None]
    assert all(row.queued_ms > 0 and row.latency_ms > 0 for row in done.rows)
    assert all(row.with_copy_ms > 0 for row in done.rows)
    assert len(done.pairs) == 1


@pytest.mark.slow
def test_a_failed_case_is_a_row_and_the_others_are_measured(config_file, monkeypatch):
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
    text = render(run(todo, device=CPU, seconds=0.05))
    assert "wrong: its outputs differ" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_default_is_the_papers_comparison():
    assert expand(DEFAULT_MODELS) == list(DEFAULT_MODELS)
    for efficientnet, ours, *errors in PAIRINGS:
        assert {efficientnet, ours} < set(DEFAULT_MODELS)
        assert all(15 < error < 30 for error in errors)
    assert expand(["efficientnet_b*"]) == [f"efficientnet_b{n}" for n in range(8)]
    assert expand(["regnety_016.tv2_in1k"]) == ["regnety_016.tv2_in1k"]
    with pytest.raises(ConfigError, match="no network matches 'vit'"):
        expand(["vit"])


@pytest.mark.slow
def test_a_p99_needs_a_thousand_calls(config_file):
    [row] = run(cases(config_file), device=CPU, seconds=600, calls=1000).rows
    assert len(row.seconds) == 1000
    assert row.p90_ms <= row.p99_ms


@pytest.mark.slow
def test_auto_and_best_use_the_fastest_engine(config_file, monkeypatch):
    ready = [e for e in optimize.ENGINES if e.name in ("eager", "folded", "compiled")]
    tried = []
    for engine in ready:
        build = engine.build

        def noted(*args, engine=engine, build=build):
            tried.append(engine.name)
            return build(*args)

        monkeypatch.setattr(engine, "build", noted)
    monkeypatch.setattr("regnet.bench.runner.ENGINES", ready)
    [row] = run(cases(config_file, engine="auto"), device=CPU, seconds=0.1).rows
    assert row.ran in ("eager fp32", "folded fp32")
    assert row.output_error < 1e-5
    assert set(tried) == {"eager", "folded"}
    run(cases(config_file, engine="best"), device=CPU, seconds=0.1)
    assert "compiled" in tried


@pytest.mark.slow
def test_pairs_run_in_alternation():
    todo = [
        Case(model=name, image_size=32, engine="folded")
        for name in ("efficientnet_b0", "regnety_004", "regnetx_004")
    ]
    done = run(todo, device=CPU, seconds=0.2)
    [pair] = done.pairs
    assert (pair.a, pair.b, pair.batch_size) == ("efficientnet_b0", "regnety_004", 1)
    assert pair.low <= pair.ratio <= pair.high
    assert len(pair.ratios) == 30
    assert (pair.ran_a, pair.ran_b) == ("folded fp32", "folded fp32")
    assert "Timed in alternation" in render(done)


@pytest.mark.slow
def test_the_ratio_of_a_pair_is_a_over_b(monkeypatch):
    order = []

    def one_in_front_of_the_other(first, second, inputs, *, inputs_b, **_):
        order.extend(call(x) for call, x in ((first, inputs[0]), (second, inputs_b[0])))
        return Comparison(
            ratios=(2.0,), median=2.0, low=1.9, high=2.1, control_low=1.0, control_high=1.0
        )

    monkeypatch.setattr("regnet.bench.runner.compare", one_in_front_of_the_other)
    names = ("efficientnet_b0", "regnety_004")
    todo = [Case(model=name, image_size=32, engine="eager") for name in names]
    [pair] = run(todo, device=CPU, seconds=0.05).pairs
    # `compare` returns the time of its second call over that of its first; b is passed second.
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for found, name in zip(order, reversed(names), strict=True):
        torch.manual_seed(0)
        with torch.inference_mode():
            assert torch.equal(found, load(name).model.eval()(x))
    assert pair.ratio == 2
    assert pair.verdict == "regnety_004 is 2.00x faster, 95 % 1.90-2.10"


def test_efficientnets_have_floors():
    ceilings = Ceilings(bytes_per_second=1e9, flops_per_second=1e30)
    found = floor(EFFICIENTNETS["efficientnet_b0"].layers(224), 1, ceilings, element_bytes=4)
    # Every map is written once and read once or more; the parameters are read once.
    assert 2 * 4 * 6.7e6 / 1e9 < found.fused < found.epilogue < 4 * 4 * 6.8e6 / 1e9


def test_weights_of_efficientnets_come_from_the_hub(hub, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    original = EfficientNet(EFFICIENTNETS["efficientnet_b0"]).eval()
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    save_file({"conv_stem.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    other = (tmp_path / "model.safetensors").read_bytes()
    hub.repos["timm/efficientnet_b0.ra_in1k"] = {"model.safetensors": whole}
    hub.repos["timm/efficientnet_b1.ft_in1k"] = {"model.safetensors": other}
    assert expand(["efficientnet_b0.ra_in1k"]) == ["efficientnet_b0.ra_in1k"]
    model = load("efficientnet_b0.ra_in1k").model.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(x), original(x))
    with pytest.raises(WeightsError, match=r"b1\.ft_in1k does not fit efficientnet_b1"):
        load("efficientnet_b1.ft_in1k")


@pytest.mark.slow
def test_networks_of_other_libraries_are_measured_next_to_ours(monkeypatch):
    """A stand-in replaces timm, of which the benchmark uses only two functions."""
    timm = types.ModuleType("timm")
    timm.is_model = lambda name: name == "regnetx_002"
    timm.create_model = regnet_create
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    names = expand(["regnetx_002", "efficientnet_b0"], ["timm", "torchvision"])
    assert names == [
        "regnetx_002", "timm:regnetx_002", "torchvision:regnetx_002", "efficientnet_b0",
    ]  # fmt: skip
    todo = [Case(model=n, image_size=32, engine="folded") for n in names if "net_b0" not in n]
    done = run(todo, device=CPU, seconds=0.1)
    ours, theirs, missing = done.rows
    assert theirs.flops == ours.flops
    assert missing.reason.startswith("MissingExtraError: torchvision is not installed")
    [pair] = done.pairs
    assert (pair.a, pair.b) == ("timm:regnetx_002", "regnetx_002")
    with pytest.raises(ConfigError, match="there is no peer 'keras'; there are timm, torchvision"):
        expand(["regnetx_002"], ["keras"])


def test_a_config_is_a_case_of_its_own(tmp_path):
    """A config needs no file, and is read back from the document unchanged."""
    done = run(cases(SMALL), device=CPU, seconds=0.05)
    [row] = done.rows
    assert row.reason is None
    assert row.case.name == f"regnet {list(SMALL.depths)} {list(SMALL.widths)}"
    documents.write(tmp_path / "a.json", done)
    assert read(tmp_path / "a.json") == done
    assert read(tmp_path / "a.json").rows[0].case.model == SMALL


def test_documents_are_compared(tmp_path, config_file):
    done = run(cases(config_file), device=CPU, seconds=0.2)

    def timed(seconds, **facts):
        row = replace(done.rows[0], problem=None, reference_ms=(1.0, 1.01), steady=True)
        return replace(done, rows=(replace(row, seconds=tuple(seconds), **facts),))

    before = timed((1 + 0.01 * (n % 5)) * 1e-3 for n in range(50))
    slower = timed(1.2 * s for s in before.rows[0].seconds)
    [change] = compare_documents(before, slower)
    assert change.ratio == pytest.approx(1 / 1.2)
    assert change.verdict == "1.20x slower in the second"
    assert compare_documents(slower, before)[0].verdict == "1.20x faster in the second"
    noisy = timed((0.5 + n % 2) * 1e-3 for n in range(50))
    assert compare_documents(before, before)[0].verdict == "no difference shown"
    assert compare_documents(noisy, noisy)[0].verdict == "no difference shown"
    # A change of the machine's own speed is not a difference of the network.
    elsewhere = timed((1.2 * s for s in before.rows[0].seconds), reference_ms=(1.15, 1.3))
    assert "the machine itself changed by 30%" in compare_documents(before, elsewhere)[0].verdict
    much = timed((2.0 * s for s in before.rows[0].seconds), reference_ms=(1.15, 1.3))
    assert compare_documents(before, much)[0].verdict == "2.00x slower in the second"
    busy = timed(before.rows[0].seconds, problem="the machine is busy")
    told = "no claim: in the second run the machine is busy"
    assert compare_documents(before, busy)[0].verdict == told
    unknown = timed(before.rows[0].seconds, reference_ms=None)
    assert "no reference times" in compare_documents(before, unknown)[0].verdict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"schema": 7}, "its schema is 7, and this version reads 3; measure again"),
        (lambda d: {"schema": 3}, "lacks the field 'ceilings'"),
        (lambda d: d | {"rows": [{}]}, r"rows\[0\]: lacks the field 'case'"),
        (lambda d: d | {"rows": [d["rows"][0] | {"flops": "1"}]}, r"rows\[0\].flops cannot be '1'"),
        (lambda d: d | {"pairs": None}, "pairs must be a list, got None"),
        (lambda d: d | {"mood": 1}, "has no field 'mood'; it has rows, pairs"),
    ],
)
def test_documents_of_another_shape_are_refused(tmp_path, config_file, change, message):
    path = tmp_path / "a.json"
    documents.write(path, change(documents.sealed(run([], device=CPU)) | {"rows": [ROW]}))
    with pytest.raises(ConfigError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 3}'])
def test_other_files_are_refused_as_documents(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.json: not a document of `regnet bench --out`"):
        read(path)


# The command


@pytest.mark.slow
def test_the_command_measures_and_compares(tmp_path, config_file):
    out, page = tmp_path / "a.json", tmp_path / "a.html"
    args = ("--models", config_file, "--image-size", "32", "--seconds", "0.1", "--engine", "eager")
    drawn = tmp_path / "a.svg"
    done = regnet(
        "bench", *args[:-1], "eager,folded", "--out", out, "--html", page, "--plot", drawn,
        "--layout", "channels_last",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "<svg" in drawn.read_text()
    assert len(json.loads(out.read_text())["rows"]) == 2
    assert "<table>" in page.read_text()
    again = regnet("bench", *args, "--against", out)
    assert "verdict" in again.stdout
    again = regnet("bench", *args, "--against", out, "--json")
    assert len(json.loads(again.stdout)["against"]) == 1
    both = regnet("bench", "compare", out, out, "--json")
    verdicts = [change["verdict"] for change in json.loads(both.stdout)]
    assert len(verdicts) == 2
    assert all(verdict.startswith("no ") for verdict in verdicts), (
        "nothing is claimed, even if the machine is busy"
    )
    [row] = json.loads(regnet("bench", *args, "--json").stdout)["rows"]
    assert row["latency_ms"] > 0
    other = tmp_path / "other.json"
    regnet("bench", *args[:-1], "folded", "--batch-size", 2, "--out", other, code=0)
    refused(regnet("bench", "compare", out, other), 2, "have no measured case in common")
    both = regnet("bench", *args, "--layout", "channels_last,contiguous", code=0).stdout
    assert "eager fp32 contiguous" in both


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--layout", "contiguous"), "auto and best choose the layout; name engines"),
        (("--models", "a.onnx", "--train"), "a.onnx is an exported file, which cannot be trained"),
    ],
)
def test_options_that_contradict_each_other_are_refused(args, words):
    refused(regnet("bench", *args), 2, words)


@pytest.mark.slow
def test_python_m_is_the_same_command(config_file):
    done = subprocess.run(
        [sys.executable, "-m", "regnet.bench", "--models", config_file, "--image-size", "32",
         "--seconds", "0.05", "--engine", "folded"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "folded" in done.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--models", "vit"], ["no network matches 'vit'"]),
        (["--engine", "tvm"], ["there is no engine 'tvm'; there are eager"]),
        (["--train", "--engine", "eager"], ["--train runs eagerly; leave out --engine"]),
        (["--out", "no/a.json"], ["no/a.json: there is no folder no"]),
        (["--html", "no/a.html"], ["there is no folder no"]),
        (["--peers", "keras"], ["there is no peer 'keras'"]),
        (["--plot", "a.txt"], ["a.txt: the file of a plot must end in"]),
        (["--layout", "NHWC"], ["there is no layout 'NHWC'; there are channels_last, contiguous"]),
        (["--precision", "int3"], ["there is no precision 'int3'; there are fp32, bf16, fp16"]),
        (["--batch-size", "0"], ["needs positive whole numbers such as"]),
        (["--device", "tpu"], ["there is no device 'tpu'"]),
        (["--against", "none.json"], ["none.json: No such file or directory"]),
        (["compare", "none.json", "none.json"], ["none.json: No such file or directory"]),
    ],
)
def test_wrong_usage_is_refused(args, words, tmp_path):
    refused(regnet("bench", *args, cwd=tmp_path), 2, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a CUDA GPU")
def test_cuda_without_a_gpu():
    [line] = refused(regnet("bench", "--device", "cuda"), 2, "torch sees no CUDA GPU here; use cpu")
    assert line.startswith("error: ")


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(tmp_path, config_file):
    out = tmp_path / "a.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "regnet.bench", "--models", config_file, "--image-size", "32",
         "--batch-size", ",".join(map(str, range(1, 60))), "--seconds", "0.3",
         "--engine", "folded", "--out", str(out)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # If the tests run in the background, Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert "small.json batch 1 folded fp32" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after" in error
    document = json.loads(out.read_text())
    assert not document["complete"]
    assert 1 <= len(document["rows"]) < 59


def test_a_bench_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    row = Bench(torch.device("cpu"), 0.01, 5).alone(Case(model="regnety_cifar", engine="folded"))
    assert row.peak_bytes is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_ceilings_that_fail_leave_the_settings_alone(monkeypatch):
    def failing(call, device):
        if torch.backends.cuda.matmul.allow_tf32:
            raise RuntimeError("on purpose")
        return 1.0

    monkeypatch.setattr(floors, "_best", failing)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = False
    with pytest.raises(RuntimeError, match="on purpose"):
        floors.measure_ceilings(torch.device("cpu"), "fp32")
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("model", "ran", "engine", "precision"),
    [
        ("regnety_cifar", "folded bf16 contiguous", "folded", "bf16"),
        ("regnety_cifar", "openvino fp32", "eager", "fp32"),
        ("regnety_cifar", None, "eager", "fp32"),
        ("mine.xml", "openvino bf16", "eager", "fp32"),
    ],
)
def test_accuracy_is_of_the_setting_that_was_timed(model, ran, engine, precision):
    row = Row(case=Case(model=model, image_size=64), ran=ran)
    assert bench._setting(row) == (model, 64, engine, precision)


def test_a_missing_accuracy_is_a_failure(tmp_path):
    write_folder(tmp_path / "photos", 4, names=("cat", "unicorn"))
    done = regnet(
        "bench", "--models", "regnety_cifar.cifar10,regnetx_002", "--data", "photos", "--engine",
        "eager", "--image-size", 32, "--seconds", 0.01, "--calls", 5, "--json", cwd=tmp_path,
    )  # fmt: skip
    refused(done, 1, "accuracy was not measured: ")
    assert all(row["latency_ms"] for row in json.loads(done.stdout)["rows"])
