"""Stored runs as tables: the only way figures, tables and notebooks get at numbers."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llds_core.config import load_experiment
from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import DataError, TrainingDivergedError
from llds_core.runs import is_complete, read_manifest, read_metrics, run_path

_logger = logging.getLogger("llds_core")


@dataclass(frozen=True, eq=False)
class Run:
    """One stored run.

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
    def seed(self) -> int:
        """Seed of the run."""
        return self.manifest["seed"]

    @property
    def status(self) -> str:
        """`running`, `complete`, `failed` or `interrupted`."""
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


def load_run(path: Path) -> Run:
    """Read the run directory `path`.

    Raises:
        DataError: when it is no run directory, or its manifest or metrics are damaged.
    """
    manifest = read_manifest(path)
    table = pd.DataFrame(read_metrics(path))
    others = [name for name in table.columns if name not in METRICS]
    table = table.reindex(columns=[*METRICS, *others])
    numbers = table[list(METRICS)].apply(pd.to_numeric, errors="coerce").astype(float)
    return Run(path, manifest, pd.concat([numbers, table[others]], axis=1).astype({"step": int}))


def load_runs(
    run_root: Path,
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
) -> list[Run]:
    """Read the runs of `profile` by method, then seed.

    Raises:
        DataError: when one is missing, naming the command that makes it, or cannot be read.
        ConfigError: for an unknown profile, method or override.
    """
    runs = []
    for method in methods:
        for seed in seeds:
            config = load_experiment(f"{profile}/{method}", overrides)
            path = run_path(Path(run_root), config, seed, overrides)
            if not (path / "manifest.json").exists():
                command = " ".join(
                    [config.name, *overrides, f"--seed {seed} --run-root {run_root}"]
                )
                raise DataError(
                    f"no run at {path}: make it with python -m llds_core train {command}"
                )
            runs.append(load_run(path))
    return runs


def ensure_runs(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    run_root: Path,
    overrides: Sequence[str] = (),
    progress: bool = True,
) -> list[Run]:
    """Train what is missing or unfinished, then read the runs; complete runs are only read.

    A run that diverged is a result too: it is read as far as it went.

    Raises:
        RunError: when a run is being trained by another process, or cannot be written.
        DataError: when a stored run is damaged.
        ConfigError: for an unknown profile, method or override.
    """
    configs = [load_experiment(f"{profile}/{method}", overrides) for method in methods]
    for config in configs:
        for seed in seeds:
            if is_complete(run_path(Path(run_root), config, seed, overrides), config):
                continue
            # Imported here: it brings torch, which reading runs does without.
            from llds_core.training.experiment import train

            try:
                train(config, seed, Path(run_root), overrides=overrides, progress=progress)
            except TrainingDivergedError as error:
                _logger.warning("%s seed %d diverged: %s", config.name, seed, error)
    return load_runs(run_root, profile, methods, seeds, overrides)
