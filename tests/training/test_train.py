"""Tests of complete runs on small pictures: exact resuming, faults, several processes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import regnet
from regnet import documents
from regnet.errors import ConfigError, DataError, TrainingError
from regnet.training import checkpoint, loop
from regnet.training import run as runs
from regnet.training.loop import resume, start, train
from regnet.training.recipe import RECIPES, Recipe
from regnet.training.run import Facts, Run, SavedOptions, read
from regnet.training.session import Options
from tests.faults import file_sizes_restored, flipped_bits, limit_file_size
from tests.marks import linux, long, posix, times
from tests.pictures import write_folder
from tests.training.test_recipe import TINY

SHORT = Recipe(
    epochs=2, batch_size=12, lr=1.0, lr_per="step", warmup_epochs=0, crop="pad", cutout=4,
    mixup=0.2, cutmix=1.0, label_smoothing=0.1, ema_alpha=0.05, ema_period=2, precise_bn=24,
    drop_path_rate=0.2, drop_rate=0.1,
)  # fmt: skip

FACTS = Facts(images={}, teachers={}, processes=1, options=SavedOptions(), environment={})


@pytest.fixture(autouse=True)
def _threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder / "train", 48)
    write_folder(folder / "val", 18, seed=1)
    return folder


def weights(out: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.load_last(out)
    assert saved is not None
    return saved["model"] | {f"average.{n}": t for n, t in (saved["average"] or {}).items()}


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_run_learns_and_its_model_can_be_opened(data, tmp_path):
    recipe = replace(
        SHORT, epochs=6, mixup=0.0, cutmix=0.0, drop_path_rate=0.0, ema_alpha=0.0, lr=2.0
    )
    rows = []
    done = train(TINY, data, tmp_path / "run", recipe=recipe, options=Options(on_epoch=rows.append))
    assert done.stopped_by is None
    assert done.top1 == 100
    assert list(done.log) == rows
    assert rows == documents.lines(tmp_path / "run/log.jsonl", "a row")
    assert rows[-1]["loss"] < rows[0]["loss"]
    model = regnet.create(f"local-dir:{tmp_path / 'run/model'}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == ("blue", "green", "red")
    [result] = regnet.predict(next((data / "val/green").iterdir()), model)
    assert result.classes[0].label == "green"


def test_a_run_document_repeats_it(data, tmp_path):
    train(TINY, data, tmp_path / "a", recipe=SHORT, seed=3)
    run, facts = read(tmp_path / "a")
    assert facts.images["train"].count == 48
    assert facts.environment["packages"]["torch"] == torch.__version__
    start(run, tmp_path / "b", facts=facts)
    assert same(tmp_path / "a", tmp_path / "b")
    start(replace(run, seed=4), tmp_path / "c")
    assert not same(tmp_path / "a", tmp_path / "c")
    with pytest.raises(ConfigError, match="holds a run already"):
        start(run, tmp_path / "b")


def test_other_images_are_detected(data, tmp_path):
    train(TINY, data, tmp_path / "a", recipe=replace(SHORT, epochs=1))
    run, facts = read(tmp_path / "a")
    write_folder(tmp_path / "more/train", 60)
    write_folder(tmp_path / "more/val", 18, seed=1)
    moved = replace(run, train=str(tmp_path / "more"), val=str(tmp_path / "more"))
    with pytest.raises(DataError, match="60 with fingerprint"):
        start(moved, tmp_path / "b", facts=facts)


COMMAND = (
    "import sys, torch; torch.set_num_threads(1)\n"
    "from pathlib import Path\n"
    "from regnet.training.loop import resume, start\n"
    "from regnet.training.run import read\n"
    "from regnet.training.session import Options\n"
    "run, _ = read(Path(sys.argv[1])); out = Path(sys.argv[2])\n"
    "options = Options(on_step=lambda at: print(at.epoch, at.step, flush=True))\n"
    "done = resume(out, options=options) if (out / 'run.json').exists() else "
    "start(run, out, options=options)\n"
    "sys.exit(0 if done.stopped_by is None else 75)\n"
)


def child(document: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, document, out], stdout=subprocess.PIPE, text=True
    )


def steps(process: subprocess.Popen[str]) -> list[str]:
    return process.communicate()[0].splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.long)])
def test_a_run_killed_at_random_steps_resumes_bit_by_bit(data, tmp_path, kills):
    """The run is killed with SIGKILL, sometimes between checkpoints."""
    recipe = replace(SHORT, epochs=4)
    run = Run(model=TINY, recipe=recipe, train=str(data), val=str(data), seed=1, save_steps=1)
    torch.set_num_threads(1)
    start(run, tmp_path / "whole")
    total = recipe.epochs * 4
    victims = sorted(random.Random(0).sample(range(1, total), kills))
    out, order = tmp_path / "killed", []
    done = 0
    for victim in victims:
        process = child(tmp_path / "whole", out)
        assert process.stdout is not None
        while done < victim:
            line = process.stdout.readline()
            assert line, "the child ended before it was killed"
            order.append(line.strip())
            done = 4 * int(line.split()[0]) + int(line.split()[1])
        process.kill()
        process.communicate()
        saved = checkpoint.load_last(out)
        done = 4 * saved["epoch"] + saved["step"] if saved else 0
    last = child(tmp_path / "whole", out)
    last.communicate()
    assert last.returncode == 0
    assert same(tmp_path / "whole", out)
    rows = documents.lines(out / "log.jsonl", "a row")
    whole = documents.lines(tmp_path / "whole/log.jsonl", "a row")
    for row, expected in zip(rows, whole, strict=True):
        assert {k: row[k] for k in ("epoch", "lr", "loss", "top1", "average_top1")} == {
            k: expected[k] for k in ("epoch", "lr", "loss", "top1", "average_top1")
        }


@pytest.mark.slow
@posix
def test_sigterm_saves_a_checkpoint_and_ends_cleanly(data, tmp_path):
    recipe = replace(SHORT, epochs=40)
    run = Run(model=TINY, recipe=recipe, train=str(data), val=None)
    document = tmp_path / "document"
    document.mkdir()
    runs.write(document, run, FACTS)
    process = child(document, tmp_path / "out")
    assert process.stdout is not None
    for _ in range(6):
        process.stdout.readline()
    process.terminate()
    seen = steps(process)
    assert process.wait() == 75
    saved = checkpoint.load_last(tmp_path / "out")
    assert saved is not None
    last = seen[-1] if seen else "1 2"
    assert [saved["epoch"], saved["step"]] == [int(n) for n in last.split()]


SLOW_TO_STOP = """
import sys, time
from pathlib import Path
from regnet.training.loop import start
from regnet.training.run import read
from regnet.training.session import Options

def step(at):
    print(at.epoch, at.step, flush=True)
    time.sleep(float(sys.argv[3]))

run, _ = read(Path(sys.argv[1]))
done = start(run, sys.argv[2], options=Options(on_step=step))
sys.exit(done.stopped_by or 0)
"""


def _signals_as_usual():
    """Reset the handlers of signals: a shell in the background lets its children ignore some."""
    for name in ("SIGINT", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def stopping(data, tmp_path, seconds, prefix=()):
    """Start a run that sleeps for a given time in each step, and return after its first step."""
    run = Run(model=TINY, recipe=replace(SHORT, epochs=40), train=str(data), val=None)
    (tmp_path / "document").mkdir()
    runs.write(tmp_path / "document", run, FACTS)
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", SLOW_TO_STOP, tmp_path / "document", tmp_path / "out",
         str(seconds)],
        stdout=subprocess.PIPE, text=True, preexec_fn=_signals_as_usual,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "0 1\n"
    return process


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_other_signals_save_a_checkpoint_too(data, tmp_path, name):
    number = getattr(signal, name)
    process = stopping(data, tmp_path, 0.5)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == number
    assert checkpoint.load_last(tmp_path / "out") is not None


@posix
@pytest.mark.slow
def test_a_second_signal_ends_the_run_and_an_ignored_one_does_not(data, tmp_path):
    process = stopping(data, tmp_path, 600, prefix=("nohup",))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_a_partly_written_checkpoint_is_not_loaded(data, tmp_path, caplog):
    out = tmp_path / "run"
    train(TINY, data, out, recipe=SHORT)
    last, before = reversed(checkpoint.saved_paths(out))
    expected = torch.load(before, weights_only=True)
    last.write_bytes(last.read_bytes()[:-5000])
    (out / "checkpoints/.0002-000000.pt.tmp123").write_bytes(b"half")
    saved = checkpoint.load_last(out)
    assert saved is not None
    assert saved["epoch"] == expected["epoch"] == 1
    before.write_bytes(b"")
    with pytest.raises(TrainingError, match="all 2 checkpoints are damaged; restore a copy"):
        resume(out)


@pytest.fixture(scope="module")
def interrupted(data, tmp_path_factory):
    """A run that was stopped in its second epoch, with two checkpoints."""
    out = tmp_path_factory.mktemp("interrupted") / "run"

    def stop(at):
        if (at.epoch, at.step) == (1, 2):
            signal.raise_signal(signal.SIGTERM)

    done = train(TINY, data, out, recipe=SHORT, save_steps=2, options=Options(on_step=stop))
    assert done.stopped_by == signal.SIGTERM
    assert len(checkpoint.saved_paths(out)) == 2
    return out


@times(50, 1000)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(
    interrupted, tmp_path, caplog, count
):
    out = tmp_path / "run"
    shutil.copytree(interrupted, out)
    before, last = checkpoint.saved_paths(out)
    expected = torch.load(before, weights_only=True)

    for _ in flipped_bits(last, count):
        caplog.clear()
        saved = checkpoint.load_last(out)
        assert saved is not None
        assert (saved["epoch"], saved["step"]) == (expected["epoch"], expected["step"])
        assert f"{last} cannot be used" in caplog.text


def test_a_resumed_run_reports_what_has_changed(interrupted, tmp_path, caplog):
    threads = torch.get_num_threads()
    out = tmp_path / "threads"
    shutil.copytree(interrupted, out)
    try:
        torch.set_num_threads(threads + 1)
        resume(out)
    finally:
        torch.set_num_threads(threads)
    assert f"threads: {threads}, now {threads + 1}" in caplog.text
    assert "will not be bit-identical" in caplog.text
    caplog.clear()
    out = tmp_path / "same"
    shutil.copytree(interrupted, out)
    resume(out)
    assert caplog.text == ""
    out = tmp_path / "no-log"
    shutil.copytree(interrupted, out)
    (out / "log.jsonl").unlink()
    assert len(resume(out).log) == SHORT.epochs - 1
    assert "log.jsonl has 0 of 1 epochs; the others are lost" in caplog.text
    out = tmp_path / "no-checkpoints"
    shutil.copytree(interrupted, out)
    shutil.rmtree(out / "checkpoints")
    resume(out)
    assert "no checkpoint is left; training starts from the beginning" in caplog.text
    assert same(out, tmp_path / "same")


@times(100, 500)
@pytest.mark.parametrize("name", ["run.json", "log.jsonl"])
def test_flipped_bits_of_a_run_are_refused(interrupted, tmp_path, name, count):
    """A file is refused in one line or has the same values (white space, unfinished last line)."""
    out = tmp_path / "run"
    shutil.copytree(interrupted, out)
    rows = documents.lines(out / "log.jsonl", "a row")

    expected = runs.read(out)
    for _ in flipped_bits(out / name, count):
        try:
            run = runs.read(out)
            found = loop._rows(out, 1)
        except (ConfigError, TrainingError) as error:
            assert name in str(error)  # noqa: PT017 - both outcomes are valid
        else:
            assert run == expected
            assert found in (rows, [])


@pytest.mark.slow
def test_only_one_training_at_a_time_uses_a_folder(data, tmp_path):
    """The second training names the owner of the folder, whichever of the two is first."""
    recipe = replace(SHORT, epochs=20)
    runs.write(tmp_path, Run(model=TINY, recipe=recipe, train=str(data), val=None), FACTS)
    processes = [child(tmp_path, tmp_path / "out") for _ in range(2)]
    errors = [process.communicate()[0] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes == [0, 1], errors
    assert len(documents.lines(tmp_path / "out/log.jsonl", "a row")) == 20


@posix
def test_a_full_disk_loses_no_progress(data, tmp_path):
    out = tmp_path / "run"
    rows = []

    def limit(row):
        rows.append(row)
        limit_file_size(1000)

    with file_sizes_restored(), pytest.raises(OSError, match="is the disk full") as error:
        train(TINY, data, out, recipe=SHORT, options=Options(on_epoch=limit))
    assert str(out) in str(error.value.filename)
    assert len(rows) == 1
    resume(out)
    train(TINY, data, tmp_path / "whole", recipe=SHORT)
    assert same(out, tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    with pytest.raises(TrainingError, match=r"not finite in epoch 1, step \d"):
        train(TINY, data, tmp_path / "run", recipe=replace(SHORT, lr=1e30, lr_per="step"))
    [kept] = (tmp_path / "run").glob("not-finite-*.pt")
    [batch] = torch.load(kept)
    assert batch["images"].shape == (12, 3, 16, 16)
    assert len(batch["indices"]) == 12


def test_too_little_memory_is_reported(data, tmp_path, monkeypatch):
    def forward(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("regnet.nn.model.AnyNet.forward", forward)
    with pytest.raises(TrainingError, match="12 images per pass; try micro_batch_size=6"):
        train(TINY, data, tmp_path / "run", recipe=SHORT)


def test_bad_input_is_refused(data, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty; it must contain one folder of images per class"):
        train(TINY, tmp_path / "empty", out, recipe=SHORT)
    write_folder(tmp_path / "one", 12, names=("red",))
    with pytest.raises(DataError, match="all images are of one class"):
        train(TINY, tmp_path / "one", out, recipe=SHORT)
    with pytest.raises(ConfigError, match="has 3 classes, but num_classes is 2"):
        train(TINY, data, out, recipe=SHORT, num_classes=2)
    with pytest.raises(DataError, match="48 training images do not fill one batch of 1024"):
        train(TINY, data, out, recipe=replace(SHORT, batch_size=1024))
    write_folder(tmp_path / "other/val", 6, names=("red", "pink", "blue"))
    with pytest.raises(DataError, match="not among the trained classes: pink"):
        train(TINY, data, out, recipe=SHORT, val=tmp_path / "other")
    with pytest.raises(DataError, match="no such file or folder"):
        train(TINY, tmp_path / "none", out, recipe=SHORT)
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        train(TINY, data, __file__, recipe=SHORT)
    with pytest.raises(ConfigError, match=r"there is no run.json"):
        resume(tmp_path / "empty")
    assert not out.exists()


def test_an_out_folder_that_cannot_be_written_is_refused(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Errno"):
        train(TINY, data, tmp_path / "file/out", recipe=SHORT)


TORCHRUN = (
    "import sys, json, torch; torch.set_num_threads(1)\n"
    "from pathlib import Path\n"
    "from regnet.training.loop import start, resume\n"
    "from regnet.training.run import read\n"
    "from regnet.training.session import Options\n"
    "run, _ = read(Path(sys.argv[1])); out = Path(sys.argv[2])\n"
    "told = lambda at: print(at.epoch, at.step, flush=True)\n"
    "options = Options(parallel=sys.argv[3], on_step=told, workers=1)\n"
    "done = resume(out, options=options) if (out / 'run.json').exists() else "
    "start(run, out, options=options)\n"
    "assert done.stopped_by in (None, 15)\n"
    "assert (done.stopped_by is None) == (len(done.log) == run.recipe.epochs)\n"
)


def torchrun_command(count: int, script: Path, *arguments: object) -> list[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
        script, *arguments,
    ]  # fmt: skip
    return [str(part) for part in command]


def torchrun(count: int, script: Path, *arguments: object) -> None:
    command = torchrun_command(count, script, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@posix
@pytest.mark.long
def test_sigterm_to_all_processes_and_their_workers(tmp_path):
    """A cluster sends the signal to all processes in the middle of an epoch."""
    write_folder(tmp_path / "data/train", 96, size=(70, 70))
    recipe = replace(STREAMED, epochs=3, micro_batch_size=6, lr=0.05)
    run = Run(model=TINY, recipe=recipe, train=str(tmp_path / "data"), val=None)
    runs.write(tmp_path, run, FACTS)
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(TORCHRUN)
    command = torchrun_command(2, script, tmp_path, out, "ddp")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.split() == ["1", "3"]:
            break
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate()
    saved = checkpoint.load_last(out)
    assert saved is not None
    assert (1, 3) <= (saved["epoch"], saved["step"]) < (3, 0)
    torchrun(2, script, tmp_path, out, "ddp")
    torchrun(2, script, tmp_path, tmp_path / "whole", "ddp")
    assert same(out, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", *long("fsdp")])
def test_two_processes_learn_what_one_learns(data, tmp_path, parallel):
    torch.set_num_threads(1)  # as under torchrun; rounding errors grow from step to step
    recipe = replace(SHORT, micro_batch_size=6, clip_norm=1.0)
    run = Run(model=TINY, recipe=recipe, train=str(data), val=str(data))
    start(run, tmp_path / "one")
    (tmp_path / "script.py").write_text(TORCHRUN)
    torchrun(2, tmp_path / "script.py", tmp_path / "one", tmp_path / "two", parallel)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(two[name], tensor, rtol=1e-2, atol=1e-3)
    rows = [documents.lines(tmp_path / which / "log.jsonl", "a row") for which in ("one", "two")]
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["lr"] == b["lr"]
    model = regnet.create(f"local-dir:{tmp_path / 'two/model'}", pretrained=True)
    torch.testing.assert_close(
        model.state_dict()["stem.conv.weight"], two["average.stem.conv.weight"]
    )


STREAMED = Recipe(
    epochs=1, batch_size=12, lr=0.2, warmup_epochs=0, image_size=16, min_area=0.5, policy="rand",
    erasing=0.25, repeats=2, precise_bn=0,
)  # fmt: skip


def test_large_images_are_streamed(tmp_path):
    write_folder(tmp_path / "data/train", 30, size=(70, 90), suffix=".jpg")
    write_folder(tmp_path / "data/val", 9, size=(90, 70), seed=1, suffix=".jpg")
    options = Options(workers=1)
    done = train(
        "regnety_cifar", tmp_path / "data", tmp_path / "a", recipe=STREAMED, options=options
    )
    assert done.log[0]["top1"] >= 0
    assert "unreadable" not in done.log[0]
    # The number of workers does not change the result.
    train(
        "regnety_cifar",
        tmp_path / "data",
        tmp_path / "b",
        recipe=STREAMED,
        options=Options(workers=0),
    )
    assert same(tmp_path / "a", tmp_path / "b")


def test_unreadable_images_are_replaced_and_reported(tmp_path):
    folder = write_folder(tmp_path / "train", 24, size=(70, 70))
    (folder / "red/0003.png").write_bytes(b"no image")
    recipe = replace(STREAMED, repeats=1)
    done = train(TINY, tmp_path, tmp_path / "out", recipe=recipe, options=Options(workers=1))
    [reason] = done.log[0]["unreadable"]
    assert "red/0003.png: not an image" in reason
    assert done.top1 is None
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^10 images in a row cannot be read; the last: "):
        train(TINY, tmp_path, tmp_path / "out2", recipe=recipe, options=Options(workers=1))


def test_unreadable_images_seen_before_a_stop_are_reported(tmp_path):
    folder = write_folder(tmp_path / "train", 24, size=(70, 70))
    (folder / "red/0003.png").write_bytes(b"no image")
    recipe = replace(STREAMED, repeats=1, batch_size=8)

    def stop(at):
        if at.step == at.steps:
            signal.raise_signal(signal.SIGINT)

    halted = Options(workers=1, on_step=stop)
    train(TINY, tmp_path, tmp_path / "out", recipe=recipe, options=halted)
    done = resume(tmp_path / "out", options=Options(workers=1))
    [reason] = done.log[0]["unreadable"]
    assert "red/0003.png: not an image" in reason


@linux
def test_a_class_whose_name_is_not_utf8_is_trained_and_saved(tmp_path):
    write_folder(tmp_path / "train", 12, size=(32, 32), names=("cat", "dog"))
    (tmp_path / "train/dog").rename(os.fsdecode(os.fsencode(tmp_path) + b"/train/\xff"))
    done = train(TINY, tmp_path, tmp_path / "out", recipe=replace(SHORT, epochs=1))
    model = regnet.create(f"local-dir:{tmp_path / 'out/model'}", pretrained=True)
    assert set(model.card.labels) == {"cat", "\\udcff"}
    assert done.top1 is None


def test_small_images_may_differ_in_size(tmp_path):
    write_folder(tmp_path / "train", 15, size=(70, 70))
    with pytest.raises(DataError, match="70 x 70 pixels are too large for the crop 'pad'"):
        train(TINY, tmp_path, tmp_path / "out", recipe=SHORT)
    write_folder(tmp_path / "train", 3, size=(32, 32))
    write_folder(tmp_path / "train", 15, size=(16, 16), names=("zebra",))
    with pytest.raises(DataError, match="has 70 x 70 pixels, others 32 x 32"):
        train(TINY, tmp_path, tmp_path / "out", recipe=SHORT)


def test_fine_tuning_begins_with_the_weights_that_a_name_stands_for(data, tmp_path):
    recipe = replace(SHORT, epochs=1, lr=1e-6, lr_per="step", ema_alpha=0.0, layer_decay=0.5)
    name = "regnety_cifar.cifar10"
    train(name, data, tmp_path / "tuned", recipe=recipe)
    run, _ = read(tmp_path / "tuned")
    assert run.pretrained
    before = regnet.create(name, pretrained=True).state_dict()
    after = regnet.create(f"local-dir:{tmp_path / 'tuned/model'}", pretrained=True)
    assert after.num_classes == 3
    torch.testing.assert_close(
        after.state_dict()["s1.b1.conv1.conv.weight"],
        before["s1.b1.conv1.conv.weight"],
        atol=1e-4,
        rtol=1e-3,
    )
    assert after.pretrained_cfg["mean"] == (0.4914, 0.4822, 0.4465)
    train("RegNetY-40MF (CIFAR)", data, tmp_path / "new", recipe=recipe)
    assert not read(tmp_path / "new")[0].pretrained  # a dot in a folder's name begins no tag


def test_training_does_not_change_the_callers_random_state(data, tmp_path):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    train(TINY, data, tmp_path / "run", recipe=replace(SHORT, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_image_is_used_once_an_epoch():
    from regnet.process_group import Group
    from regnet.training.input import Plan

    recipe = replace(RECIPES["cifar"], batch_size=8, micro_batch_size=4)
    groups = [Group(rank=r, size=2, device=torch.device("cpu")) for r in range(2)]
    plans = [Plan(images=50, recipe=recipe, seed=0, group=group) for group in groups]
    assert torch.equal(plans[0].epoch(3), plans[1].epoch(3))
    assert not torch.equal(plans[0].epoch(3), plans[0].epoch(4))
    order = plans[0].epoch(0)
    assert order.shape == (6, 2, 4)
    assert len(order.unique()) == 48
    assert [list(plan.passes) for plan in plans] == [[0], [1]]
    with pytest.raises(ConfigError, match=r"3 processes cannot share the 2 forward passes"):
        Plan(images=50, recipe=recipe, seed=0, group=replace(groups[0], size=3))
    repeated = Plan(images=50, recipe=replace(recipe, repeats=4), seed=0, group=groups[0]).epoch(0)
    assert repeated.shape == (6, 2, 4)
    assert len(repeated.unique()) == 12


def test_precise_batch_norm_is_the_average_over_its_images(data, tmp_path):
    recipe = replace(SHORT, epochs=1, precise_bn=48, ema_alpha=0.0, mixup=0.0, cutmix=0.0)
    train(TINY, data, tmp_path / "run", recipe=recipe)
    from regnet.process_group import Group
    from regnet.training.session import Session

    run, _ = read(tmp_path / "run")
    session = Session(run, Group(rank=0, size=1, device=torch.device("cpu")), Options())
    saved = checkpoint.load_last(tmp_path / "run")
    assert saved is not None
    session.state.restore(saved, leads=True)
    network = session.network.train()
    seen = []
    network.stem.conv.register_forward_hook(lambda _m, _i, out: seen.append(out.mean((0, 2, 3))))
    with torch.no_grad():
        for batch in session.input.batches(0):
            network(batch.images)
    torch.testing.assert_close(
        saved["model"]["stem.bn.running_mean"], torch.stack(seen).mean(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_works_on_a_gpu(data, tmp_path, precision):
    recipe = replace(
        SHORT, epochs=6, mixup=0.0, cutmix=0.0, drop_path_rate=0.0, ema_alpha=0.0, lr=2.0,
        clip_norm=5.0, precision=precision,
    )  # fmt: skip
    done = train(TINY, data, tmp_path / "run", recipe=recipe, options=Options(device="cuda"))
    assert done.top1 is not None
    assert done.top1 > 90
    assert resume(tmp_path / "run").top1 == done.top1


def test_images_that_have_moved_are_found_and_verified(interrupted, data, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(interrupted, out)
    shutil.copytree(data, tmp_path / "moved")
    run, _ = runs.read(out)
    assert run.train == str(data)
    resume(out, data=tmp_path / "moved")
    moved, _ = runs.read(out)
    assert (moved.train, moved.val) == (str(tmp_path / "moved"), str(tmp_path / "moved"))
    other = tmp_path / "other"
    shutil.copytree(interrupted, other)
    write_folder(tmp_path / "more/train", 60)
    write_folder(tmp_path / "more/val", 18, seed=1)
    with pytest.raises(DataError, match="not the images of the run"):
        resume(other, data=tmp_path / "more")
    assert runs.read(other)[0] == run


def test_relative_paths_are_those_of_the_run_wherever_it_is_resumed(data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "photos")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    train(TINY, "photos", "runs/a", recipe=replace(SHORT, epochs=1))
    assert documents.read(tmp_path / "runs/a/run.json", "")["run"]["train"] == "../../photos"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(resume(tmp_path / "runs/a").log) == 1
    again, facts = runs.read(Path("../runs/a"))
    assert start(again, "../runs/b", facts=facts).top1 is not None
    (tmp_path / "whole").mkdir()
    (tmp_path / "runs").rename(tmp_path / "whole/runs")
    (tmp_path / "photos").rename(tmp_path / "whole/photos")
    assert len(resume(tmp_path / "whole/runs/a").log) == 1


def test_more_outputs_than_classes_keep_the_names(data, tmp_path):
    train(TINY, data, tmp_path / "run", recipe=SHORT, num_classes=5)
    model = regnet.create(f"local-dir:{tmp_path / 'run/model'}", pretrained=True)
    assert model.card.labels == ("blue", "green", "red", "class 3", "class 4")
    assert regnet.evaluate(model, data).top1 == pytest.approx(
        regnet.evaluate(model, data / "val").top1
    )


def test_test_images_of_another_size_get_the_preprocessing_of_the_model(data, tmp_path):
    write_folder(tmp_path / "large", 18, size=(40, 40), seed=1)
    done = train(TINY, data, tmp_path / "run", recipe=SHORT, val=tmp_path / "large")
    model = f"local-dir:{tmp_path / 'run/model'}"
    assert done.log[-1]["average_top1"] == pytest.approx(
        regnet.evaluate(model, tmp_path / "large").top1
    )


@pytest.mark.parametrize("where", ["run", "recipe"])
def test_a_size_that_a_recipe_for_small_images_cannot_use_is_refused(data, tmp_path, where):
    recipe = replace(SHORT, image_size=64) if where == "recipe" else SHORT
    size = 64 if where == "run" else None
    with pytest.raises(ConfigError, match="of the size that they have, 16 x 16 pixels; leave"):
        train(TINY, data, tmp_path / "run", recipe=recipe, image_size=size)
    train(TINY, data, tmp_path / "same", recipe=replace(SHORT, epochs=1), image_size=16)


def test_test_images_cannot_be_added_to_a_run(data, tmp_path):
    train(TINY, data / "train", tmp_path / "run", recipe=replace(SHORT, epochs=1))
    with pytest.raises(ConfigError, match="has no test images, so they cannot be in /nowhere"):
        resume(tmp_path / "run", val="/nowhere")


def test_a_run_is_not_repeated_by_another_number_of_processes(data, tmp_path):
    train(TINY, data, tmp_path / "a", recipe=SHORT)
    run, facts = read(tmp_path / "a")
    with pytest.raises(ConfigError, match="the run is of 2 processes, and without micro"):
        start(run, tmp_path / "b", facts=replace(facts, processes=2))


def test_a_run_among_the_classes_is_refused(data, tmp_path):
    source = shutil.copytree(data / "train", tmp_path / "images")
    with pytest.raises(ConfigError, match="would become a class"):
        train(TINY, source, source / "run", recipe=SHORT)
    assert not (source / "run").exists()


def test_a_run_is_not_repeated_from_other_weights(data, tmp_path):
    recipe = replace(SHORT, epochs=1)
    train(TINY, data, tmp_path / "start", recipe=recipe)
    model = f"local-dir:{tmp_path / 'start/model'}"
    train(model, data, tmp_path / "a", recipe=recipe)
    run, facts = read(tmp_path / "a")
    start(run, tmp_path / "b", facts=facts)
    assert same(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "start")
    train(TINY, data, tmp_path / "start", recipe=recipe, seed=1)
    with pytest.raises(ConfigError, match="are not those that the run started from"):
        start(run, tmp_path / "c", facts=facts)
    resume(tmp_path / "a")  # it has weights of its own
