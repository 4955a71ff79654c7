"""The part of a training run in one process: network, images, steps and tests."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.parallel import DistributedDataParallel

from regnet.data.preprocess import Preprocess
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.devices import core_count
from regnet.engines.base import DTYPES
from regnet.errors import ConfigError, TrainingError, out_of_memory
from regnet.machine import environment
from regnet.nn.blocks import Stage
from regnet.nn.model import AnyNet
from regnet.nn.views import digest_of
from regnet.process_group import Group
from regnet.training.average import Average
from regnet.training.checkpoint import State
from regnet.training.input import Batch, Images, Input, Plan, Resident, Streamed, seed_of
from regnet.training.optimizer import build_optimizer, set_learning_rate
from regnet.training.run import Facts, Run, SavedOptions, SetFacts
from regnet.training.teachers import Teachers, distillation_loss
from regnet.training.testing import Test
from regnet.weights.card import Card
from regnet.weights.catalog import default_checkpoint
from regnet.zoo.create import create, preprocess
from regnet.zoo.resolver import find_source

LOOKS = 50
"""Steps between two checks of the loss on a device that must wait for each check, as GPUs do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come, after a step."""

    epoch: int
    """The epoch, from 0."""
    epochs: int
    step: int
    """Number of steps done in this epoch."""
    steps: int
    """Number of steps per epoch."""


_SAVED: Final = tuple(field.name for field in fields(SavedOptions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(SavedOptions):
    """How a run is carried out: options that decide its speed, not its result.

    Raises:
        ConfigError: an option cannot be used.
    """

    on_begin: Callable[[Sequence[str]], None] | None = None
    """Called before the first step, with lines that describe the run."""
    on_step: Callable[[Progress], None] | None = None
    """Called after each step."""
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None
    """Called after each epoch, with its row of the log."""

    def __post_init__(self) -> None:
        if self.parallel not in ("ddp", "fsdp"):
            raise ConfigError(f"parallel must be ddp or fsdp, got {self.parallel!r}")
        if self.checkpoints < 1:
            raise ConfigError(f"checkpoints must be at least 1, got {self.checkpoints}")

    @classmethod
    def of_run(cls, facts: Facts, **asked: Any) -> "Options":
        """Return the options that a run began with, except for those that are given."""
        return cls(**{name: getattr(facts.options, name) for name in _SAVED} | asked)

    @property
    def saved(self) -> SavedOptions:
        """The options that run.json saves."""
        values = {name: getattr(self, name) for name in _SAVED}
        return SavedOptions(**values | {"device": str(self.device)})

    @property
    def worker_count(self) -> int:
        """Number of processes that decode images."""
        return core_count() if self.workers is None else self.workers


def _default_weights(model: str | AnyNetConfig | RegNetConfig) -> str | None:
    """Return weights from which a run that starts from random ones could start instead."""
    variant = find_source(model, pretrained=False).architecture
    row = default_checkpoint(variant) if variant in VARIANTS else None
    return row.id if row else None


Build = Callable[[], AnyNet]
"""Builds the network of a run, with weights from torch's global generator."""


class Session:
    """Network, images, optimizer and tests of a run in one process."""

    def __init__(
        self,
        run: Run,
        group: Group,
        options: Options,
        images: Images | None = None,
        build: Build | None = None,
    ) -> None:
        self.run, self.recipe, self.group, self.options = run, run.recipe, group, options
        self.images = images or Images.open(
            run.train,
            run.val,
            train_images=run.train_images,
            val_images=run.val_images,
            num_classes=run.num_classes,
            calibrate=run.calibrate,
        )
        count = len(self.images.train)
        self.plan = Plan(images=count, recipe=run.recipe, seed=run.seed, group=group)
        self.network = self._built(build or self._created)
        self.start = digest_of(self.network) if run.pretrained else ""
        self.input = self._input()
        self.teachers = self._teachers()
        self.test = self._test()
        self.forward: nn.Module = self.network
        if group.size > 1 and options.parallel == "fsdp":
            _shard(self.network, group)
        optimizer = build_optimizer(self.network, run.recipe)
        if options.compile:
            self.network.compile()
        if group.size > 1 and options.parallel == "ddp":
            # `_share_buffers` sends the buffers of the leading process after each step.
            self.forward = DistributedDataParallel(self.network, broadcast_buffers=False)
        kind = group.device.type
        self.state = State(
            model=self.network,
            optimizer=optimizer,
            average=Average(self.network) if run.recipe.ema_alpha else None,
            scaler=torch.amp.GradScaler(kind, enabled=run.recipe.precision == "fp16"),
            sums=torch.zeros(3, device=group.device),
        )

    @property
    def facts(self) -> Facts:
        """The images, teachers, processes, options and machine of this run."""
        sets = (
            ("train", self.images.train),
            ("val", self.images.val),
            ("calibration", self.images.calibration),
        )
        return Facts(
            images={
                name: SetFacts(
                    source=images.source, count=len(images), fingerprint=images.fingerprint
                )
                for name, images in sets
                if images is not None
            },
            teachers=self.teachers.digests if self.teachers else {},
            processes=self.group.size,
            options=self.options.saved,
            environment=environment(self.group.device),
            start=self.start,
        )

    @property
    def summary(self) -> tuple[str, ...]:
        """Lines that describe the run: weights, images, sizes, recipe."""
        run, recipe = self.run, self.recipe
        name = run.model if isinstance(run.model, str) else "a custom config"
        weights = f"weights: random, for {name}"
        if run.pretrained:
            license = self.network.card.license if self.network.card else None
            weights = f"weights: {name}{f' ({license})' if license else ''}"
        elif other := _default_weights(run.model):
            weights += f"; --model {other} starts from trained ones"
        look = self.network.card.preprocess if self.network.card else Preprocess()
        tested = f"{look.size[0]}x{look.size[1]}"
        trained = tested
        if recipe.crop == "resized":
            side = recipe.image_size or look.size[0]
            trained = f"{side}x{side}"
        sizes = f"images of {tested} pixels"
        if trained != tested:
            sizes = f"images of {trained} pixels in training, of {tested} in tests and in use"
        return (
            weights,
            *self.images.summary,
            sizes,
            f"{recipe.epochs} epochs of {self.plan.steps} steps of {recipe.batch_size} images, "
            f"peak learning rate {recipe.peak_lr:.4g}",
        )

    def _created(self) -> AnyNet:
        run, recipe = self.run, self.recipe
        network: AnyNet = create(
            run.model,
            pretrained=run.pretrained,
            num_classes=run.num_classes or len(self.images.train.classes),
            in_chans=run.in_chans,
            drop_rate=recipe.drop_rate,
            drop_path_rate=recipe.drop_path_rate,
            zero_init_last=recipe.zero_init_last,
        )
        network.set_grad_checkpointing(self.options.grad_checkpointing)
        return network

    def _built(self, build: Build) -> AnyNet:
        torch.manual_seed(seed_of(self.run.seed, "weights"))
        network = build()
        sharded = self.group.size > 1 and self.options.parallel == "fsdp"
        # FSDP2 splits tensors into rows, and accepts only contiguous ones.
        layout = torch.contiguous_format if sharded else torch.channels_last
        network.to(memory_format=layout)  # type: ignore[call-overload]  # its stub lacks this one
        # Sharding moves one block at a time, since the complete network may not fit on a device.
        return network if sharded else network.to(self.group.device)

    def _input(self) -> Input:
        """Return the training batches, and set the network's card: preprocessing and classes."""
        recipe, network, device = self.recipe, self.network, self.group.device
        card = network.card or Card()
        look = card.preprocess.for_channels(network.config.in_chans)
        look.check_files()
        if self.run.image_size is not None:
            look = replace(look, size=(self.run.image_size, self.run.image_size))
        source: Resident | Streamed
        if recipe.crop == "pad":
            source = self.images.resident(device)
            height, width = source.pixels.shape[2:]
            recipe.check_size(height, width, self.run.image_size)
            look = replace(look, size=(height, width), crop_pct=1.0)
            if not self.run.pretrained:
                mean, std = source.colors(look.channels)
                look = replace(look, mean=mean, std=std)
        else:
            source = Streamed(
                self.images.train,
                size=recipe.image_size or look.size[0],
                recipe=recipe,
                workers=self.options.worker_count,
                device=device,
            )
        classes = self.images.train.classes
        more = range(len(classes), network.num_classes)
        # A new card: what was published about the first weights does not hold for the result.
        network.card = Card(
            architecture=card.architecture,
            preprocess=look,
            labels=(*classes, *(f"class {number}" for number in more)),
            license=card.license,
            origin=card.origin,
        )
        return Input(plan=self.plan, source=source, mean=look.mean, std=look.std)

    def _teachers(self) -> Teachers | None:
        run, recipe = self.run, self.recipe
        if bool(run.teachers) != bool(recipe.distill):
            lacks = "distill, the teachers' share of the loss," if run.teachers else "teachers"
            raise ConfigError(f"{lacks} must be given too, to learn from teachers")
        if not run.teachers:
            return None
        return Teachers(
            run.teachers,
            classes=self.images.train.classes,
            mean=self.input.mean,
            std=self.input.std,
            seed=run.seed,
            device=self.group.device,
        )

    def _test(self) -> Test | None:
        if self.images.val is None:
            return None
        look, pixels = preprocess(self.network), None
        if self.recipe.crop == "pad" and self.images.val.open(0).size == look.size[::-1]:
            pixels = self.images.val_pixels(self.group.device)
        return Test(
            self.images.val,
            look,
            group=self.group,
            pixels=pixels,
            batch_size=self.plan.micro_size,
            workers=self.options.worker_count,
        )

    @property
    def tests_take_time(self) -> bool:
        """Whether an epoch ends with a test or with precise batch norm, which take time."""
        return self.test is not None or self.recipe.precise_bn > 0

    def step(self, batches: Sequence[Batch]) -> None:
        """Train on the forward passes of the next step.

        Args:
            batches: this process's forward passes of the step that `state` says is next.

        Raises:
            TrainingError: there is not enough memory.
        """
        with self._enough_memory():
            self._step(batches)

    def _step(self, batches: Sequence[Batch]) -> None:
        state, recipe = self.state, self.recipe
        rate = recipe.learning_rate(state.epoch, state.step, self.plan.steps)
        set_learning_rate(state.optimizer, rate)
        state.optimizer.zero_grad(set_to_none=True)
        for number, batch in zip(self.plan.passes, batches, strict=True):
            # The random numbers of layers, such as drop path, depend on this seed alone.
            torch.manual_seed(seed_of(self.run.seed, "layers", state.epoch, state.step, number))
            # Only the first pass of a step changes running statistics, so that they do not depend
            # on how the processes share the passes.
            kept = self._norms() if number else []
            travel = self._gradients_travel(with_this=batch is batches[-1])
            with travel, _momentum(kept, 0.0):
                loss, hits = self._pass(batch, number)
                state.scaler.scale(loss / len(batches)).backward()
            count = len(batch.labels)
            state.sums += torch.stack([loss.detach() * count, hits, torch.full_like(hits, count)])
            state.unreadable.update(batch.unreadable)
        if recipe.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        self._share_buffers()
        # Steps are counted from 0 in each epoch, as in pycls and torchvision, so that each epoch
        # updates the average at least once.
        if state.average and state.step % recipe.ema_steps(self.plan.steps) == 0:
            state.average.update(self.network, recipe.ema_weight(state.epoch, self.plan.steps))

    def _pass(self, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the number of hits of one forward pass."""
        recipe, smoothing = self.recipe, self.recipe.label_smoothing
        with self._autocast():
            logits = self.forward(batch.images)
        logits = logits.float()
        loss = functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        if batch.own < 1:
            other = functional.cross_entropy(logits, batch.partners, label_smoothing=smoothing)
            loss = batch.own * loss + (1 - batch.own) * other
        if self.teachers:
            with self._autocast():
                answers = self.teachers.logits(
                    batch.images, self.state.epoch, self.state.step, number
                )
            taught = distillation_loss(logits, answers, recipe.temperature)
            loss = (1 - recipe.distill) * loss + recipe.distill * taught
        expected = batch.labels if batch.own >= 0.5 else batch.partners
        return loss, (logits.detach().argmax(1) == expected).sum().float()

    @contextlib.contextmanager
    def _enough_memory(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            size = self.plan.micro_size
            raise TrainingError(
                f"not enough memory for {size} images per pass; try micro_batch_size="
                f"{max(size // 2, 1)}, or --grad-checkpointing"
            ) from error

    def _norms(self) -> list[BatchNorm]:
        return [m for m in self.network.modules() if isinstance(m, BatchNorm)]

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.recipe.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.group.device.type, dtype=DTYPES[self.recipe.precision])

    def _gradients_travel(self, *, with_this: bool) -> contextlib.AbstractContextManager[Any]:
        """Make the processes exchange gradients once per step, with its last pass."""
        if isinstance(self.forward, DistributedDataParallel):
            return contextlib.nullcontext() if with_this else self.forward.no_sync()
        if self.group.size > 1:
            self.network.set_requires_gradient_sync(with_this)  # type: ignore[operator]  # FSDP's
        return contextlib.nullcontext()

    def _share_buffers(self) -> None:
        """Send the batch norm statistics of the leading process to all others."""
        buffers = [b for b in self.network.buffers() if b.is_floating_point()]
        if self.group.size == 1 or not buffers:
            return
        together = torch.cat([buffer.flatten() for buffer in buffers])
        torch.distributed.broadcast(together, src=0)
        for buffer, part in zip(buffers, together.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))

    def check_finite(
        self, batches: Sequence[Batch], out: Path | None, *, now: bool = False
    ) -> None:
        """Stop the run if the loss or a weight is not finite, and save the images of the step.

        A GPU must wait for each check. On a GPU the loss is therefore only checked every `LOOKS`
        steps, and with `now`, before anything is saved; the fault may lie in any step since the
        last check.

        Args:
            batches: this process's forward passes of the step.
            out: folder in which to save them; None: they are not saved.
            now: check on any device and at any step, and check the weights too.

        Raises:
            TrainingError: the loss or a weight is not finite.
        """
        waits = self.group.device.type != "cpu"
        if waits and not now and self.state.step % LOOKS:
            return
        finite = math.isfinite(float(self.state.sums[0]))
        if finite and now:
            norms = torch._foreach_norm([_own(p.detach()) for p in self.network.parameters()])
            finite = math.isfinite(float(torch.stack(list(norms)).sum()))
        if finite:
            return
        kept = ""
        if out is not None:
            path = out / f"not-finite-{self.group.rank}.pt"
            with contextlib.suppress(RuntimeError, OSError):  # the error below matters more
                torch.save([asdict(batch) for batch in batches], path)
            kept = f"the images are in {path}; "
        since = f" or up to {LOOKS} before" if waits else ""
        raise TrainingError(
            f"the loss is not finite in epoch {self.state.epoch + 1}, step {self.state.step + 1}"
            f"{since}, at a learning rate of {self.state.optimizer.param_groups[-1]['lr']:.3g}; "
            f"{kept}try a smaller lr, clip_norm, or a longer warm-up"
        )

    def measure(self) -> dict[str, float]:
        """Return the accuracy of the network and of its average, after `Recipe.precise_bn`."""
        with self._enough_memory():
            found = self._measured("top1")
            if self.state.average:
                with self.state.average.swapped_in(self.network):
                    found |= self._measured("average_top1")
        return found

    def _measured(self, name: str) -> dict[str, float]:
        if self.recipe.precise_bn:
            self._precise_bn()
        # Compiling for the tests would take longer than the tests.
        with torch.compiler.set_stance("force_eager"):
            return {name: self.test.top1(self.network)} if self.test else {}

    def _precise_bn(self) -> None:
        """Set batch norm's statistics to those of unmixed training images (Wu and Johnson 2021).

        The mean is that of the passes' means. The variance is the mean of their variance + mean^2,
        minus the square of that mean (pycls `core/net.py`).
        """
        norms, epoch = self._norms(), self.state.epoch
        if not norms:
            return
        steps = max(1, min(self.recipe.precise_bn // self.recipe.batch_size, self.plan.steps))
        moments = [torch.zeros(2, n.num_features, device=self.group.device) for n in norms]
        passes = list(itertools.product(range(steps), self.plan.passes))
        self.network.train()
        with torch.no_grad(), _momentum(norms, 1.0):
            batches = self.input.batches(epoch, 0, steps, mixed=False)
            for at, batch in zip(passes, batches, strict=True):
                torch.manual_seed(seed_of(self.run.seed, "statistics", epoch, *at))
                with self._autocast():
                    self.forward(batch.images)
                for norm, sums in zip(norms, moments, strict=True):
                    mean, var = norm.running_mean, norm.running_var
                    assert mean is not None
                    assert var is not None
                    sums += torch.stack([mean, var + mean**2])
        for norm, sums in zip(norms, moments, strict=True):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, square = self.group.sum(sums) / (len(passes) * self.group.size)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(square - mean**2)


@contextlib.contextmanager
def _momentum(norms: Sequence[BatchNorm], value: float) -> Iterator[None]:
    """Set how much of the running statistics a forward pass replaces, in a `with` statement."""
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = value
    try:
        yield
    finally:
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum


def _own(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _shard(network: AnyNet, group: Group) -> None:
    """Shard a network block by block, so that each process has a part of every tensor (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(group.device.type, (group.size,))
    for stage in network.modules():
        if isinstance(stage, Stage):
            for block in stage:
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
