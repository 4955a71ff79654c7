"""Tests of files for other runtimes: correct, of any size, and complete or not written."""

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regnet
from regnet import exporting
from regnet.design.config import RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.engines import int8
from regnet.engines.base import TOLERANCES, Target, relative_error
from regnet.engines.formats import FORMATS
from regnet.engines.outputs import listed
from regnet.errors import ConfigError, EngineError, MissingExtraError
from regnet.nn.features import FeatureNet
from regnet.nn.model import AnyNet
from tests.command import refused
from tests.command import regnet as command
from tests.marks import long

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore")


def marks_of(form, precision):
    """Return the marker of a slow format: compiling takes half a minute and is tested elsewhere."""
    if form == "aot_inductor" or (form, precision) in (("torch", "fp16"), ("openvino", "fp16")):
        return [pytest.mark.long]
    return [] if (form, precision) == ("onnx", "fp32") else [pytest.mark.slow]


CASES = [
    pytest.param(
        form,
        precision,
        id=f"{form.name}-{precision}",
        marks=marks_of(form.name, precision),
    )
    for form in FORMATS.values()
    for precision in form.precisions
    if precision != "int8"
]
# All formats are based on torch.export, which tests/nn tests with every kind of block.
LARGE_GRAPHS = long("regnetz_b16", "regnetz_c16_evos")
INT8 = [
    pytest.param("openvino", id="openvino"),
    pytest.param("torch", id="torch"),
    # The compiler takes half a minute, and the other two formats test the same.
    pytest.param("aot_inductor", id="aot_inductor", marks=[pytest.mark.long]),
]


@pytest.fixture(scope="module")
def model():
    return regnet.create("regnety_cifar", pretrained=True).eval()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return regnet.create(RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, num_classes=7)).eval()


@pytest.fixture(scope="module")
def brief():
    """A RegNetY with every kind of layer in few blocks, for formats that need a compiler."""
    torch.manual_seed(0)
    config = RegNetConfig(
        depth=4, w0=16, wa=16.0, wm=2.0, se_ratio=0.25, stem="cifar", num_classes=10
    )
    return regnet.create(config).eval()


@pytest.mark.parametrize(("form", "precision"), CASES)
def test_a_file_gives_the_models_answers_at_any_size(model, brief, tmp_path, form, precision):
    if (form.name, precision) != ("onnx", "fp32"):
        model = brief
    path = tmp_path / f"model{form.suffix}"
    done = regnet.export(model, path, format=form.name, precision=precision)
    assert done.path == path
    assert done.dynamic
    assert done.error < TOLERANCES[precision]
    assert done.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    files = sorted(file.suffix for file in tmp_path.iterdir())
    assert files == ([".bin", ".xml"] if form.name == "openvino" else [form.suffix])
    runner = form.load(path, Target(device=torch.device("cpu")))
    for shape in [(1, 3, 32, 32), (3, 3, 45, 32), (2, 3, 64, 57)]:
        if min(shape[2:]) < done.smallest_side:
            continue
        x = torch.randn(shape)
        with torch.inference_mode():
            assert relative_error(runner(x), model(x)) < TOLERANCES[precision]


@pytest.mark.slow
def test_onnx_files_run_in_onnx_runtime(model, tmp_path):
    import onnx
    import onnxruntime

    path = tmp_path / "model.onnx"
    regnet.export(model, path)
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    told = json.loads(facts["regnet"])
    assert told["label_names"][3] == "cat"
    assert told["config"]["w0"] == model.config.w0
    assert told["license"] == "apache-2.0"
    session = onnxruntime.InferenceSession(path)
    [images], [logits] = session.get_inputs(), session.get_outputs()
    assert (images.name, logits.name) == ("images", "logits")
    assert images.shape == ["batch", 3, "height", "width"]
    x = np.random.default_rng(0).standard_normal((5, 3, 40, 48), np.float32)
    [found] = session.run(None, {"images": x})
    with torch.inference_mode():
        expected = model(torch.from_numpy(x))
    assert relative_error(torch.from_numpy(found), expected) < 1e-4


class TwoThings(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        maps = self.network.forward_features(x)
        return {"maps": maps, "logits": self.network.forward_head(maps), "loss": None}


class Pair(TwoThings):
    def forward(self, x):
        both = super().forward(x)
        return both["logits"], both["maps"]


def others(network):
    """Modules that other people might write, with the names of their outputs."""
    maps = FeatureNet(network)
    return {
        "feature maps": (maps, ("stem", "s1", "s2", "s3")),
        "some feature maps": (FeatureNet(network, (1, -1)), ("s1", "s3")),
        "in a sequence": (torch.nn.Sequential(network, torch.nn.Softmax(1)), ("output",)),
        "dictionary": (TwoThings(network), ("maps", "logits")),
        "tuple": (Pair(network), ("output_0", "output_1")),
        "a convolution": (torch.nn.Conv2d(3, 4, 3), ("output",)),
    }


OTHERS = others(AnyNet(RegNetConfig(depth=3, w0=16, wa=16.0, wm=2.0, num_classes=7)).eval())


EXPORTS = [
    ("feature maps", ".onnx"),
    ("dictionary", ".xml"),
    ("tuple", ".pt2"),
    *(pytest.param(name, ".onnx", marks=pytest.mark.long) for name in OTHERS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "suffix"), EXPORTS)
def test_any_module_is_exported(tmp_path, kind, suffix):
    module, names = OTHERS[kind]
    torch.manual_seed(0)
    path = tmp_path / f"model{suffix}"
    done = regnet.export(module, path, example=torch.zeros(1, 3, 48, 64))
    assert done.outputs == names
    [form] = [form for form in FORMATS.values() if form.suffix == suffix][:1]
    runner = form.load(path, Target(device=torch.device("cpu")))
    x = torch.randn(3, 3, 64, 50)
    wanted = module(x)
    wanted = list(wanted.values())[:2] if isinstance(wanted, dict) else listed(wanted)
    for found, expected in zip(listed(runner(x)), wanted, strict=True):
        assert relative_error(found, expected.detach()) < 1e-4
    if suffix == ".onnx":
        import onnx

        assert tuple(output.name for output in onnx.load(path).graph.output) == names


@pytest.mark.parametrize(("module", "names"), OTHERS.values(), ids=OTHERS)
def test_any_module_is_optimized(module, names):
    """The outputs have the same structure as those of the module."""
    torch.manual_seed(0)
    fast = regnet.optimize(
        module, torch.zeros(2, 3, 48, 64), engines=["eager", "folded"], seconds=0.01,
        precision="fp32",  # half precision may win if the device supports it
    )  # fmt: skip
    for x in (torch.randn(2, 3, 48, 64), torch.randn(3, 3, 48, 64), torch.randn(1, 3, 40, 40)):
        found, wanted = fast(x), module(x)
        if isinstance(wanted, dict):
            wanted = {key: value for key, value in wanted.items() if value is not None}
            found = {key: found[key] for key in wanted}
        assert type(found) is type(wanted)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("outputs", ["dictionary", "list"])
def test_a_replaced_head_may_give_several_outputs(tmp_path, outputs):
    class Two(torch.nn.Module):
        def forward(self, x):
            means = x.mean((2, 3))
            return {"a": means, "b": means * 2} if outputs == "dictionary" else [means, means * 2]

    model = AnyNet(RegNetConfig(depth=2, w0=16, wa=0.0, wm=2.0, num_classes=7)).eval()
    model.head = Two()
    x = torch.randn(1, 3, 32, 32)
    fast = regnet.optimize(model, x, engines=["eager", "folded"], seconds=0.01, precision="fp32")
    found, wanted = fast(x), model(x)
    assert type(found) is type(wanted)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.long
def test_a_network_that_returns_a_dictionary_is_exported_in_int8(tmp_path):
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = regnet.create("regnety_cifar", pretrained=True)

        def forward(self, x):
            return {"logits": self.network(x)}

    done = regnet.export(
        Named().eval(), tmp_path / "a.xml", precision="int8", min_agreement=0,
        example=torch.zeros(1, 3, 32, 32), images=torch.randn(12, 3, 32, 32), dynamic="batch",
    )  # fmt: skip
    assert done.judged == 3


class Odd(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs


@pytest.mark.parametrize("outputs", [7, [torch.ones(1), "text"], [], {}, [[torch.ones(1)]], None])
def test_modules_that_do_not_return_tensors_are_refused(tmp_path, outputs):
    with pytest.raises(ConfigError, match="Odd returns"):
        regnet.export(Odd(outputs), tmp_path / "a.pt2", example=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="Odd returns"):
        regnet.optimize(Odd(outputs), torch.zeros(1, 3, 8, 8), engines="eager")


def test_a_foreign_module_needs_an_example(tmp_path):
    with pytest.raises(ConfigError, match="image size of Conv2d, which is not a network"):
        regnet.export(torch.nn.Conv2d(3, 4, 3), tmp_path / "a.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", ["batch", ("height", "width"), []])
def test_each_axis_is_free_or_fixed(small, tmp_path, dynamic):
    import onnx

    path = tmp_path / "a.onnx"
    done = regnet.export(small, path, dynamic=dynamic, example=torch.zeros(2, 3, 64, 48))
    free = {dynamic} if dynamic == "batch" else set(dynamic)
    assert set(done.dynamic) == free
    [images] = onnx.load(path).graph.input
    shape = [size.dim_param or size.dim_value for size in images.type.tensor_type.shape.dim]
    names = ["batch", 3, "height", "width"]
    assert shape == [
        name if name in free else size for name, size in zip(names, (2, 3, 64, 48), strict=True)
    ]
    [logits] = onnx.load(path).graph.output
    assert (logits.type.tensor_type.shape.dim[0].dim_param == "batch") == ("batch" in free)


@pytest.mark.slow
def test_openvino_with_a_free_batch_of_one_size(small, tmp_path):
    import openvino

    regnet.export(small, tmp_path / "a.xml", dynamic="batch", example=torch.zeros(1, 3, 64, 48))
    [images] = openvino.Core().read_model(tmp_path / "a.xml").inputs
    assert str(images.partial_shape) == "[?,3,64,48]"


@pytest.mark.parametrize(
    "dynamic", [{0: "batch"}, {"images": {0: "n"}}, ["channels"], "all", 1, None, ["batch", 3]]
)
def test_other_values_of_dynamic_are_refused(small, tmp_path, dynamic):
    """A dictionary, as `torch.onnx.export` accepts it, used to be treated as True."""
    with pytest.raises(
        ConfigError, match="dynamic must be True, False, or names of axes among batch"
    ):
        regnet.export(small, tmp_path / "a.pt2", dynamic=dynamic)


@pytest.mark.slow
def test_weights_too_large_for_one_file_lie_beside_it(small, tmp_path, monkeypatch):
    monkeypatch.setattr("regnet.engines.onnx_runtime.LARGEST", 1000)
    done = regnet.export(small, tmp_path / "a.onnx", example=torch.zeros(1, 3, 64, 64))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    runner = FORMATS["onnx"].load(done.path, Target(device=torch.device("cpu")))
    assert runner(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.slow
def test_static_files_take_one_shape(model, tmp_path):
    done = regnet.export(
        model, tmp_path / "a.onnx", dynamic=False, example=torch.zeros(2, 3, 32, 48)
    )
    assert done.shape == (2, 3, 32, 48)
    assert done.smallest_side is None
    assert "2 x 3 x 32 x 48" in str(done)
    runner = FORMATS["onnx"].load(done.path, Target(device=torch.device("cpu")))
    assert runner(torch.zeros(2, 3, 32, 48)).shape == (2, 10)
    with pytest.raises(Exception, match="invalid dimensions"):
        runner(torch.zeros(1, 3, 32, 32))


def photos(count=48):
    """Return images that resemble photos: smooth, of different colors, and all different."""
    rng = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, 4, 4, generator=rng)
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")


@pytest.mark.slow
@pytest.mark.parametrize("name", INT8)
def test_int8_files_agree_with_the_model(brief, tmp_path, name):
    path = tmp_path / f"model{FORMATS[name].suffix}"
    options = {"format": name, "precision": "int8", "images": photos()}
    done = regnet.export(brief, path, **options)
    assert done.judged == 12
    assert done.agreement > 0.9
    assert 0 < done.error < 0.5
    assert "of 12 images" in str(done)
    if name == "openvino":  # in other formats, weights are quantized on loading
        floats = 4 * sum(p.numel() for p in brief.parameters())
        assert path.with_suffix(".bin").stat().st_size < 0.5 * floats


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", *long("torch")])
def test_int8_leaves_sensitive_layers_in_float(model, tmp_path, name):
    spoilt = runpy.run_path(str(ROOT / "benchmarks/int8.py"))["with_outlier"](model)
    images = photos(80)
    torch.testing.assert_close(spoilt(images[:4]), model(images[:4]), rtol=1e-3, atol=1e-3)
    options = {"format": name, "precision": "int8", "images": images, "dynamic": "batch"}
    suffix = FORMATS[name].suffix
    tried: list[str] = []
    done = regnet.export(
        spoilt, tmp_path / f"a{suffix}", min_agreement=0.9, on_attempt=tried.append, **options
    )
    assert done.agreement >= 0.9
    assert tried[0].endswith("with 0 layers in float")
    assert "s1.b1.conv2.conv" in done.floats
    assert "s1.b1.se.fc1" in done.floats
    assert "in float: squeeze-excitation, " in str(done)
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".bin"] == [f"a{suffix}"]


@pytest.mark.slow
def test_int8_can_be_bounded_by_accuracy_on_the_users_images(brief, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "SHARES", ())  # trying all shares takes a minute

    def top1(network):
        seen.append(type(network).__name__)
        return 90.0 if isinstance(network, regnet.AnyNet) else answers.pop(0)

    options = {"precision": "int8", "images": photos(), "min_agreement": 0, "top1": top1}
    seen, answers = [], [88.9, 89.5]
    done = regnet.export(brief, tmp_path / "a.xml", **options)
    assert seen == ["AnyNet", "FileNetwork", "FileNetwork"]
    assert (done.top1_before, done.top1) == (90, 89.5)
    assert all(".se." in name for name in done.floats)
    assert "top-1 89.50 % (before: 90.00 %); in float: squeeze-excitation" in str(done)
    monkeypatch.setattr(exporting, "floats", lambda *_: iter([()]))
    answers = [80.0]
    with pytest.raises(EngineError, match=r"top-1 of int8 is 80\.00 %, 10\.00 points less"):
        regnet.export(brief, tmp_path / "b.xml", **options)
    assert not (tmp_path / "b.xml").exists()


@pytest.mark.slow
def test_int8_is_refused_where_classes_change(brief, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "floats", lambda *_: iter([()]))
    monkeypatch.setattr("regnet.engines.int8.Images.agreement", lambda *_: 0.5)
    path = tmp_path / "model.xml"
    path.write_bytes(b"earlier")
    with pytest.raises(EngineError, match=r"int8 must give .* nothing was written"):
        regnet.export(brief, path, precision="int8", images=photos(), min_agreement=0.6)
    assert path.read_bytes() == b"earlier"


def test_a_file_whose_outputs_differ_is_not_written(small, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"earlier")
    monkeypatch.setitem(TOLERANCES, "fp32", 1e-12)
    with pytest.raises(EngineError, match=r"outputs differ from eager's by .* nothing was"):
        regnet.export(small, path, example=torch.zeros(1, 3, 32, 32))
    assert path.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_network_that_cannot_be_exported_says_why(small, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no\nsuch operator")

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=broken))
    with pytest.raises(EngineError, match="onnx cannot export this network: RuntimeError: no such"):
        regnet.export(small, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regnetv_040", *long("nf_regnet_b0"), *LARGE_GRAPHS])
def test_families_are_exported(name, tmp_path):
    torch.manual_seed(0)
    config = VARIANTS[name].config.anynet()
    stages = tuple(replace(stage, depth=min(stage.depth, 2)) for stage in config.stages)
    network = regnet.create(replace(config, stages=stages))
    done = regnet.export(network, tmp_path / "a.pt2", example=torch.zeros(1, 3, 64, 64))
    assert done.dynamic
    assert network.training


@pytest.mark.parametrize("package", ["openvino", "onnxscript"])
def test_a_missing_package_is_named(small, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / ("a.xml" if package == "openvino" else "a.onnx")
    with pytest.raises(MissingExtraError, match="not installed: pip install 'regnet"):
        regnet.export(small, path)


@given(st.integers(1, 20), st.integers(0, 50))
def test_int8_has_images_to_calibrate_with_and_to_judge_by(batch, more):
    model = regnet.create("regnety_cifar")
    images, shape = torch.zeros(2 * batch + more, 3, 4, 4), (batch, 3, 4, 4)
    found = int8.read_images(model, images, shape, min_agreement=1, fixed=True)
    assert len(found.calibration) >= 1
    assert len(found.judges) >= 1
    used = sum(map(len, [*found.calibration, *found.judges]))
    assert used > len(images) - 2 * batch


@pytest.mark.long
def test_int8_takes_another_image_size(model, tmp_path):
    photo = ROOT / "docs/photos/chelsea.png"
    done = regnet.export(
        model, tmp_path / "a.xml", precision="int8", images=[photo] * 8, dynamic=False,
        example=torch.zeros(1, 3, 48, 48),
    )  # fmt: skip
    assert done.agreement == 1
    assert done.judged == 2


@pytest.mark.slow
def test_halo_attention_is_exported_at_one_size(tmp_path):
    halo = regnet.create("haloregnetz_b")
    with pytest.raises(ConfigError, match=r"halo attention fixes .* dynamic=False"):
        regnet.export(halo, tmp_path / "halo.pt2")
    assert not regnet.export(halo, tmp_path / "halo.pt2", dynamic=False).dynamic


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("a.bin", {}, "extension must be that of the format: .pt2"),
        ("a.pt2", {"format": "onnx"}, "extension must be that of the format"),
        ("a.onnx", {"format": "tflite"}, "there is no format 'tflite'; there are torch, onnx"),
        ("a.onnx", {"precision": "bf16"}, "onnx files support fp32, fp16; got 'bf16'"),
        ("a.xml", {"precision": "int8"}, "precision 'int8' needs images to calibrate with"),
        ("a.onnx", {"images": torch.zeros(8, 3, 32, 32)}, "images need precision 'int8'"),
        pytest.param(
            "a.xml",
            {"precision": "int8", "images": []},
            "needs 2 images or more, better 400; got 0",
            marks=pytest.mark.slow,  # it needs OpenVINO
        ),
        ("no/a.onnx", {}, "there is no folder"),
    ],
)
def test_bad_requests_are_refused(small, tmp_path, path, options, words):
    with pytest.raises(ConfigError, match=words):
        regnet.export(small, tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"earlier")
    script = f"""
import resource, torch, regnet
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
regnet.export(regnet.create("regnety_cifar"), {str(path)!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert path.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_the_command_exports(tmp_path):
    path = tmp_path / "model.onnx"
    done = command("export", "regnety_cifar", path, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["path"] == str(path)
    assert told["dynamic"] == ["batch", "height", "width"]
    assert told["outputs"] == ["logits"]
    assert path.stat().st_size == told["size_bytes"]
    refused(
        command("export", "regnety_cifar", tmp_path / "a.txt"),
        2,
        "extension must be that of the format",
    )
    refused(command("export", "vit", path), 2, "vit")
    refused(
        command("export", "regnety_cifar", path, "--precision", "int4"), 2, "no precision 'int4'"
    )
    images = tmp_path / "no"
    images.mkdir()
    args = ("--precision", "int8", "--images", images)
    refused(command("export", "regnety_cifar", tmp_path / "a.xml", *args), 1, "no image files")
