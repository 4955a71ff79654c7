"""Training, and going on with it: the same weights, bit for bit, however often it is interrupted.

That holds on a CPU with a fixed number of threads; GPUs add in another order each time. For another
number of processes with the same `micro_batch_size`, losses are the same up to rounding.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regnet import documents, runfolder
from regnet.atomic import write_bytes
from regnet.data.loading import lost_workers
from regnet.data.sets import open_set
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.devices import find_device
from regnet.errors import ConfigError, DataError, MissingExtraError, NoSplitError, TrainingError
from regnet.evaluation.calibration import Calibration, calibrate_on
from regnet.nn.model import AnyNet
from regnet.process_group import Group, joined
from regnet.training import checkpoint
from regnet.training import run as runs
from regnet.training.input import Images
from regnet.training.recipe import Recipe, find_recipe
from regnet.training.run import Facts, Run
from regnet.training.session import Build, Options, Progress, Session
from regnet.weights.card import Card
from regnet.zoo.create import preprocess
from regnet.zoo.publish import card_text, images_line
from regnet.zoo.resolver import find_source

_log = logging.getLogger(__name__)

LOG = "log.jsonl"
MODEL = "model"
BEST = "best.safetensors"

ASKS = 10
"""Steps after which processes on GPUs ask each other whether a signal came."""

STOPS = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, n)]
"""Signals that end a run, which can be resumed."""

SHOWN = {"loss", "lr", "train_top1", "top1", "average_top1"}
"""What TensorBoard is given of a row of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run came to."""

    out: Path | None
    stopped_by: int | None
    """The signal that ended it before its time, one of `STOPS`; `resume` goes on."""
    top1: float | None
    """Accuracy of the network in model/, in percent; None where nothing was measured."""
    best: float | None
    """Highest accuracy of any epoch, of the weights in best.safetensors."""
    log: tuple[dict[str, Any], ...]
    """A row per epoch."""
    calibration: Calibration | None = None
    """What calibration changed in model/; None: the run does not calibrate, or has not ended."""


def train(
    model: str | AnyNetConfig | RegNetConfig,
    data: str | Path,
    out: str | Path | None,
    *,
    recipe: str | Recipe | None = None,
    val: str | Path | None = None,
    train_images: int | None = None,
    val_images: int | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: int | None = None,
    teachers: Sequence[str] = (),
    seed: int = 0,
    save_steps: int | None = None,
    calibrate: bool = False,
    options: Options | None = None,
) -> Trained:
    """Train a network; `torchrun` spreads it over processes.

    Args:
        model: a variant or a config; with weights to start from, a checkpoint
            (`regnety_016.tv2_in1k`).
        data: images, as `regnet.data.sets.open_set` takes them; of a folder that holds several
            splits (`train` and `val`), each is used for what it is.
        out: a new folder for what comes out: run.json, log.jsonl, checkpoints, the best epoch's
            weights, and at the end model/, a folder that `create("local-dir:...")` opens. None:
            nothing is written.
        recipe: a name in `RECIPES`, or a recipe; None: "finetune" from weights, else "dds".
        val: images that measure accuracy, where `data` holds none.
        train_images: train on so many of the images only, equally from all classes.
        val_images: measure accuracy on so many only.
        pretrained: start from the weights that the name stands for, as a name with a tag does.
        num_classes: outputs; None: as many as the images have classes.
        in_chans: 1 for a network that sees gray images; None: as the model says.
        image_size: side of the images in tests, in training unless `Recipe.image_size` says
            otherwise, and for those who use the result; None: as the model says.
        teachers: names of weights whose answers are learned from, beside the labels: the share
            that `Recipe.distill` says. With several, their mean is.
        seed: of everything random.
        save_steps: steps between checkpoints, beside one after each epoch.
        calibrate: hold a tenth of the training images out (at least 100, at most 5,000), and at
            the end fit a temperature on them that is folded into the classifier of model/, so that
            its confidence matches its accuracy. Classes predicted stay the same.
        options: device and the like.

    Raises:
        ConfigError: an option cannot be used, or `out` holds a run already.
        DataError: the images cannot be used.
        TrainingError: the loss is no longer finite, or memory is not enough.
        OSError: `out` cannot be written; what was saved is still there.
    """
    pretrained = pretrained or _names_weights(model)
    recipe = recipe or default_recipe(model, pretrained=pretrained)
    run = Run(
        model=model,
        pretrained=pretrained,
        recipe=find_recipe(recipe) if isinstance(recipe, str) else recipe,
        train=str(data),
        val=str(val) if val is not None else _val_beside(data),
        train_images=train_images,
        val_images=val_images,
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        teachers=tuple(teachers),
        seed=seed,
        save_steps=save_steps,
        calibrate=calibrate,
    )
    return start(run, out, options=options)


def default_recipe(model: str | AnyNetConfig | RegNetConfig, *, pretrained: bool) -> str:
    """The recipe for those who name none: whether training starts from weights decides."""
    return "finetune" if pretrained or _names_weights(model) else "dds"


def _names_weights(model: str | AnyNetConfig | RegNetConfig) -> bool:
    """Whether a name stands for weights: one with a tag, a repository, a folder."""
    return isinstance(model, str) and find_source(model, pretrained=False).checkpoint is not None


def start(
    run: Run,
    out: str | Path | None,
    *,
    facts: Facts | None = None,
    options: Options | None = None,
    images: Images | None = None,
    build: Build | None = None,
) -> Trained:
    """Do a run in a new folder.

    Args:
        run: what to do.
        out: the folder; None: nothing is written.
        facts: those of an earlier run.json, whose images these must be.
        options: device and the like.
        images: those of the run, where they were opened before.
        build: builds the network where no name and no config says how; it needs no folder then,
            since nothing could open what is in it.

    Raises:
        What `train` raises.
    """
    folder, options = Path(out) if out is not None else None, options or Options()
    if options.tensorboard:
        _summary_writer()
    with (
        joined(find_device(options.device)) as group,
        _own_randomness(group.device),
        _owned(folder, group),
    ):
        if folder is not None:
            held = group.gather(runfolder.contents(folder))[0]
            if runs.FILE in held:
                raise ConfigError(
                    f"{folder} holds a run already; resume it, or name another folder"
                )
            if held:
                raise ConfigError(f"{folder} holds other files; name a new folder")
        session = Session(run, group, options, images, build)
        _tell(session)
        now = session.facts
        if facts is not None:
            _check_facts(facts, now)
        if folder is not None and group.leads:
            runs.write(folder, run, now)
        return _Loop(session, folder, []).go()


def resume(
    out: str | Path,
    *,
    data: str | Path | None = None,
    val: str | Path | None = None,
    options: Options | None = None,
) -> Trained:
    """Go on with a run from its last checkpoint.

    Args:
        out: the folder of the run.
        data: where its training images lie now, if not where they did; the same ones.
        val: likewise of the images that measure accuracy, where they lie apart.
        options: device and the like; None: as the run began.

    Raises:
        What `train` raises; ConfigError where there is no run.
    """
    folder = Path(out)
    began, facts = runs.read(folder)
    run = began.moved(data, val)
    options = options or Options.of_run(facts)
    with (
        joined(find_device(options.device)) as group,
        _own_randomness(group.device),
        _owned(folder, group),
    ):
        if run.recipe.micro_batch_size is None and facts.processes != group.size:
            raise ConfigError(
                f"{folder} is a run of {facts.processes} processes, which is what batch norm "
                f"depends on without micro_batch_size; start as many, not {group.size}"
            )
        session = Session(run, group, options)
        _tell(session)
        now = session.facts
        _check_facts(facts, now)
        if group.leads and run != began:
            runs.write(folder, run, facts)
        saved = checkpoint.load_last(folder)
        if group.leads:
            if saved is not None:
                _check_conditions(facts, now)
            elif (folder / LOG).exists():
                _log.warning("%s: no checkpoint is left; training begins again", folder)
        places = group.gather(saved and (saved["epoch"], saved["step"]))
        if len(set(places)) > 1:
            raise TrainingError(
                f"{folder}: the processes see different checkpoints; all must see the same folder"
            )
        if saved:
            session.state.restore(saved, leads=group.leads)
        return _Loop(session, folder, _rows(folder, session.state.epoch)).go()


def _summary_writer() -> Any:
    """TensorBoard's writer.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "--tensorboard needs tensorboard, which is not installed; pip install tensorboard"
        ) from error
    return SummaryWriter


def _owned(folder: Path | None, group: Group) -> AbstractContextManager[None]:
    """Own the folder of a run, if it has one."""
    return nullcontext() if folder is None else runfolder.owned(folder, "training", group)


def _own_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Seeds that are set inside do not reach the caller."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _val_beside(data: str | Path) -> str | None:
    """The source itself, where it holds other images to test on."""
    trained_on = open_set(data, "train")
    try:
        beside = open_set(data, "val")
    except NoSplitError as error:
        _log.warning("%s; accuracy is not measured", error)
        return None
    return str(data) if beside.fingerprint != trained_on.fingerprint else None


def _tell(session: Session) -> None:
    """Tell what was found, and what will be done with it."""
    if session.options.on_begin and session.group.leads:
        session.options.on_begin(session.summary)


def _check_facts(before: Facts, now: Facts) -> None:
    """Whether images and teachers are those of an earlier run."""
    for name, found in now.images.items():
        known = before.images.get(name)
        if known and known.fingerprint != found.fingerprint:
            raise DataError(
                f"{found.source}: not the images of the run: {found.count} with fingerprint "
                f"{found.fingerprint}, were {known.count} with {known.fingerprint}"
            )
    for name, digest in now.teachers.items():
        if before.teachers.get(name, digest) != digest:
            raise ConfigError(f"teacher {name}: its weights are not those of the run")


def _rows(out: Path, epochs: int) -> list[dict[str, Any]]:
    """The log up to an epoch; what a killed process may have written after it goes.

    Raises:
        TrainingError: a row is not as it was written.
    """
    try:
        rows = documents.lines(out / LOG, "a row of a log") if (out / LOG).exists() else []
    except ConfigError as error:
        raise TrainingError(f"{error}; remove {LOG} to go on without it") from error
    if len(rows) < epochs:
        _log.warning("%s has %d of %d epochs; the others are lost", out / LOG, len(rows), epochs)
    return rows[:epochs]


def _check_conditions(before: Facts, now: Facts) -> None:
    """Say in which conditions a resumed run differs from those that it began under."""
    changes = [
        f"{name}: {before.conditions[name]}, now {value}"
        for name, value in now.conditions.items()
        if before.conditions[name] != value
    ]
    if changes:
        _log.warning(
            "the run began under other conditions (%s): its weights will not be bit-identical to "
            "those of an uninterrupted run", "; ".join(changes),
        )  # fmt: skip


class _Loop:
    """Epochs, and what is written about them."""

    def __init__(self, session: Session, out: Path | None, log: list[dict[str, Any]]) -> None:
        self.session, self.out, self.log = session, out, log
        self.state, self.group, self.options = session.state, session.group, session.options
        self.stopped_by: int | None = None
        self.calibration: Calibration | None = None
        self.board = None
        if self.options.tensorboard and self.group.leads and out is not None:
            self.board = _summary_writer()(out / "tensorboard")

    def go(self) -> Trained:
        """Train to the end, or until a signal."""
        with self._signals(), lost_workers():
            while self.state.epoch < self.session.recipe.epochs:
                if not self._epoch():
                    self._save()
                    return self._result()
                if self.session.tests_take_time:
                    self._save()  # what follows may take longer than who stops us waits
                self._end_epoch()
                if self.state.epoch < self.session.recipe.epochs and self._stops(now=True):
                    return self._result()
        self._publish()
        self.stopped_by = None  # too late to stop anything
        return self._result()

    def _epoch(self) -> bool:
        """The rest of the epoch; False where a signal came."""
        session, state = self.session, self.state
        steps, save_steps = session.plan.steps, session.run.save_steps
        session.network.train()
        batches = session.input.batches(state.epoch, state.step)
        began = time.monotonic() - state.seconds
        while state.step < steps:
            passes = [next(batches) for _ in session.plan.passes]
            session.step(passes)
            due = bool(save_steps) and (state.step + 1) % (save_steps or 1) == 0
            last = state.step + 1 == steps
            session.check_finite(passes, self.out, now=due or last)
            state.step += 1
            state.seconds = time.monotonic() - began
            if self.options.on_step and self.group.leads:
                epochs = session.recipe.epochs
                self.options.on_step(
                    Progress(epoch=state.epoch, epochs=epochs, step=state.step, steps=steps)
                )
            if self._stops():
                session.check_finite(passes, self.out, now=True)
                return False
            if due and not last:
                self._save()
        return True

    def _stops(self, *, now: bool = False) -> bool:
        """Whether a signal came to any of the processes: they stop after the same step."""
        if self.group.size == 1:
            return self.stopped_by is not None
        if not now and self.group.device.type != "cpu" and self.state.step % ASKS:
            return False  # asking makes the device wait
        signals = torch.tensor(int(self.stopped_by is not None), device=self.group.device)
        if not int(self.group.sum(signals)):
            return False  # one that came meanwhile counts the next time
        self.stopped_by = self.stopped_by or signal.SIGTERM
        return True

    def _end_epoch(self) -> None:
        session, state = self.session, self.state
        loss, hits, images = self.group.sum(state.sums.clone()).tolist()
        row: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "lr": session.recipe.learning_rate(state.epoch, state.step - 1, state.step),
            "loss": loss / images,
            "train_top1": 100 * hits / images,
            "seconds": state.seconds,
            "images_per_second": images / state.seconds,
        }
        began = time.monotonic()
        row |= session.measure()
        row["test_seconds"] = time.monotonic() - began
        if unreadable := sorted(set().union(*self.group.gather(session.unreadable))):
            row["unreadable"] = unreadable
        session.unreadable.clear()
        state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0
        state.sums.zero_()
        score = _score(row)
        best = score is not None and score > state.best
        state.best = score if best and score is not None else state.best
        self.log.append(row)
        if self.group.leads and self.out is not None:
            write_bytes(self.out / LOG, b"".join(map(documents.line, self.log)))
        self._save(best=best)
        if self.board:
            for name in SHOWN & row.keys():
                self.board.add_scalar(name, row[name], state.epoch)
            self.board.flush()
        if self.options.on_epoch and self.group.leads:
            self.options.on_epoch(row)

    def _save(self, *, best: bool = False) -> None:
        if self.out is None:
            return
        saved = self.state.to_dict(self.group)
        if saved is not None:
            if best:  # before the checkpoint that says so
                checkpoint.save_weights(saved, self.out / BEST)
            checkpoint.save(saved, self.out, newest=self.options.checkpoints)

    def _publish(self) -> None:
        """The network, or its average, as a folder that `create` opens."""
        if self.out is None:
            return
        saved = self.state.to_dict(self.group)
        if saved is not None:
            trained = self.session.network
            network = AnyNet(trained.config, global_pool=trained.head.global_pool).eval()
            network.load_state_dict(saved["average"] or saved["model"])
            network.card = trained.card
            if self.session.images.calibration is not None:
                self.calibration = calibrate_on(
                    network.to(self.group.device),
                    self.session.images.calibration,
                    workers=self.options.worker_count,
                )
                network.cpu()
            network.save_pretrained(self.out / MODEL, readme=self._readme(network))

    def _readme(self, network: AnyNet) -> str:
        """The text of the model card: what the network was made of, and how good it is."""
        session, card = self.session, network.card or Card()
        run, recipe, look = session.run, session.recipe, preprocess(network)
        base = run.model if isinstance(run.model, str) else "a config of its own"
        train, val = session.images.train, session.images.val
        measured = "no test images"
        if val is not None and self.log:
            measured = f"{_score(self.log[-1]):.2f} % of {len(val)} test images"
        return card_text(
            self.out.resolve().name if self.out else "model",
            f"Base: {base}, {'its weights' if run.pretrained else 'from random weights'}",
            f"License: {card.license or 'not stated'}",
            f"Data: {len(train)} images of {len(train.classes)} classes, fingerprint "
            f"{train.fingerprint}",
            f"Recipe: {recipe.epochs} epochs, batch {recipe.batch_size}, peak learning rate "
            f"{recipe.peak_lr:.4g}",
            images_line(look),
            f"Top-1: {measured}",
            *self._calibration_lines(),
            f"Classes: {', '.join(card.labels) or network.num_classes}",
        )

    def _calibration_lines(self) -> list[str]:
        found = self.calibration
        if found is None:
            return []
        return [
            f"Calibration: logits divided by {found.temperature:.3f}, fitted on {found.images} "
            f"training images that were held out; expected calibration error there "
            f"{found.error_before:.2f} % before, {found.error_after:.2f} % after (cross-fitted)"
        ]

    def _result(self) -> Trained:
        return Trained(
            out=self.out,
            stopped_by=self.stopped_by,
            top1=_score(self.log[-1]) if self.log else None,
            best=self.state.best if self.state.best >= 0 else None,
            log=tuple(self.log),
            calibration=self.calibration,
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal ends the run after the step that is being done; the second at once."""
        if self.out is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        # What was told to be ignored, as `nohup` does with SIGHUP, stays so.
        before = {s: h for s in STOPS if (h := signal.getsignal(s)) is not signal.SIG_IGN}

        def note(number: int, _: object) -> None:
            self.stopped_by = number
            for stop in before:
                signal.signal(stop, signal.SIG_DFL)

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _score(row: Mapping[str, Any]) -> float | None:
    score: float | None = row.get("average_top1", row.get("top1"))
    return score
