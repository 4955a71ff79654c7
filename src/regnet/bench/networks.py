"""Networks to measure: those of this library, EfficientNets, and RegNets of other libraries."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from torch import nn

from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.layers import Layer, network_layers
from regnet.design.variants import VARIANTS
from regnet.engines.files import FileNetwork, open_model
from regnet.errors import ConfigError, EngineError, MissingExtraError, WeightsError, unknown
from regnet.nn.efficientnet import EFFICIENTNETS, EfficientNet, EfficientNetSize
from regnet.paths import expanded
from regnet.weights.download import fetch_file
from regnet.weights.unwrap import read_tensors
from regnet.zoo.create import create
from regnet.zoo.listing import is_model, list_models
from regnet.zoo.resolver import find_model, is_config_file, is_exported, is_prefixed

PAIRINGS: Final = (
    ("efficientnet_b0", "regnety_004", 24.9, 25.9),
    ("efficientnet_b1", "regnety_006", 24.1, 24.5),
    ("efficientnet_b2", "regnety_008", 23.4, 23.7),
    ("efficientnet_b3", "regnety_016", 22.5, 22.0),
    ("efficientnet_b4", "regnety_040", 21.2, 20.6),
    ("efficientnet_b5", "regnety_080", 21.5, 20.1),
)
"""The pairs of the paper's Table 4, which have about the same flops, and their errors in percent
after the same training."""

_SIZES: Final = (
    "002", "004", "006", "008", "016", "032", "040", "064", "080", "120", "160", "320",
)  # fmt: skip
_ERRORS: Final = {
    "regnetx": (31.1, 27.3, 25.9, 24.8, 23.0, 21.7, 21.4, 20.8, 20.7, 20.3, 20.0, 19.5),
    "regnety": (29.6, 25.9, 24.5, 23.7, 22.0, 21.0, 20.6, 20.1, 20.1, 19.7, 19.6, 19.0),
}
PAPER_ERRORS: Final = {
    "resnet50": 23.2,
    "resnext50_32x4d": 21.9,
    **{name: error for name, _, error, _ in PAIRINGS},
    **{
        f"{family}_{size}": error
        for family, errors in _ERRORS.items()
        for size, error in zip(_SIZES, errors, strict=True)
    },
}
"""Top-1 errors in percent, from the paper's Figures 15 and 16 and Tables 3 and 4."""

DEFAULT_MODELS: Final = (
    *(name for pair in PAIRINGS for name in pair[:2]),
    "regnetx_080",
    "resnet50",
    "resnext50_32x4d",
)

QUICK_MODELS: Final = ("efficientnet_b0", "regnety_004", "regnetx_004")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network to measure, and the facts about it."""

    model: nn.Module
    architecture: AnyNetConfig | RegNetConfig | EfficientNetSize
    image_size: int
    """Side of the images that the network was made for, in pixels."""
    top1_error: float | None = None
    """Top-1 error on ImageNet-1k, in percent."""
    top1_source: str | None = None

    @property
    def in_chans(self) -> int:
        """Number of channels of its images."""
        return 3 if isinstance(self.architecture, EfficientNetSize) else self.architecture.in_chans

    def layers(self, image_size: int) -> Iterator[Layer]:
        """Yield its layers for one square image, whose side is given in pixels."""
        if isinstance(self.architecture, EfficientNetSize):
            return self.architecture.layers(image_size)
        return network_layers(self.architecture.anynet(), image_size)


def load(name: str | AnyNetConfig | RegNetConfig, *, trust: bool = False) -> Network:
    """Build a network to measure.

    Args:
        name: a config, a variant, a checkpoint (`regnety_016.tv2_in1k`) or whatever else `create`
            takes (a folder, a repository, a file of weights or of a config), an EfficientNet
            (`efficientnet_b0`; with weights of the Hub `efficientnet_b0.ra_in1k`), another
            library's network (`timm:regnety_016`, `torchvision:regnety_016`), or an exported file
            (.onnx, .xml).
        trust: open .pt2 files as well, which can run code.

    Raises:
        RegNetError: the network cannot be built or loaded; the message says why.
    """
    if not isinstance(name, str):
        return Network(model=create(name), architecture=name, image_size=224)
    peer, _, variant = name.rpartition(":")
    if peer in PEERS:
        ours = load(variant)
        if not isinstance(ours.architecture, (AnyNetConfig, RegNetConfig)):
            raise ConfigError(f"{name}: other libraries are measured on RegNets only")
        return Network(
            model=PEERS[peer](variant), architecture=ours.architecture, image_size=ours.image_size
        )
    if is_exported(name):
        file = open_model(name, trust=trust)
        assert file.card is not None, "an exported file has a card"
        size = file.shape[-1] if isinstance(file, FileNetwork) else None
        size = size or file.card.preprocess.size[0]
        return Network(model=file, architecture=file.config, image_size=size)
    base, _, tag = name.partition(".")
    if base in EFFICIENTNETS:
        return _efficientnet(base, tag)
    if is_config_file(name):
        model = create(name)
        return Network(model=model, architecture=model.config, image_size=224)
    if not is_model(name):
        model = create(name, pretrained=True)
        assert model.card is not None, "it was loaded"
        size = model.card.preprocess.size[0]
        return Network(model=model, architecture=model.config, image_size=size)
    found, row = find_model(name)
    model = create(name, pretrained=row is not None)
    facts: dict[str, Any] = {
        "model": model, "architecture": model.config, "image_size": found.image_size
    }  # fmt: skip
    if row is None:
        return Network(**facts, **_paper(name))
    error = None if row.top1 is None else round(100 - row.top1, 3)
    return Network(**facts, top1_error=error, top1_source="its publisher" if error else None)


def _paper(name: str) -> dict[str, Any]:
    error = PAPER_ERRORS.get(name)
    return {"top1_error": error, "top1_source": "the paper" if error else None}


def _efficientnet(name: str, tag: str) -> Network:
    size = EFFICIENTNETS[name]
    model = EfficientNet(size)
    if not tag:
        return Network(model=model, architecture=size, image_size=size.image_size, **_paper(name))
    repo = f"timm/{name}.{tag}"
    tensors = read_tensors(fetch_file(repo, "model.safetensors", None))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{repo} does not fit {name}: {reason}") from error
    return Network(model=model, architecture=size, image_size=size.image_size)


def _timm(variant: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm is not installed; pip install timm") from error
    if not timm.is_model(variant):
        raise EngineError(f"timm has no {variant}")
    model: nn.Module = timm.create_model(variant)
    return model


def _torchvision(variant: str) -> nn.Module:
    try:
        import torchvision
    except ImportError as error:
        raise MissingExtraError("torchvision is not installed; pip install torchvision") from error
    if f"{variant}_tv" in VARIANTS:
        raise EngineError(
            f"torchvision's network of this name has other widths; name it {variant}_tv"
        )
    name = VARIANTS[variant].factory.removesuffix("_tv")
    if name not in torchvision.models.list_models():
        raise EngineError(f"torchvision has no {variant}")
    model: nn.Module = torchvision.models.get_model(name)
    return model


PEERS: Final[Mapping[str, Callable[[str], nn.Module]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
}
"""Other libraries, each with a function from a variant to the library's network of that name, with
random weights."""


def expand(patterns: Sequence[str], peers: Sequence[str] = ()) -> list[str]:
    """Return the names of the networks that patterns match.

    Args:
        patterns: patterns of variants, checkpoints and EfficientNets, such as `regnety_*`, and
            whatever else `load` takes by name.
        peers: libraries whose RegNets of the same names are added, each after ours.

    Raises:
        ConfigError: a pattern matches no network, or there is no such peer.
    """
    for peer in peers:
        if peer not in PEERS:
            raise ConfigError(unknown("peer", peer, PEERS))
    names: list[str] = []
    for pattern in patterns:
        base = pattern.partition(".")[0]
        place = expanded(pattern).exists() and not is_model(pattern)
        named = is_config_file(pattern) or is_prefixed(pattern) or is_exported(pattern)
        if named or place or pattern.partition(":")[0] in PEERS:
            names.append(pattern)
            continue
        found = [name for name in EFFICIENTNETS if fnmatchcase(name, pattern.lower())]
        found += [pattern] if base in EFFICIENTNETS and base != pattern else []
        found += list_models(pattern)
        if not found:
            found = list_models(pattern, pretrained=True)
        if not found:
            raise ConfigError(f"no network matches {pattern!r}; `regnet list` prints all names")
        names += found
    # A peer comes right after our network, so that both are compared and freed at once.
    with_peers = (
        one
        for name in names
        for one in (name, *(f"{peer}:{name}" for peer in peers if name in VARIANTS))
    )
    return list(dict.fromkeys(with_peers))
