"""Recipes: how a network is trained, as data, and the named ones.

A recipe says everything that decides the result but the network, the images and the seed. What
only decides how fast it comes (device, processes, compiler) is an option of `train`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args, get_origin

from regnet.engines.base import Precision
from regnet.errors import ConfigError, check_number, unknown

Crop = Literal["pad", "resized"]
"""Crop from the image with a border of 4 pixels, as for CIFAR; or a random area, resized."""

Policy = Literal["none", "rand", "trivial"]
"""RandAugment (Cubuk et al. 2020), TrivialAugment Wide (Müller and Hutter 2021), or neither."""

LR_BATCH: Final = 128
"""Images for which `Recipe.lr` is meant; other batch sizes scale it linearly (DDS, appendix C)."""

WARMUP_START: Final = 0.1
"""Part of the learning rate with which warm-up begins (pycls)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """SGD with momentum 0.9 and a half-period cosine, and what goes with it.

    The defaults are those of the paper's final models (`dds`).
    """

    epochs: int = 100
    batch_size: int = 1024
    """Images per step, over all processes."""
    micro_batch_size: int | None = None
    """Images per forward pass, which is what batch norm sees; processes share the passes of a step
    and one process takes them in turn, so that their number changes nothing but rounding. Running
    statistics are those of a step's first pass. None: the images of a step, divided by the
    processes, whose number then matters."""
    lr: float = 0.1
    """Peak learning rate for 128 images; scaled linearly."""
    lr_per: Literal["epoch", "step"] = "epoch"
    """How often the learning rate moves; pycls sets it once per epoch."""
    warmup_epochs: int = 5
    nesterov: bool = True
    weight_decay: float = 5e-5
    norm_weight_decay: float | None = None
    """Of norms and biases; None: as of the rest, which is pycls's default."""
    layer_decay: float = 1.0
    """Factor of the learning rate from one block to the one before; below 1 for fine-tuning."""
    clip_norm: float | None = None
    """Largest norm of the gradient."""

    image_size: int | None = None
    """Side of the training images in pixels; None: the network's."""
    crop: Crop = "resized"
    min_area: float = 0.08
    """Smallest part of the image that a resized crop takes."""
    flip: bool = True
    lighting: float = 0.1
    """Standard deviation of the PCA lighting noise (Krizhevsky et al. 2012)."""
    policy: Policy = "none"
    magnitude: int = 9
    """Of RandAugment, 0 to 30; two operations per image."""
    erasing: float = 0.0
    """Probability that a rectangle is erased."""
    cutout: int = 0
    """Side in pixels of a square that is hidden; 0: none."""
    clean_epochs: int = 0
    """The last so many epochs see crops and flips alone, as the network will be used."""
    repeats: int = 1
    """Times that an image is augmented in a row (Hoffer et al. 2020); epochs keep their length."""
    mixup: float = 0.0
    """Alpha of mixup; with cutmix too, each batch takes one of them."""
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    distill: float = 0.0
    """Part of the loss that is the distance from a teacher's answers, not from the labels."""
    temperature: float = 1.0
    """Of both answers in that part; above 1, small probabilities count more."""

    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    zero_init_last: bool = False
    ema_alpha: float = 0.0
    """Of the moving average of the weights: see `ema_weight`; 0: none."""
    ema_period: int = 32
    """Most steps from one update of the average to the next: see `ema_steps`."""
    precise_bn: int = 8192
    """Training images whose statistics replace batch norm's running ones before each test; 0: keep
    the running ones."""
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        self._check_types()
        counts = ("epochs", "batch_size", "repeats", "ema_period")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "warmup_epochs", "cutout", "clean_epochs", "precise_bn", "magnitude", "lighting",
            "mixup", "cutmix", "ema_alpha", "weight_decay",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "clip_norm", "image_size", "temperature"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        for name in ("label_smoothing", "erasing", "drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("layer_decay", "min_area"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.distill <= 1:
            raise ConfigError(f"distill must lie in [0, 1], got {self.distill}")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise ConfigError(
                f"warmup_epochs must be below epochs, got {self.warmup_epochs} of {self.epochs}"
            )
        micro = self.micro_batch_size
        if micro is not None and (micro < 1 or self.batch_size % micro):
            raise ConfigError(
                f"micro_batch_size must divide batch_size, got {micro} and {self.batch_size}"
            )

    def _check_types(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            kinds = get_args(field.type) or (field.type,)
            if value is None and type(None) in kinds:
                continue
            if get_origin(field.type) is Literal:
                fits, needed = value in kinds, f"one of {', '.join(kinds)}"
            elif bool in kinds:
                fits, needed = type(value) is bool, "true or false"
            elif int in kinds:
                fits, needed = type(value) is int, "a whole number"
            else:
                check_number(name, value)
                continue
            if not fits:
                raise ConfigError(f"{name} must be {needed}, got {value!r}")

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up, for this batch size."""
        return self.lr * self.batch_size / LR_BATCH

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """The learning rate of a step, both counted from 0, of `steps` per epoch.

        Half-period cosine over all epochs, from the peak to 0, times a ramp from 0.1 to 1 in the
        warm-up (pycls `core/optimizer.py`; DDS, section 5).
        """
        at = epoch if self.lr_per == "epoch" else epoch + step / steps
        rate = self.peak_lr * 0.5 * (1 + math.cos(math.pi * at / self.epochs))
        if at < self.warmup_epochs:
            done = at / self.warmup_epochs
            rate *= WARMUP_START * (1 - done) + done
        return rate

    def ema_steps(self, steps: int) -> int:
        """Steps from one update of the average to the next, in epochs of `steps` steps.

        `ema_period`, or a fiftieth of a training that is shorter than fifty such periods.
        """
        return min(self.ema_period, max(1, self.epochs * steps // 50))

    def ema_weight(self, epoch: int, steps: int) -> float:
        """Weight of the newest parameters in the average, at each update in this epoch.

        min(1, alpha * batch_size / epochs * period), and 1 while the learning rate warms up (pycls
        `core/trainer.py`, torchvision's references), so that alpha means the same for every batch
        size and number of epochs. It does not mean the same for every number of images: on a few
        hundred, the alpha of ImageNet would average over a hundred times the training's length, and
        the average would stay where the training began. So the average never reaches back
        further than a tenth of the training's steps.
        """
        if epoch < self.warmup_epochs:
            return 1.0
        each = max(self.ema_alpha * self.batch_size / self.epochs, 10 / (self.epochs * steps))
        return min(1.0, each * self.ema_steps(steps))

    def changed(self, **changes: Any) -> "Recipe":
        """Return the recipe with other values, and what follows from them.

        With other epochs, warm-up and clean epochs keep their part of the whole, as far as they are
        not given; with another batch size, the images of a pass divide it.

        Raises:
            ConfigError: there is no such field, or values do not fit.
        """
        follows: dict[str, Any] = {}
        epochs, batch = changes.get("epochs"), changes.get("batch_size")
        if type(epochs) is int and epochs > 0:
            for name in ("warmup_epochs", "clean_epochs"):
                part = getattr(self, name) * min(1.0, epochs / self.epochs)
                follows[name] = min(math.ceil(part), epochs - 1)
        if type(batch) is int and batch > 0 and (micro := self.micro_batch_size):
            fitting = range(min(micro, batch), 0, -1)
            follows["micro_batch_size"] = next(size for size in fitting if batch % size == 0)
        return Recipe.from_dict(self.to_dict() | follows | changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe of `to_dict`; fields that are missing take their defaults.

        Raises:
            ConfigError: a field is not known, or has a value that cannot be used.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(unknown("field of a recipe", name, known))
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"a recipe has a value of the wrong type: {error}") from error


RECIPES: Final[Mapping[str, Recipe]] = {
    "dds": Recipe(),
    # Populations of section 3 of the paper: 10 epochs, 128 images on one GPU, no warm-up.
    "dds-short": Recipe(epochs=10, batch_size=128, lr=0.05, warmup_epochs=0),
    # Those of section 4.
    "dds-short-25": Recipe(epochs=25, batch_size=128, warmup_epochs=0),
    # After what torchvision published for its second weights ("IMAGENET1K_V2" of ResNet-50).
    "tv2": Recipe(
        epochs=600, batch_size=1024, micro_batch_size=128, lr=0.0625, nesterov=False,
        weight_decay=2e-5, norm_weight_decay=0.0, image_size=176, lighting=0.0, policy="trivial",
        erasing=0.1, repeats=4, mixup=0.2, cutmix=1.0, label_smoothing=0.1, ema_alpha=2e-5,
        precise_bn=0,
    ),
    # From weights, on some hundred to some ten thousand photos.
    "finetune": Recipe(
        epochs=20, batch_size=32, lr=0.16, lr_per="step", warmup_epochs=1, weight_decay=1e-4,
        norm_weight_decay=0.0, layer_decay=0.85, clip_norm=5.0, min_area=0.35, lighting=0.0,
        label_smoothing=0.1, ema_alpha=2.5e-4, precise_bn=0,
    ),
    # For 32x32 images.
    "cifar": Recipe(
        epochs=50, batch_size=128, lr=0.2, lr_per="step", warmup_epochs=2, weight_decay=5e-4,
        norm_weight_decay=0.0, crop="pad", lighting=0.0, cutout=10, clean_epochs=8,
        label_smoothing=0.1, ema_alpha=2.5e-4, precise_bn=0, precision="bf16",
    ),
    # Populations on 32x32 images: as plain as the paper's, in minutes per network.
    "cifar-short": Recipe(
        epochs=8, batch_size=128, lr=0.1, lr_per="step", warmup_epochs=1, weight_decay=5e-4,
        norm_weight_decay=0.0, crop="pad", lighting=0.0, ema_alpha=0.0, precise_bn=1024,
    ),
}  # fmt: skip


def find_recipe(name: str, **changes: Any) -> Recipe:
    """A named recipe, with other values for some fields (`Recipe.changed`).

    Raises:
        ConfigError: there is no such recipe or field, or values do not fit.
    """
    if name not in RECIPES:
        raise ConfigError(unknown("recipe", name, RECIPES))
    return RECIPES[name].changed(**changes)


def recipe_from_json(text: str) -> Recipe:
    """The recipe in a JSON document.

    Raises:
        ConfigError: it is not one.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"a recipe must be JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"a recipe must be a JSON object, got {type(values).__name__}")
    return Recipe.from_dict(values)
