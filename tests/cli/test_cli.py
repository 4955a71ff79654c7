"""Tests of the command as people run it, by its output and its exit code."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regnet.cli import info, list_models, predict
from tests.command import refused, regnet, regnet_process
from tests.faults import limit_file_size
from tests.marks import linux, long, posix
from tests.pictures import write_folder

PHOTO = Path(__file__).parents[2] / "docs/photos/chelsea.png"


def test_predict_prints_a_table():
    result = regnet_process("predict", PHOTO, "--topk", "2")
    assert result.returncode == 0
    assert result.stderr == ""
    assert re.search(r"chelsea.png\s+\d+\.\d % +cat\s+\d+\.\d % +\w+", result.stdout)


def test_predict_prints_json_and_nothing_else():
    result = regnet("predict", PHOTO, "--json", "--topk", "1")
    [row] = json.loads(result.stdout)
    assert row["image"] == str(PHOTO)
    assert row["error"] is None
    assert row["classes"][0]["label"] == "cat"
    assert row["classes"][0]["index"] == 3


@pytest.fixture
def folder(tmp_path):
    """A folder with two good images, one of them in a subfolder, two bad ones, and another file."""
    (tmp_path / "deep").mkdir()
    shutil.copy(PHOTO, tmp_path / "b.png")
    shutil.copy(PHOTO, tmp_path / "deep/C.PNG")
    (tmp_path / "a.jpg").write_text("text")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.txt").write_text("not looked at")
    return tmp_path


def test_a_bad_file_in_a_folder_is_reported_and_the_rest_classified(folder):
    result = regnet("predict", folder, "--json")
    lines = refused(result, 1, "a.jpg: not an image", "empty.jpg: the file is empty")
    assert len(lines) == 2
    rows = json.loads(result.stdout)
    assert [Path(row["image"]).name for row in rows] == ["a.jpg", "b.png", "C.PNG", "empty.jpg"]
    assert [bool(row["error"]) for row in rows] == [True, False, False, True]


@pytest.mark.parametrize("name", ["[red]a.png", ":cat: é.png", "-b.png"])
def test_odd_file_names_are_printed_as_they_are(tmp_path, name):
    shutil.copy(PHOTO, tmp_path / name)
    result = regnet("predict", ".", "--topk", "1", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.splitlines()[0].strip() == name
    (tmp_path / name).write_text("text")
    refused(regnet("predict", "--", name, cwd=tmp_path), 1, f"error: {name}: not an image")


def test_paths_come_from_stdin(folder):
    paths = f"\ufeff{folder}/b.png\n\n{folder}/deep\n"
    result = regnet("predict", "-", "--json", stdin=paths)
    assert result.returncode == 0
    assert len(json.loads(result.stdout)) == 2


def test_a_folder_without_images_is_reported(tmp_path):
    result = regnet("predict", tmp_path)
    refused(result, 2, f"{tmp_path}: no image files in this folder")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["predict", "none.jpg"], 2, ["none.jpg: no such file or directory"]),
        (["predict", PHOTO, "--model", "regnety_16"], 2, ["'regnety_16'", "did you mean"]),
        (["predict", PHOTO, "--model", "resnet50"], 2, ["no weights of resnet50"]),
        (["predict", PHOTO, "--topk", "11"], 2, ["between 1 and the number of classes, 10"]),
        (["info", "regnet_y_1_6g"], 2, ["there is no variant 'regnet_y_1_6g'"]),
        (
            ["info", "regnety_016", "--plot", "/none/x.svg"],
            2,
            ["/none/x.svg: there is no folder /none"],
        ),
        (["info", "regnety_016", "--plot", "x.doc"], 2, ["x.doc", ".svg, .png, .pdf"]),
        (["info", "regnety_016", "--plot", "x.pgf"], 2, ["x.pgf"]),
        (["list", "nothing*"], 1, ["no network matches 'nothing*'"]),
        (["predict", "-"], 2, ["no paths on stdin"]),
        (["predict", "https://a.b/c.jpg"], 2, ["https://a.b/c.jpg: this is an address"]),
        (["list", "--family", "vit"], 2, ["there is no family 'vit'"]),
    ],
)
def test_a_failure_is_explained_in_one_line(args, code, words, tmp_path):
    lines = refused(regnet(*args, cwd=tmp_path), code, *words)
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["Usage"]),
        (["predict"], ["Missing argument"]),
        (["predict", PHOTO, "--topk", "0"], ["--topk"]),
        (["list", "--max-flops", "4X"], ["4e9, 4G or 600M", "'4X'"]),
        (["trian"], ["No such command 'trian'"]),
        (["info", "regnety_016", "--image-size", "0"], ["--image-size"]),
    ],
)
def test_wrong_usage_is_explained(args, words):
    result = regnet(*args)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stdout + result.stderr


def test_debug_shows_the_traceback():
    result = regnet_process("--debug", "info", "nothing")
    assert "Traceback" in result.stderr
    assert "ConfigError" in result.stderr


@posix
def test_a_full_disk_is_reported_and_leaves_no_partial_file(tmp_path):
    result = regnet_process(
        "info", "regnety_016", "--plot", tmp_path / "x.svg",
        preexec_fn=lambda: limit_file_size(100),
    )  # fmt: skip
    refused(result, 1, "x.svg", "File too large")
    assert list(tmp_path.iterdir()) == []


def test_list_prints_a_table():
    result = regnet("list", "regnety_*", "--max-flops", "1.7G")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["name", "paper"]
    assert any(line.split()[:2] == ["regnety_016", "RegNetY-1.6GF"] for line in lines)
    assert not any("regnety_032" in line for line in lines)


def test_list_prints_json():
    rows = json.loads(regnet("list", "--family", "regnetx", "--json").stdout)
    assert len(rows) == 13
    assert rows[0]["name"] == "regnetx_002"
    assert rows[0]["complexity"]["flops"] == 199_040_872
    assert rows[0]["config"]["w0"] == 24


@pytest.mark.parametrize("name", ["regnetx_004", "regnetz_d8", "resnet50", "regnety_cifar"])
def test_info_prints_stages_and_cost(name):
    result = regnet("info", name)
    assert result.returncode == 0
    for word in ("stage", "depth", "flops", "params", "activations", "weights", "aliases"):
        assert word in result.stdout


def test_info_prints_json():
    data = json.loads(regnet("info", "regnet_x_400mf", "--json").stdout)
    assert data["info"]["name"] == "regnetx_004"
    assert [stage["width"] for stage in data["stages"]] == [32, 64, 160, 384]
    assert len(data["blocks"]) == 22


@pytest.mark.parametrize("name", ["regnetx_004", "resnet50"])
def test_info_draws_the_block_widths(name, tmp_path):
    path = tmp_path / "widths.svg"
    result = regnet("info", name, "--plot", path)
    assert result.returncode == 0
    assert f"wrote {path}" in result.stderr
    assert path.read_text().count("<path") > 10


def test_version():
    result = regnet("--version")
    assert re.fullmatch(r"regnet \d+\.\d+\.\d+\S*\n", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", *long(">&-", "<&-", "2>&-")])
def test_closed_streams_do_not_crash_the_command(closed):
    command = f"{sys.executable} -m regnet predict {PHOTO} {closed}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr == ""


@pytest.mark.slow
def test_characters_that_the_terminal_cannot_show_are_escaped(tmp_path):
    path = tmp_path / "ünï\x1b[31m.png"
    shutil.copy(PHOTO, path)
    result = regnet_process("predict", path, env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "\\xfcn\\xef\\x1b[31m.png" in result.stdout


def test_a_closed_pipe_is_not_an_error():
    command = f"{sys.executable} -m regnet list --json | head -1"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert result.stdout == "[\n"
    assert result.stderr == ""


@pytest.mark.parametrize("module", [info, list_models, predict], ids=lambda m: m.__name__)
def test_examples_in_the_help_run(module, folder):
    example = re.search(r"Example: regnet (.*)", module.command.__doc__)[1]
    shutil.copy(PHOTO, folder / "photo.jpg")
    (folder / "deep").rename(folder / "holiday")
    result = regnet(*(word.strip("'") for word in example.split()), cwd=folder)
    assert result.returncode == 0, result.stderr


@posix
@pytest.mark.parametrize("words", ["list --json", "list", "info regnety_016 --json"])
def test_a_reader_that_closes_the_pipe_early_is_not_a_failure(words):
    """A reader such as `head -1` closes the pipe after the first line."""
    command = f"set -o pipefail; {sys.executable} -m regnet {words} | head -c 1 > /dev/null"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


FIRST_SECONDS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us may ignore it
import regnet.cli
print("up", flush=True)
regnet.cli.run()
"""


@posix
@pytest.mark.long
@pytest.mark.parametrize("count", [60])
def test_ctrl_c_in_the_first_seconds_prints_one_line(count):
    """Ctrl-C can arrive while Python imports modules, where it would print a traceback."""
    rng = random.Random(0)
    for _ in range(count):
        process = subprocess.Popen(
            [sys.executable, "-c", FIRST_SECONDS, "predict", str(PHOTO)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        # Before this line, Python itself starts up, which we cannot change.
        assert process.stdout.readline() == "up\n"
        time.sleep(rng.uniform(0, 3))
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode in (0, 130, -signal.SIGINT)
        assert told in ("", "error: interrupted\n")


def test_errors_after_a_handled_ctrl_c_are_reported():
    """An example is a benchmark that is stopped and then cannot write its document."""
    code = SWALLOWED.replace("    raise", "    regnet.cli.interrupt.handled()\n    raise")
    done = subprocess.run(
        [sys.executable, "-c", code.format(error="ConfigError")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: a consequence\n")


SWALLOWED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us may ignore it
import regnet.cli, regnet.cli.main
from regnet.errors import ConfigError

def app():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pass  # as an import inside NumPy does
    raise {error}("a consequence")

regnet.cli.main.app = app
regnet.cli.run()
"""


@posix
@pytest.mark.parametrize("error", ["ConfigError", "AttributeError", "OSError", "MemoryError"])
def test_ctrl_c_that_another_library_swallowed_is_reported_in_one_line(error):
    """An interrupted import leaves unfinished modules, which fail later with another error."""
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED.format(error=error)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, *long(0)])
def test_too_little_memory_is_reported_in_one_line(tmp_path, workers):
    import resource  # not available on Windows

    write_folder(tmp_path, 48, names=("cat", "dog", "frog"))
    done = regnet_process(
        "evaluate", tmp_path, "--image-size", 4000, "--batch-size", 16, "--workers", workers,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (5 * 10**9, 5 * 10**9)),
    )  # fmt: skip
    [line] = refused(done, 1, "not enough memory")
    assert line.startswith("error: ")


@posix
def test_work_goes_on_when_nobody_reads_the_progress(tmp_path):
    command = (
        f"{sys.executable} -m regnet train shapes --out run --set epochs=1 --set batch_size=16 "
        "--train-images 48 --val-images 12 --model regnety_cifar 2> >(head -c 1 > /dev/null)"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "run/model/model.safetensors").exists()


@posix
def test_a_link_that_leads_to_itself_is_one_unreadable_image(folder):
    (folder / "loop.jpg").symlink_to("loop.jpg")
    shutil.copy(PHOTO, folder / "photo.jpg")
    result = regnet("predict", ".", "--json", cwd=folder)
    by_name = {Path(row["image"]).name: row for row in json.loads(result.stdout)}
    assert by_name["photo.jpg"]["classes"]
    assert by_name["loop.jpg"]["error"]


@pytest.mark.parametrize("option", ["--keep", "--calibrate"])
def test_an_output_folder_does_not_become_a_class(tmp_path, option):
    write_folder(tmp_path / "set/val", 4, names=("a", "b"))
    done = regnet("evaluate", "set", option, "set/val/c", "--model", "regnety_cifar", cwd=tmp_path)
    refused(done, 2, "set/val/c")


TABLE = Path(__file__).parents[2] / "benchmarks/results/order/order.parquet"

WRITES = (
    ("bench", "--quick", "--out"),
    ("bench", "--quick", "--html"),
    ("bench", "--quick", "--plot"),
    ("choose", "--latency-ms", "10", "--html"),
    ("choose", "--latency-ms", "10", "--plot"),
    ("evaluate", "photos", "--out"),
    ("export", "regnety_cifar"),
    ("info", "regnety_cifar", "--plot"),
    ("predict", "photos", "--out"),
    ("search", "--flops", "4M", "--out"),
    ("study", "export", "study"),
    ("study", "report", TABLE, "--out"),
    ("train", "shapes", "--out", "run", "--plot"),
    ("weights", "convert", "weights.pth"),
)
"""Commands that end in the option or argument for a file that they write."""


@pytest.mark.parametrize("words", WRITES, ids=lambda words: " ".join(map(str, words)))
def test_outputs_are_checked_before_the_work(words, tmp_path):
    (tmp_path / "taken").mkdir()
    refused(regnet(*words, "taken", cwd=tmp_path), 2, "taken is a folder; name a file")
    refused(regnet(*words, "no/file", cwd=tmp_path), 2, "there is no folder no; create it first")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_two_outputs_need_two_files(tmp_path):
    done = regnet("bench", "--quick", "--out", "a", "--html", "./a", cwd=tmp_path)
    refused(done, 2, "a is named for two outputs")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("search", "--flops", ""), "there is an empty value after --flops"),
        (("bench", "--models="), "there is an empty value after --models"),
        (("bench", "--models", ","), "',' names nothing"),
        (("study", "init", ""), "there is an empty value after init"),
        (("predict", PHOTO, ""), "there is an empty value after"),
        (("bench", "--quick", "compare", "a", "b"), "--quick stands before the subcommand"),
        (("bench", "--json", "compare", "a", "b"), "--json stands before the subcommand"),
        (("study", "init", "study", "--tolerance", "0.2"), "--tolerance needs --flops"),
        (("study", "init", "study", "--replicated", "4"), "--replicated needs --replicas"),
        (("predict", PHOTO, "--out", "a.parquet", "--split", "train"), "--split chooses images"),
        (("evaluate", "{folder}", "--dataset", "imagenet"), "no published data set 'imagenet'"),
        (("search", "--flops", "4M", "--pareto", "{folder}"), "exists already; name a new folder"),
        (("predict", PHOTO, "--model", "{folder}"), "contains no config.json"),
    ],
)
def test_values_without_effect_are_refused(words, message, tmp_path):
    write_folder(tmp_path / "photos", 4, names=("cat", "dog"))
    words = [str(word).format(folder=tmp_path / "photos") for word in words]
    refused(regnet(*words, cwd=tmp_path), 2, message)


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, *long(signal.SIGHUP)])
def test_a_signal_ends_a_command_in_order(number, tmp_path):
    command = [sys.executable, "-m", "regnet", "export", "regnety_cifar", "model.onnx"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        while not list(tmp_path.glob(".model.onnx*")) and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(number)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-drop", "1"), "--max-drop limits int8; add --precision int8"),
        (("--min-agreement", "0.9"), "--min-agreement limits int8"),
        (
            ("--precision", "int8", "--images", "x", "--max-drop", "1"),
            "--max-drop limits the loss of accuracy on --data",
        ),
        (("--random", "--checkpoint", "x.pth"), "--random and --checkpoint both choose"),
    ],
)
def test_options_of_an_export_without_effect_are_refused(tmp_path, options, message):
    refused(regnet("export", "regnety_cifar", "a.onnx", *options, cwd=tmp_path), 2, message)
