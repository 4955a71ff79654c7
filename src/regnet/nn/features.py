"""Feature maps: which ones a network offers, and a module that returns them as a list."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.errors import ConfigError
from regnet.nn.blocks import Stage

if TYPE_CHECKING:
    from regnet.nn.model import AnyNet
    from regnet.weights.card import Card

_log = logging.getLogger(__name__)


class FeatureMap(TypedDict):
    """One feature map of a network; the entries are timm's."""

    module: str
    """Name of the module whose output it is."""
    num_chs: int
    """Channels."""
    reduction: int
    """Image size over the size of the map."""
    index: int
    """Its place among the network's maps, the finest first."""


class FeatureInfo(tuple[FeatureMap, ...]):
    """All feature maps of a network, from the finest to the deepest, and which are asked for.

    It behaves as timm's `FeatureInfo`, which accepts it too.
    """

    out_indices: tuple[int, ...]
    """Indices of the maps that are asked for, in the order of the network."""

    def __new__(
        cls, maps: Iterable[FeatureMap], out_indices: int | Sequence[int] | None = None
    ) -> "FeatureInfo":
        """Set up.

        Args:
            maps: all maps.
            out_indices: which are asked for, negative ones from the end; a number n means the last
                n; None means all.

        Raises:
            ConfigError: there is no such map, none is asked for, or one twice.
        """
        info = super().__new__(cls, maps)
        count = len(info)
        if isinstance(out_indices, int):
            if not 0 < out_indices <= count:
                raise ConfigError(
                    f"there are no {out_indices} last feature maps; the network has {count}"
                )
            out_indices = range(-out_indices, 0)
        indices = range(count) if out_indices is None else out_indices
        for index in indices:
            if not -count <= index < count:
                raise ConfigError(f"there is no feature map {index}; the network has {count}")
        info.out_indices = tuple(sorted(index % count for index in indices))
        if not indices or len(set(info.out_indices)) < len(indices):
            raise ConfigError(
                f"indices of feature maps must be different, and at least one; got {list(indices)}"
            )
        return info

    @property
    def info(self) -> "FeatureInfo":
        """All maps, under timm's name."""
        return self

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """An entry of the maps asked for; or of the map, or of each of the maps, at `idx`."""
        return _each(idx, self.out_indices, lambda index: cast("Any", self[index])[key])

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> Any:
        """The maps asked for, or those at `idx`, with all entries or with these."""
        return _each(
            idx,
            self.out_indices,
            lambda index: {k: v for k, v in self[index].items() if keys is None or k in keys},
        )

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of each map asked for, or of those at `idx`."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Image size over the size of each map asked for, or of those at `idx`."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Name of the module whose output each map asked for is, or each at `idx`."""
        return self.get("module", idx)

    def select(self, out_indices: int | Sequence[int] | None) -> "FeatureInfo":
        """The same maps, with these asked for; see the constructor."""
        return FeatureInfo(self, out_indices)


def _each(
    idx: int | Sequence[int] | None, default: Sequence[int], entry: Callable[[int], Any]
) -> Any:
    """The entry at one index, or a list of those at several."""
    if isinstance(idx, int):
        return entry(idx)
    return [entry(index) for index in (default if idx is None else idx)]


def feature_info(config: AnyNetConfig) -> FeatureInfo:
    """The feature maps: stem (at its first reduction), stages, and the head where it counts."""
    tap = min(len(config.stem_widths), 2)
    stem = "stem" if tap == 1 else f"stem.conv{tap}"
    maps = [(stem, config.stem_widths[tap - 1], min(config.stem_stride, 2))]
    reduction = config.stem_stride
    for block in config.blocks():
        reduction *= block.stride
        if block.index == config.stages[block.stage - 1].depth:
            maps.append((f"s{block.stage}", block.width, reduction))
    if config.head_width and config.head_feature:
        maps[-1] = ("final_conv", config.head_width, reduction)
    return FeatureInfo(
        FeatureMap(module=module, num_chs=width, reduction=reduction, index=index)
        for index, (module, width, reduction) in enumerate(maps)
    )


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
    """A network that has a config and a card, which say what its modules are now.

    People replace a classifier or a stem by hand. The config then has the classes and channels of
    the new one, and what the card knew about the old classes is dropped.
    """

    # What TorchScript must not compile.
    __jit_unused_properties__ = ("num_classes", "config", "card", "pretrained_cfg", "default_cfg")

    if TYPE_CHECKING:  # TorchScript would read them
        _config: AnyNetConfig | RegNetConfig
        _card: Card | None
        stem: nn.Module
    _card = None

    @property
    def config(self) -> AnyNetConfig | RegNetConfig:
        """The architecture."""
        known, classifier, first = self._config, self._classifier(), _first_conv(self.stem)
        classes = known.num_classes if classifier is None else _outputs(classifier, known)
        channels = first.in_channels if first else known.in_chans
        if (classes, channels) == (known.num_classes, known.in_chans):
            return known
        return replace(known, num_classes=classes, in_chans=channels)

    @property
    def card(self) -> "Card | None":
        """What is known about the model and its weights; None: nothing."""
        card, classifier = self._card, self._classifier()
        if card and classifier is not None and not hasattr(classifier, "_has_card"):
            if card.labels or card.metrics:
                _log.warning(
                    "the classifier was replaced by hand, so that the names of the classes and the "
                    "accuracies no longer hold; `model.card = model.card.other_classes(names)` "
                    "gives the new classes names"
                )
            self.card = card.other_classes()
        return self._card

    @card.setter
    def card(self, card: "Card | None") -> None:
        self._card = card
        if (classifier := self._classifier()) is not None:
            classifier._has_card = True  # type: ignore[assignment]  # copies keep it, others lack it

    def _classifier(self) -> nn.Module | None:
        """The module that gives the logits; None where there is no head."""
        head: nn.Module | None = getattr(self, "head", None)
        return getattr(head, "fc", head)  # a head that was replaced as a whole has no fc

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """The card in timm's words, for other tools; read-only, and empty without a card."""
        card = self.card
        return MappingProxyType(card.to_timm(self.config) if card else {})

    @property
    def default_cfg(self) -> Mapping[str, Any]:
        """The same under timm's older name."""
        return self.pretrained_cfg


def _outputs(classifier: nn.Module, known: AnyNetConfig | RegNetConfig) -> int:
    """Outputs of whatever gives the logits; 0 for the identity; as known if it does not say."""
    if isinstance(classifier, nn.Identity):
        return 0
    layers = classifier.modules()
    sizes = [getattr(m, "out_features", getattr(m, "out_channels", None)) for m in layers]
    return next((size for size in reversed(sizes) if isinstance(size, int)), known.num_classes)


def _first_conv(stem: nn.Module) -> nn.Conv2d | None:
    """The convolution that sees the image."""
    return next((layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)), None)


class FeatureNet(Described):
    """The trunk of an AnyNet as a backbone: images in, a list of feature maps out.

    Modules keep their names, so that state dicts of the whole network fit. What lies behind the
    deepest map asked for is left out.
    """

    def __init__(self, model: "AnyNet", out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.feature_info = model.feature_info.select(out_indices)
        self.grad_checkpointing = False
        rows = self.feature_info.get_dicts()
        self.return_layers = {row["module"]: str(row["index"]) for row in rows}
        """The modules whose outputs are returned, with their indices; others may replace them."""
        deepest = rows[-1]["module"].partition(".")[0]
        self.trunk = model.trunk[: model.trunk.index(deepest) + 1]
        for name in self.trunk:
            self.add_module(name, getattr(model, name))
        self._config, self.card = model.config, model.card

    def forward(self, x: Tensor) -> list[Tensor]:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return run_trunk(
                self,
                self.trunk,
                x,
                self.return_layers,
                stop_early=True,
                checkpoint_blocks=self.grad_checkpointing,
            )[1]
        maps: list[Tensor] = []
        for name, module in self.named_children():
            x = module(x)
            if name in self.return_layers:
                maps.append(x)
        if len(maps) < len(self.return_layers):
            raise RuntimeError("TorchScript cannot look into this stem; torch.export can")
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # noqa: FBT001, FBT002 - timm's signature
        """Recompute each block's activations in the backward pass rather than keep them."""
        self.grad_checkpointing = enable
