"""The definition of a study: populations of one or more spaces, a recipe, and images."""

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
"""A network and its metrics."""


def _described(found: Sample | CustomSample, count: int) -> list[Network]:
    metrics = found.metrics
    return [
        (found.config(n), {name: values[n].item() for name, values in metrics.items()})
        for n in range(count)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A population of given networks, such as those of another population with one change."""

    name: str
    configs: tuple[AnyNetConfig | RegNetConfig, ...]
    image_size: int = 224
    """Side of the images in pixels, at which complexity is counted."""

    def __post_init__(self) -> None:
        if not self.configs:
            raise ConfigError(f"{self.name}: a population needs at least one network, got none")
        stages = {len(config.depths) for config in self.configs}
        if len(stages) > 1:
            raise ConfigError(
                f"{self.name}: all networks of a population must have the same number of stages, "
                f"got {sorted(stages)}"
            )

    def described(self) -> list[Network]:
        """Return the networks with their metrics: depths and widths of stages, and complexity."""
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
        """Return all fields as a JSON-serializable dictionary."""
        return {
            "name": self.name,
            "configs": [config.to_dict() for config in self.configs],
            "image_size": self.image_size,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Given":
        """Build the population from the result of `to_dict`.

        Raises:
            ConfigError: the values do not describe a list of networks.
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
    """The definition of a study; the same definition and seed give the same networks."""

    spaces: tuple[Space, ...]
    models: int
    """Number of networks to sample from each space."""
    given: tuple[Given, ...] = ()
    """Populations of given networks, which are not sampled."""
    replicas: int = 1
    """Number of trainings of the first networks of each space, each with another seed."""
    replicated: int = 8
    """Number of networks of each space that are trained `replicas` times."""
    train: str = ""
    """Path of the training images, as `regnet.data.sets.open_set` takes it."""
    val: str = ""
    """Path of the test images, which measure the errors."""
    recipe: Recipe = field(default_factory=lambda: RECIPES["dds-short"])
    objective: str = ""
    """The function that evaluates a network, in place of training on images; empty for training.

    Its name is `package.module:function`. It takes parameters, seed and device, and returns the
    error, or a mapping with `error`.
    The parameters are a dictionary for a custom space, and the config for other spaces. **Running
    the study runs this function.**"""
    code: str | None = None
    """Folder to import the study's functions from, in addition to the installed modules; None: only
    installed modules."""
    train_images: int | None = None
    """Number of training images to use, equally from all classes; None: all."""
    val_images: int | None = None
    """Number of test images to use, likewise; None: all."""
    seed: int = 0
    images: Mapping[str, str] | None = None
    """Fingerprints of the training (`train`) and test (`val`) images; `init` computes them."""

    def __post_init__(self) -> None:
        names = self.names
        if not names:
            raise ConfigError("a study needs a space or given networks (--space, --configs)")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two spaces are called {twice[0]!r}; rename one of them")
        if self.objective and not FUNCTION.fullmatch(self.objective):
            raise ConfigError(
                f"an objective must be 'package.module:function', got {self.objective!r}"
            )
        if bool(self.objective) == bool(self.train and self.val):
            raise ConfigError("a study needs either training and test images, or an objective")
        for name in ("models", "replicas", "replicated"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the populations: first the spaces, then the given networks."""
        return (*(space.name for space in self.spaces), *(each.name for each in self.given))

    def _population(self, name: str) -> Space | Given:
        every: tuple[Space | Given, ...] = (*self.spaces, *self.given)
        return next(each for each in every if each.name == name)

    def networks(self, name: str) -> int:
        """Return the number of different networks of a population."""
        found = self._population(name)
        return len(found.configs) if isinstance(found, Given) else self.models

    def trainings(self, name: str) -> int:
        """Return the number of trainings of a population: of its networks and their replicas."""
        networks = self.networks(name)
        return networks + (self.replicas - 1) * min(networks, self.replicated)

    def network(self, name: str, number: int) -> int:
        """Return the number of the network that a row of a population trains."""
        networks = self.networks(name)
        again = min(networks, self.replicated)
        return number if number < networks else (number - networks) % again

    @property
    def count(self) -> int:
        """Number of trainings of all populations."""
        return sum(map(self.trainings, self.names))

    def image_size(self, name: str) -> int:
        """Return the side of a population's images in pixels, for spaces that do not sample it."""
        return self._population(name).image_size

    def space(self, name: str) -> Space:
        """Return the space with this name.

        Raises:
            ConfigError: there is no such space.
        """
        for space in self.spaces:
            if space.name == name:
                return space
        raise ConfigError(unknown("space in the study", name, [s.name for s in self.spaces]))

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the user's functions that the study runs."""
        found = [self.objective, *(name for s in self.spaces for name in (s.build, s.count))]
        return tuple(dict.fromkeys(filter(None, found)))

    def rows(
        self, name: str, on_network: Callable[[int, int], None] | None = None
    ) -> Iterator[Row]:
        """Yield the rows of a population, one for each training.

        Rows from the number `networks(name)` on are replicas; `network` returns the network that a
        replica repeats. After these come the networks of a custom space that could not be built,
        as rows that have failed.

        Args:
            name: name of the population.
            on_network: called if networks are counted one by one, with the number counted so far,
                and their total.

        Raises:
            ConfigError: the space has too few networks.
            FunctionError: a function that the space names cannot be imported.
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
        """Return all fields as a JSON-serializable dictionary."""
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
        """Build a study from the result of `to_dict`.

        Raises:
            ConfigError: the values do not describe a study.
        """
        try:
            return documents.build(cls, values)
        except ConfigError as error:
            raise ConfigError(f"not a study: {error}") from error
