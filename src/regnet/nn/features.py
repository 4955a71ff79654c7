"""Feature maps: which ones a network offers, and a module that returns them as a list."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regnet.design.config import AnyNetConfig
from regnet.nn.blocks import Stage

if TYPE_CHECKING:
    from regnet.nn.model import AnyNet


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """One feature map of a network."""

    module: str
    """Name of the module whose output it is."""
    num_chs: int
    """Channels."""
    reduction: int
    """Image size over the size of the map."""


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
            IndexError: there is no such map.
        """
        if indices is None:
            return self
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"there is no feature map {index}; the network has {len(self)}")
        return FeatureInfo(self[index] for index in sorted(i % len(self) for i in indices))


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


def _trunk(network: nn.Module, wanted: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """Modules in the order of the data; a stem is taken apart where a part of it is wanted."""
    for name, module in network.named_children():
        if name == "stem" and any(part.startswith("stem.") for part in wanted):
            yield from ((f"stem.{part}", layer) for part, layer in module.named_children())
        elif name != "head":
            yield name, module


def run_trunk(
    network: nn.Module,
    x: Tensor,
    wanted: Collection[str] = (),
    *,
    stop_early: bool = False,
    checkpoint_blocks: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Images through the trunk: the last output, and those of the modules named in `wanted`.

    Args:
        network: an AnyNet, or anything with its children.
        x: images (N, C, H, W).
        wanted: names of modules, as in `FeatureInfo.module_name`.
        stop_early: end at the last wanted module.
        checkpoint_blocks: recompute each block's activations in the backward pass.
    """
    maps: list[Tensor] = []
    for name, module in _trunk(network, wanted):
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


class FeatureNet(nn.Module):
    """The trunk of an AnyNet as a backbone: images in, a list of feature maps out.

    Modules keep their names, so that state dicts of the whole network fit. What lies behind the
    deepest map asked for is left out.
    """

    def __init__(self, model: "AnyNet", out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.config = model.config
        self.pretrained_cfg = model.pretrained_cfg
        self.feature_info = model.feature_info.select(out_indices)
        self.grad_checkpointing = False
        deepest = self.feature_info[-1].module.partition(".")[0]
        for name, module in model.named_children():
            self.add_module(name, module)
            if name == deepest:
                break

    def forward(self, x: Tensor) -> list[Tensor]:
        wanted = self.feature_info.module_name()
        _, maps = run_trunk(
            self, x, wanted, stop_early=True, checkpoint_blocks=self.grad_checkpointing
        )
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # noqa: FBT001, FBT002 - timm's signature
        """Recompute each block's activations in the backward pass rather than keep them."""
        self.grad_checkpointing = enable
