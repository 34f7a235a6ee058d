"""Stored runs as tables: the only way figures, tables and notebooks get at numbers."""

import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llds_core.config import Study, load_study, studies
from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import DataError
from llds_core.files import project_path
from llds_core.runs import FINAL, Run, read_manifest, read_metrics
from llds_core.runs.identity import diverged

PUBLISHED = Path("results/published")


@dataclass(frozen=True, eq=False)
class StoredRun:
    """One stored run, finished or not, published or as it was made.

    Attributes:
        path: its directory.
        manifest: what it is and how it was made.
        metrics: one row a step, one column per metric; NaN where nothing was measured.
    """

    path: Path
    manifest: dict[str, Any]
    metrics: pd.DataFrame

    @property
    def profile(self) -> str:
        """Profile of the run."""
        return self.manifest["profile"]

    @property
    def method(self) -> str:
        """Method of the run."""
        return self.manifest["method"]

    @property
    def arm(self) -> str:
        """Its arm in a study; a run outside of studies is an arm by its method."""
        return self.manifest.get("arm", self.method)

    @property
    def label(self) -> str:
        """How its study calls its arm; empty outside of studies."""
        return self.manifest.get("label", "")

    @property
    def window(self) -> int:
        """Steps of the means its phases are judged on."""
        return self.manifest["config"]["diagnostics"]["window"]

    @property
    def evaluation(self) -> dict[str, Any]:
        """Held-out results on test questions by checkpoint (`best`, `last`, and of the first steps
        of a long run `best-30`, `last-30`); empty when not evaluated.
        """
        if "evaluation" in self.manifest:
            return self.manifest["evaluation"]
        files = sorted(self.path.glob("evaluation-*-test.json"))
        found = {file.name.split("-", 1)[1].removesuffix("-test.json"): file for file in files}
        return {
            name: json.loads(file.read_text("utf-8"))
            for name, file in found.items()
            if name.startswith(("best", "last"))
        }

    @property
    def is_result(self) -> bool:
        """Whether it ended as a run may: complete, collapsed, or diverged."""
        return self.status in FINAL and (self.status != "failed" or diverged(self.manifest))

    @property
    def planned(self) -> int:
        """Steps it was given."""
        return self.manifest["config"]["training"]["steps"]

    def heldout(
        self,
        checkpoint: str = "best",
        mode: str = "greedy",
        kind: str = "all",
        *,
        within: int | None = None,
    ) -> float | None:
        """Exact match on test questions, None when it was not measured.

        Args:
            checkpoint: `best`, `last`, or as the evaluation names it.
            mode: `greedy`, `greedy_with_failures` or `sampled_1`.
            kind: kind of questions; `all` for all.
            within: only checkpoints of so many first steps; None for the whole run.
        """
        results = self.evaluation.get(checkpoint)
        if within is not None and self.planned > within:
            # The best of all steps is the best of the first ones when it is among them.
            early = checkpoint == "best" and results and _step(results["checkpoint"]) <= within
            results = self.evaluation.get(f"{checkpoint}-{within}", results if early else None)
        if not results or kind not in results["results"].get(mode, {}):
            return None
        return round(results["results"][mode][kind]["em"], 4)

    def first(self, steps: int | None) -> "StoredRun":
        """The run as it was after so many steps; all of it for None."""
        if steps is None:
            return self
        return StoredRun(self.path, self.manifest, self.metrics[self.metrics["step"] <= steps])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.manifest["seed"]

    @property
    def status(self) -> str:
        """`running`, `complete`, `collapsed`, `failed` or `interrupted`."""
        return self.manifest["status"]

    @property
    def name(self) -> str:
        """`<profile>/<method>/seed<k>`."""
        return f"{self.profile}/{self.method}/seed{self.seed}"

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of what determines the run: configuration, seed and code."""
        keys = ("profile", "method", "seed", "config_hash", "git_commit", "git_diff_sha256")
        parts = [self.manifest.get(key) for key in keys]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _step(checkpoint: str) -> int:
    """Step of a checkpoint by its name, `step-<n>`."""
    return int(checkpoint.rpartition("-")[2])


def load_run(path: Path) -> StoredRun:
    """Read the run directory `path`."""
    manifest = read_manifest(path)
    table = pd.DataFrame(read_metrics(path))
    others = [name for name in table.columns if name not in METRICS]
    table = table.reindex(columns=[*METRICS, *others])
    numbers = table[list(METRICS)].apply(pd.to_numeric, errors="coerce").astype(float)
    metrics = pd.concat([numbers, table[others]], axis=1).astype({"step": int})
    return StoredRun(path, manifest, metrics)


def load_runs(
    run_root: Path,
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
) -> list[StoredRun]:
    """Read the runs of `profile` by method, then seed.

    A folder of published results is read like a folder of runs; its methods are arms.
    """
    if is_published(run_root, profile):
        return _choose_published(Path(run_root), profile, methods, seeds)
    runs = []
    for method in methods:
        for seed in seeds:
            run = Run.load(f"{profile}/{method}", seed, run_root, overrides)
            if not run.exists:
                command = " ".join(run.command("train"))
                raise DataError(f"no run at {run.path}: make it with python -m llds_core {command}")
            runs.append(load_run(run.path))
    return runs


def is_published(root: Path, profile: str) -> bool:
    """Whether `root` holds published runs of `profile`, rather than runs as they were made."""
    return (Path(root) / profile / "runs.csv").exists()


def _choose_published(
    root: Path, profile: str, arms: Sequence[str], seeds: Sequence[int]
) -> list[StoredRun]:
    present = {(run.arm, run.seed): run for run in read_published(profile, root)}
    for arm in arms:
        if not any((arm, seed) in present for seed in seeds):
            raise DataError(
                f"{root / profile} holds no published run of {arm} with seeds "
                f"{', '.join(map(str, seeds))}: publish one first"
            )
    return [present[arm, seed] for arm in arms for seed in seeds if (arm, seed) in present]


def load_study_runs(run_root: Path, study: Study) -> list[StoredRun]:
    """Read what there is of a study, in its order, as runs that carry the name of their arm.

    From published results, whatever their seeds, or from runs as they were made; a run that is
    missing or unfinished is left out.
    """
    if is_published(run_root, study.profile):
        order = [arm.name for arm in study.arms]
        found = [run for run in read_published(study.profile, Path(run_root)) if run.arm in order]
        for run in found:
            run.manifest["label"] = study.labels[run.arm]
        return sorted(found, key=lambda run: (order.index(run.arm), run.seed))
    runs = []
    for entry in study.entries():
        path = Run(entry.config, entry.seed, Path(run_root), entry.arm.overrides).path
        if (path / "manifest.json").exists() and (run := load_run(path)).is_result:
            named = {"arm": entry.arm.name, "label": study.labels[entry.arm.name]}
            whole = StoredRun(path, run.manifest | named, run.metrics)
            runs.append(whole.first(entry.config.training.steps))
    return runs


def study_runs(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    run_root: Path,
    overrides: Sequence[str] = (),
    *,
    published: Path = PUBLISHED,
) -> list[StoredRun]:
    """What there is of the study of `profile`, else the runs of `methods`; nothing is trained.

    Where `run_root` holds neither, the published study stands in, and a line says so.

    Args:
        profile: name of a profile.
        methods: methods to read where there is no study.
        seeds: their seeds.
        run_root: folder of all runs, or published ones.
        overrides: changes to the runs; a study takes none.
        published: root of the published results, from the project's root.
    """
    if profile in studies() and not overrides:
        study, root = load_study(profile), project_path(published)
        if stored := load_study_runs(run_root, study):
            return stored
        own = [
            Run.load(f"{profile}/{method}", seed, run_root) for method in methods for seed in seeds
        ]
        if is_published(root, profile) and not any(run.path.exists() for run in own):
            print(f"run_root holds no run of study {profile}: shown are those of {published}")
            return load_study_runs(root, study)
    return load_runs(run_root, profile, methods, seeds, overrides)


def find_published(published: Path, profile: str, arm: str, seed: int) -> StoredRun | None:
    """Read one published run, None when there is none."""
    manifest = published / profile / "runs" / f"{arm}-seed{seed}.json"
    return read_published_run(manifest) if manifest.exists() else None


def read_published(profile: str, published: Path = PUBLISHED) -> list[StoredRun]:
    """Read the published runs of a profile, by arm and seed."""
    folder = published / profile / "runs"
    runs = [read_published_run(manifest) for manifest in sorted(folder.glob("*.json"))]
    if not runs:
        raise DataError(f"{folder} holds no published run: publish one first")
    return sorted(runs, key=lambda run: (run.arm, run.seed))


def read_published_run(manifest: Path) -> StoredRun:
    """Read one published run by its manifest."""
    try:
        table = gzip.decompress(manifest.with_suffix(".csv.gz").read_bytes())
        values = json.loads(manifest.read_text("utf-8"))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{manifest} or its metrics are damaged ({error}): restore them") from error
    return StoredRun(manifest.parent, values, pd.read_csv(io.BytesIO(table)))
