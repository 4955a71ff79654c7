"""Recipes: how a network is trained, as data, and the recipes that have names.

A recipe holds everything that decides the result, except the network, the images and the seed. What
only decides the speed (device, processes, compiler) is an option of `train`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args, get_origin

from regnet import documents
from regnet.engines.base import Precision
from regnet.errors import ConfigError, check_number, unknown

Crop = Literal["pad", "resized"]
"""Crop the image with a border of 4 pixels around it, as for CIFAR, or resize a random area."""

Policy = Literal["none", "rand", "trivial"]
"""RandAugment (Cubuk et al. 2020), TrivialAugment Wide (Müller and Hutter 2021), or neither."""

LR_BATCH: Final = 128
"""Batch size of `Recipe.lr`, which scales linearly with the batch size (DDS, appendix C)."""

WARMUP_START: Final = 0.1
"""Factor of the learning rate with which warm-up begins (pycls)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """SGD with momentum 0.9 and a half-period cosine, augmentation and regularization.

    The defaults are the recipe of the paper's final models (`dds`).

    Raises:
        ConfigError: a value has the wrong type, is out of range, or contradicts another.
    """

    epochs: int = 100
    batch_size: int = 1024
    """Images per step, over all processes together."""
    micro_batch_size: int | None = None
    """Images per forward pass, over which batch norm computes its statistics. The processes share
    the passes of a step, and each computes its own one after another, so that their number changes
    nothing but rounding. The running statistics come from the first pass of a step. None:
    `batch_size` divided by the number of processes, which then changes the result."""
    lr: float = 0.1
    """Peak learning rate for a batch of 128 images; it scales linearly with the batch size."""
    lr_per: Literal["epoch", "step"] = "epoch"
    """How often the learning rate changes; pycls sets it once per epoch."""
    warmup_epochs: int = 5
    nesterov: bool = True
    weight_decay: float = 5e-5
    norm_weight_decay: float | None = None
    """Weight decay of norms and biases; None: `weight_decay`, which is pycls's default."""
    layer_decay: float = 1.0
    """Learning rate of a block as a share of the next block's; below 1 for fine-tuning."""
    clip_norm: float | None = None
    """Largest norm of the gradient, to which larger ones are scaled down; None: no limit."""

    image_size: int | None = None
    """Side of the training images in pixels; None: the default of the network."""
    crop: Crop = "resized"
    min_area: float = 0.08
    """Smallest share of the image's area that a resized crop takes."""
    flip: bool = True
    lighting: float = 0.1
    """Standard deviation of the PCA lighting noise (Krizhevsky et al. 2012)."""
    policy: Policy = "none"
    magnitude: int = 9
    """Magnitude of RandAugment, 0 to 30, with two operations per image."""
    erasing: float = 0.0
    """Probability that a rectangle of an image is erased."""
    cutout: int = 0
    """Side in pixels of a square that is hidden in each image; 0: none."""
    clean_epochs: int = 0
    """Number of last epochs with only crops and flips, so that images look as they do in use."""
    repeats: int = 1
    """Number of times each image is augmented in a row (Hoffer et al. 2020), in epochs of the same
    length."""
    mixup: float = 0.0
    """Alpha of mixup; if cutmix is on too, each batch uses one of the two."""
    cutmix: float = 0.0
    """Alpha of cutmix."""
    label_smoothing: float = 0.0
    distill: float = 0.0
    """Share of the loss that compares with a teacher's answers instead of with the labels."""
    temperature: float = 1.0
    """Temperature of the answers in that share; above 1, small probabilities count more."""

    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    zero_init_last: bool = False
    ema_alpha: float = 0.0
    """Alpha of the moving average of the weights (see `ema_weight`); 0: no average."""
    ema_period: int = 32
    """Largest number of steps between two updates of the average (see `ema_steps`)."""
    precise_bn: int = 8192
    """Number of training images whose statistics replace batch norm's running statistics before
    each test; 0: keep the running statistics."""
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

    def check_size(self, height: int, width: int, image_size: int | None = None) -> None:
        """Refuse a size that the crop "pad" cannot give, because it does not resize images.

        Args:
            height: height of the training images in pixels.
            width: width of the training images in pixels.
            image_size: a size that was asked for beside the recipe's.

        Raises:
            ConfigError: the recipe crops by padding, and another size was asked for.
        """
        asked = {self.image_size, image_size} - {None, height}
        if self.crop == "pad" and asked:
            raise ConfigError(
                f'the crop "pad" trains on images of the size that they have, {width} x {height} '
                f"pixels; leave image_size={min(filter(None, asked))} out, or use another crop"
            )

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up, for this batch size."""
        return self.lr * self.batch_size / LR_BATCH

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """Return the learning rate of a step.

        It is a half-period cosine over all epochs, from the peak to 0, times a ramp from 0.1 to 1
        during warm-up (pycls `core/optimizer.py`; DDS, section 5).

        Args:
            epoch: the epoch, from 0.
            step: the step of the epoch, from 0; it only matters if `lr_per` is "step".
            steps: number of steps per epoch.
        """
        at = epoch if self.lr_per == "epoch" else epoch + step / steps
        rate = self.peak_lr * 0.5 * (1 + math.cos(math.pi * at / self.epochs))
        if at < self.warmup_epochs:
            done = at / self.warmup_epochs
            rate *= WARMUP_START * (1 - done) + done
        return rate

    def ema_steps(self, steps: int) -> int:
        """Return the number of steps between two updates of the average.

        It is `ema_period`, or a fiftieth of a training that is shorter than fifty such periods.

        Args:
            steps: number of steps per epoch.
        """
        return min(self.ema_period, max(1, self.epochs * steps // 50))

    def ema_weight(self, epoch: int, steps: int) -> float:
        """Return the weight of the newest parameters at each update of the average in an epoch.

        It is min(1, alpha * batch_size / epochs * period), and 1 while the learning rate warms up
        (pycls `core/trainer.py`, torchvision's references), so that alpha means the same for every
        batch size and number of epochs. It does not mean the same for every number of images: on a
        few hundred images, the alpha of ImageNet would average over a hundred times the length of
        the training, and the average would stay where the training began. Therefore the average
        never reaches back further than a tenth of the steps of the training.

        Args:
            epoch: the epoch, from 0.
            steps: number of steps per epoch.
        """
        if epoch < self.warmup_epochs:
            return 1.0
        each = max(self.ema_alpha * self.batch_size / self.epochs, 10 / (self.epochs * steps))
        return min(1.0, each * self.ema_steps(steps))

    def changed(self, **changes: Any) -> "Recipe":
        """Return the recipe with other values, and adapt the values that depend on them.

        With fewer epochs, warm-up and clean epochs shrink in proportion. With another batch size,
        `micro_batch_size` becomes its largest divisor that is not above the present value. Fields
        that are given are taken as they are.

        Args:
            **changes: new values by field.

        Raises:
            ConfigError: a field does not exist, or a value cannot be used.
        """
        follows: dict[str, Any] = {}
        epochs, batch = changes.get("epochs"), changes.get("batch_size")
        if type(epochs) is int and epochs > 0:
            part = min(1.0, epochs / self.epochs)
            warmup = min(math.ceil(part * self.warmup_epochs), epochs - 1)
            clean = min(math.ceil(part * self.clean_epochs), epochs - max(1, warmup))
            follows = {"warmup_epochs": warmup, "clean_epochs": clean}
        if type(batch) is int and batch > 0 and (micro := self.micro_batch_size):
            fitting = range(min(micro, batch), 0, -1)
            follows["micro_batch_size"] = next(size for size in fitting if batch % size == 0)
        return Recipe.from_dict(self.to_dict() | follows | changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from what `to_dict` returns; missing fields take their defaults.

        Raises:
            ConfigError: a field does not exist, or has a value that cannot be used.
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
    # Populations of section 4 of the paper: 25 epochs.
    "dds-short-25": Recipe(epochs=25, batch_size=128, warmup_epochs=0),
    # What torchvision published about its second weights ("IMAGENET1K_V2" of ResNet-50).
    "tv2": Recipe(
        epochs=600, batch_size=1024, micro_batch_size=128, lr=0.0625, nesterov=False,
        weight_decay=2e-5, norm_weight_decay=0.0, image_size=176, lighting=0.0, policy="trivial",
        erasing=0.1, repeats=4, mixup=0.2, cutmix=1.0, label_smoothing=0.1, ema_alpha=2e-5,
        precise_bn=0,
    ),
    # Training that starts from weights, on a few hundred to tens of thousands of photos.
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
    """Return a recipe by its name in `RECIPES`, with other values for some fields.

    Args:
        name: name of the recipe.
        **changes: new values by field, as `Recipe.changed` takes them.

    Raises:
        ConfigError: the recipe or a field does not exist, or a value cannot be used.
    """
    if name not in RECIPES:
        raise ConfigError(unknown("recipe", name, RECIPES))
    return RECIPES[name].changed(**changes)


def recipe_from_json(text: str) -> Recipe:
    """Return the recipe in a JSON document.

    Raises:
        ConfigError: the text is not the JSON of a recipe.
    """
    try:
        values = documents.parsed(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"a recipe must be JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"a recipe must be a JSON object, got {type(values).__name__}")
    return Recipe.from_dict(values)
