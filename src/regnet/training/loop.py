"""Train, and resume a run so exactly that interruptions do not change a bit of the weights.

This holds on a CPU with a fixed number of threads; GPUs add numbers in another order each time.
With another number of processes and the same `micro_batch_size`, losses are equal up to rounding.
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
from regnet.data.sets import open_set, refuse_new_class
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.devices import find_device
from regnet.errors import ConfigError, DataError, MissingExtraError, NoSplitError, TrainingError
from regnet.evaluation.calibration import Calibration, calibrate_on
from regnet.nn.model import AnyNet
from regnet.paths import expanded
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
"""Steps between two times that processes on GPUs ask each other whether a signal arrived."""

STOPS = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, n)]
"""Signals that stop a run, so that it can be resumed."""

SHOWN = {"loss", "lr", "train_top1", "top1", "average_top1"}
"""Columns of the log that are written to TensorBoard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The result of a training run."""

    out: Path | None
    """Folder of the run; None if nothing was written."""
    stopped_by: int | None
    """The signal that stopped the run, one of `STOPS`, after which `resume` continues it; None: the
    run is complete."""
    top1: float | None
    """Accuracy after the last epoch, in percent: that of model/; None if none was measured."""
    best: float | None
    """Highest accuracy of any epoch, in percent: that of the weights in best.safetensors."""
    log: tuple[dict[str, Any], ...]
    """One row per epoch, as in log.jsonl."""
    calibration: Calibration | None = None
    """How model/ was calibrated; None: the run does not calibrate, or is not complete."""


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
    """Train a network, in one process or in those that `torchrun` starts.

    Args:
        model: a variant or a config, or a checkpoint to start from (`regnety_016.tv2_in1k`).
        data: images, as `regnet.data.sets.open_set` takes them. If a folder holds several splits
            (`train` and `val`), each is used for its purpose.
        out: a new folder for the results: run.json, log.jsonl, checkpoints, the weights of the best
            epoch, and at the end model/, a folder that `create("local-dir:...")` opens. None:
            nothing is written.
        recipe: a recipe, or its name in `RECIPES`. None: "finetune" if training starts from
            weights, "dds" otherwise.
        val: images that measure accuracy. None: those in `data`, if it holds any.
        train_images: train on this many images only, equally from all classes.
        val_images: measure accuracy on this many images only.
        pretrained: start from the weights that the name stands for. A name with a tag always does.
        num_classes: outputs of the classifier. None: the number of classes of the images.
        in_chans: channels of the images, 1 for gray ones. None: those of the model.
        image_size: side of the images in pixels, in tests and in the use of the result, and in
            training unless `Recipe.image_size` is set. None: that of the model.
        teachers: names of weights from whose answers the network learns in addition to the labels;
            `Recipe.distill` is their share of the loss. Several teachers teach their mean.
        seed: seed of everything random.
        save_steps: steps between checkpoints, in addition to one after each epoch.
        calibrate: hold out a tenth of the training images (at least 100, at most 5,000), and at
            the end fit a temperature on them, which is folded into the classifier of model/, so
            that its confidence matches its accuracy. The predicted classes stay the same.
        options: device, worker processes, callbacks and other options that do not change the
            result.

    Returns:
        The accuracies and the log. A run that a signal stopped is returned too.

    Raises:
        ConfigError: an option cannot be used, or `out` holds a run already.
        DataError: the images cannot be used.
        TrainingError: the loss is no longer finite, or there is not enough memory.
        OSError: `out` cannot be written; what was saved before is still there.
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
    """Return the name of the default recipe: "finetune" for a start from weights, else "dds"."""
    return "finetune" if pretrained or _names_weights(model) else "dds"


def _names_weights(model: str | AnyNetConfig | RegNetConfig) -> bool:
    """Return whether a name stands for weights: one with a tag, a repository or a folder."""
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
    """Carry out a run in a new folder.

    Args:
        run: the run, which determines the result.
        out: the folder; None: nothing is written.
        facts: the facts of an earlier run.json, with whose images and teachers those of this run
            are compared.
        options: device and other options that do not change the result.
        images: the images of the run, if they have been opened already.
        build: builds a network that no name and no config describes. `out` should then be None,
            because nothing could open the result.

    Raises:
        What `train` raises.
    """
    folder, options = None if out is None else expanded(out), options or Options()
    if options.tensorboard:
        _summary_writer()
    if folder is not None:
        for source in filter(None, (run.train, run.val)):
            refuse_new_class(folder, source)
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
        if facts is not None:
            _check_processes(run, facts, group, "the run")
        session = Session(run, group, options, images, build)
        _tell(session)
        now = session.facts
        if facts is not None:
            _check_facts(facts, now)
            _check_start(facts, now)
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
    """Resume a run from its last checkpoint.

    Args:
        out: the folder of the run.
        data: where the same training images are now, if they have moved.
        val: where the same test images are now, if they are elsewhere and have moved.
        options: device and other options that do not change the result. None: those that the run
            began with.

    Returns:
        The accuracies and the log, from the first epoch on.

    Raises:
        What `train` raises; ConfigError if the folder holds no run.
    """
    folder = expanded(out)
    began, facts = runs.read(folder)
    run = began.moved(data, val)
    options = options or Options.of_run(facts)
    with (
        joined(find_device(options.device)) as group,
        _own_randomness(group.device),
        _owned(folder, group),
    ):
        _check_processes(run, facts, group, str(folder))
        session = Session(run, group, options)
        _tell(session)
        now = session.facts
        _check_facts(facts, now)
        if group.leads and run != began:
            runs.write(folder, run, facts)
        saved = checkpoint.load_last(folder)
        if saved is None:
            _check_start(facts, now)
        if group.leads:
            if saved is not None:
                _check_conditions(facts, now)
            elif (folder / LOG).exists():
                _log.warning(
                    "%s: no checkpoint is left; training starts from the beginning", folder
                )
        places = group.gather(saved and (saved["epoch"], saved["step"]))
        if len(set(places)) > 1:
            raise TrainingError(
                f"{folder}: the processes see different checkpoints; all must see the same folder"
            )
        if saved:
            session.state.restore(saved, leads=group.leads)
        return _Loop(session, folder, _rows(folder, session.state.epoch)).go()


def _summary_writer() -> Any:
    """Return the class of TensorBoard's writer.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "--tensorboard needs tensorboard, which is not installed; pip install tensorboard"
        ) from error
    return SummaryWriter


def _owned(folder: Path | None, group: Group) -> AbstractContextManager[None]:
    """Own the folder of a run, if it has one, so that no other process writes into it."""
    return nullcontext() if folder is None else runfolder.owned(folder, "training", group)


def _own_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's random state afterwards, because a run seeds its global generators."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _val_beside(data: str | Path) -> str | None:
    """Return the source as that of the test images too, or None if it holds no other images."""
    trained_on = open_set(data, "train")
    try:
        beside = open_set(data, "val")
    except NoSplitError as error:
        _log.warning("%s; accuracy is not measured", error)
        return None
    return str(data) if beside.fingerprint != trained_on.fingerprint else None


def _tell(session: Session) -> None:
    """Report the images that were found and what will be done, in the leading process."""
    if session.options.on_begin and session.group.leads:
        session.options.on_begin(session.summary)


def _check_processes(run: Run, before: Facts, group: Group, name: str) -> None:
    """Raise an error if another number of processes would compute something else."""
    if run.recipe.micro_batch_size is None and before.processes != group.size:
        raise ConfigError(
            f"{name} is of {before.processes} processes, and without micro_batch_size batch norm "
            f"depends on their number; start the same number, not {group.size}"
        )


def _check_facts(before: Facts, now: Facts) -> None:
    """Raise an error if images or teachers are not those of an earlier run."""
    for name, found in now.images.items():
        known = before.images.get(name)
        if known and known.fingerprint != found.fingerprint:
            raise DataError(
                f"{found.source}: these are not the images of the run: {found.count} with "
                f"fingerprint {found.fingerprint} instead of {known.count} with {known.fingerprint}"
            )
    for name, digest in now.teachers.items():
        if before.teachers.get(name, digest) != digest:
            raise ConfigError(f"teacher {name}: its weights are not those of the run")


def _check_start(before: Facts, now: Facts) -> None:
    """Raise an error if the weights to start from are not those of an earlier run."""
    if before.start and before.start != now.start:
        raise ConfigError("the weights to start from are not those that the run started from")


def _rows(out: Path, epochs: int) -> list[dict[str, Any]]:
    """Return the log up to an epoch, without rows that a killed process wrote after it.

    Raises:
        TrainingError: a row is damaged.
    """
    try:
        rows = documents.lines(out / LOG, "a row of a log") if (out / LOG).exists() else []
    except ConfigError as error:
        raise TrainingError(f"{error}; remove {LOG} to resume without it") from error
    if len(rows) < epochs:
        _log.warning("%s has %d of %d epochs; the others are lost", out / LOG, len(rows), epochs)
    return rows[:epochs]


def _check_conditions(before: Facts, now: Facts) -> None:
    """Warn if a resumed run differs from its beginning in conditions that change rounding."""
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
    """The epochs of a run, and the files that it writes."""

    def __init__(self, session: Session, out: Path | None, log: list[dict[str, Any]]) -> None:
        self.session, self.out, self.log = session, out, log
        self.state, self.group, self.options = session.state, session.group, session.options
        self.stopped_by: int | None = None
        self.calibration: Calibration | None = None
        self.board = None
        if self.options.tensorboard and self.group.leads and out is not None:
            self.board = _summary_writer()(out / "tensorboard")

    def go(self) -> Trained:
        """Train to the end, or until a signal arrives."""
        with self._signals(), lost_workers():
            while self.state.epoch < self.session.recipe.epochs:
                if not self._epoch():
                    self._save()
                    return self._result()
                if self.session.tests_take_time:
                    # The test may take longer than a scheduler waits after its signal.
                    self._save()
                self._end_epoch()
                if self.state.epoch < self.session.recipe.epochs and self._stops(now=True):
                    return self._result()
        self._publish()
        self.stopped_by = None  # a signal during `_publish` has stopped nothing
        return self._result()

    def _epoch(self) -> bool:
        """Train the rest of the epoch; return False if a signal stopped it."""
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
        """Return whether a signal reached any process, so that all stop after the same step."""
        if self.group.size == 1:
            return self.stopped_by is not None
        if not now and self.group.device.type != "cpu" and self.state.step % ASKS:
            return False  # each exchange makes the device wait
        signals = torch.tensor(int(self.stopped_by is not None), device=self.group.device)
        if not int(self.group.sum(signals)):
            return False  # a signal that arrives meanwhile counts the next time
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
        if unreadable := sorted(set().union(*self.group.gather(state.unreadable))):
            row["unreadable"] = unreadable
        state.unreadable.clear()
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
            if best:  # first, because the checkpoint says that they exist
                checkpoint.save_weights(saved, self.out / BEST)
            checkpoint.save(saved, self.out, newest=self.options.checkpoints)

    def _publish(self) -> None:
        """Write the network, or its average, as a folder that `create` opens."""
        if self.out is None:
            return
        saved = self.state.to_dict(self.group)
        if saved is not None:
            trained = self.session.network
            network = AnyNet(trained.config, global_pool=trained.head.global_pool).eval()
            network.load_state_dict(saved["average"] or saved["model"])
            network.card = trained.card
            if self.session.images.calibration is not None:
                try:
                    self.calibration = calibrate_on(
                        network.to(self.group.device),
                        self.session.images.calibration,
                        workers=self.options.worker_count,
                    )
                except DataError as error:  # the network is good without it
                    _log.warning("%s is not calibrated: %s", self.out / MODEL, error)
                network.cpu()
            network.save_pretrained(self.out / MODEL, readme=self._readme(network))

    def _readme(self, network: AnyNet) -> str:
        """Return the text of the model card: how the network was trained, how accurate it is."""
        session, card = self.session, network.card or Card()
        run, recipe, look = session.run, session.recipe, preprocess(network)
        base = run.model if isinstance(run.model, str) else "a custom config"
        train, val = session.images.train, session.images.val
        measured = "not measured, because there were no test images"
        if val is not None and self.log:
            measured = f"{_score(self.log[-1]):.2f} % on {len(val)} test images"
        return card_text(
            self.out.resolve().name if self.out else "model",
            f"Base: {'the' if run.pretrained else 'random'} weights of {base}",
            f"License: {card.license or 'not stated'}",
            f"Training images: {len(train)} of {len(train.classes)} classes, fingerprint "
            f"{train.fingerprint}",
            f"Recipe: {recipe.epochs} epochs, batches of {recipe.batch_size} images, peak learning "
            f"rate {recipe.peak_lr:.4g}",
            images_line(look),
            f"Top-1 accuracy: {measured}",
            *self._calibration_lines(),
            f"Classes: {', '.join(card.labels) or network.num_classes}",
        )

    def _calibration_lines(self) -> list[str]:
        found = self.calibration
        if found is None:
            return []
        return [
            f"Calibration: the logits are divided by {found.temperature:.3f}, a temperature fitted "
            f"on {found.images} training images that were held out; expected calibration error on "
            f"these images: {found.error_before:.2f} % before, {found.error_after:.2f} % after "
            "(by two-fold cross-fitting)"
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
        """Let the first signal stop the run after the current step, and the second one at once."""
        if self.out is None or threading.current_thread() is not threading.main_thread():
            # Nothing could be resumed, or Python allows no handlers in this thread.
            yield
            return
        # Signals that are ignored already, as `nohup` does with SIGHUP, stay ignored. So do those
        # whose handler is not Python's (None), because it could not be restored.
        before = {s: h for s in STOPS if (h := signal.getsignal(s)) not in (signal.SIG_IGN, None)}

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
    """Return the test accuracy of a row of the log: that of the average, if there is one."""
    score: float | None = row.get("average_top1", row.get("top1"))
    return score
