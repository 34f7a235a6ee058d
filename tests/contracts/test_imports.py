"""The house: which room stands on which floor, what an import costs, how long a file may be."""

import ast
import graphlib
import importlib.resources
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(str(importlib.resources.files("llds_core")))
MODULES = sorted(PACKAGE.rglob("*.py"))
LIGHT = ("", ".config", ".runs", ".worlds", ".retrieval", ".monitor", ".__main__")
HEAVY = ("vllm", "trl", "faiss", "torch", "transformers", "pandas")
# What notebooks of stored runs import: a kernel waits for no framework.
OF_STORED_RUNS = (".study.runner", ".study.tables", ".reporting.mechanism_figures")
NOT_FOR_THEM = ("vllm", "trl", "faiss", "transformers", "jsonschema")

# A room imports rooms of lower floors, and none of its own floor.
FLOORS = (
    {"errors", "losses"},
    {"files", "config", "integrations"},
    {"worlds"},
    {"runs", "retrieval"},
    {"rollout", "machine"},
    {"diagnostics", "evaluation"},
    {"training", "reporting", "monitor"},
    {"study", "bench"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS, 1) for room in rooms}
# Packages that only these rooms import.
OWNERS = {
    "trl": {"training", "bench", "integrations"},  # the bench measures TRL's own beside ours
    "skyrl": {"integrations"},
    "verl": {"integrations"},
    "vllm": {"rollout"},
    "faiss": {"retrieval"},
    "fastapi": {"retrieval"},
    "papermill": {"study"},
    "typer": {"__main__", "config", "study", "monitor"},
}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}
EACH = pytest.mark.parametrize("path", MODULES, ids=list(NAMES))


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@cache
def imported(path: Path) -> set[str]:
    """Full names of what `path` imports anywhere, lazily or not."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively: write the full name"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in NAMES} - {""} == set(FLOOR)


@EACH
def test_a_room_imports_rooms_of_lower_floors_only(path: Path) -> None:
    own = room(name_of(path))
    used = {room(name) for name in imported(path) if name.startswith("llds_core.")} & set(FLOOR)
    assert {other for other in used - {own} if FLOOR[other] >= FLOOR.get(own, 0)} == set()
    if own == "integrations":
        assert used <= {"losses", "errors", own}
    if own == "losses":
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots - set(sys.stdlib_module_names) <= {"torch", "llds_core"}


def test_no_files_import_each_other_in_a_circle() -> None:
    # The face of a room hands names on and is no further file of a loop.
    files = {name for name, path in NAMES.items() if path.name != "__init__.py"}
    graph = {name: imported(NAMES[name]) & files - {name} for name in files}
    graphlib.TopologicalSorter(graph).prepare()


def test_no_two_files_share_a_name_and_none_is_named_like_the_standard_library() -> None:
    names = [path.stem for path in MODULES if path.stem not in ("__init__", "__main__")]
    assert len(names) == len(set(names)) and not set(names) & set(sys.stdlib_module_names)


@pytest.mark.parametrize("package", OWNERS)
def test_a_package_is_imported_by_its_owners_only(package: str) -> None:
    for name, path in NAMES.items():
        if package in {found.split(".")[0] for found in imported(path)}:
            assert room(name) in OWNERS[package], name


@pytest.mark.parametrize(("light", "heavy"), [(LIGHT, HEAVY), (OF_STORED_RUNS, NOT_FOR_THEM)])
def test_light_modules_load_nothing_heavy(light: Sequence[str], heavy: Sequence[str]) -> None:
    code = f"""
import importlib, sys
for module in {light!r}:
    importlib.import_module("llds_core" + module)
    assert not [name for name in {heavy!r} if name in sys.modules], module
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_house_stays_small() -> None:
    # What it measures today. Only a new capability may raise it, or refusing what misleads a user.
    assert sum(len(path.read_text("utf-8").splitlines()) for path in MODULES) <= 22_938
    readme = PACKAGE.parent / "README.md"
    assert len(readme.read_text("utf-8").splitlines()) <= 220 and readme.stat().st_size <= 15_000


@EACH
def test_a_file_is_short_and_knows_no_machine_and_no_global_generator(path: Path) -> None:
    """Of torch's own generator only `build_policy` knows, which forks it for transformers."""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    assert not re.findall(r"(?<![\w.:/…])/(work|home|root|Users|mnt|opt|data|shared)(/|\b)", text)
    drawn = r"\b(?:np|numpy)\.random\.(?!default_rng|Generator)\w+|^import random$|set_seed\("
    drawn += r"|torch\.manual_seed" if path.name != "policies.py" else ""
    assert not re.findall(drawn, text, re.M)
