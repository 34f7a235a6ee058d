"""The package as others install it: the wheel alone, beside torch and numpy."""

import importlib.metadata
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
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


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment that holds the wheel, torch, numpy and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = folder / "source"
    shutil.copytree(ROOT / "llds_core", source / "llds_core")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *wheel], check=True)
    (built,) = folder.glob("llds_core-*.whl")
    venv.create(folder / "env", with_pip=False)
    (packages,) = folder.glob("env/lib/python3*/site-packages")
    for name in needed_by("torch", "numpy"):
        distribution = importlib.metadata.distribution(name)
        for top in {Path(file).parts[0] for file in distribution.files or ()} - {".."}:
            if top != "__pycache__" and not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    interpreter = folder / "env/bin/python"
    install = ["--python", str(interpreter), "install", "--no-deps", str(built)]
    subprocess.run([*pip, *install], check=True)
    return interpreter


def test_the_loss_works_beside_torch_and_numpy_alone(python: Path, tmp_path: Path) -> None:
    subprocess.run([python, "-c", USE], check=True, cwd=tmp_path)


def test_the_command_says_in_one_line_what_else_it_needs(python: Path, tmp_path: Path) -> None:
    command = [python.with_name("llds"), "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install llds-core[run]" in done.stderr
