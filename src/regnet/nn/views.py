"""See through a model's wrappers, run it in evaluation mode, or take its digest, unchanged."""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from regnet.errors import ConfigError

Module = TypeVar("Module", bound=nn.Module)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside what compilation, data parallelism or averaging make of it."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel
        ):
            model = model.module
        else:
            return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode within a `with` block; restore each module's mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def evaluation_view(model: Module, *, always: bool = False) -> Module:
    """Return a model in evaluation mode that shares its tensors with this one.

    The model itself is not changed, so that other threads may use it at the same time, in any mode.
    Data parallelism is left out, because its wrappers communicate with other processes.

    Args:
        model: any module. One that is in evaluation mode already is returned itself.
        always: return a new module even then, for a caller that stores it. It is not compiled.

    Raises:
        ConfigError: a module that is in training mode is scripted, or runs a function that was
            assigned to its `forward`; such a module has to be in evaluation mode itself.
    """
    inner = unwrapped(model)
    if not always and not any(module.training for module in model.modules()):
        return model if getattr(model, "_orig_mod", None) is inner else cast("Module", inner)
    views: dict[int, nn.Module] = {}

    def view(module: nn.Module) -> nn.Module:
        module = unwrapped(module)
        if id(module) not in views:
            views[id(module)] = _view_of(module, view)
        return views[id(module)]

    seen = view(inner)
    for number, module in views.items():
        if number == id(module):
            continue  # not a view
        # A bound method, such as a `forward` that was replaced, must use the views, too.
        for name, value in vars(module).items():
            if isinstance(value, MethodType) and id(value.__self__) in views:
                vars(module)[name] = MethodType(value.__func__, views[id(value.__self__)])
    return cast("Module", seen)


def _view_of(module: nn.Module, view: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return a module in evaluation mode with the attributes of this one and views of its children.

    `copy.copy` would run code of the module's class, which wrappers, parametrizations and scripted
    modules use to share their state, or to refuse.
    """
    forward = vars(module).get("forward")
    forward = getattr(forward, "_torchdynamo_orig_callable", forward)  # before torch.compile
    if isinstance(module, torch.jit.ScriptModule) or not (
        forward is None or isinstance(forward, MethodType)
    ):
        if any(each.training for each in module.modules()):
            raise ConfigError(
                f"{type(module).__name__} is in training mode, and its forward cannot be changed "
                "to evaluation mode from outside; call eval() on the model first"
            )
        return module
    seen: nn.Module = object.__new__(type(module))
    vars(seen).update(vars(module))
    children = module._modules.items()
    modules = {name: child and view(child) for name, child in children}
    # `Module.__setattr__` would register the values. A function that `compile` made runs `module`.
    vars(seen).update(_modules=modules, training=False, _compiled_call_impl=None)
    if forward is not None:
        vars(seen)["forward"] = forward
    return seen


def digest_of(model: nn.Module) -> str:
    """Return the first 16 digits of the SHA-256 over the names and values of a model's tensors."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        if is_plain(value):
            flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(flat.numpy().data)
        else:
            saved = io.BytesIO()
            torch.save(value, saved)
            found.update(saved.getbuffer())
    return found.hexdigest()[:16]


def is_plain(value: Any) -> bool:
    """Return whether an entry of a state dict is an ordinary tensor with values in memory.

    Quantized, sparse and sharded tensors and those on the device "meta" are not; quantized layers
    also have entries that are no tensors.
    """
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta)
    )
