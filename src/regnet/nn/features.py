"""Feature maps: which ones a network offers, and a module that returns them as a list."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.errors import ConfigError
from regnet.nn.blocks import Stage

if TYPE_CHECKING:
    from regnet.nn.model import AnyNet
    from regnet.weights.card import Card


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """One feature map of a network."""

    module: str
    """Name of the module whose output it is."""
    num_chs: int
    """Channels."""
    reduction: int
    """Image size over the size of the map."""

    def __getitem__(self, name: str) -> Any:
        """A field by name, as where feature maps are dictionaries (timm)."""
        return getattr(self, name)


class FeatureInfo(tuple[FeatureMap, ...]):
    """The feature maps of a network, from the finest to the deepest (timm's `feature_info`)."""

    __slots__ = ()

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [feature.num_chs for feature in self]

    def reduction(self) -> list[int]:
        """Reduction of each map: image size over map size."""
        return [feature.reduction for feature in self]

    def module_name(self) -> list[str]:
        """Name of the module whose output each map is."""
        return [feature.module for feature in self]

    def select(self, indices: Sequence[int] | None) -> "FeatureInfo":
        """The maps at these indices, negative ones from the end; None selects all.

        Raises:
            ConfigError: there is no such map, none is asked for, or one twice.
        """
        if indices is None:
            return self
        for index in indices:
            if not -len(self) <= index < len(self):
                raise ConfigError(f"there is no feature map {index}; the network has {len(self)}")
        chosen = sorted(index % len(self) for index in indices)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ConfigError(
                f"indices of feature maps must be different, and at least one; got {list(indices)}"
            )
        return FeatureInfo(self[index] for index in chosen)


def feature_info(config: AnyNetConfig) -> FeatureInfo:
    """The feature maps: stem (at its first reduction), stages, and the head where it counts."""
    tap = min(len(config.stem_widths), 2)
    maps = [
        FeatureMap(
            module="stem" if tap == 1 else f"stem.conv{tap}",
            num_chs=config.stem_widths[tap - 1],
            reduction=min(config.stem_stride, 2),
        )
    ]
    reduction = config.stem_stride
    for block in config.blocks():
        reduction *= block.stride
        if block.index == config.stages[block.stage - 1].depth:
            maps.append(
                FeatureMap(module=f"s{block.stage}", num_chs=block.width, reduction=reduction)
            )
    if config.head_width and config.head_feature:
        maps[-1] = FeatureMap(module="final_conv", num_chs=config.head_width, reduction=reduction)
    return FeatureInfo(maps)


def run_trunk(
    network: nn.Module,
    names: Sequence[str],
    x: Tensor,
    wanted: Collection[str] = (),
    *,
    stop_early: bool = False,
    checkpoint_blocks: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Images through modules of a network: the last output, and those of the modules wanted.

    Args:
        network: an AnyNet, or a part of one.
        names: its modules from the image to the last feature map.
        x: images (N, C, H, W).
        wanted: names of modules, as in `FeatureInfo.module_name`.
        stop_early: end at the last wanted module.
        checkpoint_blocks: recompute each block's activations in the backward pass.
    """
    maps: list[Tensor] = []
    for name, module in _steps(network, names, wanted):
        if checkpoint_blocks and torch.is_grad_enabled() and isinstance(module, Stage):
            for block in module:
                x = checkpoint(block, x, use_reentrant=False)
        else:
            x = module(x)
        if name in wanted:
            maps.append(x)
            if stop_early and len(maps) == len(wanted):
                break
    return x, maps


def _steps(
    network: nn.Module, names: Sequence[str], wanted: Collection[str]
) -> Iterator[tuple[str, nn.Module]]:
    """The modules by name; a stem of several convolutions is taken apart where one is wanted."""
    for name in names:
        module = getattr(network, name)
        if any(part.startswith(f"{name}.") for part in wanted):
            yield from ((f"{name}.{part}", layer) for part, layer in module.named_children())
        else:
            yield name, module


class Described(nn.Module):
    """A network that has a card."""

    config: AnyNetConfig | RegNetConfig
    card: "Card | None" = None
    """What is known about the model and its weights (`regnet.weights.card`); None: nothing."""

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """The card in timm's words, for other tools; read-only, and empty without a card."""
        return MappingProxyType(self.card.to_timm(self.config) if self.card else {})

    @property
    def default_cfg(self) -> Mapping[str, Any]:
        """The same under timm's older name."""
        return self.pretrained_cfg


class FeatureNet(Described):
    """The trunk of an AnyNet as a backbone: images in, a list of feature maps out.

    Modules keep their names, so that state dicts of the whole network fit. What lies behind the
    deepest map asked for is left out.
    """

    def __init__(self, model: "AnyNet", out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.config = model.config
        self.card = model.card
        self.feature_info = model.feature_info.select(out_indices)
        self.grad_checkpointing = False
        deepest = self.feature_info[-1].module.partition(".")[0]
        self.trunk = model.trunk[: model.trunk.index(deepest) + 1]
        for name in self.trunk:
            self.add_module(name, getattr(model, name))

    def forward(self, x: Tensor) -> list[Tensor]:
        _, maps = run_trunk(
            self,
            self.trunk,
            x,
            self.feature_info.module_name(),
            stop_early=True,
            checkpoint_blocks=self.grad_checkpointing,
        )
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # noqa: FBT001, FBT002 - timm's signature
        """Recompute each block's activations in the backward pass rather than keep them."""
        self.grad_checkpointing = enable
