"""The seven benchmarks for trained runs, as jobs: one process a GPU, each a part of the questions.

<run directory>/benchmarks/<checkpoint>-<digits>/    predictions and summary.json
<run root>/<profile>/evaluations/<run>-seed<k>.json  the summary, where tables look for it
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llds_core.evaluation import find_checkpoint
from llds_core.machine.jobs import Job, run_jobs, visible_gpus
from llds_core.reporting.evaluations import publish_evaluation
from llds_core.runs.checkpoints import checkpoint_steps


@dataclass(frozen=True)
class BenchmarkJob(Job):
    """The best checkpoint of a run on every benchmark, or a part of the questions.

    Attributes:
        part: number from 1 and how many; None for all questions, or for putting parts together.
        merge: put parts together.
    """

    part: tuple[int, int] | None = None
    merge: bool = False

    @property
    def gpus(self) -> int:
        """One, whatever it was trained on."""
        return 1

    def checkpoint(self, run_root: Path) -> Path:
        """The checkpoint that is asked."""
        return find_checkpoint(self.config, self.seed, run_root, "best", self.overrides)

    def folder(self, run_root: Path) -> Path:
        """Where its answers go: another checkpoint, or other questions, have another folder."""
        digits = self.config.hash("evaluation", "rollout", "retrieval", "dense")[:8]
        return self.path(run_root) / "benchmarks" / f"{self.checkpoint(run_root).name}-{digits}"

    def messages(self, run_root: Path) -> Path:
        """Parts run at a time, so that each has its own."""
        part = f"-{self.part[0]}" if self.part else ""
        return self.path(run_root) / f"messages-benchmarks{part}.txt"

    def words(self, command: str, run_root: Path) -> list[str]:
        """Words of `evaluate` for this job, after `python -m llds_core`."""
        words = [command, self.config.profile, *self.overrides]
        words += ["--method", self.config.method, "--seed", str(self.seed)]
        words += ["--checkpoint", str(self.checkpoint(run_root))]
        words += ["--out", str(self.folder(run_root)), "--run-root", str(run_root)]
        if self.config.evaluation.questions is not None:
            words += ["--limit", str(self.config.evaluation.questions)]
        if self.config.evaluation.samples:
            samples = str(self.config.evaluation.samples)
            words += ["--mode", "greedy,sampled", "--samples", samples]
        if self.part:
            words += ["--shard", f"{self.part[0]}/{self.part[1]}"]
        return [*words, "--merge"] if self.merge else words


def benchmark_jobs(jobs: Sequence[Job], run_root: Path) -> list[BenchmarkJob]:
    """The benchmarks of `jobs`; a run without a checkpoint has none."""
    return [
        BenchmarkJob(job.config, job.seed, job.overrides, job.label)
        for job in jobs
        if checkpoint_steps(job.path(run_root) / "checkpoint")
    ]


def is_answered(job: BenchmarkJob, run_root: Path) -> bool:
    """Whether every question has its answer."""
    return (job.folder(run_root) / "summary.json").exists()


def run_benchmarks(
    jobs: Sequence[BenchmarkJob], run_root: Path, *, as_method: bool, progress: bool
) -> None:
    """Answer what is left, on all GPUs together, one run after the other.

    Args:
        jobs: what is asked.
        run_root: folder of all runs.
        as_method: whether tables may count the runs as those of their method; otherwise they are
            named as their folders, with what was overridden.
        progress: show progress.

    Raises:
        RunError: when a part fails, naming its log.
    """
    count = max(1, len(visible_gpus()))
    for job in jobs:
        if not is_answered(job, run_root):
            if count > 1:
                parts = [replace(job, part=(number, count)) for number in range(1, count + 1)]
                run_jobs(parts, "evaluate", run_root, progress=progress)
            run_jobs([replace(job, merge=count > 1)], "evaluate", run_root, progress=progress)
        name = job.config.method if as_method else job.path(run_root).parent.name
        publish_evaluation(job.folder(run_root), run_root, name=name)
