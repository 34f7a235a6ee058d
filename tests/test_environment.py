"""The files that describe the environment agree with each other."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
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
