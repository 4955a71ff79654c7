"""A design space as data: the parameters that are drawn, their distributions, and limits.

A `Space` is frozen. `Space.restrict` returns the part of it within narrower ranges, so that
refining a space by the results of a study is one line. The spaces of the paper are in
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
"""Of a custom space the networks are built by a function; see `regnet.spaces.custom`."""

Relation = Literal["free", "equal", "increasing", "decreasing"]
"""Of the values of neighbouring stages; increasing and decreasing include equal ones."""

Range: TypeAlias = tuple[float | None, float | None]
"""A closed range; None where it is open."""

Predicate: TypeAlias = Callable[[Any], NDArray[np.bool_]]
"""Which of the networks of a `Sample` count, as an array (n,)."""

PARAMETERS: Final[Mapping[Family, tuple[str, ...]]] = {
    "anynet": ("d_i", "w_i", "b_i", "g_i"),
    "regnet": ("d", "w0", "wa", "wm", "b", "g"),
    "custom": (),
}
"""What is drawn, in the paper's symbols. Of an AnyNet each is drawn for every stage: depth, width,
bottleneck ratio and group width. Either may have `r`, the side of the image, as well. A custom
space draws whatever its function takes."""

FUNCTION: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
"""A function in text: `package.module:function`."""

COMPLEXITY: Final = ("flops", "params", "activations")

LATENCY: Final = "latency_ms"
"""The metric that a space has if it has a model of a device."""

LEVELS: Final = 64
"""Values that the paper counts for each of d, w0, wa and wm (section 3.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A design space."""

    name: str
    family: Family
    parameters: Mapping[str, Distribution]
    """A distribution for each of `PARAMETERS`; `r` may be there too."""
    build: str = ""
    """Of a custom space: the function that builds a network, a `torch.nn.Module` from images to
    logits, as `package.module:function`. It takes the parameters by their names; and `num_classes`
    and `image_size`, if it names them. **Whoever trains or samples the space runs it.**"""
    count: str = ""
    """Of a custom space: the function that counts a network, from the same arguments to a mapping
    with flops, params and activations. Empty: the network is built and counted without memory."""
    relations: Mapping[str, Relation] = field(default_factory=dict)
    """Between the stages of an AnyNet; free where nothing is said."""
    num_stages: int = 4
    """Networks with another number do not count."""
    limits: Mapping[str, Range] = field(default_factory=dict)
    """Closed ranges that networks must lie in, by the names of `metric_names`."""
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    """What all networks share: stem, kind of block, head, classes."""
    image_size: int = 224
    """Side of the image in pixels, where `r` is not drawn; complexity is that at this size."""
    ordering: Literal["rejection", "sorting"] = "rejection"
    """How increasing values are drawn: again until they are, or sorted. The paper does not say;
    rejection keeps the distribution of the larger space, sorting makes ties rarer."""
    latency: LatencyModel | None = None
    """How long its networks take on a device; None: nobody knows, and there is no limit of it."""
    predicates: Mapping[str, Predicate] = field(default_factory=dict)
    """Further conditions, by name; a space that has any cannot be saved."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ConfigError(
                f"a space's name has letters, digits, '_', '-' and '.', got {self.name!r}"
            )
        if self.family not in PARAMETERS:
            raise ConfigError(f"a space is of anynet, regnet or custom; got {self.family!r}")
        needed = set(PARAMETERS[self.family])
        if self.custom:
            self._check_custom()
        elif self.build or self.count:
            raise ConfigError(f"{self.name} is of {self.family}: build and count are for custom")
        elif wrong := sorted(needed ^ (set(self.parameters) - {"r"})):
            raise ConfigError(
                f"a space of {self.family} draws {', '.join(PARAMETERS[self.family])}, and may "
                f"draw r; {wrong[0]!r} is {'missing' if wrong[0] in needed else 'not one of them'}"
            )
        for name, relation in self.relations.items():
            if self.family != "anynet" or name not in needed:
                raise ConfigError(f"{name!r} is not drawn for each stage, and has no relation")
            if relation not in ("free", "equal", "increasing", "decreasing"):
                raise ConfigError(
                    f"a relation is free, equal, increasing or decreasing; got {relation!r}"
                )
        for name, distribution in self.parameters.items():
            if not self.custom:
                self._check_parameter(name, distribution)
        if self.num_stages < 1 or self.image_size < 1:
            raise ConfigError("num_stages and image_size must be at least 1")
        if self.ordering not in ("rejection", "sorting"):
            raise ConfigError(f"ordering must be rejection or sorting; got {self.ordering!r}")
        for name, (low, high) in self.limits.items():
            if any(end is not None and math.isnan(end) for end in (low, high)):
                raise ConfigError(f"{name} has a limit that is no number")
            if name not in self.metric_names:
                raise ConfigError(unknown(f"metric of {self.name}", name, self.metric_names))
            if low is not None and high is not None and low > high:
                raise ConfigError(f"{name} has an empty range: {low:g} to {high:g}")

    def _check_custom(self) -> None:
        """Whether functions and parameters have names that can be used."""
        for what in ("build", "count"):
            text = getattr(self, what)
            if not FUNCTION.fullmatch(text) and (what == "build" or text):
                raise ConfigError(
                    f"{self.name}: {what} must be 'package.module:function', got {text!r}"
                )
        if not self.parameters:
            raise ConfigError(f"{self.name}: nothing is drawn; give it parameters")
        if self.latency:
            raise ConfigError(
                f"{self.name} is custom: models of latency are for RegNets and AnyNets"
            )
        for name in self.parameters:
            if not name.isidentifier() or keyword.iskeyword(name) or name in COMPLEXITY:
                raise ConfigError(f"{self.name}: {name!r} cannot be the name of a parameter")

    @property
    def custom(self) -> bool:
        """Whether a user's function builds its networks."""
        return self.family == "custom"

    def _check_parameter(self, name: str, distribution: Distribution) -> None:
        """Whether the ends of what is drawn, and steps between, can be built."""
        if name in ("wa", "wm"):
            return
        ends = distribution.values or (distribution.low, distribution.high)
        if name in ("b", "b_i"):
            good = "power2" in distribution.kind or all(is_ratio(end) for end in ends)
            needs = "whole numbers or one over a whole number"
        else:
            steps = () if distribution.values else (distribution.quantum,)
            good = min(ends) >= 1 and all(float(v).is_integer() for v in (*ends, *steps))
            needs = "whole numbers from 1 on"
        if not good:
            raise ConfigError(f"{self.name}: {name} must be {needs}, got {distribution}")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What is known of each of its networks: parameters, depths and widths, complexity."""
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
        """Number of combinations, as the paper's table 1 counts them.

        Of s values in order it counts all tuples by s!, and of the parameters of a RegNet 64
        values each, whatever the limits.
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
        """Degrees of freedom; an order takes none away."""
        if self.family in ("regnet", "custom"):
            return len(self.parameters)
        each = [self.relations.get(name) == "equal" for name in PARAMETERS["anynet"]]
        return sum(1 if equal else self.num_stages for equal in each) + ("r" in self.parameters)

    def restrict(self, *, device: LatencyModel | None = None, **ranges: float | Range) -> "Space":
        """The part of the space whose networks lie in ranges, a number standing for itself.

        Names are those of parameters, which then are drawn from the narrower range, and of metrics:
        `space.restrict(d=(12, 28), b=1, flops=(None, 400e6))`. Ranges are closed, and None leaves
        an end open.

        Args:
            device: a model of latency, for `latency_ms`: it stays with the space.
            ranges: by name.

        Raises:
            ConfigError: there is no such name, or nothing in a range.
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
                raise ConfigError(f"{self.name}: the range of {name} has an end that is no number")
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
                        f"{self.name}: {name} of every stage cannot be narrowed, being "
                        f"{parameters[name].kind}; restrict those of single stages, or replace it"
                    )
            before = limits.get(name, (None, None))
            least = least if before[0] is None else max(least, before[0])
            most = most if before[1] is None else min(most, before[1])
            limits[name] = (
                None if least == -math.inf else least, None if most == math.inf else most
            )  # fmt: skip
        return replace(self, parameters=parameters, limits=limits)

    def where(self, name: str, predicate: Predicate) -> "Space":
        """The part of the space for which a condition holds; the name is for messages."""
        return replace(self, predicates={**self.predicates, name: predicate})

    def relate(self, name: str | None = None, **relations: Relation) -> "Space":
        """The space with other relations between stages: `space.relate(w_i="increasing")`."""
        return replace(self, name=name or self.name, relations={**self.relations, **relations})

    def to_dict(self) -> dict[str, Any]:
        """For JSON.

        Raises:
            ConfigError: it has predicates.
        """
        if self.predicates:
            raise ConfigError(
                f"{self.name} has conditions that are code ({', '.join(self.predicates)}), which "
                "cannot be saved; express them by restrict, or sample without saving"
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
        """The space of `to_dict`.

        Raises:
            ConfigError: it is not one.
        """
        try:
            if "predicates" in values:
                raise ConfigError("conditions in Python cannot be saved")
            shared = build(ArchitectureConfig, values.get("architecture", {}), name="architecture")
            return build(cls, {**values, "architecture": shared})
        except (ConfigError, TypeError, AttributeError) as error:
            raise ConfigError(f"not a design space: {error}") from error
