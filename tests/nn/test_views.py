"""Models that other tools wrapped or changed are looked at without being changed."""

import copy
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import regnet
from regnet.design.config import RegNetConfig
from regnet.errors import ConfigError
from regnet.nn.views import digest_of, evaluation_view

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """Return a small network in training mode whose running statistics matter."""
    torch.manual_seed(0)
    config = RegNetConfig(w0=8, wa=8, wm=2.5, depth=3, group_width=8, num_classes=4)
    found = regnet.create(config)
    for name, value in found.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return found.train()


def compiled_stages(model: nn.Module) -> nn.Module:
    for name in ("s1", "s2"):
        setattr(model, name, torch.compile(getattr(model, name), backend="eager"))
    return model


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_forward(model: nn.Module) -> nn.Module:
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    return model


def bound_forward(model: nn.Module) -> nn.Module:
    """Replace `forward` as accelerate does."""
    before = type(model).forward
    model.forward = types.MethodType(  # type: ignore[method-assign]
        lambda self, x: before(self, x).float(), model
    )
    return model


def parametrized(model: nn.Module) -> nn.Module:
    nn.utils.parametrizations.weight_norm(model.get_submodule("s1.b1.conv1.conv"))
    return model


class Around(nn.Module):
    """A user's module that keeps a bound method of its backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.extract = backbone.forward_features

    def forward(self, x: Tensor) -> Tensor:
        return self.extract(x)  # type: ignore[operator, no-any-return]


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "compiled stages": compiled_stages,
    "compiled in place": compiled_in_place,
    "compiled forward": compiled_forward,
    "bound forward": bound_forward,
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "averaged and compiled": lambda m: torch.compile(AveragedModel(m), backend="eager"),  # type: ignore[return-value]
    "parametrized": parametrized,
    "bound method": Around,
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by dynamo
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_view_computes_what_the_model_would_in_evaluation_mode_and_changes_nothing(
    way: str, training: bool
) -> None:
    plain = network().eval()
    expected = (plain.forward_features if way == "bound method" else plain)(IMAGES)  # type: ignore[operator]
    model = WAYS[way](network()).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [(name, module.training) for name, module in model.named_modules()]
    for always in (False, True):
        with torch.no_grad():
            found = evaluation_view(model, always=always)(IMAGES)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [(name, module.training) for name, module in model.named_modules()] == modes
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    model.train()(IMAGES).sum().backward()  # the model itself can go on training


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
@pytest.mark.parametrize(
    "changed",
    [
        torch.jit.script,
        lambda model: nn.Sequential(torch.jit.script(model)),
        lambda model: setattr(model, "forward", lambda x: x) or model,
    ],
)
def test_what_cannot_be_viewed_must_be_in_evaluation_mode_itself(
    changed: Callable[[nn.Module], nn.Module],
) -> None:
    model = changed(network())
    with pytest.raises(ConfigError, match="call eval\\(\\) on the model first"):
        evaluation_view(model)
    model.eval()
    assert torch.equal(evaluation_view(model, always=True)(IMAGES), model(IMAGES))


@pytest.mark.parametrize("way", ["compiled", "data parallel", "bound forward", "parametrized"])
def test_wrapped_models_are_exported_and_optimized(way: str, tmp_path) -> None:
    model = WAYS[way](network())
    names = list(model.state_dict())
    example = torch.zeros(1, 3, 32, 32)
    done = regnet.export(model, tmp_path / "a.pt2", example=example)
    assert done.error < 1e-4
    fast = regnet.optimize(
        model, example, engines=["eager"], precision="fp32", seconds=0.01, refresh=True,
        progress=False,
    )  # fmt: skip
    expected = network().eval()(IMAGES[:1])
    torch.testing.assert_close(fast(IMAGES[:1]), expected, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == names


def test_a_digest_depends_on_entries_that_are_no_ordinary_tensors() -> None:
    class Odd(nn.Linear):
        kind = torch.qint8

        def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[f"{prefix}kind"] = self.kind

    first, second = Odd(2, 2), Odd(2, 2)
    second.load_state_dict(
        {k: v for k, v in first.state_dict().items() if k != "kind"}, strict=False
    )
    assert digest_of(first) == digest_of(second) == digest_of(copy.deepcopy(first))
    second.kind = torch.quint8
    assert digest_of(first) != digest_of(second)


def test_an_optimized_network_leaves_the_model_in_its_mode_and_precision() -> None:
    model = network()
    fast = regnet.optimize(
        model, torch.zeros(1, 3, 32, 32), engines=["eager"], precision="fp32", seconds=0.01,
        refresh=True, progress=False,
    )  # fmt: skip
    expected = fast(IMAGES)
    pipeline = nn.Sequential(fast, nn.Softmax(1)).train().to("cpu")
    assert not fast.training
    torch.testing.assert_close(pipeline(IMAGES), expected.softmax(1))
    for change in (fast.half, fast.double, pipeline.bfloat16):
        with pytest.raises(ConfigError, match="convert the model, and optimize it again"):
            change()
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_weights_than_float32_are_refused_by_name(dtype: torch.dtype, tmp_path) -> None:
    model = network().to(dtype)
    kind = str(dtype).removeprefix("torch.")
    for call in (
        lambda: regnet.optimize(model, torch.zeros(1, 3, 32, 32)),
        lambda: regnet.export(model, tmp_path / "a.onnx"),
    ):
        with pytest.raises(ConfigError, match=f"the weights are {kind}, but must be float32"):
            call()
