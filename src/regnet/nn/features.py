"""Feature maps: which ones a network offers, and a module that returns them as a list."""

from collections.abc import Sequence
from dataclasses import dataclass

from regnet.design.config import AnyNetConfig


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
    """The feature maps: the stem at its first reduction, each stage, and the head where it counts."""
    stem = "stem.conv2" if len(config.stem_widths) > 1 else "stem"
    first = config.stem_widths[1] if len(config.stem_widths) > 1 else config.stem_width
    maps = [FeatureMap(module=stem, num_chs=first, reduction=min(config.stem_stride, 2))]
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
