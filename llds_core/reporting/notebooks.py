"""Runs the notebooks of a profile and lists what they made.

Each notebook goes through papermill with the standard parameters, in a kernel of this very Python,
whatever kernels the machine has installed. Beside the executed copy lies its HTML. `index.json`
names every artefact with its notebook and the runs it came from.
"""

import base64
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from tqdm.auto import tqdm

from llds_core.config import load_experiment
from llds_core.config.given import numbers, words
from llds_core.errors import ConfigError, DataError, RunError
from llds_core.files import NOTEBOOKS, disk_errors, project_path, write_json, write_text
from llds_core.machine.jobs import end_with_parent, visible_gpus
from llds_core.reporting.artefacts import KINDS, RECORDED_BY, small_png, take_records
from llds_core.reporting.store import is_published, load_runs
from llds_core.runs import Run

MAIN_ARMS = ("grpo", "llds-action")
_MOST_HTML = 100_000  # characters of one output in git
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
    """Run every notebook and write `index.json`; return its path.

    Runs that are missing below `run_root` are trained. `out_dir` is `results/<profile>` unless
    given.
    """
    seeds, methods = numbers(seeds), words(methods)
    if not seeds or not methods:
        raise ConfigError("a report needs at least one seed and one method: give --seeds, e.g. 0")
    for method in methods:
        load_experiment(f"{profile}/{method}", overrides)
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
    there = is_published(run_root, profile) or all(
        Run.load(f"{profile}/{method}", seed, run_root, overrides).is_finished()
        for method in methods
        for seed in seeds
    )
    # Two notebooks would train one run, or share a GPU.
    pages = _run_notebooks(sources, parameters, target, 2 if there and not visible_gpus() else 1)
    found = take_records(target)
    for name, made in pages.items():
        # The pages show the runs of all that their notebook recorded.
        shown = {r for entry in found.values() if entry["notebook"] == name for r in entry["runs"]}
        entry = {"runs": shown, "notebook": name}
        found |= {page: entry | {"kind": KINDS[page.suffix]} for page in made}
    artefacts: list[dict[str, Any]] = []
    for path, entry in sorted(found.items(), key=lambda item: (item[1]["notebook"], item[0])):
        known = {"path": path.relative_to(target).as_posix(), "bytes": path.stat().st_size}
        artefacts.append(entry | known)
    runs = load_runs(project_path(run_root), profile, methods, seeds, overrides)
    for artefact in artefacts:
        artefact["runs"] = [str(run.path) for run in runs if run.name in artefact["runs"]]
    kept = ("profile", "method", "seed", "config_hash", "status")
    listed = [{"path": str(run.path)} | {key: run.manifest[key] for key in kept} for run in runs]
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
    pages: dict[str, list[Path]] = {}
    with (
        tqdm(total=len(ordered), desc="notebooks", unit="notebook") as bar,
        ProcessPoolExecutor(at_once, get_context("spawn"), end_with_parent) as pool,
    ):
        futures = {
            pool.submit(run_notebook, source, parameters, target / "notebooks"): source.name
            for source in ordered
        }
        try:
            for future in as_completed(futures):
                pages[futures[future]] = future.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return pages


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
        reason = _in_one_line(f"{error.ename}: {error.evalue}")
        where = f"notebook {source.name} failed in cell {error.exec_count}"
        raise RunError(f"{where}: {reason} (as far as it went: {executed})") from error
    except RuntimeError as error:
        # The kernel did not start, or died: nbclient and papermill both say so with this type.
        raise RunError(
            f"notebook {source.name} lost its kernel: {_in_one_line(error)} "
            "(free memory, then run it again)"
        ) from error
    page, _ = HTMLExporter().from_filename(str(executed))
    write_text(executed.with_suffix(".html"), page)
    return [executed, executed.with_suffix(".html")]


def store_outputs(executed: Path, source: Path, of: Path) -> None:
    """Copy what the cells of an executed notebook show into the notebook itself, pictures small,
    and what it was made of, `outputs_digest`; pages within a page stay out.
    """
    shown = {cell.id: cell.get("outputs", []) for cell in nbformat.read(executed, 4).cells}
    notebook = nbformat.read(source, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_small(output) for output in shown[cell.id]]
    notebook.metadata["llds"] = {
        **notebook.metadata.get("llds", {}),
        "outputs": outputs_digest(source, of),
    }
    write_text(source, nbformat.writes(notebook, 4) + "\n")


def outputs_digest(source: Path, of: Path) -> str:
    """Sixteen hex digits of a notebook's code and of the published tables in folder `of`."""
    cells = [c.source for c in nbformat.read(source, 4).cells if c.cell_type == "code"]
    tables = [(of / f"{name}.csv").read_bytes() for name in ("runs", "claims")]
    return hashlib.sha256(json.dumps(cells).encode() + b"".join(tables)).hexdigest()[:16]


def _small(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    output.pop("execution_count", None)
    if output.output_type == "execute_result":
        output.execution_count = None
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = base64.b64encode(
            small_png(base64.b64decode(data["image/png"]))
        ).decode()
    if len(data.get("text/html", "")) > _MOST_HTML:
        data["text/html"] = "<p><i>Run this cell to see it.</i></p>"
    return output


def _read_notebook(source: Path) -> nbformat.NotebookNode:
    """A notebook, whatever editor has saved it."""
    try:
        notebook = nbformat.reads(source.read_text("utf-8-sig"), 4)
        nbformat.validate(notebook)
    except Exception as error:  # which one depends on what stands there
        reason = _in_one_line(error)[:120]
        raise DataError(f"{source} is not a notebook ({reason}): restore it") from error
    return notebook


def _in_one_line(error: object) -> str:
    return " ".join(str(error).split())


def _portable(path: Path) -> str:
    """`path` from the project's root when below it: executed notebooks then name no machine."""
    absolute, root = Path(path).absolute(), project_path(".")
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)
