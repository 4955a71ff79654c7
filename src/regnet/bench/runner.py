"""Measure networks: check their outputs, warm up until times are steady, and time single calls."""

import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from regnet.bench.document import AUTO, BEST, Case, Document, Pair, Row
from regnet.bench.floors import Ceilings, floor, measure_ceilings
from regnet.bench.networks import PAIRINGS, PEERS, load
from regnet.design.complexity import total
from regnet.design.layers import Layer
from regnet.engines.base import Precision, Runner, Target, inference
from regnet.engines.check import (
    INPUT_SETS,
    answers,
    build_checked,
    finite_or_none,
    worst_error,
    wrong,
)
from regnet.engines.files import FileNetwork
from regnet.engines.optimize import ENGINES, find_engine, optimize
from regnet.engines.race import Candidate
from regnet.errors import check_number, in_one_line
from regnet.machine import environment, gpu_state
from regnet.timing import (
    Samples,
    bootstrap_median,
    compare,
    measure,
    peak_memory,
    pooled,
    synchronize,
    time_queued,
)

_log = logging.getLogger(__name__)

Found = TypeVar("Found")

Build = Callable[[nn.Module, Tensor, Target], Runner]
"""Makes a runner of a model in evaluation mode for images of an example's shape."""

ROUNDS: Final = 5
"""Rounds in which all cases are measured, if they are measured in turn."""

P99_CALLS: Final = 1000
"""Least number of calls for a 99th percentile."""


def run(
    cases: Sequence[Case],
    *,
    device: torch.device,
    seconds: float = 3.0,
    calls: int = 200,
    in_turn: bool = False,
    trust: bool = False,
    on_row: Callable[[Row], object] = lambda _row: None,
    on_pair: Callable[[Pair], object] = lambda _pair: None,
    on_document: Callable[[Document], object] = lambda _document: None,
) -> Document:
    """Measure cases; a case that fails becomes a row with the reason.

    The paper's pairs, and our networks and their peers, are also timed in alternation as soon as
    both networks of a pair are measured.

    Args:
        cases: cases to measure.
        device: device to run on.
        seconds: time for the calls of a case that count. At most the same time is spent before, for
            calls to become steady.
        calls: number of calls that count; there are fewer if the time is over.
        in_turn: measure all cases in several rounds instead of one after another, so that a change
            of the machine affects all of them. All networks are in memory at the same time.
        trust: open .pt2 files as well, which can run code.
        on_row: called with each row when it is finished.
        on_pair: called with each pair when it is finished.
        on_document: called after each case with the document so far, whose `complete` is false.

    Returns:
        The document. After Ctrl-C it has the rows that are finished, and `complete` is false.

    Raises:
        ConfigError: `seconds` is not a number of at least 0.
    """
    check_number("seconds", seconds, least=0)
    bench = Bench(device, seconds, calls, trust=trust)
    facts = environment(device)
    rows: list[Row] = []
    pairs: list[Pair] = []

    def document(*, complete: bool) -> Document:
        return Document(
            rows=tuple(rows),
            pairs=tuple(pairs),
            environment=facts,
            ceilings=bench.ceilings,
            gpu_after=gpu_state(device),
            complete=complete,
        )

    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            measured = bench.in_turn(cases) if in_turn else map(bench.row, cases)
            for number, (case, row) in enumerate(zip(cases, measured, strict=True)):
                rows.append(row)
                on_row(row)
                for pair in bench.pairs(case, cases[number + 1 :]):
                    pairs.append(pair)
                    on_pair(pair)
                on_document(document(complete=False))
    except KeyboardInterrupt:
        return document(complete=False)
    return document(complete=True)


def partners(name: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs (a, b) of this network; b is the paper's RegNet, or ours against a peer's."""
    for a, b, *_ in PAIRINGS:
        if name in (a, b):
            yield a, b
    peer, _, variant = name.rpartition(":")
    for other in (peer,) if peer else PEERS:
        yield f"{other}:{variant}", variant


@dataclass(slots=True, kw_only=True)
class _Prepared:
    """A case that is built, checked and ready to be timed."""

    row: Row
    call: Callable[[Tensor], Any]
    inputs: list[Tensor]
    hosted: list[Tensor]
    """The same images in the memory of the host."""
    layers: tuple[Layer, ...]


class Bench:
    """Measures cases one after another, and holds the networks that are still to be compared."""

    def __init__(
        self, device: torch.device, seconds: float, calls: int, *, trust: bool = False
    ) -> None:
        self.device, self.seconds, self.calls, self.trust = device, seconds, calls, trust
        self.ceilings: dict[str, Ceilings] = {}
        self._ready: dict[Case, tuple[Callable[[Tensor], Any], list[Tensor], str]] = {}

    def row(self, case: Case) -> Row:
        """Measure a case; if that fails, the row says why."""
        ready = _guarded(case, lambda: self._prepared(case))
        if isinstance(ready, Row):
            return ready
        return _guarded(case, lambda: self._finished(ready, self._samples(ready)))

    def alone(self, case: Case, build: Build | None = None) -> Row:
        """Measure a case without floors and comparisons, so that its network is freed at once.

        Args:
            case: the case.
            build: makes the runner to time, instead of the case's engine; its outputs are not
                checked.
        """
        ready = _guarded(case, lambda: self._prepared(case, build))
        if isinstance(ready, Row):
            return ready
        return _guarded(case, lambda: self._timed(ready, self._samples(ready)))

    def in_turn(self, cases: Sequence[Case]) -> Iterator[Row]:
        """Measure cases in rounds; each round gives every case a part of its time."""
        found = [_guarded(case, partial(self._prepared, case)) for case in cases]
        samples: list[list[Samples]] = [[] for _ in cases]
        for number in [*range(len(cases))] * ROUNDS:
            if isinstance(ready := found[number], Row):
                continue
            part = _guarded(cases[number], partial(self._samples, ready, parts=ROUNDS))
            if isinstance(part, Row):
                found[number] = part
            else:
                samples[number].append(part)
        for case, ready, parts in zip(cases, found, samples, strict=True):
            if isinstance(ready, Row):
                yield ready
            else:
                yield _guarded(case, partial(self._finished, ready, pooled(parts)))

    def pairs(self, case: Case, rest: Sequence[Case]) -> Iterator[Pair]:
        """Compare the pairs that are complete, and free the networks that no later case needs."""
        for a, b in partners(case.name):
            sides = replace(case, model=a), replace(case, model=b)
            if case.train or not all(side in self._ready for side in sides):
                continue
            (call_a, inputs_a, ran_a), (call_b, inputs_b, ran_b) = map(self._ready.get, sides)  # type: ignore[misc]
            try:
                # The ratio of `compare` is the second call's time over the first's: here a over b.
                found = compare(
                    call_b, call_a, inputs_b, inputs_b=inputs_a, pairs=30, seconds=self.seconds
                )
            except RuntimeError as error:  # such as too little memory; both networks have rows
                _log.warning("%s and %s were not compared: %s", a, b, in_one_line(error, most=200))
                continue
            yield Pair(
                a=a,
                b=b,
                ran_a=ran_a,
                ran_b=ran_b,
                batch_size=case.batch_size,
                precision=case.precision,
                engine=case.engine,
                layout=case.layout,
                verdict=found.verdict(b, a),
                ratio=found.median,
                low=found.low,
                high=found.high,
                control=(found.control_low, found.control_high),
                ratios=found.ratios,
            )
        wanted = {
            replace(other, model=name)
            for other in rest
            for pair in partners(other.name)
            for name in pair
        }
        self._ready = {ready: what for ready, what in self._ready.items() if ready in wanted}

    def _prepared(self, case: Case, build: Build | None = None) -> "_Prepared | Row":
        """Build and check a case; return a row if it must not be timed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = load(case.model, trust=self.trust)
        size = case.image_size or network.image_size
        layers = tuple(network.layers(size))
        cost = total(layers)
        target = Target(device=self.device, precision=case.precision, layout=case.layout)
        row = Row(
            case=case,
            image_size=size,
            flops=cost.flops,
            params=cost.params,
            activations=cost.activations,
            top1_error=network.top1_error,
            top1_source=network.top1_source,
        )
        model = network.model.to(self.device)
        rng = torch.Generator().manual_seed(0)
        shape = (case.batch_size, network.in_chans, size, size)
        hosted = [torch.randn(shape, generator=rng) for _ in range(INPUT_SETS)]
        inputs = [x.to(self.device) for x in hosted]
        grown = peak_memory(self.device)
        if case.train:
            call: Callable[[Tensor], Any] = _training_step(model, target)
        elif build:
            call = build(model.eval(), inputs[0], target)
        else:
            row, runner = _checked(row, model.eval(), inputs, target)
            if runner is None:
                return row
            call = runner
        call(inputs[0])
        if case.engine not in (AUTO, BEST):  # a race measures the memory itself
            row = replace(row, peak_bytes=grown())
        return _Prepared(row=row, call=call, inputs=inputs, hosted=hosted, layers=layers)

    def _samples(self, ready: "_Prepared", *, parts: int = 1) -> Samples:
        seconds = self.seconds / parts
        return measure(
            ready.call,
            ready.inputs,
            calls=max(5, self.calls // parts),
            seconds=seconds,
            warmup_seconds=seconds,
        )

    def _timed(self, ready: "_Prepared", samples: Samples) -> Row:
        """Return the row of a case with its times."""
        low, high = bootstrap_median(samples.seconds, np.random.default_rng(0))
        p99 = samples.percentile(99) if len(samples.seconds) >= P99_CALLS else None
        queued = self._queued(ready.call, ready.inputs, samples)
        return replace(
            ready.row,
            steady=samples.steady,
            problem=samples.problem,
            reference_ms=samples.reference
            and (1e3 * samples.reference[0], 1e3 * samples.reference[1]),
            latency_ms=1e3 * samples.median,
            low_ms=1e3 * low,
            high_ms=1e3 * high,
            p90_ms=1e3 * samples.percentile(90),
            p99_ms=None if p99 is None else 1e3 * p99,
            minimum_ms=1e3 * samples.minimum,
            queued_ms=1e3 * queued,
            with_copy_ms=self._with_copy(ready.call, ready.hosted),
            images_per_second=ready.row.case.batch_size / queued,
            seconds=samples.seconds,
        )

    def _finished(self, ready: "_Prepared", samples: Samples) -> Row:
        """Return the row with its times and floors, and hold the network to be compared."""
        row = self._timed(ready, samples)
        case = row.case
        target = Target(device=self.device, precision=case.precision, layout=case.layout)
        least = floor(
            ready.layers,
            case.batch_size,
            self._ceilings(case.precision),
            element_bytes=target.dtype.itemsize,
        )
        if not case.train:
            self._ready[case] = ready.call, ready.inputs, row.ran or case.engine
        return replace(
            row,
            floor_epilogue_ms=1e3 * least.epilogue,
            floor_fused_ms=1e3 * least.fused,
        )

    def _ceilings(self, precision: Precision) -> Ceilings:
        """Return the ceilings in a precision, measured at the first row that ran in it.

        They are not measured earlier, because on a machine without instructions for the precision
        they take minutes.
        """
        if precision not in self.ceilings:
            self.ceilings[precision] = measure_ceilings(self.device, precision)
        return self.ceilings[precision]

    def _queued(self, call: Callable[[Tensor], Any], inputs: list[Tensor], one: Samples) -> float:
        if self.device.type == "cpu":  # a call on a CPU is done when it returns
            return statistics.mean(one.seconds)
        return time_queued(call, inputs, calls=max(3, min(20, int(self.seconds / one.median))))

    def _with_copy(self, call: Callable[[Tensor], Any], hosted: Sequence[Tensor]) -> float | None:
        if self.device.type != "cuda":
            return None

        def copying(x: Tensor) -> None:
            call(x.to(self.device, non_blocking=True))
            synchronize(self.device)

        samples = measure(
            copying,
            [x.pin_memory() for x in hosted],
            calls=self.calls,
            seconds=self.seconds,
            warmup_seconds=self.seconds,
        )
        return 1e3 * samples.median


def _guarded(case: Case, work: Callable[[], Found]) -> Found | Row:
    """Return the result of the work, or a row that says why it failed."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - out of memory, or anything that an engine raises
        return Row(case=case, reason=in_one_line(error, most=300))


def _checked(
    row: Row, model: nn.Module, inputs: Sequence[Tensor], target: Target
) -> tuple[Row, Runner | None]:
    """Build the case's engine and check its outputs; return the row, and a runner if correct."""
    case = row.case
    if isinstance(model, FileNetwork):  # the network it was exported from is not there to compare
        return replace(row, ran=f"{model.runtime} {model.precision}"), inference(model)
    reference = answers(model, inputs)
    runner: Runner | None
    if case.engine in (AUTO, BEST):
        chosen = [e.name for e in ENGINES if case.engine == BEST or not e.compiles]
        fast = optimize(model, inputs[0], precision=case.precision, engines=chosen)
        winner, runner = fast.report.winner, fast
        assert winner.precision != "int8", "no images were given"
        error = worst_error(runner, inputs, reference)
        reason = wrong(error, replace(target, precision=winner.precision))
        row = replace(
            row,
            ran=str(winner),
            build_seconds=winner.build_seconds,
            peak_bytes=winner.peak_bytes,
            output_error=finite_or_none(error),
        )
    else:
        built = build_checked(find_engine(case.engine), model, inputs, reference, target)
        row = replace(
            row,
            ran=str(Candidate(engine=case.engine, precision=case.precision, layout=case.layout)),
            build_seconds=built.seconds,
            output_error=built.error,
        )
        if built.runner is None:
            return replace(row, reason=built.reason), None
        runner, reason = built.runner, built.reason
    if reason:
        row = replace(row, reason=f"{reason}; not timed")
    both = zip(inputs, reference, strict=True)
    agree = [(runner(x).argmax(1) == y.argmax(1)).float().mean().item() for x, y in both]
    row = replace(row, top1_agreement=sum(agree) / len(agree))
    return row, None if row.reason else runner


def _training_step(model: nn.Module, target: Target) -> Callable[[Tensor], Any]:
    """Return a function that runs forward, loss and backward, and leaves the weights unchanged."""
    model = model.train().to(memory_format=target.memory_format)  # type: ignore[call-overload]  # torch's stubs lack it

    def step(x: Tensor) -> None:
        half = target.precision != "fp32"
        x = x.to(memory_format=target.memory_format)
        with torch.autocast(x.device.type, dtype=target.dtype, enabled=half):
            logits = model(x).float()
            y = torch.arange(len(x), device=x.device) % logits.shape[1]
            loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    return step
