"""Feature maps: which maps a network has, and a module that returns them as a list."""

import logging
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from numbers import Integral
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils.checkpoint import checkpoint

from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.errors import ConfigError
from regnet.nn.blocks import Stage
from regnet.nn.views import evaluation_view

if TYPE_CHECKING:
    from regnet.nn.model import AnyNet
    from regnet.weights.card import Card

_log = logging.getLogger(__name__)


class FeatureMap(TypedDict):
    """One feature map of a network, with timm's keys."""

    module: str
    """Name of the module whose output the map is."""
    num_chs: int
    """Channels."""
    reduction: int
    """Image size divided by the size of the map."""
    index: int
    """Position among the network's maps, which are ordered from fine to coarse."""


class FeatureInfo(tuple[FeatureMap, ...]):
    """All feature maps of a network, from the finest to the deepest, and the selected ones.

    It has the methods of timm's `FeatureInfo`, whose constructor accepts it.
    """

    out_indices: tuple[int, ...]
    """Indices of the selected maps, in the order of the network."""

    def __new__(
        cls, maps: Iterable[FeatureMap], out_indices: int | Sequence[int] | None = None
    ) -> "FeatureInfo":
        """Select maps.

        Args:
            maps: all maps of the network.
            out_indices: indices of the maps to select; negative ones count from the end. A number n
                selects the last n maps, and None selects all.

        Raises:
            ConfigError: an index does not exist or is repeated, or none is given.
        """
        info = super().__new__(cls, maps)
        count = len(info)
        if isinstance(out_indices, int | Integral):
            if not 0 < out_indices <= count:
                raise ConfigError(
                    f"there are no {out_indices} last feature maps; the network has {count}"
                )
            out_indices = range(-int(out_indices), 0)
        try:
            indices = list(
                map(operator.index, range(count) if out_indices is None else out_indices)
            )
        except TypeError as error:
            raise ConfigError(f"out_indices must be whole numbers, got {out_indices!r}") from error
        for number in indices:
            if not -count <= number < count:
                raise ConfigError(f"there is no feature map {number}; the network has {count}")
        info.out_indices = tuple(sorted(number % count for number in indices))
        if not indices or len(set(info.out_indices)) < len(indices):
            raise ConfigError(
                f"give at least one index of a feature map, and each once; got {indices}"
            )
        return info

    @property
    def info(self) -> "FeatureInfo":
        """All maps, under the name that timm uses."""
        return self

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return the value of `key` for each selected map, or for the map or maps at `idx`."""
        return _each(idx, self.out_indices, lambda index: cast("Any", self[index])[key])

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> Any:
        """Return the selected maps, or the map or maps at `idx`, as dictionaries.

        Args:
            keys: the keys to include; None: all.
            idx: an index, or several; None: the selected maps.
        """
        return _each(
            idx,
            self.out_indices,
            lambda index: {k: v for k, v in self[index].items() if keys is None or k in keys},
        )

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the channels of each selected map, or of the map or maps at `idx`."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the reduction of each selected map, or of the map or maps at `idx`."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the module name of each selected map, or of the map or maps at `idx`."""
        return self.get("module", idx)

    def select(self, out_indices: int | Sequence[int] | None) -> "FeatureInfo":
        """Return the same maps with another selection; see the constructor."""
        return FeatureInfo(self, out_indices)


def _each(
    idx: int | Sequence[int] | None, default: Sequence[int], entry: Callable[[int], Any]
) -> Any:
    """Return the entry at one index, or the list of the entries at several."""
    if isinstance(idx, int):
        return entry(idx)
    return [entry(index) for index in (default if idx is None else idx)]


def feature_info(config: AnyNetConfig) -> FeatureInfo:
    """List the feature maps of a config: the stem, each stage, and the head if it is a map.

    A head whose config has `head_feature` replaces the last stage.
    """
    # In a stem of three convolutions (strides 2, 1, 2), the map of reduction 2 follows the second.
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
    """Pass images through modules of a network, and collect the outputs of some of them.

    Args:
        network: an AnyNet, or a part of one.
        names: names of its modules, from the image to the last feature map.
        x: images (N, C, H, W).
        wanted: names of the modules whose outputs to collect, as in `FeatureInfo.module_name`.
        stop_early: stop after the last wanted module.
        checkpoint_blocks: recompute each block's activations in the backward pass.

    Returns:
        The output of the last module that ran, and the list of the collected outputs.
    """
    maps: list[Tensor] = []
    for name, module in _steps(network, names, wanted):
        if checkpoint_blocks and torch.is_grad_enabled() and isinstance(module, Stage):
            for block in module:
                x = _recomputed(block, x)
        else:
            x = module(x)
        if name in wanted:
            maps.append(x)
            if stop_early and len(maps) == len(wanted):
                break
    return x, maps


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Run a block whose activations are computed again in the backward pass.

    Only the first computation updates the statistics of batch norm. The compiler ensures this for
    compiled code.
    """
    contexts: dict[str, Any] = {}
    if not torch.compiler.is_compiling():
        contexts["context_fn"] = lambda: (nullcontext(), _StatisticsKept(block))
    found: Tensor = checkpoint(block, x, use_reentrant=False, **contexts)
    return found


class _StatisticsKept:
    """A context that leaves the statistics of batch norm in a block as they are.

    It can be entered several times, because a graph can be traversed several times.
    """

    def __init__(self, block: nn.Module) -> None:
        self.norms = [module for module in block.modules() if isinstance(module, BatchNorm)]
        self.found: list[dict[str, Tensor]] = []

    def __enter__(self) -> None:
        self.found = [dict(norm.named_buffers(recurse=False)) for norm in self.norms]
        self._set([{name: v.clone() for name, v in buffers.items()} for buffers in self.found])

    def __exit__(self, *_: object) -> None:
        self._set(self.found)

    def _set(self, values: Sequence[Mapping[str, Tensor]]) -> None:
        for norm, buffers in zip(self.norms, values, strict=True):
            for name, value in buffers.items():
                setattr(norm, name, value)


def _steps(
    network: nn.Module, names: Sequence[str], wanted: Collection[str]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules with their names; a module with a wanted child is split into its children."""
    for name in names:
        module = getattr(network, name)
        if any(part.startswith(f"{name}.") for part in wanted):
            yield from ((f"{name}.{part}", layer) for part, layer in module.named_children())
        else:
            yield name, module


class Described(nn.Module):
    """A network whose config and card describe its current modules.

    Users may assign a new classifier or stem. The config then has the classes and channels of the
    new module, and the card drops the names and accuracies of the old classes.
    """

    # TorchScript must not compile these properties.
    __jit_unused_properties__ = ("num_classes", "config", "card", "pretrained_cfg", "default_cfg")

    if TYPE_CHECKING:  # TorchScript would evaluate these annotations
        _config: AnyNetConfig | RegNetConfig
        _card: Card | None
        stem: nn.Module
    _card = None

    @property
    def config(self) -> AnyNetConfig | RegNetConfig:
        """The architecture, with the classes and the image channels of the current modules."""
        known, classifier, first = self._config, self._classifier(), _first_conv(self.stem)
        classes = known.num_classes if classifier is None else _outputs(classifier, known)
        channels = first.in_channels if first else known.in_chans
        if (classes, channels) == (known.num_classes, known.in_chans):
            return known
        return replace(known, num_classes=classes, in_chans=channels)

    @property
    def card(self) -> "Card | None":
        """What is known about the model and its weights; None if nothing is known."""
        card, classifier = self._card, self._classifier()
        if card is None or classifier is None or self._is_described(classifier):
            return card
        if (card.labels or card.metrics) and not hasattr(classifier, "_has_card"):
            classifier._has_card = False  # type: ignore[assignment]  # warn once
            _log.warning(
                "the classifier was replaced, so that the card has no class names and accuracies; "
                "`model.card = model.card.other_classes(names)` names the new classes"
            )
        return card.other_classes()

    @card.setter
    def card(self, card: "Card | None") -> None:
        self._card = card
        if (classifier := self._classifier()) is not None:
            # Marks the classifier that the card describes. A copy has the mark, a new one does not.
            classifier._has_card = True  # type: ignore[assignment]

    def _is_described(self, classifier: nn.Module) -> bool:
        """Return whether the card describes this classifier, or one that it only wraps."""
        marked = [m for m in classifier.modules() if getattr(m, "_has_card", False)]
        if not marked or marked[0] is classifier:
            return bool(marked)
        known = self._config
        outputs = _outputs(classifier, known)
        return any(_outputs(module, known) == outputs for module in marked)

    def _classifier(self) -> nn.Module | None:
        """Return the module that computes the logits; None if the network has no head."""
        head: nn.Module | None = getattr(self, "head", None)
        return getattr(head, "fc", head)  # a user's own head may have no fc

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """The card in timm's format, for other tools: read-only, and empty without a card."""
        card = self.card
        return MappingProxyType(card.to_timm(self.config) if card else {})

    @property
    def default_cfg(self) -> Mapping[str, Any]:
        """The same as `pretrained_cfg`, under timm's older name."""
        return self.pretrained_cfg


def _outputs(classifier: nn.Module, known: AnyNetConfig | RegNetConfig) -> int:
    """Count the outputs of a classifier: 0 for the identity, the config's if nothing says.

    The layers of a sequence say it, otherwise a run: an adapter around a layer has layers of its
    own, and a module may have no layer at all.
    """
    if isinstance(classifier, nn.Identity):
        return 0
    layers = list(classifier.modules())
    sizes = [getattr(m, "out_features", getattr(m, "out_channels", None)) for m in layers]
    if isinstance(sizes[0], int):
        return sizes[0]
    inputs = [size for m in layers if isinstance(size := getattr(m, "in_features", None), int)]
    weight = next(classifier.parameters(), None)
    if not isinstance(classifier, nn.Sequential) and weight is not None:
        with suppress(Exception), torch.no_grad():
            vector = weight.new_zeros(1, *(inputs[:1] or weight.shape[-1:]))
            return int(evaluation_view(classifier)(vector).shape[1])
    return next((size for size in reversed(sizes) if isinstance(size, int)), known.num_classes)


def _first_conv(stem: nn.Module) -> nn.Conv2d | None:
    """Return the convolution that takes the image."""
    return next((layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)), None)


class FeatureNet(Described):
    """The trunk of an AnyNet as a backbone, from images to a list of feature maps.

    The modules have the same names as in the AnyNet, so that their state-dict keys are the same.
    Modules after the deepest selected map are left out.

    Args:
        model: the network; its modules are shared, not copied.
        out_indices: which feature maps to return, as in `FeatureInfo`.
    """

    def __init__(self, model: "AnyNet", out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.feature_info = model.feature_info.select(out_indices)
        self.grad_checkpointing = False
        rows = self.feature_info.get_dicts()
        self.return_layers = {row["module"]: str(row["index"]) for row in rows}
        """Module name to index of each map that `forward` returns; other code may replace it."""
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
            raise RuntimeError(
                "TorchScript cannot return the feature map inside this stem; use torch.export"
            )
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # noqa: FBT001, FBT002 - timm's signature
        """Recompute each block's activations in the backward pass instead of storing them."""
        self.grad_checkpointing = enable
