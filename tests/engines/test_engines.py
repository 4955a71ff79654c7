"""Tests of the contract that all engines fulfil."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import regnet
from regnet.design.config import RegNetConfig
from regnet.engines import optimize as module
from regnet.engines.base import TOLERANCES, Target, relative_error
from regnet.engines.check import worst_error
from regnet.engines.compiled import Compiled
from regnet.engines.optimize import ENGINES, LAYOUTS
from regnet.engines.transforms import folded, padded, pays_to_pad
from regnet.errors import ConfigError, EngineError
from regnet.nn.efficientnet import EFFICIENTNETS, EfficientNet

CONFIG = RegNetConfig(depth=3, w0=24, wa=24.0, wm=2.0, group_width=24, se_ratio=0.25, num_classes=7)
CPU = torch.device("cpu")
QUICK = ("eager", "folded", "onnx_runtime")


def marks_of(engine, device):
    slow = [] if engine in QUICK else [pytest.mark.slow]
    return [*slow, pytest.mark.gpu] if device == "cuda" else slow


CASES = [
    pytest.param(
        engine,
        Target(device=torch.device(device), precision=precision, layout=layout),
        id=f"{engine.name}-{device}-{precision}-{layout}",
        marks=marks_of(engine.name, device),
    )
    for device, precisions in (("cpu", ("fp32", "bf16")), ("cuda", ("fp32", "bf16", "fp16")))
    for engine in ENGINES
    for precision in precisions
    for layout in (LAYOUTS if device == "cuda" or engine.name == "folded" else LAYOUTS[:1])
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = regnet.create(CONFIG)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, 3, 64, 64))  # changes the running statistics
    return network.eval()


def images(batch=2):
    return torch.randn(batch, 3, 64, 64)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("engine", "target"), CASES)
def test_every_engine_gives_the_models_answers(model, engine, target):
    if obstacle := engine.obstacle(target):
        pytest.skip(obstacle)
    model = copy.deepcopy(model).to(target.device)
    before = copy.deepcopy(model.state_dict())
    inputs = [images().to(target.device) for _ in range(3)]
    with torch.inference_mode():
        reference = [model(x) for x in inputs]
    runner = engine.build(model, inputs[0], target)
    kept = inputs[0].clone()
    assert worst_error(runner, inputs, reference) < TOLERANCES[target.precision]
    assert torch.equal(inputs[0], kept)
    answer = runner(inputs[0])
    assert answer.dtype == torch.float32
    assert answer.shape == (2, 7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch._inductor.config.freezing


@pytest.mark.parametrize(
    "name", ["regnety_002", "regnetx_006", "regnety_006", "regnetz_b16", "regnetv_040"]
)
def test_transforms_keep_the_function(name):
    torch.manual_seed(0)
    network = regnet.create(name).eval()
    for module_ in network.modules():
        if isinstance(module_, torch.nn.BatchNorm2d):
            module_.running_mean.normal_(0, 0.1)
            module_.running_var.uniform_(0.7, 1.3)
            module_.bias.data.normal_(0, 0.1)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = network(x)
        assert relative_error(folded(network)(x), expected) < 1e-5
        assert relative_error(padded(network)(x), expected) < 1e-5
    assert pays_to_pad(network) == (name in ("regnetx_006",))


def test_optimize_chooses_the_fastest_correct_engine(model):
    fast = regnet.optimize(model, images(), engines=["eager", "folded", "padded"], seconds=0.2)
    rows = {(c.engine, c.precision): c for c in fast.report.candidates}
    assert rows["eager", "bf16"].reason == "the reference is fp32"
    right = [c for c in fast.report.candidates if c.reason is None]
    assert fast.report.winner == min(right, key=lambda c: c.latency_ms)
    assert "eager fp32" in str(fast.report)
    for batch in (1, 2, 3, 5):
        x = images(batch)
        with torch.inference_mode():
            torch.testing.assert_close(fast(x), model(x), rtol=0.1, atol=0.1)
    x = torch.randn(1, 3, 96, 80)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x))
    assert fast.report.shape == (2, 3, 64, 64)


@pytest.mark.slow
def test_the_result_of_a_race_is_saved(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {"engines": ["eager", "folded"], "seconds": 0.1}
    first = regnet.optimize(model, images(), **options).report
    assert not first.remembered
    again = regnet.optimize(model, images(), **options).report
    assert again.remembered
    assert again.candidates == first.candidates
    # A subset of the engines needs no new race; other shapes, threads or engines do.
    assert regnet.optimize(model, images(), precision="fp32", **options).report.remembered
    assert not regnet.optimize(model, images(1), **options).report.remembered
    assert not regnet.optimize(model, images(), refresh=True, **options).report.remembered
    wider = options | {"engines": ["eager", "folded", "padded"]}
    assert not regnet.optimize(model, images(), **wider).report.remembered
    assert regnet.optimize(model, images(), **wider).report.remembered
    # Times of two races were never compared.
    for name in ("compiled", "padded"):
        regnet.optimize(model, images(2), engines=[name], precision="fp32", seconds=0.1)
    both = {"engines": ["compiled", "padded"], "precision": "fp32", "seconds": 0.1}
    assert not regnet.optimize(model, images(2), **both).report.remembered
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert not regnet.optimize(model, images(), **options).report.remembered
    torch.set_num_threads(threads)
    for path in (tmp_path / "regnet" / "choices").iterdir():
        path.write_text('[{"engine": 1}]')
    assert not regnet.optimize(model, images(), **options).report.remembered


def test_a_saved_winner_is_checked_again(model, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {"engines": ["folded", "eager"], "precision": "fp32", "seconds": 0.1}
    regnet.optimize(model, images(), **options)
    [folded_engine] = [e for e in ENGINES if e.name == "folded"]
    monkeypatch.setattr(folded_engine, "build", Wrong().build)
    found = regnet.optimize(model, images(), **options)
    assert found.report.winner.engine == "eager"


def test_a_cache_that_cannot_be_written_is_not_an_error(model, monkeypatch, tmp_path, caplog):
    file = tmp_path / "no folder"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    for _ in range(2):
        found = regnet.optimize(model, images(), engines=["eager"], seconds=0.1)
        assert found.report.winner.engine == "eager"
        assert not found.report.remembered
    assert "the choice of engine is not saved" in caplog.text


def test_any_module_can_be_optimized():
    other = EfficientNet(EFFICIENTNETS["efficientnet_b0"]).eval()
    fast = regnet.optimize(other, images(1), engines=["eager", "folded"], seconds=0.1)
    assert fast.report.winner.engine in ("eager", "folded")
    with pytest.raises(ConfigError, match="pass example"):
        regnet.optimize(other)


def test_a_model_in_training_mode_keeps_it_and_is_run_in_evaluation_mode(model):
    training = copy.deepcopy(model).train()
    before = {name: value.clone() for name, value in training.state_dict().items()}
    fast = regnet.optimize(training, images(), engines=["eager"], seconds=0.1)
    x = images()
    with torch.inference_mode():
        assert relative_error(fast(x), model(x)) < 1e-6
    assert training.training
    assert all(torch.equal(before[name], value) for name, value in training.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["folded", "padded", "cuda_graph", "padded_cuda_graph"])
def test_results_on_a_gpu_are_not_overwritten_by_the_next_call(model, engine):
    on_gpu = copy.deepcopy(model).cuda()
    fast = regnet.optimize(on_gpu, images().cuda(), engines=[engine], seconds=0.1)
    x, y = images().cuda(), images().cuda()
    first, second = fast(x), fast(y)
    with torch.inference_mode():
        assert relative_error(first, on_gpu(x)) < 0.05
        assert relative_error(second, on_gpu(y)) < 0.05


@pytest.mark.long
def test_nine_networks_can_be_compiled_in_one_process(model):
    target = Target(device=CPU)
    runners = [Compiled().build(regnet.create(CONFIG), images(1), target) for _ in range(9)]
    assert all(runner(images(1)).shape == (1, 7) for runner in runners)


class Wrong:
    name = "wrong"
    compiles = False

    def obstacle(self, target):
        return None

    def build(self, model, example, target):
        return lambda x: torch.zeros(len(x), 7)


class SameMemory(Wrong):
    name = "same_memory"

    def build(self, model, example, target):
        out = torch.empty(len(example), 7)

        def run(x):
            with torch.inference_mode():
                return out.copy_(model(x))

        return run


class Broken(Wrong):
    name = "broken"

    def build(self, model, example, target):
        raise RuntimeError("no\nsuch thing")


def test_an_engine_with_wrong_outputs_is_not_timed(model, monkeypatch):
    monkeypatch.setattr(module, "ENGINES", (Wrong(), SameMemory(), Broken(), ENGINES[0]))
    report = regnet.optimize(model, images(), precision="fp32", seconds=0.1).report
    reasons = {c.engine: c.reason for c in report.candidates}
    assert reasons["wrong"].startswith("wrong: its outputs differ by 1.0e+00")
    assert reasons["same_memory"].startswith("wrong: its outputs differ")
    assert reasons["broken"] == "failed: RuntimeError: no such thing"
    assert reasons["eager"] is None
    assert [c.engine for c in report.candidates if c.latency_ms is None] == [
        "wrong", "same_memory", "broken",
    ]  # fmt: skip
    monkeypatch.setattr(module, "ENGINES", (Broken(),))
    with pytest.raises(
        EngineError, match="none of these engines works here: broken fp32: failed: Runtime"
    ):
        regnet.optimize(model, images())


def test_bad_requests_are_refused(model):
    with pytest.raises(ConfigError, match="there is no engine 'tvm'; there are eager, folded, p"):
        regnet.optimize(model, engines=["tvm"])
    with pytest.raises(ConfigError, match="no precision 'int3'; there are auto, fp32, bf16, fp16"):
        regnet.optimize(model, precision="int3")
    with pytest.raises(ConfigError, match="no goal 'speed'; there are latency, throughput"):
        regnet.optimize(model, goal="speed")


class Doubling(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def wrapped(model):
    conv = model.s1.b1.conv1.conv
    model.s1.b1.conv1.conv = nn.Sequential(conv, nn.Hardtanh(-0.1, 0.1))


def replaced(model):
    old = model.s1.b1.conv1.conv
    new = Doubling(old.in_channels, old.out_channels, 1, bias=False)
    new.weight = old.weight
    model.s1.b1.conv1.conv = new


def hooked(model):
    model.s1.b1.conv1.bn.register_forward_hook(lambda module, given, found: 2 * found)


def normalized(model):
    nn.utils.parametrizations.weight_norm(model.s1.b1.conv1.conv)


@pytest.mark.parametrize("change", [wrapped, replaced, hooked, normalized])
def test_what_a_user_changed_is_not_folded(change):
    model = regnet.create("regnety_cifar", pretrained=True).eval()
    change(model)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(folded(model)(x), model(x), rtol=1e-4, atol=1e-4)
    assert isinstance(folded(model).s1.b1.conv2.bn, nn.Identity)


def test_a_pruned_network_says_how_to_make_it_permanent():
    model = regnet.create("regnety_cifar").eval()
    conv = model.s1.b1.conv1.conv
    prune.l1_unstructured(conv, "weight", amount=0.5)
    model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(EngineError, match=r"s1\.b1\.conv1\.conv .*prune\.remove"):
        folded(model)
    prune.remove(conv, "weight")
    folded(model)
