"""Distributions of the parameters of a design space, as in pycls (`sweep/samplers.py`)."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from regnet.design.widths import FloatArray
from regnet.documents import build
from regnet.errors import ConfigError

Kind = Literal[
    "uniform",
    "log_uniform",
    "power2_uniform",
    "power2_or_log_uniform",
    "normal",
    "log_normal",
    "values",
]
"""The kind of distribution.

`uniform` and `log_uniform` draw multiples of the quantum from low to high. `power2_uniform` draws
powers of two, all equally likely. `power2_or_log_uniform` draws a power of two, and replaces it, if
it is not less than the quantum, by a log-uniform draw among the multiples of the quantum. `normal`
and `log_normal` are centred on the middle of the range, which is six standard deviations wide.
`values` draws one of a list."""

_DRAWS = 1000  # the most attempts to draw normal values that lie within the range


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """The distribution of one parameter, over the range from `low` to `high`, both included."""

    kind: Kind = "uniform"
    low: float = 0.0
    high: float = 0.0
    quantum: float = 1.0
    """Drawn values are multiples of this number; `low` and `high` must be multiples of it too."""
    values: tuple[float, ...] = ()
    """The list to draw from, for the kind "values"; one that appears twice is twice as likely."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"kind must be one of {', '.join(get_args(Kind))}; got {self.kind!r}")
        if self.kind == "values":
            if not self.values or not all(math.isfinite(value) for value in self.values):
                raise ConfigError(f"values must be a list of numbers, got {self.values!r}")
            return
        if not -math.inf < self.low <= self.high < math.inf:
            raise ConfigError(
                f"a range needs low <= high, both finite; got {self.low!r} to {self.high!r}"
            )
        if not 0 < self.quantum < math.inf:
            raise ConfigError(f"quantum must be positive, got {self.quantum!r}")
        for bound in (self.low, self.high):
            if not _whole(bound / self.quantum) and not self._below_quantum(bound):
                raise ConfigError(
                    f"the bounds of a range must be multiples of its quantum {self.quantum:g}, "
                    f"got {self.low:g} to {self.high:g}"
                )
        if "log" in self.kind or "power2" in self.kind:
            if self.low <= 0:
                raise ConfigError(f"{self.kind} needs a range above 0, got low {self.low:g}")
            bounds = (self.low, self.high) if "power2" in self.kind else ()
            if self.kind == "power2_uniform" and not all(_is_power2(b) for b in bounds):
                raise ConfigError(
                    f"power2_uniform needs powers of two as bounds, got {self.low:g} to "
                    f"{self.high:g}"
                )
            if "power2" in self.kind and self._powers[0] > self._powers[1]:
                raise ConfigError(
                    f"{self.kind} needs a power of two in its range, got {self.low:g} to "
                    f"{self.high:g}"
                )

    def _below_quantum(self, bound: float) -> bool:
        """Return whether a bound is a power of two below the quantum, where the kind allows it."""
        return self.kind == "power2_or_log_uniform" and bound < self.quantum and _is_power2(bound)

    def draw(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> FloatArray:
        """Return independent draws as an array.

        As in pycls, `uniform` draws u uniformly from [low, high + quantum) and rounds it down to a
        multiple of the quantum. `log_uniform` draws u from (low - min(quantum, low / 2), high] with
        a uniform logarithm, and rounds it up.

        Args:
            rng: the source of randomness.
            shape: shape of the array.
        """
        if self.kind == "values":
            return np.asarray(self.values)[rng.integers(len(self.values), size=shape)]
        if self.kind == "uniform":
            found = rng.uniform(self.low, self.high + self.quantum, shape)
            return self._quantized(np.floor(found / self.quantum))
        if self.kind == "log_uniform":
            return self._log_uniform(rng, shape, self.low)
        if self.kind in ("power2_uniform", "power2_or_log_uniform"):
            first, last = self._powers
            powers = np.exp2(rng.integers(first, last + 1, size=shape))
            if self.kind == "power2_uniform":
                return powers
            again = self._log_uniform(rng, shape, max(self.low, self.quantum))
            return np.where(powers < self.quantum, powers, again)
        return self._normal(rng, shape)

    def _log_uniform(
        self, rng: np.random.Generator, shape: int | tuple[int, ...], low: float
    ) -> FloatArray:
        below = low - min(self.quantum, low / 2)
        # rng.random draws from [0, 1). Going down from the upper end therefore includes that end
        # and excludes the lower one, so that rounding up never gives a value below `low`.
        logs = math.log(self.high) + rng.random(shape) * (math.log(below) - math.log(self.high))
        return self._quantized(np.ceil(np.exp(logs) / self.quantum))

    def _normal(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> FloatArray:
        logs = self.kind == "log_normal"
        low, high = np.log([self.low, self.high]) if logs else np.array([self.low, self.high])
        found = np.full(shape, np.nan)
        for _ in range(_DRAWS):
            missing = np.isnan(found)
            if not missing.any():
                break
            drawn = rng.normal((low + high) / 2, (high - low) / 6, int(missing.sum()))
            found[missing] = np.where((drawn >= low) & (drawn <= high), drawn, np.nan)
        return self._quantized(np.rint((np.exp(found) if logs else found) / self.quantum))

    def _quantized(self, multiples: FloatArray) -> FloatArray:
        # Rounding removes floating-point noise, so that 245 * 0.1 is exactly 24.5. No quantum is
        # finer than 1e-9.
        found: FloatArray = np.clip(np.round(multiples * self.quantum, 9), self.low, self.high)
        return found

    @property
    def count(self) -> int:
        """Number of different values."""
        if self.kind == "values":
            return len(set(self.values))
        if "power2" not in self.kind:
            return round((self.high - self.low) / self.quantum) + 1
        first, last = self._powers
        if self.kind == "power2_uniform":
            return last - first + 1
        small = sum(2.0**power < self.quantum for power in range(first, last + 1))
        least = max(self.low, self.quantum)
        return small + max(0, round((self.high - least) / self.quantum) + 1)

    @property
    def _powers(self) -> tuple[int, int]:
        """Exponents of the smallest and the largest power of two in the range."""
        return math.ceil(math.log2(self.low)), math.floor(math.log2(self.high))

    def within(self, low: float, high: float) -> "Distribution | None":
        """Return this distribution conditioned on a range, or None if no kind expresses that.

        Args:
            low: the lower end of the range, included.
            high: the upper end, included.

        Raises:
            ConfigError: the distribution has no value in the range.
        """
        kept = tuple(value for value in self.values if low <= value <= high)
        least, most = max(low, self.low), min(high, self.high)
        if self.kind == "power2_uniform" and least <= most:
            least, most = 2.0 ** math.ceil(math.log2(least)), 2.0 ** math.floor(math.log2(most))
        elif self.kind in ("uniform", "log_uniform"):
            least = self.quantum * math.ceil(least / self.quantum - 1e-9)
            most = self.quantum * math.floor(most / self.quantum + 1e-9)
        if not kept if self.kind == "values" else least > most:
            has = (
                f"in {self.values}"
                if self.values
                else f"in the range {self.low:g} to {self.high:g}"
            )
            raise ConfigError(
                f"there is no value from {low:g} to {high:g} {has}; to draw others, replace the "
                "distribution"
            )
        if self.kind == "values":
            return replace(self, values=kept)
        if self.kind in ("uniform", "log_uniform", "power2_uniform"):
            return replace(self, low=least, high=most)
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the distribution as data for JSON; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Distribution":
        """Build a distribution from what `to_dict` returned.

        Raises:
            ConfigError: the values do not describe a valid distribution.
        """
        return build(cls, values)


def _whole(value: float) -> bool:
    return abs(value - round(value)) <= 1e-9 * max(abs(value), 1)


def _is_power2(value: float) -> bool:
    return value > 0 and _whole(math.log2(value))
