"""Tests of the package as users get it: cost of importing, public names, and archives."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import regnet
from regnet.weights.catalog import checkpoints, data_dir
from tests.marks import slow_fixture

ROOT = Path(__file__).parents[1]
PIP_INSTALL = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-I"]
HEAVY = ("fvcore", "torchvision", "timm", "matplotlib", "huggingface_hub", "typer", "rich")


def python(code, interpreter=sys.executable, cwd=None):
    result = subprocess.run(
        [interpreter, "-c", code], capture_output=True, text=True, check=True, cwd=cwd
    )
    return result.stdout.strip()


def test_importing_loads_no_heavy_package():
    code = f"import sys; from regnet import *; print([m for m in {HEAVY} if m in sys.modules])"
    assert python(code) == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import regnet",
        "from regnet.design.complexity import complexity",
        "import regnet; regnet.design",
        "from regnet.cli.main import main",
    ],
)
def test_torch_is_imported_when_it_is_needed(code):
    assert python(f"import sys; {code}; print('torch' in sys.modules)") == "False"
    needing = "regnet.create('regnetx_002', device='meta')"
    assert python(f"import sys, regnet; {code}; {needing}; print('torch' in sys.modules)") == "True"


@pytest.mark.parametrize(
    "words", ["--version", "--help", "list", "info regnety_016", "train --help", "predict"]
)
def test_commands_that_compute_nothing_need_no_torch(words):
    code = f"""
import sys
from regnet.cli.main import main

sys.argv[1:] = {words.split()}
sys.stdout = sys.stderr
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.__stdout__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False"
    assert done.returncode == (2 if words == "predict" else 0)


@pytest.mark.parametrize(
    "room", ["regnet.spaces", "regnet.design.complexity", "regnet.weights.card"]
)
def test_rooms_that_need_no_torch(room):
    assert python(f"import sys, {room}; print('torch' in sys.modules)") == "False"


def test_python_m_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "regnet", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"regnet {regnet.__version__}\n"


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'regnet' has no attribute 'creat'"):
        regnet.creat  # type: ignore[attr-defined]  # noqa: B018
    assert {"create", "regnet_y_16gf", "errors", "__version__"} <= set(dir(regnet))


def test_importing_changes_no_global_state():
    code = (
        "import torch; before = torch.get_rng_state(), torch.get_num_threads(), "
        "torch.get_default_dtype(), torch.is_grad_enabled(); import regnet; "
        "print(bool((before[0] == torch.get_rng_state()).all()), "
        "before[1:] == (torch.get_num_threads(), torch.get_default_dtype(), "
        "torch.is_grad_enabled()))"
    )
    assert python(code) == "True True"


def test_the_public_names_are_these():
    assert sorted(set(regnet.__all__) - set(regnet.zoo.factories.__all__)) == [
        "AnyNet",
        "AnyNetConfig",
        "Choice",
        "Chosen",
        "ClassScore",
        "Collected",
        "Complexity",
        "Evaluation",
        "Exported",
        "FeatureNet",
        "Limits",
        "ModelInfo",
        "Optimized",
        "Prediction",
        "Preprocess",
        "Recipe",
        "RegNet",
        "RegNetConfig",
        "Scaled",
        "StageConfig",
        "TrainOptions",
        "Trained",
        "choose",
        "complexity",
        "config_from_dict",
        "config_from_json",
        "create",
        "errors",
        "evaluate",
        "export",
        "find_recipe",
        "get_pretrained_cfg",
        "info",
        "is_model",
        "learn_latency",
        "list_models",
        "list_pretrained",
        "optimize",
        "predict",
        "predict_collection",
        "preprocess",
        "resume",
        "scale",
        "search",
        "train",
    ]
    assert all(hasattr(regnet, name) for name in regnet.__all__)
    assert not hasattr(regnet, "create.weights")


@pytest.fixture(scope="module")
@slow_fixture
def archives(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT],
        check=True,
        capture_output=True,
    )
    [wheel], [sdist] = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
def test_a_wheel_made_from_the_sdist_installs_and_predicts(archives, tmp_path):
    wheel, _ = archives
    venv.create(tmp_path / "env", with_pip=True, system_site_packages=False)
    interpreter = tmp_path / "env/bin/python"
    # The dependencies may come from the environment of the tests, but not the package itself.
    site = next((tmp_path / "env/lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
    subprocess.run(
        [interpreter, *PIP_INSTALL, wheel],
        check=True,
        capture_output=True,
    )
    where = python("import regnet; print(regnet.__file__)", interpreter, tmp_path)
    assert where.startswith(str(site))
    result = subprocess.run(
        [tmp_path / "env/bin/regnet", "predict", ROOT / "docs/photos/chelsea.png", "--topk", "1"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "cat" in result.stdout


@pytest.mark.slow
def test_archives_contain_what_they_need(archives):
    wheel, sdist = archives
    row = next(iter(checkpoints().values()))
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    expected = {
        "regnet/py.typed",
        "regnet/zoo/factories.pyi",
        "regnet/weights/data/embedded.json",
        f"regnet/weights/data/{row.file}",
    }
    assert expected.issubset(names)
    assert not [name for name in names if "tests" in name or "runs" in name]
    with tarfile.open(sdist) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert {f"weights/{row.file}", "LICENSE", "README.md", "Makefile"}.issubset(inside)


def test_an_editable_install_finds_its_data():
    assert data_dir() == ROOT / "weights"


def test_the_citation_has_this_version():
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {regnet.__version__}\n" in citation
