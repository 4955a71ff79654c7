"""Tests of `regnet study` and `regnet search`, as a person uses them."""

import json
import re

import pytest

import regnet.selection.search as searching
from regnet.cli.networks import Networks
from regnet.cli.progress import ProgressBar
from regnet.design.complexity import complexity
from regnet.design.config import config_from_dict
from regnet.spaces import LatencyModel, find_space, sample
from regnet.studies import population
from regnet.studies.store import Row
from tests.command import refused, regnet
from tests.pictures import write_folder

pytestmark = pytest.mark.xdist_group("study")  # one process trains the study for all tests

SMALL = (
    "--flops", "3e5", "--tolerance", "1", "--restrict", "d=:8", "--stem", "cifar",
    "--stem-width", "8", "--recipe", "cifar", "--set", "epochs=1", "--set", "warmup_epochs=0",
    "--set", "batch_size=12", "--set", "clean_epochs=0", "--set", "precision=fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder / "train", 36)
    write_folder(folder / "val", 12, seed=1)
    return folder


@pytest.fixture(scope="module")
def study(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("studies") / "first"
    done = regnet(
        "study", "init", out, "--data", data, "--space", "anynetx_a", "--space", "regnetx",
        "--models", "2", *SMALL, "--workers", "2", "--run",
    )  # fmt: skip
    assert "4 networks of 2 spaces" in done.stderr
    assert "[4/4]" in done.stderr
    assert "left" in done.stderr
    assert "the first is" in done.stdout
    assert (out / "report.html").exists()
    return out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "needs at least one network, got none"),
        ("[1]", "is not a JSON list of networks"),
        ('[{"depth": 3}]', "is not a JSON list of networks"),
        ("[", "is not a JSON list of networks"),
    ],
)
def test_files_that_list_no_networks_are_refused(tmp_path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text)
    refused(regnet("study", "init", tmp_path / "s", "--configs", path), 2, "mine", message)
    assert not (tmp_path / "s").exists()


def test_init_estimates_how_long_a_study_takes(tmp_path):
    """The estimate follows from multiply-adds, images and epochs, worked out by hand here."""
    done = regnet(
        "study", "init", tmp_path / "s", "--space", "regnetx", "--models", 2, "--flops", "4M",
        "--stem", "cifar", "--train-images", 6000, "--recipe", "cifar", "--workers", 1,
        "--set", "epochs=4", code=0,
    )  # fmt: skip
    seconds = 2 * 3.8e6 * 3 * 6000 * 4 / 1e10
    [said] = re.findall(r"about (\d+) s on 1 core: a rough guess", done.stderr)
    assert float(said) == pytest.approx(seconds, rel=0.06)


def test_the_number_of_stages_can_be_chosen(tmp_path):
    words = ("--models", 3, "--flops", "4M", "--stem", "cifar", "--recipe", "cifar", "--stages", 3)
    spaces = ("--space", "anynetx_a", "--space", "regnetx", "--restrict", "d3=1:4")
    regnet("study", "init", tmp_path / "s", *spaces, *words, code=0)
    study = population.read(tmp_path / "s")
    for name in ("anynetx_a", "regnetx"):
        for row in study.rows(name):
            assert len(config_from_dict(row.config).anynet().stages) == 3
            assert row.metrics["d3"] <= 4
    refused(
        regnet("study", "init", tmp_path / "t", *spaces[:4], "--restrict", "d4=1:2", *words),
        2, "no parameter or metric 'd4'",
    )  # fmt: skip


def test_a_study_needs_something_to_train(tmp_path):
    refused(regnet("study", "init", tmp_path / "s"), 2, "needs a space or given networks")


@pytest.mark.slow
def test_status_reports_the_progress_of_a_study(study):
    done = regnet("study", "status", study, "--json")
    assert json.loads(done.stdout) == {"anynetx_a": {"done": 2}, "regnetx": {"done": 2}}
    assert "regnetx" in regnet("study", "run", study).stdout  # everything is trained already


@pytest.mark.slow
def test_an_analysis_is_a_table_or_a_document(study):
    text = regnet("study", "analyze", study).stdout
    assert "95 % of the best" in text
    found = json.loads(regnet("study", "analyze", study, "--json").stdout)
    assert found["spaces"]["regnetx"]["models"] == 2
    assert found["pairs"][0]["first"] == "regnetx"
    assert "low" in found["spaces"]["regnetx"]["best"]["wm"]


@pytest.mark.slow
def test_reports_plots_and_tables(study, tmp_path):
    regnet("study", "report", study, "--out", tmp_path / "r.html", "--plots", tmp_path / "plots")
    assert "<svg" in (tmp_path / "r.html").read_text()
    assert (tmp_path / "plots/edf.svg").exists()
    done = regnet("study", "export", study, tmp_path / "t.csv")
    assert done.stdout.endswith("t.csv: 4 networks\n")


@pytest.mark.slow
def test_a_refined_space_is_added_and_trained(study):
    done = regnet("study", "refine", study, "regnetx", "--metric", "b", "--name", "narrower")
    assert "2 networks of narrower" in done.stderr
    regnet("study", "resume", study, "--workers", "1")
    found = json.loads(regnet("study", "status", study, "--json").stdout)
    assert found["narrower"] == {"done": 2}
    done = regnet("study", "recover", study, code=0)
    assert "the former file is now" in done.stderr  # it was not damaged
    assert json.loads(regnet("study", "status", study, "--json").stdout) == found


@pytest.mark.slow
def test_failed_networks_are_reported_and_only_failures_are_an_error(data, tmp_path):
    done = regnet(
        "study", "init", tmp_path / "a b", "--data", data, "--space", "regnetx", "--models", "2",
        *SMALL, "--set", "lr=1e30", "--workers", "1", "--run", code=1,
    )  # fmt: skip
    assert "2 networks failed, the first of regnetx: TrainingError: the loss is not" in done.stderr
    hint = f"`regnet study run '{tmp_path}/a b' --retry-failed` trains them again"
    assert hint in done.stderr


def test_a_restriction_applies_to_the_spaces_that_have_the_parameter(data, tmp_path):
    regnet(
        "study", "init", tmp_path / "s", "--data", data, "--space", "anynetx_a", "--space",
        "regnetx", "--models", "1", *SMALL, "--restrict", "wm=2:", "--restrict", "wm=:2.5",
    )  # fmt: skip
    document = json.loads((tmp_path / "s/study.json").read_text())
    wm = document["spaces"][1]["parameters"]["wm"]
    assert (wm["low"], wm["high"]) == (2, 2.5)


def test_a_space_may_be_a_file(data, tmp_path):
    space = find_space("regnetx").restrict(b=1).to_dict() | {"name": "mine"}
    (tmp_path / "mine.json").write_text(json.dumps(space))
    regnet("study", "init", tmp_path / "s", "--data", data, "--space", tmp_path / "mine.json",
           "--models", "1", "--flops", "400M")  # fmt: skip
    assert "mine" in regnet("study", "status", tmp_path / "s").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--space", "regnetq"), 2, "there is no space 'regnetq'; did you mean 'regnet"),
        (("--space", "regnetx", "--restrict", "d"), 2, "--restrict needs name=low:high"),
        (("--space", "regnetx", "--restrict", "q=3"), 2, "no parameter or metric 'q'"),
        (("--space", "regnetx", "--restrict", "d=nan:"), 2, "an end that is not a number"),
        (("--space", "regnetx", "--final"), 2, "depend on flops; say how many"),
        (("--space", "regnetx", "--recipe", "cifra"), 2, "did you mean 'cifar'"),
        (("--space", "regnetx", "--executor", "k8s", "--run"), 2, "there are local, ray, slurm"),
        (("--space", "regnetx", "--device", "cuda", "--run"), 2, "no CUDA GPU"),
        (("--space", "regnetx", "--slurm", "a=b"), 2, "--slurm needs --executor slurm; add it"),
        (("--space", "regnetx", "--gpus", "0.5"), 2, "--gpus needs --executor ray; add it"),
        (("--configs", "nets.json", "--flops", "4M"), 2, "--flops only restricts a space; the net"),
        (("--configs", "nets.json", "--final"), 2, "--final only restricts a space; the networks"),
    ],
)
def test_wrong_usage_is_explained_in_one_line(data, tmp_path, arguments, code, message):
    done = regnet("study", "init", tmp_path / "s", "--data", data, *arguments, code=code)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("option", [("--set", "epochs=7"), ("--train-images", "10")])
def test_an_objective_takes_no_options_of_training(tmp_path, option):
    done = regnet(
        "study", "init", tmp_path / "s", "--space", "regnetx", "--objective", "judges:judge",
        "--trust", *option, code=2,
    )  # fmt: skip
    assert f"{option[0]} is only for training on images, and the objective trains" in done.stderr
    assert not (tmp_path / "s").exists()


SMALL_ERRORS = """
def judge(parameters, seed, device):
    return 1e-6 * parameters.depth
"""


def test_small_values_of_an_objective_can_be_told_apart(tmp_path):
    (tmp_path / "small_errors.py").write_text(SMALL_ERRORS)
    nets = tmp_path / "nets.json"
    found = sample(find_space("regnetx").restrict(d=(None, 16)), 4).configs
    nets.write_text(json.dumps([config.to_dict() for config in found]))
    regnet(
        "study", "init", "s", "--configs", nets, "--objective", "small_errors:judge",
        "--image-size", "32", "--trust", "--run", cwd=tmp_path, code=0,
    )  # fmt: skip
    table = regnet("study", "analyze", "s", cwd=tmp_path, code=0).stdout
    depths = [sum(config.depths) for config in found]
    assert f"{1e-6 * min(depths):.4g}" in table
    [row, *_] = population.load(tmp_path / "s")["nets"].rows
    assert row.metrics["flops"] == complexity(config_from_dict(row.config), 32).flops
    page = (tmp_path / "s/report.html").read_text()
    assert f"{1e-6 * min(depths):.6g}" in page


def test_a_folder_without_a_study_is_refused(tmp_path):
    for command in ("run", "status", "analyze", "report", "recover"):
        done = regnet("study", command, tmp_path, code=2)
        assert "there is no study.json; name the folder of a study" in done.stderr


@pytest.mark.slow
def test_a_search_prints_and_writes_what_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "CANDIDATES", 200)
    monkeypatch.setattr("regnet.cli.progress.QUIET_SECONDS", 0.0)
    best = tmp_path / "best.json"
    options = (
        "--flops", "8e6", "--latency-ms", "1e4", "--image-size", "32", "--engine", "folded",
        "--probes", "8", "--finalists", "2", "--seconds", "0.02", "--seed", "1", "--out", best,
    )  # fmt: skip
    done = regnet("search", *options)
    assert "regnety_004" in done.stdout
    assert "ranked by a latency model with a median error of" in done.stdout
    assert "probes: " in done.stderr
    assert "kind" in json.loads(best.read_text())
    told = regnet("info", best, "--image-size", "32").stdout
    assert "best" in told


def test_a_search_needs_a_limit_and_a_place_for_its_answer(tmp_path):
    assert "a search needs a limit" in regnet("search", code=2).stderr
    done = regnet("search", "--flops", "1M", "--out", tmp_path / "best.cfg", code=2)
    assert "--out must name a .json file" in done.stderr


def test_a_study_can_limit_latency_and_reports_the_error_of_its_model(monkeypatch, data, tmp_path):
    def learn(space, **_):
        networks = sample(space, 12)
        return LatencyModel.fit(networks.latency_features, 1 + networks.metric("d"), of="a law")

    monkeypatch.setattr("regnet.studies.population.learn_latency", learn)
    done = regnet("study", "init", tmp_path / "s", "--data", data, "--space", "regnetx", "--models",
                  "2", *SMALL, "--latency-ms", 7, code=0)  # fmt: skip
    assert "regnetx: latencies are predicted (a law) with a median error of" in done.stderr
    rows = json.loads((tmp_path / "s/study.json").read_text())["spaces"][0]
    assert rows["limits"]["latency_ms"] == [None, 7.0]
    refused(regnet("study", "init", tmp_path / "t", "--data", data, "--space", "regnetx",
                   "--latency-ms", -1), 2, "latency_ms")  # fmt: skip


def test_the_line_of_a_network_has_the_error_that_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(population, "progress", lambda folder: (1, 2))
    epochs = [{"epoch": 1, "top1": 30.0}, {"epoch": 2, "top1": 20.0}]
    row = Row(
        id=0, space="regnetx", number=3, config={}, metrics={}, seed=0, status="done",
        outcome={"error": 70.0, "epochs": epochs},
    )  # fmt: skip
    with ProgressBar("training") as bar:
        Networks(tmp_path, bar).result(row)
    assert "[1/2] regnetx 3: 80.00 % error" in capsys.readouterr().err
