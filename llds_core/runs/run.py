"""`Run`: one experiment and seed below a folder of runs, and everything that is derived from them.

    <root>/<profile>/<method>[+overrides]/seed<k>/
        manifest.json       what, from which code, when, status
        config.yaml         the resolved configuration
        metrics.jsonl       one row per step
        rollouts.jsonl.gz   a few whole trajectories per step
        checkpoint/         see `llds_core.runs.checkpoints`
        log.txt             messages
        messages.txt        standard error of its processes, when another one started them
        code.diff           difference of the source tree from its commit

Runs of a profile that need the same start policy share `<root>/<profile>/warmstart-<digest>/`.
"""

import gzip
import hashlib
import json
import logging
import re
import shlex
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llds_core.config import ExperimentConfig, load_experiment, override_key
from llds_core.errors import CheckpointError, DataError, LLDSError
from llds_core.runs.checkpoints import checkpoint_path, checkpoint_steps
from llds_core.runs.identity import check_same, complete, diverged, free_keys

DEFAULT_ROOT = Path("results/runs")
FINAL = ("complete", "collapsed", "failed")
BEST_WINDOW = 4  # steps whose mean reward ranks a checkpoint
_MANIFEST_KEYS = ("status", "profile", "method", "seed", "config", "config_hash")
_LATER_KEYS = ("resumed", "best_step", "corpus", "policy", "streams")  # not there at first
_NO_TEXT = {"seed": int, "config": dict, "resumed": list, "best_step": int}
_LONGEST_SUFFIX = 150  # file systems allow names of 255 bytes
_CHECKPOINT = re.compile(r"(best|last)(?:-(\d+))?")
# What a start policy depends on: whole sections, and single keys of others.
_START_SECTIONS = ("world", "policy", "warmstart")
_START_KEYS = {
    "retrieval": ("backend", "top_k", "title_weight"),
    "rollout": ("prompt", "max_observation_tokens"),
}
_logger = logging.getLogger("llds_core")


@dataclass(frozen=True)
class Run:
    """One experiment and seed, whether it was made already or not."""

    config: ExperimentConfig  # resolved, overrides included
    seed: int = 0  # moves data order, sampling and injected search failures
    root: Path = DEFAULT_ROOT  # folder of all runs
    overrides: tuple[str, ...] = ()  # as given by the user; they name the run's folder
    arm: str = ""  # its name in a study, if it has one

    @classmethod
    def load(
        cls, name: str, seed: int = 0, root: Path = DEFAULT_ROOT, overrides: Iterable[str] = ()
    ) -> "Run":
        """The run of experiment `name`, `<profile>/<method>`, with dotted `overrides`."""
        overrides = tuple(overrides)
        return cls(load_experiment(name, overrides), seed, Path(root), overrides)

    @property
    def title(self) -> str:
        """How it is called in progress and errors."""
        return f"{self.arm or self.config.name} seed {self.seed}"

    @property
    def path(self) -> Path:
        """Its folder; overrides that leave the run itself unchanged are not in the name."""
        named = sorted(
            override.replace(" ", "")
            for override in self.overrides
            if override_key(override) not in free_keys(self.config)
        )
        suffix = "".join(f"+{re.sub(r'[^A-Za-z0-9._=-]', '_', override)}" for override in named)
        if len(suffix) > _LONGEST_SUFFIX:
            digest = hashlib.sha256(suffix.encode()).hexdigest()[:12]
            suffix = f"{suffix[:_LONGEST_SUFFIX]}-{digest}"
        return (
            self.root / self.config.profile / f"{self.config.method}{suffix}" / f"seed{self.seed}"
        )

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints."""
        return self.path / "checkpoint"

    @property
    def messages(self) -> Path:
        """What its last process wrote to standard error."""
        return self.path / "messages.txt"

    @property
    def warmstart_config(self) -> ExperimentConfig:
        """The part of its configuration that the start policy depends on, all else at defaults."""
        about = {"profile": self.config.profile, "method": "warmstart"}
        # `data` and `service` say where things are found, not what they are: no part of a name.
        values = self._start_values("data", "dense", "service")
        del values["data"]["too_long"]  # it asks for traces, not for questions
        return ExperimentConfig(**about | values)

    @property
    def warmstart_path(self) -> Path:
        """Folder of the warm start it needs; another world or policy is another folder."""
        dense = ["dense"] if self.config.retrieval.backend == "dense" else []
        values = json.dumps(self._start_values(*dense), sort_keys=True)
        digest = hashlib.sha256(values.encode()).hexdigest()[:12]
        return self.root / self.config.profile / f"warmstart-{digest}"

    def _start_values(self, *more: str) -> dict[str, Any]:
        """What its start policy depends on, and whole sections beside it."""
        values = self.config.to_dict()
        chosen = {section: values[section] for section in (*_START_SECTIONS, *more)}
        for section, keys in _START_KEYS.items():
            chosen[section] = {key: values[section][key] for key in keys}
        if (dtype := self.config.training.dtype) != "float32":  # older start policies are of it
            chosen["training"] = {"dtype": dtype}
        return chosen

    @property
    def start_policy(self) -> Path:
        """Folder of the policy it starts from: warm-started here, and then perhaps not there yet,
        or given by `policy.path`, and then unpacked or fetched first.
        """
        if self.config.warm_starts:
            return self.warmstart_path / "policy"
        from llds_core.runs.policies import given_policy  # loads transformers

        return given_policy(self.config, self.root)

    def command(self, name: str) -> list[str]:
        """The words of command `name` about this run, after `python -m llds_core`."""
        about = [name, self.config.name, *self.overrides]
        return [*about, "--seed", str(self.seed), "--run-root", str(self.root)]

    def manifest(self) -> dict[str, Any]:
        """Its manifest; see `read_manifest`."""
        return read_manifest(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """Its rows; see `read_metrics`."""
        return read_metrics(self.path)

    @property
    def exists(self) -> bool:
        """Whether it was begun."""
        return (self.path / "manifest.json").exists()

    def is_complete(self) -> bool:
        """Whether all its steps are there, or it ended early because it collapsed; its checkpoints
        may be gone. One made with another configuration is refused.
        """
        if not self.exists:
            return False
        manifest = self.manifest()
        if manifest["status"] not in ("complete", "collapsed"):
            return False
        check_same(self.path, manifest, self.config)
        rows = self.metrics()
        return complete(manifest, self.config, rows[-1]["step"] if rows else 0)

    def has_diverged(self) -> bool:
        """Whether its updates stayed non-finite: a result, which training repeats."""
        return self.exists and diverged(self.manifest())

    def is_finished(self) -> bool:
        """Whether it is complete or diverged. A damaged or foreign folder is not: its own process
        says what is wrong with it.
        """
        try:
            return self.is_complete() or self.has_diverged()
        except LLDSError:
            return False

    def checkpoint(self, which: str) -> Path:
        """Folder of a checkpoint: `best`, `last`, `start`, or any folder; `best-30` and `last-30`
        are those of the first 30 steps.
        """
        if which == "start":
            if not self.start_policy.is_dir():
                words = [self.config.name, *self.overrides, "--run-root", str(self.root)]
                raise CheckpointError(
                    f"no start policy at {self.start_policy}: run python -m llds_core warmstart "
                    f"{shlex.join(words)}"
                )
            return self.start_policy
        named = _CHECKPOINT.fullmatch(which)
        if named is None:
            if not Path(which).is_dir():
                raise CheckpointError(
                    f'checkpoint "{which}" is not a folder: use best, last, best-<steps>, '
                    "last-<steps>, start or an existing folder"
                )
            return Path(which)
        return checkpoint_path(self.checkpoints, self._step(named[1], named[2]))

    def _step(self, kind: str, within: str | None) -> int:
        steps = checkpoint_steps(self.checkpoints)
        if not steps:
            command = shlex.join(self.command("train"))
            raise CheckpointError(
                f"{self.path} has no checkpoint: run python -m llds_core {command}"
            )
        # One that a collapse ended early was given more steps than it made.
        longest = max(steps[-1], self.config.training.steps)
        if within and not steps[0] <= int(within) <= longest:
            raise CheckpointError(
                f'{self.path} has no checkpoint "{kind}-{within}": name a number of steps from '
                f"{steps[0]}, its first checkpoint, to {longest}"
            )
        kept = [step for step in steps if step <= int(within or longest)]
        if kind == "last":
            return kept[-1]
        if within is None:
            return int(self.manifest().get("best_step", kept[-1]))
        return best_step(self.metrics(), kept)


def best_step(metrics: Sequence[Mapping[str, Any]], kept: Sequence[int]) -> int:
    """Of the steps `kept`, all with metrics, the one with the highest mean reward of the last
    `BEST_WINDOW` rows up to it; of several the one that stands first in `kept`.
    """
    rewards = {row["step"]: row["reward"] for row in metrics}
    steps = sorted(rewards)

    def recent(step: int) -> float:
        end = bisect_right(steps, step)
        window = steps[max(end - BEST_WINDOW, 0) : end]
        return sum(rewards[s] for s in window) / len(window) if window else float("-inf")

    return max(kept, key=recent)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read `manifest.json` of a run directory."""
    file = path / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(file.read_text("utf-8"))
        for key in (*_MANIFEST_KEYS, *(key for key in _LATER_KEYS if key in manifest)):
            value, kind = manifest[key], _NO_TEXT.get(key, str)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{key} is {value!r}")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path} is not a run directory (no manifest.json): name one under results/runs"
        ) from None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file} is no manifest ({error!r}): restore it, or delete the run directory"
        ) from error
    return manifest


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl` of a run directory, one dict per step; a torn last line, which a killed
    process leaves, is ignored.
    """
    file = path / "metrics.jsonl"
    if not file.exists():
        return []
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): restore it") from error
    lines = content.decode("utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no object with a step")
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise DataError(
                f"{file}:{number} is not a metrics row ({line[:60]!r}): delete the line, or the "
                "run directory"
            ) from None
        rows.append(row)
    return rows


def read_trajectories(path: Path) -> list[dict[str, Any]]:
    """Read `rollouts.jsonl.gz` of a run directory; a torn end is ignored."""
    file = path / "rollouts.jsonl.gz"
    rows: list[dict[str, Any]] = []
    if not file.exists():
        return rows
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows.extend(json.loads(line) for line in lines)
    except (EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        # One byte may be all that is left of the next member's header.
        header_torn = isinstance(error, OSError) and rows and file.read_bytes()[-1:] == b"\x1f"
        if not (isinstance(error, (EOFError, ValueError)) or header_torn):
            raise DataError(
                f"{file} is damaged ({error}): delete it; the run continues without it"
            ) from error
        _logger.warning("%s has a torn end: %d trajectories read", file, len(rows))
    return rows
