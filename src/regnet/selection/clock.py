"""Measure each published network on a device once, and save the measurements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from regnet.selection.device import Conditions, DeviceMeter, race
from regnet.selection.published import Setting, efficientnets
from regnet.selection.timings import Network, Timing, Timings

REFERENCE: Final = "folded"
"""The reference engine: PyTorch with folded norms. Every device has it, and it builds at once."""

SECONDS: Final = 0.5
"""Seconds of the calls of a network that are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An EfficientNet of the paper's comparison, trained like its RegNets, and its latency here."""

    name: str
    accuracy: float
    """Top-1 on ImageNet-1k, in percent, of the weights that pycls publishes."""
    image_size: int
    engine: str
    latency_ms: float
    low_ms: float
    high_ms: float


class Clock:
    """Measures networks that have no saved measurement yet."""

    def __init__(
        self,
        timings: Timings,
        device: torch.device,
        batch_size: int,
        on_step: Callable[[str, int, int], None],
        *,
        measuring: bool = True,
    ) -> None:
        self.timings, self.device, self.batch_size = timings, device, batch_size
        self.on_step, self.measuring = on_step, measuring
        self.measured = self.built = 0
        self.problem: str | None = None
        """Why the first unreliable times are unreliable; None if all times are reliable."""
        self.failed: set[tuple[Network, str]] = set()

    def time(self, setting: Setting, engine: str, *, of: int) -> Timing | None:
        """Return the latency of a setting's network on an engine; None if it cannot run there.

        If nothing may be measured, None also means that no measurement was saved.
        """
        if row := self.timings.get(setting.network, engine):
            return row
        if not self.measuring:
            return None
        self.on_step("measuring networks", self.measured, max(of, self.measured + 1))
        meter = self._meter(engine, setting.image_size)
        found = meter.measure(setting.config, setting.variant)
        if found and found.problem:  # Whatever kept the machine busy may have ended by now.
            found = meter.measure(setting.config, setting.variant) or found
        self.measured += 1
        self.built += engine != REFERENCE
        if found is None:
            self.failed.add((setting.network, engine))
            return None
        row = Timing(
            variant=setting.variant,
            image_size=setting.image_size,
            engine=engine,
            latency_ms=found.latency_ms,
            low_ms=found.low_ms,
            high_ms=found.high_ms,
            reference_ms=found.reference_ms,
        )
        self.timings.add(row, lasting=not found.problem)
        self.problem = self.problem or found.problem
        return row

    def raced(self, network: Network, engine: str) -> bool:
        """Return whether the engines of a network were timed in alternation."""
        row = self.timings.get(network, engine)
        return row is not None and row.raced

    def race(self, setting: Setting, engines: Sequence[str], *, of: int) -> None:
        """Time a network on several engines in alternation; the results replace earlier ones."""
        if not self.measuring:
            return
        self.on_step("racing engines", self.measured, max(of, self.measured + 1))
        conditions = Conditions(
            device=self.device,
            engine=engines[0],
            batch_size=self.batch_size,
            image_size=setting.image_size,
        )
        report = race(setting.config, conditions, engines, seconds=SECONDS)
        self.measured += 1
        self.built += len(engines) - (REFERENCE in engines)
        interval = report.winner.interval
        for row in report.candidates:
            if row.precision != "fp32" or row.latency_ms is None or interval is None:
                continue
            # Only the winner has an interval; the other engines get it in proportion.
            scale = row.latency_ms / (report.winner.latency_ms or row.latency_ms)
            self.timings.add(
                Timing(
                    variant=setting.variant,
                    image_size=setting.image_size,
                    engine=row.engine,
                    latency_ms=row.latency_ms,
                    low_ms=scale * interval[0],
                    high_ms=scale * interval[1],
                    raced=True,
                ),
                lasting=not report.winner.problem,
            )
        self.problem = self.problem or report.winner.problem

    def peer(self, name: str, engine: str) -> Peer | None:
        """Return an EfficientNet with its latency on an engine; None if it cannot run there."""
        facts = efficientnets()[name]
        row = self.timings.get((name, facts.image_size), engine)
        if row is None and not self.measuring:
            return None
        if row is None:
            self.on_step("measuring EfficientNets", self.measured, self.measured + 1)
            found = self._meter(engine, facts.image_size).row(name)
            self.measured += 1
            if found.latency_ms is None or found.low_ms is None or found.high_ms is None:
                return None
            row = Timing(
                variant=name,
                image_size=facts.image_size,
                engine=engine,
                latency_ms=found.latency_ms,
                low_ms=found.low_ms,
                high_ms=found.high_ms,
            )
            self.timings.add(row, lasting=not found.problem)
            self.problem = self.problem or found.problem
        return Peer(
            name=name,
            accuracy=100 - facts.top1_error,
            image_size=facts.image_size,
            engine=engine,
            latency_ms=row.latency_ms,
            low_ms=row.low_ms,
            high_ms=row.high_ms,
        )

    def _meter(self, engine: str, image_size: int) -> DeviceMeter:
        conditions = Conditions(
            device=self.device, engine=engine, batch_size=self.batch_size, image_size=image_size
        )
        return DeviceMeter(conditions, seconds=SECONDS)
