"""The definition of a study: populations of one or more spaces, one recipe, one set of images."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from regnet import documents
from regnet.design.complexity import complexity
from regnet.design.config import AnyNetConfig, RegNetConfig, config_from_dict
from regnet.errors import ConfigError, unknown
from regnet.spaces.custom import CustomConfig, CustomSample
from regnet.spaces.sampling import Sample, sample
from regnet.spaces.space import COMPLEXITY, FUNCTION, Space
from regnet.studies.custom import sample_networks
from regnet.studies.store import Row
from regnet.training.input import seed_of
from regnet.training.recipe import RECIPES, Recipe

Network = tuple[AnyNetConfig | RegNetConfig | CustomConfig, dict[str, float]]
"""A network, and what is known of it."""


def _described(found: Sample | CustomSample, count: int) -> list[Network]:
    metrics = found.metrics
    return [
        (found.config(n), {name: values[n].item() for name, values in metrics.items()})
        for n in range(count)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Networks that are not sampled, such as one population with a change."""

    name: str
    configs: tuple[AnyNetConfig | RegNetConfig, ...]
    image_size: int = 224
    """Side of the images in pixels, at which complexity is counted."""

    def __post_init__(self) -> None:
        if not self.configs:
            raise ConfigError(f"{self.name}: no networks are given")
        stages = {len(config.depths) for config in self.configs}
        if len(stages) > 1:
            raise ConfigError(
                f"{self.name}: networks of one population have as many stages, got {sorted(stages)}"
            )

    def described(self) -> list[Network]:
        """The networks with depth and widths of their stages, and their complexity."""
        return [(config, self._metrics(config)) for config in self.configs]

    def _metrics(self, config: AnyNetConfig | RegNetConfig) -> dict[str, float]:
        cost = complexity(config, self.image_size)
        stages = {
            f"{letter}{number}": float(value)
            for letter, values in (("d", config.depths), ("w", config.widths))
            for number, value in enumerate(values, 1)
        }
        return {
            "d": float(sum(config.depths)),
            **stages,
            **{name: float(getattr(cost, name)) for name in COMPLEXITY},
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "configs": [config.to_dict() for config in self.configs],
            "image_size": self.image_size,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Given":
        """The networks of `to_dict`.

        Raises:
            ConfigError: they are none.
        """
        try:
            configs = tuple(config_from_dict(config) for config in values["configs"])
            return cls(
                name=str(values["name"]), configs=configs, image_size=int(values["image_size"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a list of networks: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is sampled and how it is trained: with the same seed, the same networks."""

    spaces: tuple[Space, ...]
    models: int
    """Networks of each space."""
    given: tuple[Given, ...] = ()
    """Networks that are not sampled."""
    replicas: int = 1
    """How often the first networks of each space are trained, each time with another seed."""
    replicated: int = 8
    """How many networks of each space those are, where replicas are more than one."""
    train: str = ""
    """Where the training images are; see `regnet.data.sets.open_set`."""
    val: str = ""
    """Where the images are that measure errors."""
    recipe: Recipe = field(default_factory=lambda: RECIPES["dds-short"])
    objective: str = ""
    """A function that judges networks instead of training on images, by its name, as `Space.build`
    has it. It takes parameters, seed and device, and gives the error, or a mapping that has one.
    Parameters are a dictionary in a custom space, else the config. **Whoever runs the study runs
    it.**"""
    code: str | None = None
    """Folder in which the functions that the study names are looked for, beside what is installed;
    None: nowhere else."""
    train_images: int | None = None
    """Train on so many of the images only, equally from all classes."""
    val_images: int | None = None
    seed: int = 0
    images: Mapping[str, str] | None = None
    """Fingerprints of the images, by what they are for; `init` finds them."""

    def __post_init__(self) -> None:
        names = self.names
        if not names:
            raise ConfigError("a study needs a space, or networks that are given")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two spaces are called {twice[0]!r}; give one another name")
        if self.objective and not FUNCTION.fullmatch(self.objective):
            raise ConfigError(
                f"an objective must be 'package.module:function', got {self.objective!r}"
            )
        if bool(self.objective) == bool(self.train and self.val):
            raise ConfigError("a study needs images to train and to test on, or an objective")
        for name in ("models", "replicas", "replicated"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the populations: its spaces, and the networks that are given."""
        return (*(space.name for space in self.spaces), *(each.name for each in self.given))

    def _population(self, name: str) -> Space | Given:
        every: tuple[Space | Given, ...] = (*self.spaces, *self.given)
        return next(each for each in every if each.name == name)

    def networks(self, name: str) -> int:
        """How many different networks a population has."""
        found = self._population(name)
        return len(found.configs) if isinstance(found, Given) else self.models

    def trainings(self, name: str) -> int:
        """How many rows a population has: its networks, and their replicas."""
        networks = self.networks(name)
        return networks + (self.replicas - 1) * min(networks, self.replicated)

    def network(self, name: str, number: int) -> int:
        """Which network of a population a row is a training of."""
        networks = self.networks(name)
        again = min(networks, self.replicated)
        return number if number < networks else (number - networks) % again

    @property
    def count(self) -> int:
        """Rows of all populations."""
        return sum(map(self.trainings, self.names))

    def image_size(self, name: str) -> int:
        """Side of the images of a population in pixels, where it is not drawn."""
        return self._population(name).image_size

    def space(self, name: str) -> Space:
        """One of its spaces.

        Raises:
            ConfigError: there is no such space.
        """
        for space in self.spaces:
            if space.name == name:
                return space
        raise ConfigError(unknown("space in the study", name, [s.name for s in self.spaces]))

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions of its user that it runs."""
        found = [self.objective, *(name for s in self.spaces for name in (s.build, s.count))]
        return tuple(dict.fromkeys(filter(None, found)))

    def rows(
        self, name: str, on_network: Callable[[int, int], None] | None = None
    ) -> Iterator[Row]:
        """The networks of one of its populations, to be trained.

        Numbers from `networks(name)` on are replicas; `network` says of which. Behind those come
        networks of a custom space that could not be built: they have failed already.

        Args:
            name: of the population.
            on_network: called where networks are counted one by one, with how many are, and how
                many there shall be.

        Raises:
            ConfigError: the space has too few.
            FunctionError: a function that it names cannot be imported.
        """
        what = self._population(name)
        failed: tuple[tuple[CustomConfig, str], ...] = ()
        if isinstance(what, Given):
            found = what.described()
        elif what.custom:
            seed = seed_of(self.seed, "sample", name)
            drawn = sample_networks(
                what, self.models, seed, folder=self.code, on_network=on_network
            )
            found, failed = _described(drawn, self.models), drawn.failed
        else:
            found = self._sampled(what)
        for number in range(self.trainings(name)):
            config, metrics = found[self.network(name, number)]
            yield Row(
                id=0,
                space=name,
                number=number,
                config=config.to_dict(),
                metrics=metrics,
                seed=seed_of(self.seed, "train", name, number) % 2**31,
            )
        for number, (network, reason) in enumerate(failed, self.trainings(name)):
            yield Row(
                id=0,
                space=name,
                number=number,
                config=network.to_dict(),
                metrics=dict(network.parameters),
                seed=0,
                status="failed",
                outcome={"reason": reason, "seconds": 0.0},
            )

    def _sampled(self, space: Space) -> list[Network]:
        found = sample(space, self.models, seed_of(self.seed, "sample", space.name))
        return _described(found, self.models)

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return {
            "spaces": [space.to_dict() for space in self.spaces],
            "given": [each.to_dict() for each in self.given],
            "models": self.models,
            "replicas": self.replicas,
            "replicated": self.replicated,
            "train": self.train,
            "val": self.val,
            "train_images": self.train_images,
            "val_images": self.val_images,
            "seed": self.seed,
            "images": self.images,
            "recipe": self.recipe.to_dict(),
            "objective": self.objective,
            "code": self.code,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Study":
        """The study of `to_dict`.

        Raises:
            ConfigError: it is not one.
        """
        try:
            return documents.build(cls, values)
        except ConfigError as error:
            raise ConfigError(f"not a study: {error}") from error
