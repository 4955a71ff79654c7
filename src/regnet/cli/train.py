"""`regnet train`: start, resume or repeat a training run."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from regnet.cli.arguments import (
    AsJson,
    Threads,
    check_outputs,
    read_recipe,
    refuse_given,
    set_threads,
)
from regnet.cli.evaluate import calibration_lines
from regnet.cli.output import print_json, print_table, stderr, stdout
from regnet.cli.progress import ProgressBar
from regnet.errors import ConfigError, shell

if TYPE_CHECKING:
    from regnet.training.loop import Trained
    from regnet.training.recipe import Recipe
    from regnet.training.session import Options, Progress


_DECIDED: Final = (
    "model", "recipe", "set_", "val", "train_images", "val_images", "pretrained",
    "num_classes", "in_chans", "image_size", "teacher", "seed", "save_steps", "calibrate",
)  # fmt: skip
"""Options whose values a run saves; they cannot be given when it is resumed or repeated."""


def command(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="Images: a folder with train/ and val/, .parquet, .tar, hf:owner/name."
        ),
    ] = None,
    *,
    model: Annotated[
        str, typer.Option(help="A variant, a checkpoint to start from, or a config file (.json).")
    ] = "regnety_cifar",
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name of a recipe, or a .json file. Default: finetune from weights, otherwise dds."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a value of the recipe, such as epochs=10. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the results.")] = None,
    val: Annotated[
        str | None,
        typer.Option(help="Images to test on. Default: those beside the training images."),
    ] = None,
    train_images: Annotated[
        int | None,
        typer.Option(help="Train on this many images only, equally from all classes.", min=1),
    ] = None,
    val_images: Annotated[
        int | None, typer.Option(help="Test on this many images only.", min=1)
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from the variant's default weights.")
    ] = False,
    num_classes: Annotated[
        int | None, typer.Option(help="Number of outputs. Default: number of classes.", min=1)
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images in pixels, in training and tests. Default: the model's.", min=8
        ),
    ] = None,
    in_chans: Annotated[
        int | None, typer.Option(help="1 for gray images. Default: the model's.", min=1)
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Weights of a teacher, used with --set distill=0.5. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    save_steps: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints, in addition to one per epoch.", min=1),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Hold out a tenth of the training images, and calibrate the result on them.",
        ),
    ] = False,
    resume: Annotated[Path | None, typer.Option(help="Resume the run in this folder.")] = None,
    moved: Annotated[
        str | None,
        typer.Option("--data", help="With --resume: where the same images are now."),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Repeat the run of this run.json, into --out.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:1 or mps. Default: cpu, or the device the run began on."
        ),
    ] = None,
    threads: Threads = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read images. Default: one per core.", min=0)
    ] = None,
    parallel: Annotated[
        str | None,
        typer.Option(
            help="With torchrun: ddp, or fsdp for networks that do not fit on "
            "one device. Default: ddp."
        ),
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the network with torch.compile.")
    ] = False,
    grad_checkpointing: Annotated[
        bool, typer.Option("--grad-checkpointing", help="Use less memory and more time.")
    ] = False,
    checkpoints: Annotated[
        int | None, typer.Option(help="Number of recent checkpoints to keep. Default: 2.", min=1)
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Plot the learning curve (.svg, .png, .pdf).")
    ] = None,
    list_recipes: Annotated[
        bool, typer.Option("--list-recipes", help="List the recipes and exit.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network in a run that can be resumed and repeated. Ctrl-C and SIGTERM save first.

    Example: regnet train cifar10/ --model regnety_cifar --recipe cifar --out runs/first
    """
    if list_recipes:
        _print_recipes(as_json=as_json)
        return
    import torch

    from regnet.allocator import keep_freed_memory
    from regnet.devices import launched

    check_outputs(plot=plot)
    if sum(value is not None for value in (data, resume, replay)) != 1:
        raise ConfigError("give one of: the training images, --resume FOLDER, --replay RUN.json")
    if moved and not resume:
        raise ConfigError(
            "--data needs --resume; give the images of a new run as the first argument"
        )
    if resume or replay:
        decided: tuple[str, ...] = _DECIDED
        if resume:  # --val then says where the same test images are now
            decided = (*(name for name in _DECIDED if name != "val"), "out")
        refuse_given(context, decided, "would change the run; leave it out, or start a new run")
    if resume is None and out is None:
        raise ConfigError("--out is missing; name a new folder for the results")
    set_threads(threads)
    options = _options(
        resume,
        device=device,
        parallel=parallel,
        compile=compile_ or None,
        grad_checkpointing=grad_checkpointing or None,
        workers=workers,
        checkpoints=checkpoints,
        tensorboard=tensorboard or None,
    )
    if options.device == torch.device("cpu"):
        keep_freed_memory()
    leads = launched().rank == 0
    with ProgressBar("reading images", hidden=not leads) as bar:
        done = _run(
            data,
            out,
            resume,
            replay,
            model=model,
            recipe=lambda: _recipe(recipe, set_ or [], model, image_size, pretrained=pretrained),
            val=val,
            train_images=train_images,
            val_images=val_images,
            pretrained=pretrained,
            num_classes=num_classes,
            in_chans=in_chans,
            image_size=image_size,
            teachers=teacher or (),
            seed=seed,
            save_steps=save_steps,
            calibrate=calibrate,
            options=_watched(options, bar),
            moved=moved,
        )
    if not leads:
        return
    if plot and done.log:
        from regnet.training.plot import save_learning_curve

        save_learning_curve(done.log, plot)
    if as_json:
        print_json(done)
    elif done.stopped_by is None:
        told = "" if done.top1 is None else f": top-1 {done.top1:.2f} %, best {done.best:.2f} %"
        stdout.print(f"{done.out}: {len(done.log)} epochs{told}")
        if done.calibration is not None:
            stdout.print(calibration_lines(done.calibration))
    if done.stopped_by is not None:
        again = shell("regnet", "train", "--resume", done.out)
        stderr.print(f"stopped and saved; resume with {again}")
        raise typer.Exit(128 + done.stopped_by)


def _recipe(
    name: str | None, changes: list[str], model: str, image_size: int | None, *, pretrained: bool
) -> "Recipe":
    from regnet.training.loop import default_recipe

    found = read_recipe(name or default_recipe(model, pretrained=pretrained), changes)
    named = any(change.startswith("image_size=") for change in changes)
    if image_size is None or named or found.image_size is None:
        return found
    # --image-size holds for training too, unless --set image_size says otherwise.
    return found.changed(image_size=image_size)


def _run(
    data: str | None,
    out: Path | None,
    resumed: Path | None,
    replayed: Path | None,
    *,
    recipe: Any,
    options: "Options",
    moved: str | None,
    **asked: Any,
) -> "Trained":
    from regnet.training import run as runs
    from regnet.training.loop import resume, start, train

    if resumed is not None:
        return resume(resumed, data=moved, val=asked["val"], options=options)
    assert out is not None, "`command` requires it"
    if replayed is not None:
        run, facts = runs.read(replayed)
        return start(run, out, facts=facts, options=options)
    assert data is not None, "`command` requires it"
    return train(data=data, out=out, recipe=recipe(), options=options, **asked)


def _options(resumed: Path | None, **asked: Any) -> "Options":
    """Return the options that were given, and for others those that a resumed run began with."""
    from regnet.devices import find_device
    from regnet.training import run as runs
    from regnet.training.session import Options

    given = {name: value for name, value in asked.items() if value is not None}
    options = Options.of_run(runs.read(resumed)[1], **given) if resumed else Options(**given)
    return replace(options, device=find_device(options.device))


def _watched(options: "Options", bar: ProgressBar) -> "Options":
    """Return the options with a bar for the steps of each epoch and a line at its end."""

    def step(at: "Progress") -> None:
        bar.step(f"epoch {at.epoch + 1} of {at.epochs}", at.step, at.steps)

    def begin(lines: Sequence[str]) -> None:
        for line in lines:
            bar.line(line)

    return replace(
        options, on_begin=begin, on_step=step, on_epoch=lambda row: bar.line(epoch_line(row))
    )


def _print_recipes(*, as_json: bool) -> None:
    from regnet.training.recipe import RECIPES, Recipe

    if as_json:
        print_json({name: recipe.to_dict() for name, recipe in RECIPES.items()})
        return
    print_table(
        ("field", *RECIPES),
        [
            (field.name, *(f"{getattr(recipe, field.name)}" for recipe in RECIPES.values()))
            for field in fields(Recipe)
        ],
    )


def epoch_line(row: Mapping[str, Any]) -> str:
    """Return one line about an epoch of the log: loss, learning rate, accuracies, speed."""
    parts = [f"epoch {row['epoch']}", f"loss {row['loss']:.4f}", f"lr {row['lr']:.4g}"]
    for name, word in (("top1", "top-1"), ("average_top1", "average")):
        if name in row:
            parts.append(f"{word} {row[name]:.2f} %")
    parts.append(f"{row['images_per_second']:.0f} images/s")
    if row.get("unreadable"):
        parts.append(f"{len(row['unreadable'])} unreadable images (see log.jsonl)")
    return ", ".join(parts)
