"""AnyNet: a stem, stages and a head, built from a config."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.errors import ConfigError
from regnet.nn.blocks import Stage, build_block
from regnet.nn.features import Described, FeatureInfo, feature_info, run_trunk
from regnet.nn.init import init_weights, zero_last_norms
from regnet.nn.layers import ConvNormAct, ScaledStdConv2d, activation_layer, conv2d

Module = TypeVar("Module", bound=nn.Module)

GlobalPool = Literal["avg", "max", ""]
"""How feature maps become a vector; "" returns them unpooled (only with num_classes=0)."""


class AnyNet(Described):
    """A network of the AnyNet space: stem, stages of identical blocks, head (paper, section 3.2).

    It maps images (N, in_chans, H, W) of any height and width to logits (N, num_classes), or to
    features (N, num_features) if it has no classifier. `RegNet` is another name of this class.

    Args:
        config: the architecture.
        drop_rate: probability of dropout before the classifier while training, in [0, 1).
        drop_path_rate: probability of dropping the last residual branch while training, in [0, 1);
            it grows linearly from 0 at the first block.
        global_pool: "avg", "max", or "" for no pooling, which requires `num_classes=0`.
        zero_init_last: set the scale of the last norm of each residual branch to zero. The paper
            does not. Pre-activation blocks have no norm at the end of the branch, and are left
            unchanged.

    Raises:
        ConfigError: a rate or the pool is not allowed.
    """

    def __init__(
        self,
        config: AnyNetConfig | RegNetConfig,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: GlobalPool = "avg",
        zero_init_last: bool = False,
    ) -> None:
        super().__init__()
        for name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
            if not 0 <= rate < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {rate!r}")
        self._config = config
        anynet = config.anynet()
        self.feature_info: FeatureInfo = feature_info(anynet)
        self.num_features = self.head_hidden_size = anynet.num_features
        self.grad_checkpointing = False

        self.stem = _stem(anynet)
        self.stem_pool = nn.MaxPool2d(3, 2, 1) if config.stem == "resnet" else nn.Identity()
        stages = {f"s{number}": s for number, s in enumerate(_stages(anynet, drop_path_rate), 1)}
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.final_conv = _final_conv(anynet)
        self.trunk = ["stem", "stem_pool", *stages, "final_conv"]
        """Names of the modules before the head, in the order in which images pass them."""
        if config.block == "normfree_bottleneck":
            # A module of its own, because the output of final_conv is a feature map in timm.
            self.final_act = activation_layer(config.activation, inplace=False)
            self.trunk.append("final_act")
        self.head = Head(self.num_features, config.num_classes, drop_rate, global_pool)
        init_weights(self)
        if zero_init_last:
            zero_last_norms(self)

    @property
    def num_classes(self) -> int:
        """Number of outputs of the classifier; 0 if there is none."""
        return self.config.num_classes

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("fc", "classifier") and isinstance(value, nn.Module):
            raise ConfigError(
                f"model.{name} would have no effect; the classifier is model.head.fc, and "
                "model.reset_classifier(num_classes) replaces it"
            )
        super().__setattr__(name, value)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to the feature maps before the pool.

        Returns:
            (N, num_features, H', W').
        """
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return run_trunk(self, self.trunk, x, checkpoint_blocks=self.grad_checkpointing)[0]
        for name, module in self.named_children():
            if name in self.trunk:
                x = module(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - timm's signature
        """Pool feature maps (N, num_features, H', W') and classify them.

        Args:
            x: the feature maps, as `forward_features` returns them.
            pre_logits: return the pooled features (N, num_features) instead of logits.
        """
        out: Tensor = self.head(x, pre_logits=True) if pre_logits else self.head(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,  # noqa: FBT001, FBT002 - timm's signature, as are the flags below
        stop_early: bool = False,  # noqa: FBT001, FBT002
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,  # noqa: FBT001, FBT002
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the feature maps at `indices` of `feature_info`, and the final one.

        Args:
            x: images (N, in_chans, H, W).
            indices: indices of the maps; negative ones count from the end. A number n stands for
                the last n maps, and None for all.
            norm: has no effect, as in timm, because these maps have no norm of their own.
            stop_early: stop at the deepest requested map, which is then also the final one.
            output_fmt: must be "NCHW", the only supported layout.
            intermediates_only: return only the list.

        Returns:
            The final map (N, num_features, H', W') and the list of maps from shallow to deep; with
            `intermediates_only`, only the list.

        Raises:
            ConfigError: a map does not exist, or the layout is not "NCHW".
        """
        if output_fmt != "NCHW":
            raise ConfigError(
                f"output_fmt={output_fmt!r} is not supported; feature maps are always 'NCHW'"
            )
        info = self.feature_info.select(indices)
        last, maps = run_trunk(
            self,
            self.trunk,
            x,
            info.module_name(),
            # After the last map, the rest of the trunk still runs, as in timm.
            stop_early=intermediates_only or (stop_early and info.out_indices[-1] < len(info) - 1),
            checkpoint_blocks=self.grad_checkpointing,
        )
        return maps if intermediates_only else (last, maps)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,  # noqa: FBT001, FBT002 - timm's signature
        prune_head: bool = True,  # noqa: FBT001, FBT002
    ) -> list[int]:
        """Remove the modules after the deepest of these feature maps.

        Args:
            indices: the maps that must remain, as in `forward_intermediates`.
            prune_norm: has no effect, as in timm, because there is no norm at the end.
            prune_head: also remove the classifier and the pool.

        Returns:
            The indices of the maps, counted from the start.

        Raises:
            ConfigError: a map does not exist; the model is then unchanged.
        """
        info = self.feature_info.select(indices)
        deepest = info[info.out_indices[-1]]["module"].partition(".")[0]
        if info.out_indices[-1] < len(info) - 1:
            for name in self.trunk[self.trunk.index(deepest) + 1 :]:
                setattr(self, name, nn.Identity())
            self.trunk = self.trunk[: self.trunk.index(deepest) + 1]
            self.feature_info = FeatureInfo(self.feature_info[: info.out_indices[-1] + 1])
        if prune_head:
            self.reset_classifier(0, "")
        return list(info.out_indices)

    def get_classifier(self) -> nn.Module:
        """Return the layer that computes the logits; an identity if there is no classifier."""
        found = self._classifier()
        assert found is not None, "there is a head"
        return found

    def reset_classifier(self, num_classes: int, global_pool: GlobalPool | None = None) -> None:
        """Replace the classifier by a newly initialized one.

        Args:
            num_classes: outputs of the new classifier; 0 removes it.
            global_pool: "avg", "max", or "" (with 0 classes); None: as it is now.

        Raises:
            ConfigError: the classes or the pool are not allowed; the model is then unchanged.
        """
        # A user's own head may have neither attribute.
        own: GlobalPool = getattr(self.head, "global_pool", "avg")
        drop_rate = getattr(getattr(self.head, "drop", None), "p", 0.0)
        pool = own if global_pool is None else global_pool
        config, card = replace(self.config, num_classes=num_classes), self.card
        head = Head(self.num_features, config.num_classes, drop_rate, pool)
        init_weights(head)
        reference = next(self.parameters())
        head.to(device=reference.device, dtype=reference.dtype).train(self.training)
        self._config, self.head = config, head
        # The names and accuracies of the old classes do not apply to the new ones.
        self.card = card and card.other_classes()

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # noqa: FBT001, FBT002 - timm's signature
        """Recompute each block's activations in the backward pass instead of storing them.

        This saves memory. Gradients and the running statistics of batch norms are the same.
        """
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - timm's signature
        """Return patterns that group parameters by depth, for timm's layer-wise learning rates."""
        blocks = r"^s(\d+)" if coarse else r"^s(\d+)\.b(\d+)"
        # timm orders groups by number; 99999 places final_conv after all blocks.
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^final_conv", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay beyond norms and biases: none."""
        return set()

    # The next three methods import packages above this one, because users of other libraries
    # expect them on the model.

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "AnyNet":
        """Build a model with weights, in evaluation mode.

        This is `create(name, pretrained=True, **options).eval()`, except that `owner/name` is a
        repository of the Hub unless a folder of that name exists.

        Args:
            name: `owner/name` or `owner/name@revision` of a repository of the Hub, a folder, or any
                other name that `create` accepts.
            options: the options of `create`; `torch_dtype` is accepted for `dtype`.
        """
        from regnet.zoo.create import create_pretrained

        return create_pretrained(name, **options).eval()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write the model as a repository; see `regnet.zoo.publish.save_pretrained`."""
        from regnet.zoo.publish import save_pretrained

        save_pretrained(self, save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the Hub; see `regnet.zoo.publish.push_to_hub`."""
        from regnet.zoo.publish import push_to_hub

        return push_to_hub(self, repo_id, **options)


RegNet = AnyNet
"""Another name of `AnyNet`: a RegNet is an AnyNet whose config is a `RegNetConfig`."""


class Head(nn.Module):
    """Global pool, dropout and classifier.

    Raises:
        ConfigError: the pool is not allowed, or a classifier has no pool before it.
    """

    def __init__(
        self, width: int, num_classes: int, drop_rate: float, global_pool: GlobalPool
    ) -> None:
        super().__init__()
        if global_pool not in ("avg", "max", ""):
            raise ConfigError(f"global_pool must be 'avg', 'max' or '', got {global_pool!r}")
        if not global_pool and num_classes:
            raise ConfigError(
                "global_pool='' leaves feature maps, which the classifier cannot take; use "
                "num_classes=0 with it, or global_pool='avg' or 'max'"
            )
        self.global_pool: GlobalPool = global_pool
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - timm's signature; TorchScript takes no keyword-only arguments
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        elif self.global_pool == "max":
            x = x.amax((2, 3))
        x = self.drop(x)
        logits: Tensor = x if pre_logits else self.fc(x)
        return logits


def _stem(config: AnyNetConfig) -> nn.Module:
    norm, activation = config.norm, config.activation
    kernel_size, strides = config.stem_kernel_size, config.stem_conv_strides
    if config.block == "preact_bottleneck":
        return conv2d(config.in_chans, config.stem_width, kernel_size, stride=strides[0])
    if config.block == "normfree_bottleneck":
        conv = ScaledStdConv2d(config.in_chans, config.stem_width, kernel_size, stride=strides[0])
        return nn.Sequential(OrderedDict(conv=conv))
    layers = []
    width_in = config.in_chans
    for width, stride in zip(config.stem_widths, strides, strict=True):
        layers.append(
            ConvNormAct(
                width_in, width, kernel_size, norm=norm, activation=activation, stride=stride
            )
        )
        width_in = width
    if len(layers) == 1:
        return layers[0]
    return nn.Sequential(OrderedDict((f"conv{n}", layer) for n, layer in enumerate(layers, 1)))


def _stages(config: AnyNetConfig, drop_path_rate: float) -> Iterator[Stage]:
    blocks = config.blocks()
    rates = torch.linspace(0, drop_path_rate, len(blocks), device="cpu").tolist()
    built = [build_block(config, b, drop_path=r) for b, r in zip(blocks, rates, strict=True)]
    for number in range(1, len(config.stages) + 1):
        yield Stage(
            OrderedDict(
                (f"b{block.index}", module)
                for block, module in zip(blocks, built, strict=True)
                if block.stage == number
            )
        )


def _final_conv(config: AnyNetConfig) -> nn.Module:
    if config.block == "normfree_bottleneck":
        if not config.head_width:
            return nn.Identity()
        return ScaledStdConv2d(config.stages[-1].width, config.head_width, 1)
    if config.head_width:
        return ConvNormAct(
            config.stages[-1].width,
            config.head_width,
            norm=config.norm,
            activation=config.activation,
        )
    # Not in place, because the input is a feature map that may be returned to the caller.
    return activation_layer(config.activation if config.head_activation else None, inplace=False)
