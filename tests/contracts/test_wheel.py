"""The package as others install it: the wheel alone, beside torch and numpy, or beside TRL."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from given_policies import save_one_layer_policy
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
USE = """
import sys, torch
from llds_core.losses import group_advantages, llds_penalty, policy_loss
old = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
new = (old - 0.1).requires_grad_()
mask = torch.ones(2, 2)
penalty, _ = llds_penalty(new, old, mask, torch.tensor([1.0, -1.0]))
penalty.backward()
assert penalty > 0 and (new.grad[0] < 0).all() and (new.grad[1] == 0).all()
assert not {"transformers", "pandas", "pydantic", "yaml", "trl"} & set(sys.modules)
"""


def needed_by(*names: str) -> set[str]:
    """Distributions that `names` need, themselves among them."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop().lower()
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found


# What stands on the path of the tests is not what the wheel brings.
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "llds_core", source / "llds_core")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*PIP, *wheel], check=True)
    (built,) = folder.glob("llds_core-*.whl")
    return built


def environment(folder: Path, wheel: Path, *names: str) -> Path:
    """Python of a fresh environment that holds the wheel, what `names` need and nothing else."""
    venv.create(folder / "env", with_pip=False)
    (packages,) = folder.glob("env/lib/python3*/site-packages")
    for name in needed_by(*names):
        distribution = importlib.metadata.distribution(name)
        for top in {Path(file).parts[0] for file in distribution.files or ()} - {".."}:
            if top != "__pycache__" and not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    interpreter = folder / "env/bin/python"
    report = folder / "report.json"
    install = ["--python", str(interpreter), "install", "--report", str(report), str(wheel)]
    subprocess.run([*PIP, *install], check=True, env=ALONE)
    moved = [item["metadata"]["name"] for item in json.loads(report.read_text("utf-8"))["install"]]
    assert moved == ["llds-core"]  # whatever torch, numpy and transformers were there stay
    return interpreter


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    return environment(tmp_path_factory.mktemp("losses"), wheel, "torch", "numpy")


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
GIVEN_LOSSES = """
import torch
old_logprobs, response_mask = torch.zeros(2, 3), torch.ones(2, 3)
logprobs = (old_logprobs - 0.1).requires_grad_()
advantages, policy_loss = torch.tensor([1.0, -1.0]), logprobs.sum()
"""
GIVEN_TRL = """
import functools, trl
from datasets import Dataset
# A processor and seconds; the rest is TRL's.
small = {"use_cpu": True, "bf16": False, "max_steps": 8, "max_completion_length": 8}
trl.GRPOConfig = functools.partial(trl.GRPOConfig, **small)
model, dataset = "policy", Dataset.from_dict({"prompt": ["one", "two"] * 4})
def reward(completions, **_):
    return [float("e" in text) for text in completions]
"""
TRAINED = """
names = {name for row in trainer.state.log_history for name in row}
assert {"llds/penalty", "llds/gated_fraction", "llds/gated_fraction_first"} <= names
assert "llds/change_rewarded_by_others" in names
"""


def test_the_readme_s_lines_and_the_losses_work_beside_torch_and_numpy_alone(python, tmp_path):
    code = f"{GIVEN_LOSSES}{BLOCKS[0]}loss.backward()\n{USE}"
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path, env=ALONE)


def test_the_readme_s_lines_train_beside_trl_and_nothing_else(wheel, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("trl")
    python = environment(folder, wheel, "trl")
    save_one_layer_policy(folder / "policy")
    code = GIVEN_TRL + BLOCKS[1] + TRAINED
    settings = ALONE | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([python, "-c", code], check=True, cwd=folder, env=settings)


def test_a_log_is_diagnosed_with_the_monitor_extra_and_no_trainer(wheel, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("monitor")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = [Requirement(text).name for text in project["optional-dependencies"]["monitor"]]
    python = environment(folder, wheel, "torch", "numpy", *names)
    log, page = ROOT / "results/published/collapse-runs/example-verl.log", folder / "page.html"
    command = [python.with_name("llds"), "diagnose", str(log), "--html", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=ALONE)
    assert done.returncode == 0, done.stderr
    assert "phase: " in done.stdout and "<svg" in page.read_text("utf-8")
    code = "import llds_core.monitor.live"  # what `llds watch` draws with
    subprocess.run([python, "-c", code], check=True, cwd=folder, env=ALONE)


def test_the_command_says_in_one_line_what_else_it_needs(python: Path, tmp_path: Path) -> None:
    command = [python.with_name("llds"), "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install llds-core[run]" in done.stderr
