"""Describe a design space as data: the parameters to draw, their distributions, and limits.

A `Space` is immutable. `Space.restrict` returns the part of a space within narrower ranges, so that
it takes one line to refine a space by the results of a study. The spaces of the paper are in
`regnet.spaces.paper`.
"""

import keyword
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from regnet.design.config import ArchitectureConfig
from regnet.design.widths import is_ratio
from regnet.documents import build
from regnet.errors import ConfigError, unknown
from regnet.spaces.distributions import Distribution
from regnet.spaces.latency import LatencyModel

Family = Literal["anynet", "regnet", "custom"]
"""The kind of network; a user's function builds custom ones (`regnet.spaces.custom`)."""

Relation = Literal["free", "equal", "increasing", "decreasing"]
"""How the values of neighbouring stages relate. Neighbours may be equal in an increasing or a
decreasing order."""

Range: TypeAlias = tuple[float | None, float | None]
"""A range that includes both ends; an end that is None has no limit."""

Predicate: TypeAlias = Callable[[Any], NDArray[np.bool_]]
"""A function that says which networks of a `Sample` satisfy a condition, as an array (n,)."""

PARAMETERS: Final[Mapping[Family, tuple[str, ...]]] = {
    "anynet": ("d_i", "w_i", "b_i", "g_i"),
    "regnet": ("d", "w0", "wa", "wm", "b", "g"),
    "custom": (),
}
"""The parameters that are drawn, in the paper's symbols.

For an AnyNet they are drawn for every stage: depth, width, bottleneck ratio and group width. Both
families may draw `r` as well, the side of the image. A custom space draws what its function takes.
"""

FUNCTION: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
"""The name of a function as text: `package.module:function`."""

COMPLEXITY: Final = ("flops", "params", "activations")

LATENCY: Final = "latency_ms"
"""The metric that a space has only if it has a latency model of a device."""

LEVELS: Final = 64
"""Number of values that the paper counts for each of d, w0, wa and wm (section 3.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A design space: what is drawn, how, and which networks belong to it."""

    name: str
    family: Family
    parameters: Mapping[str, Distribution]
    """A distribution for each of the family's `PARAMETERS`, and optionally for `r`."""
    build: str = ""
    """The function that builds a network of a custom space.

    Its name is `package.module:function`. It takes the drawn parameters by name, and `num_classes`
    and `image_size` if its signature names them. It returns a `torch.nn.Module` that maps images to
    logits. **Whoever trains or samples the space runs this code.**"""
    count: str = ""
    """The function that counts a network of a custom space.

    Its name is `package.module:function`. It takes the same arguments as `build`, and returns a
    mapping with flops, params and activations. If it is empty, each network is built on the meta
    device, without memory for its weights, and counted there."""
    relations: Mapping[str, Relation] = field(default_factory=dict)
    """Relations between the stages of an AnyNet, by parameter; "free" for the others."""
    num_stages: int = 4
    """Number of stages. Draws with another number of stages are not in the space."""
    limits: Mapping[str, Range] = field(default_factory=dict)
    """Ranges that include their ends and that networks must lie in, by names of `metric_names`."""
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    """What all networks share: stem, kind of block, head, classes."""
    image_size: int = 224
    """Side of the images in pixels if `r` is not drawn; complexity is counted at this size."""
    ordering: Literal["rejection", "sorting"] = "rejection"
    """How ordered values are drawn: drawn again until they are in order, or sorted.

    The paper does not say. Rejection preserves the distribution of the larger space; sorting makes
    ties rarer."""
    latency: LatencyModel | None = None
    """A model of the networks' latency on a device; without one, latency cannot be limited."""
    predicates: Mapping[str, Predicate] = field(default_factory=dict)
    """Further conditions, by name. A space with predicates cannot be saved."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ConfigError(
                "a space's name has letters, digits, '_', '-' and '.', and begins with a letter or "
                f"a digit; got {self.name!r}"
            )
        if self.family not in PARAMETERS:
            raise ConfigError(f"family must be anynet, regnet or custom; got {self.family!r}")
        needed = set(PARAMETERS[self.family])
        if self.custom:
            self._check_custom()
        elif self.build or self.count:
            raise ConfigError(
                f"{self.name} is of family {self.family}; build and count are for custom spaces"
            )
        elif wrong := sorted(needed ^ (set(self.parameters) - {"r"})):
            raise ConfigError(
                f"a space of family {self.family} draws {', '.join(PARAMETERS[self.family])}, and "
                f"may draw r; {wrong[0]!r} is "
                f"{'missing' if wrong[0] in needed else 'not one of them'}"
            )
        for name, relation in self.relations.items():
            if self.family != "anynet" or name not in needed:
                raise ConfigError(
                    f"{name!r} is not drawn for each stage, so it cannot have a relation"
                )
            if relation not in ("free", "equal", "increasing", "decreasing"):
                raise ConfigError(
                    f"a relation must be free, equal, increasing or decreasing; got {relation!r}"
                )
        for name, distribution in self.parameters.items():
            if not self.custom:
                self._check_parameter(name, distribution)
        if self.num_stages < 1 or self.image_size < 1:
            raise ConfigError(
                "num_stages and image_size must be at least 1, "
                f"got {self.num_stages} and {self.image_size}"
            )
        if self.ordering not in ("rejection", "sorting"):
            raise ConfigError(f"ordering must be rejection or sorting; got {self.ordering!r}")
        for name, (low, high) in self.limits.items():
            if any(end is not None and math.isnan(end) for end in (low, high)):
                raise ConfigError(f"the limit of {name} has an end that is not a number")
            if name not in self.metric_names:
                raise ConfigError(unknown(f"metric of {self.name}", name, self.metric_names))
            if low is not None and high is not None and low > high:
                raise ConfigError(f"{name} has an empty range: {low:g} to {high:g}")

    def _check_custom(self) -> None:
        """Check the names of functions and parameters of a custom space."""
        for what in ("build", "count"):
            text = getattr(self, what)
            if not FUNCTION.fullmatch(text) and (what == "build" or text):
                raise ConfigError(
                    f"{self.name}: {what} must be 'package.module:function', got {text!r}"
                )
        if not self.parameters:
            raise ConfigError(f"{self.name}: nothing is drawn; give it at least one parameter")
        if self.latency:
            raise ConfigError(
                f"{self.name} is custom, but a latency model supports only RegNets and AnyNets"
            )
        for name in self.parameters:
            if not name.isidentifier() or keyword.iskeyword(name) or name in COMPLEXITY:
                raise ConfigError(
                    f"{self.name}: {name!r} cannot be the name of a parameter; use a Python "
                    "identifier other than flops, params and activations"
                )

    @property
    def custom(self) -> bool:
        """Whether a user's function builds the networks."""
        return self.family == "custom"

    def _check_parameter(self, name: str, distribution: Distribution) -> None:
        """Check that a network can have the ends of a distribution, and the steps between them."""
        ends = distribution.values or (distribution.low, distribution.high)
        if name in ("wa", "wm"):
            least = 0 if name == "wa" else 1
            if min(ends) < least or (name == "wm" and min(ends) == 1):
                bound = "at least 0" if name == "wa" else "greater than 1"
                raise ConfigError(f"{self.name}: {name} must be {bound}, got {distribution}")
            return
        if name in ("b", "b_i"):
            good = "power2" in distribution.kind or all(is_ratio(end) for end in ends)
            needs = "whole numbers or one over a whole number"
        else:
            steps = () if distribution.values else (distribution.quantum,)
            good = min(ends) >= 1 and all(float(v).is_integer() for v in (*ends, *steps))
            needs = "whole numbers of 1 or more"
        if not good:
            raise ConfigError(f"{self.name}: {name} must be {needs}, got {distribution}")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of what is known about each network: parameters, depths and widths, complexity."""
        stages = range(1, self.num_stages + 1)
        each = [f"{letter}{stage}" for letter in "dw" for stage in stages]
        image = ("r",) if "r" in self.parameters else ()
        if self.custom:
            return (*self.parameters, *COMPLEXITY)
        known = (*COMPLEXITY, LATENCY) if self.latency else COMPLEXITY
        if self.family == "regnet":
            return (*PARAMETERS["regnet"], *each, *image, *known)
        for name in ("b_i", "g_i"):
            equal = self.relations.get(name) == "equal"
            each += [name[0]] if equal else [f"{name[0]}{stage}" for stage in stages]
        return ("d", *each, *image, *known)

    @property
    def size(self) -> float:
        """Number of combinations, counted as in the paper's table 1.

        For s ordered values this is the number of all tuples divided by s!. For a RegNet it is 64
        values for each of d, w0, wa and wm. Limits are ignored.
        """
        if self.custom:
            return float(math.prod(found.count for found in self.parameters.values()))
        image = self.parameters["r"].count if "r" in self.parameters else 1
        if self.family == "regnet":
            return LEVELS**4 * self.parameters["b"].count * self.parameters["g"].count * image
        total = float(image)
        for name in PARAMETERS["anynet"]:
            relation, count = self.relations.get(name, "free"), self.parameters[name].count
            total *= count if relation == "equal" else float(count) ** self.num_stages
            if relation in ("increasing", "decreasing"):
                total /= math.factorial(self.num_stages)
        return total

    @property
    def dimensions(self) -> int:
        """Degrees of freedom; "equal" reduces them, an order does not."""
        if self.family in ("regnet", "custom"):
            return len(self.parameters)
        each = [self.relations.get(name) == "equal" for name in PARAMETERS["anynet"]]
        return sum(1 if equal else self.num_stages for equal in each) + ("r" in self.parameters)

    def restrict(self, *, device: LatencyModel | None = None, **ranges: float | Range) -> "Space":
        """Return the part of the space whose networks lie in the given ranges.

        For example `space.restrict(d=(12, 28), b=1, flops=(None, 400e6))`. A parameter is drawn
        from its narrower range where its distribution allows that; other ranges become `limits`.

        Args:
            device: a latency model, which a range of `latency_ms` needs. The space keeps it.
            ranges: ranges by the name of a parameter or a metric: (low, high) with both ends
                included, where None means no limit, or a single number.

        Raises:
            ConfigError: there is no parameter or metric of a name, or a range is empty.
        """
        if device is not None:
            return replace(self, latency=device).restrict(device=None, **ranges)
        if LATENCY in ranges and self.latency is None:
            raise ConfigError(
                f"{self.name}: {LATENCY} needs a model of a device, such as "
                f"restrict({LATENCY}=(None, 5), device=regnet.learn_latency(space))"
            )
        parameters, limits = dict(self.parameters), dict(self.limits)
        for name, given in ranges.items():
            low, high = given if isinstance(given, tuple) else (given, given)
            if low is None and high is None:
                continue
            if any(end is not None and math.isnan(end) for end in (low, high)):
                raise ConfigError(
                    f"{self.name}: the range of {name} has an end that is not a number"
                )
            least = -math.inf if low is None else low
            most = math.inf if high is None else high
            if name in parameters:
                try:
                    narrower = parameters[name].within(least, most)
                except ConfigError as error:
                    raise ConfigError(f"{self.name}, {name}: {error}") from None
                if narrower is not None:
                    parameters[name] = narrower
                    continue
                if name not in self.metric_names:
                    raise ConfigError(
                        f"{self.name}: the distribution of {name} cannot be narrowed, as its kind "
                        f"is {parameters[name].kind}; restrict single stages, or replace it"
                    )
            before = limits.get(name, (None, None))
            least = least if before[0] is None else max(least, before[0])
            most = most if before[1] is None else min(most, before[1])
            limits[name] = (
                None if least == -math.inf else least, None if most == math.inf else most
            )  # fmt: skip
        return replace(self, parameters=parameters, limits=limits)

    def where(self, name: str, predicate: Predicate) -> "Space":
        """Return the part of the space whose networks satisfy a condition.

        Args:
            name: what messages call the condition.
            predicate: a function from a `Sample` to an array (n,) of booleans.
        """
        return replace(self, predicates={**self.predicates, name: predicate})

    def relate(self, name: str | None = None, **relations: Relation) -> "Space":
        """Return the space with other relations between stages: `space.relate(w_i="increasing")`.

        Args:
            name: the name of the new space; None: the same name.
            relations: relations by the name of a parameter.
        """
        return replace(self, name=name or self.name, relations={**self.relations, **relations})

    def to_dict(self) -> dict[str, Any]:
        """Return the space as data for JSON; `from_dict` reads it.

        Raises:
            ConfigError: the space has predicates.
        """
        if self.predicates:
            raise ConfigError(
                f"{self.name} has conditions that are code ({', '.join(self.predicates)}), which "
                "cannot be saved; express them with restrict, or sample without saving"
            )
        parameters = {name: found.to_dict() for name, found in self.parameters.items()}
        return {
            "name": self.name,
            "family": self.family,
            "parameters": parameters,
            "relations": dict(self.relations),
            "num_stages": self.num_stages,
            "limits": {name: list(limit) for name, limit in self.limits.items()},
            "architecture": asdict(self.architecture),
            "image_size": self.image_size,
            "ordering": self.ordering,
            **({"build": self.build, "count": self.count} if self.custom else {}),
            **({"latency": asdict(self.latency)} if self.latency else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Space":
        """Build a space from what `to_dict` returned.

        Raises:
            ConfigError: the values do not describe a valid space.
        """
        try:
            if "predicates" in values:
                raise ConfigError("conditions in Python cannot be saved")
            shared = build(ArchitectureConfig, values.get("architecture", {}), name="architecture")
            return build(cls, {**values, "architecture": shared})
        except (ConfigError, TypeError, AttributeError) as error:
            raise ConfigError(f"not a design space: {error}") from error
