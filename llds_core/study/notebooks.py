"""Runs the notebooks of a profile and lists what they made.

Each notebook goes through papermill with the standard parameters, in a kernel of this very Python,
whatever kernels the machine has installed. Beside the executed copy lies its HTML. `index.json`
names every artefact with its notebook and the runs it came from.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from tqdm.auto import tqdm

from llds_core.config.arms import MAIN_ARMS
from llds_core.errors import ConfigError, DataError, RunError, one_line
from llds_core.files import NOTEBOOKS, disk_errors, project_path, write_json, write_text
from llds_core.machine.jobs import end_with_parent, visible_gpus
from llds_core.reporting.artefacts import KINDS, RECORDED_BY, take_records
from llds_core.reporting.store import is_published, load_runs
from llds_core.runs import Run

# What a reader can do nothing about: pictures without a text for the blind.
for _name in ("papermill", "traitlets"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class _ThisPython(AsyncKernelManager):
    """Starts a kernel of the running interpreter, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The specification, made here; the kernel's own log stays off the screen."""
        return KernelSpec(**get_kernel_dict(extra_arguments=["--log-level=CRITICAL"]))


def report(
    profile: str,
    seeds: Sequence[int],
    run_root: Path,
    out_dir: Path | None = None,
    *,
    methods: Sequence[str] = MAIN_ARMS,
    overrides: Sequence[str] = (),
) -> Path:
    """Run every notebook and write `index.json` into `out_dir` or `results/<profile>`; return its
    path. Runs that are missing below `run_root` are trained.
    """
    runs = [Run.load(f"{profile}/{m}", s, run_root, overrides) for m in methods for s in seeds]
    folder = project_path(NOTEBOOKS)
    sources = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not sources:
        raise ConfigError(
            f"{folder} holds no notebook NN_topic.ipynb: run this in the project's folder"
        )
    target = Path("results") / profile if out_dir is None else Path(out_dir)
    parameters = {
        "profile": profile,
        "methods": list(methods),
        "seeds": list(seeds),
        "overrides": list(overrides),
        "run_root": _portable(run_root),
        "out_dir": _portable(target),
    }
    take_records(target)  # those of an earlier call that failed
    there = is_published(run_root, profile) or all(run.is_finished() for run in runs)
    # Two notebooks would train one run, or share a GPU.
    pages = _run_notebooks(sources, parameters, target, 2 if there and not visible_gpus() else 1)
    found = take_records(target)
    for name, made in pages.items():
        # The pages show the runs of all that their notebook recorded.
        shown = {r for entry in found.values() if entry["notebook"] == name for r in entry["runs"]}
        entry = {"runs": shown, "notebook": name}
        found |= {page: entry | {"kind": KINDS[page.suffix]} for page in made}
    stored = load_runs(project_path(run_root), profile, methods, seeds, overrides)
    artefacts = []
    for path, entry in sorted(found.items(), key=lambda item: (item[1]["notebook"], item[0])):
        known = {"path": path.relative_to(target).as_posix(), "bytes": path.stat().st_size}
        behind = [str(run.path) for run in stored if run.name in entry["runs"]]
        artefacts.append(entry | known | {"runs": behind})
    kept = ("profile", "method", "seed", "config_hash", "status")
    listed = [{"path": str(run.path)} | {key: run.manifest[key] for key in kept} for run in stored]
    index = target / "index.json"
    write_json(index, {"profile": profile, "artefacts": artefacts, "runs": listed})
    return index


def _run_notebooks(
    sources: Sequence[Path], parameters: Mapping[str, Any], target: Path, at_once: int
) -> dict[str, list[Path]]:
    """Run all notebooks, some at once, those of most cells first so that none is waited for at the
    end; return what `run_notebook` made of each, by name.
    """
    ordered = sorted(sources, key=lambda source: -len(_read_notebook(source).cells))
    run = partial(run_notebook, parameters=parameters, out_dir=target / "notebooks")
    with ProcessPoolExecutor(at_once, get_context("spawn"), end_with_parent) as pool:
        made = tqdm(pool.map(run, ordered), "notebooks", len(ordered), unit="notebook")
        return dict(zip((source.name for source in ordered), made, strict=True))


def run_notebook(source: Path, parameters: Mapping[str, Any], out_dir: Path) -> list[Path]:
    """Execute one notebook from the project's root; write the executed copy, as far as it went
    where a cell fails, and its HTML. Returns the two paths.
    """
    import papermill
    from nbconvert import HTMLExporter
    from papermill.exceptions import PapermillExecutionError

    notebook = _read_notebook(source)
    executed = out_dir / source.name
    os.environ[RECORDED_BY] = source.name  # for the kernel
    with disk_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            notebook,
            executed,
            dict(parameters),
            kernel_name="python3",
            language="python",
            kernel_manager_class=_ThisPython,
            cwd=project_path("."),
            coalesce_streams=True,
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        reason = one_line(f"{error.ename}: {error.evalue}", 1000)
        where = f"notebook {source.name} failed in cell {error.exec_count}"
        raise RunError(f"{where}: {reason} (as far as it went: {executed})") from error
    except RuntimeError as error:
        # The kernel did not start, or died: nbclient and papermill both say so with this type.
        raise RunError(
            f"notebook {source.name} lost its kernel: {one_line(error)} "
            "(free memory, then run it again)"
        ) from error
    page, _ = HTMLExporter().from_filename(str(executed))
    write_text(executed.with_suffix(".html"), page)
    return [executed, executed.with_suffix(".html")]


def _read_notebook(source: Path) -> nbformat.NotebookNode:
    """A notebook, whatever editor has saved it."""
    try:
        notebook = nbformat.reads(source.read_text("utf-8-sig"), 4)
        nbformat.validate(notebook)
    except Exception as error:  # which one depends on what stands there
        raise DataError(f"{source} is not a notebook ({one_line(error)}): restore it") from error
    return notebook


def _portable(path: Path) -> str:
    """`path` from the project's root when below it: executed notebooks then name no machine."""
    absolute, root = Path(path).absolute(), project_path(".")
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)
