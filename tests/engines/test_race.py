"""Tests of what the race builds and what it leaves out, with engines whose times are known."""

import pytest
import torch

import regnet
from regnet.design.config import RegNetConfig
from regnet.engines import int8, race
from regnet.engines import optimize as module
from regnet.engines.base import DTYPES, Target, inference
from regnet.engines.optimize import find_engine
from regnet.errors import ConfigError, MissingExtraError
from regnet.timing import Comparison, Samples
from tests.pictures import pictures

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return regnet.create(RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, num_classes=7)).eval()


class Known:
    """An engine that takes a known number of milliseconds in each precision."""

    def __init__(self, name, *, compiles=False, **times):
        self.name, self.compiles, self.times = name, compiles, times
        self.built = []

    def obstacle(self, target):
        return None if target.precision in self.times else "not here"

    def build(self, model, example, target):
        self.built.append(target.precision)
        call = inference(lambda x: model(x).to(DTYPES[target.precision]).float())

        def run(x):
            return call(x)

        run.ms = self.times[target.precision]
        return run


def compared(a, b, *_args, **_options):
    ratio = b.ms / a.ms
    return Comparison(
        ratios=(ratio,) * 4, median=ratio, low=ratio, high=ratio, control_low=1, control_high=1
    )


@pytest.fixture(autouse=True)
def clock(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(race, "settle", compared)
    monkeypatch.setattr(race, "compare", compared)
    monkeypatch.setattr(race, "time_call", lambda runner, _x: runner.ms / 1e3)
    monkeypatch.setattr(
        race, "measure",
        lambda runner, *_, **__: Samples(seconds=(runner.ms / 1e3,), steady=True, warmup_calls=1),
    )  # fmt: skip


def run(monkeypatch, model, engines, *, bound=None, **options):
    monkeypatch.setattr(module, "ENGINES", tuple(engines))
    monkeypatch.setattr(race, "least_seconds", lambda *_: bound and bound / 1e3)
    return regnet.optimize(model, EXAMPLE, progress=False, **options).report


def reasons(report):
    return {str(row): row.reason for row in report.candidates}


def test_the_fastest_wins_and_the_report_says_by_how_much(monkeypatch, model):
    steps = []
    engines = [Known("eager", fp32=10.0), Known("b", fp32=5.0), Known("c", fp32=7.0)]
    report = run(monkeypatch, model, engines, on_step=lambda *step: steps.append(step))
    assert str(report.winner) == "b fp32"
    assert {str(c): c.latency_ms for c in report.candidates if c.latency_ms} == {
        "eager fp32": 10.0, "b fp32": 5.0, "c fp32": 7.0,
    }  # fmt: skip
    assert report.speedup == 2
    assert report.winner.speedup == (2, 2, 2)
    assert report.winner.interval == (5, 5)
    assert report.winner.verdict == "b fp32 is 2.00x faster, 95 % 2.00-2.00"
    assert str(report).endswith(report.winner.verdict)
    assert steps[0][1] == 0
    assert steps[-1][1] == steps[-1][2] == 9
    again = run(monkeypatch, model, engines)
    assert again.remembered
    assert again.winner == report.winner


def failing(error):
    engine = Known("b", fp32=5.0)

    def build(*_):
        engine.built.append("fp32")
        raise error

    engine.build = build
    return engine


def test_an_engine_that_fails_is_not_tried_at_every_call(monkeypatch, model):
    engines = [Known("eager", fp32=10.0), failing(RuntimeError("no such thing"))]
    first = run(monkeypatch, model, engines)
    assert reasons(first)["b fp32"] == "failed: RuntimeError: no such thing"
    again = run(monkeypatch, model, engines)
    assert again.remembered
    assert engines[1].built == ["fp32"]
    assert reasons(again) == reasons(first)
    assert not run(monkeypatch, model, engines, refresh=True).remembered
    assert engines[1].built == ["fp32", "fp32"]


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), OSError(28, "full")]
)
def test_a_lack_of_memory_or_space_is_not_remembered(monkeypatch, model, error):
    engines = [Known("eager", fp32=10.0), failing(error)]
    run(monkeypatch, model, engines)
    assert not run(monkeypatch, model, engines).remembered
    assert engines[1].built == ["fp32", "fp32"]


def test_compilers_need_a_c_compiler(monkeypatch):
    target = Target(device=torch.device("cpu"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    for name in ("compiled", "aot_inductor"):
        assert "no-such-compiler is not installed" in find_engine(name).obstacle(target)
    monkeypatch.setenv("CXX", "sh")
    assert find_engine("compiled").obstacle(target) is None


def test_a_precision_that_lost_on_two_engines_is_not_built_again(monkeypatch, model):
    engines = [
        Known("eager", fp32=10.0),
        Known("b", fp32=9.0, bf16=20.0),
        Known("c", fp32=8.0, bf16=16.0),
        Known("d", fp32=9.5, bf16=19.0),
        Known("e", compiles=True, fp32=9.0, bf16=1.0),
    ]
    report = run(monkeypatch, model, engines)
    assert [engine.built for engine in engines] == [
        ["fp32"], ["fp32", "bf16"], ["fp32", "bf16"], ["fp32"], ["fp32"],
    ]  # fmt: skip
    assert reasons(report)["e bf16"] == "not tried: bf16 was slower than fp32 on b and c"
    full = run(monkeypatch, model, engines, exhaustive=True)
    assert str(full.winner) == "e bf16"
    assert engines[3].built == ["fp32", "fp32", "bf16"]


def test_fp32_is_left_out_if_half_precision_won(monkeypatch, model):
    engines = [
        Known("eager", fp32=10.0),
        Known("b", fp32=9.0, bf16=5.0),
        Known("c", fp32=8.0, bf16=4.0),
        Known("e", compiles=True, fp32=9.0, bf16=1.0),
    ]
    assert str(run(monkeypatch, model, engines).winner) == "e bf16"
    assert engines[3].built == ["bf16"]


def test_engines_with_the_same_kernels_are_built_once(monkeypatch, model):
    engines = [
        Known("eager", fp32=10.0),
        Known("compiled", compiles=True, fp32=6.0),
        Known("aot_inductor", compiles=True, fp32=5.0),
    ]
    report = run(monkeypatch, model, engines)
    assert engines[1].built == []
    assert reasons(report)["compiled fp32"].startswith("not tried: aot_inductor runs the same")
    # If that engine fails, the other one is tried.
    engines[2].build = lambda *_: 1 / 0
    assert str(run(monkeypatch, model, engines, refresh=True).winner) == "compiled fp32"


@pytest.mark.parametrize(("bound", "built"), [(4.0, ["fp32"]), (5.1, []), (None, ["fp32"])])
def test_compilers_whose_convolutions_alone_take_longer_are_left_out(
    monkeypatch, model, bound, built
):
    engines = [
        Known("eager", fp32=10.0),
        Known("b", fp32=5.0),
        Known("aot_inductor", compiles=True, fp32=4.5),
    ]
    report = run(monkeypatch, model, engines, bound=bound)
    assert engines[2].built == built
    if not built:
        assert (
            "the convolutions alone take 5.10 ms in oneDNN" in reasons(report)["aot_inductor fp32"]
        )


def test_a_budget_leaves_out_candidates_that_take_too_long(monkeypatch, model):
    engines = [
        Known("eager", fp32=10.0),
        Known("b", fp32=5.0),
        Known("aot_inductor", compiles=True, fp32=1.0),
    ]
    report = run(monkeypatch, model, engines, budget_seconds=20)
    assert str(report.winner) == "b fp32"
    assert (
        "budget_seconds=20 were left, and a compiler takes 30 s"
        in reasons(report)["aot_inductor fp32"]
    )
    assert str(run(monkeypatch, model, engines, budget_seconds=0).winner) == "eager fp32"
    # Candidates that were left out for lack of time are tried when there is more time.
    assert str(run(monkeypatch, model, engines).winner) == "aot_inductor fp32"
    for number in (-1, float("nan"), "x"):
        with pytest.raises(ConfigError, match="budget_seconds"):
            run(monkeypatch, model, engines, budget_seconds=number)


def test_no_difference_is_claimed_on_a_busy_machine(monkeypatch, model):
    def busy(a, b, *_args, **_options):
        found = compared(a, b)
        return Comparison(
            ratios=found.ratios, median=found.median, low=found.low, high=found.high,
            control_low=1, control_high=1, problem="the machine is busy",
        )  # fmt: skip

    monkeypatch.setattr(race, "compare", busy)
    report = run(monkeypatch, model, [Known("eager", fp32=10.0), Known("b", fp32=5.0)])
    assert report.winner.verdict == "no claim: the machine is busy"


def test_images_are_refused_without_an_engine_for_int8(model):
    images = torch.zeros(4, 3, 32, 32)
    for options, words in (
        ({"engines": ["eager"]}, "runs on openvino; add it to engines"),
        ({"precision": "fp32"}, "which precision='fp32' excludes"),
    ):
        with pytest.raises(ConfigError, match=words):
            regnet.optimize(model, EXAMPLE, images=images, progress=False, **options)


@pytest.mark.slow  # it needs packages that only `make test-all` installs
@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 3, 32, 32), "int8 needs 2 images or more"),
        (torch.zeros(4, 3, 16, 16), "do not fit"),
    ],
)
def test_unsuitable_images_are_refused(model, images, words):
    with pytest.raises(ConfigError, match=words):
        regnet.optimize(model, EXAMPLE, images=images, progress=False)


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_a_missing_package_for_int8_is_named(model, monkeypatch, package):
    monkeypatch.setattr(int8.OpenVINO, "obstacle", lambda *_: None)
    monkeypatch.setattr(int8.util, "find_spec", lambda _: None)
    if package == "openvino":
        monkeypatch.setattr(int8.OpenVINO, "obstacle", lambda *_: "not installed: openvino")
    with pytest.raises(MissingExtraError, match=f"int8.*{package}"):
        regnet.optimize(model, EXAMPLE, images=torch.zeros(4, 3, 32, 32), progress=False)


@pytest.mark.slow
def test_int8_takes_part_in_the_race_and_is_judged(monkeypatch):
    monkeypatch.undo()
    network = regnet.create("regnety_cifar", pretrained=True).eval()
    images = torch.from_numpy(pictures(24, (32, 32))[0]).permute(0, 3, 1, 2) / 255
    options = {"engines": ["eager", "openvino"], "seconds": 0.1, "progress": False}
    fast = regnet.optimize(network, images=images, min_agreement=0.0, **options)
    [row] = [row for row in fast.report.candidates if row.precision == "int8"]
    assert row.reason is None
    assert 0 < row.agreement <= 1
    assert f"same class for {row.agreement:.1%}" in str(fast.report)
    again = regnet.optimize(network, images=images, min_agreement=0.0, **options).report
    assert again.remembered
    monkeypatch.setattr(race, "floats", lambda *_: iter([()]))
    monkeypatch.setattr("regnet.engines.int8.Images.agreement", lambda *_: 0.5)
    strict = regnet.optimize(network, images=images, min_agreement=0.6, **options).report
    [row] = [row for row in strict.candidates if row.precision == "int8"]
    assert row.reason.startswith("wrong: int8 must give at least 60.0% of images")
    assert strict.winner.precision != "int8"
