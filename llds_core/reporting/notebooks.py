"""Runs the notebooks of a profile and lists what they made.

Each notebook goes through papermill with the standard parameters, in a kernel of this very Python,
whatever kernels the machine has installed. Beside the executed copy lies its HTML. `index.json`
names every artefact with its notebook and the runs it came from.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from llds_core.config import load_experiment
from llds_core.errors import ConfigError, DataError, RunError, did_you_mean
from llds_core.files import disk_errors, write_json, write_text
from llds_core.reporting.store import StoredRun, is_published, load_runs

NOTEBOOKS = Path("notebooks")
_MARKER = NOTEBOOKS / "00_quickstart.ipynb"
MAIN_ARMS = ("grpo", "llds-action")
# They talk to trained policies, which are not published.
_NEED_POLICIES = ("00_quickstart.ipynb",)
# They show measurements on checkpoints, which nobody makes for published runs, and of which one of
# a large policy takes hours.
_NEED_MEASUREMENTS = ("03_mechanism.ipynb",)
# Without ipywidgets a progress bar is a line of text, which is all it has to be.
warnings.filterwarnings("ignore", message="IProgress not found")
_KINDS = {".png": "figure", ".pdf": "figure", ".csv": "data", ".ipynb": "notebook", ".html": "page"}


class _ThisPython(AsyncKernelManager):
    """Starts a kernel of the running interpreter, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The specification, made here."""
        return KernelSpec(**get_kernel_dict())


def project_path(path: str | Path) -> Path:
    """Resolve `path` against the root of the project, from there as well as from `notebooks/`.

    Absolute paths stay. Outside of a project, relative ones count from the working directory.
    """
    return _root() / path


def report(
    profile: str,
    seeds: Sequence[int],
    run_root: Path,
    out_dir: Path | None = None,
    *,
    methods: Sequence[str] = ("grpo", "llds-action"),
    overrides: Sequence[str] = (),
    notebooks_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run every notebook and write `index.json`.

    Args:
        profile: name of a profile.
        seeds: seeds of every method.
        run_root: folder of all runs; what is missing is trained.
        out_dir: folder of the output; None for `results/<profile>`.
        methods: methods to compare.
        overrides: changes to every run.
        notebooks_dir: folder of `NN_topic.ipynb`; None for those of the project.
        progress: show progress.

    Returns:
        The path of the index.

    Raises:
        ConfigError: for an unknown profile or method, no seed, a folder without notebooks, or a
            notebook that lacks a standard parameter.
        RunError: when a notebook fails, naming it, the cell and the error, or when the output
            cannot be written.
    """
    if not seeds or not methods:
        raise ConfigError("a report needs at least one seed and one method: give --seeds, e.g. 0")
    for method in methods:
        config = load_experiment(f"{profile}/{method}", overrides)
    folder = _short(project_path(notebooks_dir or NOTEBOOKS))
    sources = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    published = is_published(project_path(run_root), profile)
    left_out = _NEED_POLICIES if published else ()
    if published or config.policy.path or overrides:
        from llds_core.diagnostics.measure import mechanism_path

        # Measurements know no overrides.
        folders = [mechanism_path(project_path(run_root), profile, seed) for seed in seeds]
        if overrides or not any(map(Path.is_dir, folders)):
            left_out += _NEED_MEASUREMENTS
            print(
                f"{_NEED_MEASUREMENTS[0]} is left out: no checkpoint of these seeds is "
                f"measured (python -m llds_core mechanism {profile} does it)"
            )
    sources = [source for source in sources if source.name not in left_out]
    if not sources:
        raise ConfigError(
            f"{folder} holds no notebook NN_topic.ipynb: run this in the project's folder"
        )
    out_dir = Path("results") / profile if out_dir is None else out_dir
    target = Path(out_dir)
    parameters = {
        "profile": profile,
        "methods": list(methods),
        "seeds": list(seeds),
        "overrides": list(overrides),
        "run_root": _portable(run_root),
        "out_dir": _portable(target),
    }
    made: dict[str, list[Path]] = {}
    for source in sources:
        before = _snapshot(target)
        run_notebook(source, parameters, target / "notebooks", progress=progress)
        after = _snapshot(target)
        made[source.name] = [path for path in after if before.get(path) != after[path]]
    index = target / "index.json"
    runs = load_runs(project_path(run_root), profile, methods, seeds, overrides)
    artefacts = _artefacts(made, target, runs)
    write_json(index, {"profile": profile, "artefacts": artefacts, "runs": _described(runs)})
    return index


def is_rendered(index: Path, runs: Sequence[Path]) -> bool:
    """Whether `index` lists exactly `runs`, and none of them or of the notebooks changed since."""
    if not index.exists():
        return False
    listed = {project_path(run["path"]) for run in json.loads(index.read_text("utf-8"))["runs"]}
    if listed != {project_path(run) for run in runs}:
        return False
    names = ("manifest.json", "metrics.jsonl", "evaluation-*.json", "benchmarks/*/summary.json")
    sources = [file for run in runs for name in names for file in run.glob(name)]
    sources += project_path(NOTEBOOKS).glob("*.ipynb")
    made = index.stat().st_mtime_ns
    return all(source.stat().st_mtime_ns <= made for source in sources)


def run_notebook(
    source: Path, parameters: Mapping[str, Any], out_dir: Path, *, progress: bool = True
) -> list[Path]:
    """Execute one notebook from the project's root; write the executed copy and its HTML.

    Returns:
        The two paths.

    Raises:
        ConfigError: for a parameter that the notebook does not declare.
        DataError: for a file that is no notebook.
        RunError: when a cell fails; the executed copy up to there is kept.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    _check_parameters(source, parameters)
    executed = out_dir / source.name
    with disk_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            source,
            executed,
            dict(parameters),
            kernel_name="python3",
            kernel_manager_class=_ThisPython,
            cwd=_root(),
            coalesce_streams=True,
            progress_bar={"desc": source.stem} if progress else False,
        )
    except PapermillExecutionError as error:
        reason = " ".join(f"{error.ename}: {error.evalue}".split())
        raise RunError(
            f"notebook {source.name} failed in cell {error.exec_count}: {reason} "
            f"(as far as it went: {executed})"
        ) from error
    except RuntimeError as error:
        # The kernel did not start, or died: nbclient and papermill both say so with this type.
        reason = " ".join(str(error).split())
        raise RunError(
            f"notebook {source.name} lost its kernel: {reason} (free memory, then run it again)"
        ) from error
    return [executed, _write_html(executed)]


def _check_parameters(source: Path, parameters: Mapping[str, Any]) -> None:
    import papermill

    try:
        declared = papermill.inspect_notebook(source)
    except FileNotFoundError:
        raise ConfigError(f"no notebook at {source}: name one of the folder {NOTEBOOKS}") from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{source} is not a notebook ({reason}): restore it") from error
    for name in parameters:
        if name not in declared:
            raise ConfigError(
                f'notebook {source.name} has no parameter "{name}": {did_you_mean(name, declared)}'
            )


def _write_html(notebook: Path) -> Path:
    import nbformat
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(nbformat.read(notebook, as_version=4))
    path = notebook.with_suffix(".html")
    write_text(path, page)
    return path


def _artefacts(
    made: Mapping[str, Sequence[Path]], root: Path, runs: Sequence[StoredRun]
) -> list[dict[str, Any]]:
    """Every file by notebook. A table names its runs, and so speaks for the files it drew; one
    without the columns of runs has none.
    """
    by_key = {(run.profile, run.arm, run.seed): str(run.path) for run in runs}
    entries = []
    for notebook, paths in made.items():
        tables = {
            path.with_suffix(""): _runs_of(path, by_key) for path in paths if path.suffix == ".csv"
        }
        of_notebook = [
            run for run in by_key.values() if any(run in held for held in tables.values())
        ]
        entries += [
            {
                "path": path.relative_to(root).as_posix(),
                "kind": _KINDS.get(path.suffix, "file"),
                "bytes": path.stat().st_size,
                "notebook": notebook,
                "runs": tables.get(path.with_suffix(""), of_notebook),
            }
            for path in sorted(paths)
        ]
    return entries


def _runs_of(table: Path, by_key: Mapping[tuple[str, str, int], str]) -> list[str]:
    columns = ["profile", "method", "seed"]
    header = set(pd.read_csv(table, nrows=0))
    if "runs" in header:
        named = {name for cell in pd.read_csv(table)["runs"] for name in cell.split(";")}
        return [path for (_, arm, seed), path in by_key.items() if f"{arm}-seed{seed}" in named]
    if not set(columns) <= header:
        return []  # numbers of a paper
    keys = pd.read_csv(table, usecols=columns).drop_duplicates()
    present = set(keys[columns].itertuples(index=False, name=None))
    return [path for key, path in by_key.items() if key in present]


def _described(runs: Sequence[StoredRun]) -> list[dict[str, Any]]:
    kept = ("profile", "method", "seed", "config_hash", "status")
    return [{"path": str(run.path)} | {key: run.manifest[key] for key in kept} for run in runs]


def _snapshot(folder: Path) -> dict[Path, int]:
    """Time of the last change of every file below `folder`, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def _portable(path: Path) -> str:
    """`path` from the project's root when below it: executed notebooks then name no machine."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(_root()) if absolute.is_relative_to(_root()) else absolute)


def _short(path: Path) -> Path:
    """`path` from the working directory when below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _root() -> Path:
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / _MARKER).exists()), here)
