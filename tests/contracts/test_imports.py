"""Who may import whom, what an import costs, and how long a module may be."""

import ast
import importlib.resources
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(str(importlib.resources.files("llds_core")))
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in MODULES]
HEAVY = ("vllm", "trl", "faiss", "torch", "transformers")

# A room may import rooms of lower layers, itself, and nothing else of the package.
LAYERS = (
    {
        "errors",
        "files",
        "markdown",
        "seeding",
        "config",
        "config_checks",
        "config_sections",
        "studies",
        "checkpoints",
        "packaged",
        "deviations",
        "provenance",
        "run_identity",
        "runs",
    },
    {"worlds", "retrieval", "rewards", "losses"},
    {"rollout"},
    {"diagnostics"},
    {"training"},
    {"evaluation", "mechanism", "reporting"},
    {
        "cli",
        "cli_options",
        "commands",
        "reproduce",
        "jobs",
        "layouts",
        "model_shapes",
        "plan",
        "plan_memory",
        "plan_time",
        "launch",
        "queue",
        "bench",
        "bench_baselines",
        "benchmark_commands",
        "benchmark_jobs",
        "retriever_process",
        "costs",
        "slurm",
        "bench_faults",
        "bench_service",
        "bench_engines",
        "bench_retrieval",
        "doctor",
        "__main__",
    },
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Within a layer, or stricter than the layers.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "markdown": set(),
    "seeding": set(),
    "provenance": set(),
    "config": {"errors", "config_checks", "config_sections"},
    "config_sections": set(),
    "studies": {"config", "errors"},
    "config_checks": {"errors", "config"},  # config for its types only
    "checkpoints": {"config", "errors", "seeding"},
    "packaged": {"errors"},
    "deviations": {"config", "run_identity"},
    "runs": {"config", "deviations", "errors", "files", "provenance", "run_identity"},
    "run_identity": {"config", "errors"},
    "losses": set(),
    "rewards": set(),
    "worlds": {"errors", "files", "seeding", "config", "runs", "rewards"},
    "retrieval": {"errors", "files", "markdown", "seeding", "config", "worlds"},
    "evaluation": {room for room in LEVEL if LEVEL[room] < 5},
    "mechanism": {room for room in LEVEL if LEVEL[room] < 5},
    "reporting": {room for room in LEVEL if LEVEL[room] < 5} | {"evaluation", "mechanism"},
    "__main__": {"cli"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the modules that `path` imports anywhere, lazily or not."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively: write the full name"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def rooms_of(path: Path) -> set[str]:
    found = {name.split(".")[1] for name in imported(path) if name.startswith("llds_core.")}
    return found & set(LEVEL) - {room(path)}


def test_every_room_has_a_layer() -> None:
    rooms = {room(path) for path in MODULES} - {"__init__", "presets"}
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_point_downwards(path: Path) -> None:
    if path.parent == PACKAGE and path.name == "__init__.py":
        allowed: set[str] = set()
    else:
        own = room(path)
        below = {other for other in LEVEL if LEVEL[other] < LEVEL[own] or LEVEL[own] == 6}
        allowed = ALLOWED.get(own, below)
    assert rooms_of(path) <= allowed


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "losses").glob("*.py")), ids=lambda path: path.name
)
def test_losses_need_torch_and_nothing_else(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "llds_core"}


@pytest.mark.parametrize("name", ["vllm", "trl", "faiss"])
def test_no_module_imports_a_heavy_package_beside_its_owners(name: str) -> None:
    """`trl` belongs to training, and to the bench that measures its stock trainer beside ours."""
    owners = {room(path) for path in MODULES if name in {n.split(".")[0] for n in imported(path)}}
    assert (
        owners <= {"trl": {"training", "bench"}, "vllm": {"rollout"}, "faiss": {"retrieval"}}[name]
    )


@pytest.mark.parametrize(
    "module", ["llds_core", "llds_core.config", "llds_core.runs", "llds_core.cli"]
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=name,
        )
        for path, name in zip(MODULES, NAMES, strict=True)
    ],
)
def test_no_module_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_no_module_names_a_file_outside_the_project(path: Path) -> None:
    absolute = re.compile(r"""(?<![\w.:/…])/(work|home|root|Users|mnt|opt|data|shared)(/|\b)""")
    assert not absolute.findall(path.read_text("utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_no_module_draws_from_a_global_generator(path: Path) -> None:
    """Streams of `llds_core.seeding` only; `build_policy` forks the global one for transformers."""
    text = path.read_text("utf-8")
    drawn = re.findall(
        r"\b(?:np|numpy)\.random\.(?!default_rng|Generator)\w+|^import random$|set_seed\(",
        text,
        re.M,
    )
    drawn += re.findall(r"torch\.manual_seed", text) if path.name != "checkpoints.py" else []
    assert not drawn
