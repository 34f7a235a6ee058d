"""`gpu-check`: one program that shows whether a card computes what the CPU computes, and how fast.

Four phases, each on its own, without a download and without vLLM:

* A: losses, policy head, gate canary and attention against float64 on the CPU;
* B: updates of a model of Qwen2.5-3B's shape with random weights, beside what `plan` says;
* C: `bench` of the profile `smol`;
* D: GRPO and GRPO with LLDS side by side from a start policy made here, at the sizes of `smol`.

Without a GPU the same phases run at toy sizes on the CPU.
"""

import gc
import platform
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.utils.benchmark import timer
from transformers import AutoModelForCausalLM, Qwen2Config

from llds_core.bench.gpu_kernels import check_kernels
from llds_core.bench.gpu_report import Report
from llds_core.bench.speed import Updates, measure_profile, train_seconds
from llds_core.config import ExperimentConfig, load_experiment
from llds_core.config.seeding import torch_generator
from llds_core.errors import ConfigError, RunError, one_line
from llds_core.files import write_text
from llds_core.machine.gpu_probe import driver_version
from llds_core.machine.jobs import Job, run_jobs
from llds_core.machine.memory import GIB, gpu_memory, known_models, policy_shape
from llds_core.machine.plan import GPU_SPEED, estimate, load_laid_out
from llds_core.rollout.loop import Rollout
from llds_core.rollout.protocol import TAGS, Action, Trajectory
from llds_core.runs import Run
from llds_core.runs.policies import build_tokenizer, policy_architecture
from llds_core.training.trainer import SearchGRPOTrainer
from llds_core.training.warmstart import warmstart
from llds_core.worlds.records import Question

_ARMS = ("grpo", "llds-action")
_UPDATES = (  # settings of phase B
    *("sampler.backend=transformers", "training.dtype=bfloat16"),
    *("training.gradient_checkpointing=true", "training.updates_per_rollout=2"),
    *("training.epochs=1", "training.steps=1"),
    "diagnostics.final_share=1",  # a pass is timed, and its operations are counted
)


@dataclass(frozen=True)
class _Sizes:
    """What the phases run on."""

    shape: Qwen2Config  # of the models of phases A and B
    experiment: str  # that phase B takes its settings from
    groups: int  # of phase B, in two updates
    micro_batches: tuple[int, ...]  # sizes that phase B tries, with padding and without
    lengths: tuple[int, int, int]  # tokens of a prompt, an action and an observation in phase B
    profile: str  # of phases C and D


def gpu_check(phases: Sequence[str], out: Path, steps: int | None = None) -> int:
    """Run `phases` in the order given and write their rows to `gpu_check.json` under `out`, where
    the runs of phase D are continued, of `steps` if not the profile's; 1 when a check failed, else
    0. A `ConfigError` for an unknown phase, and for a GPU too small for phase B.
    """
    sizes = _sizes()
    run: dict[str, Callable[[Report], None]] = {
        "A": lambda report: check_kernels(report, sizes.shape),
        "B": lambda report: _updates(report, sizes),
        "C": lambda report: _bench(report, sizes.profile, out / "runs"),
        "D": lambda report: _side_by_side(report, sizes.profile, out / "runs", steps),
    }
    if unknown := [phase for phase in phases if phase not in run]:
        raise ConfigError(f'--phase is "{unknown[0]}": choose of {",".join(run)}')
    if "B" in phases and not (planned := estimate(_on_this_card(sizes.experiment))).fits:
        raise ConfigError(f"{planned.reason}: leave phase B out with --phase A,C,D")
    report = Report(out, "-")
    report.add("python", platform.python_version())
    report.add("torch", str(torch.__version__))
    report.add("driver", driver_version() or "none")
    on_gpu = torch.cuda.is_available()
    report.add("gpu", torch.cuda.get_device_name() if on_gpu else "none: toy sizes on the CPU")
    for phase in phases:
        report, started = Report(out, phase), time.perf_counter()
        try:
            run[phase](report)
        except Exception as error:  # whatever a card or a driver brings: the other phases run
            write_text(out / f"phase_{phase}_error.txt", traceback.format_exc())
            said = f"{type(error).__name__}: {one_line(error, 300)}"
            report.add("phase", said, status="fail")
        report.add("duration", time.perf_counter() - started, "s")
    return int(any(row.status == "fail" for row in report.rows))


def _sizes() -> _Sizes:
    """Toy sizes on a CPU, else the shape of 3B."""
    if not torch.cuda.is_available():
        toy = policy_architecture(load_experiment("smoke/grpo").policy, 3000)
        return _Sizes(toy, "smoke/llds-action", 4, (4,), (12, 6, 20), "smoke")
    shape = Qwen2Config(**known_models()["qwen2.5-3b"])
    return _Sizes(shape, "paper-3b/llds-action", 32, (4, 8, 16), (200, 60, 450), "smol")


def _on_this_card(experiment: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """`experiment`, where there is a GPU on the layout for one of at most this memory."""
    if not torch.cuda.is_available():
        return load_experiment(experiment, overrides)
    # What a card reports is a little less than its name says.
    memory = torch.cuda.get_device_properties(0).total_memory / GIB + 1
    return load_laid_out(experiment, overrides, gpus=1, gpu_memory_gib=memory)


# Phase B.


def _updates(report: Report, sizes: _Sizes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "policy"
        _save_random_policy(sizes.shape, policy)
        for size, padding in product(sizes.micro_batches, (True, False)):
            overrides = [
                *_UPDATES,
                f"policy.path={policy}",
                f"rollout.prompts_per_rollout={sizes.groups}",
                f"training.micro_batch_size={size}",
                f"training.remove_padding={str(not padding).lower()}",
            ]
            config = _on_this_card(sizes.experiment, overrides)
            made = _synthetic_rollout(config, sizes.lengths)
            updates = Updates(config, made, policy, Path(folder))
            if size == sizes.micro_batches[0]:  # each way compiles kernels of its own
                _train(updates, config)
            name = f"micro-batches of {size}" + ("" if padding else ", no padding")
            _measure_updates(report, name, updates, config)


def _save_random_policy(shape: Qwen2Config, folder: Path) -> None:
    """A policy of `shape` that knows nothing, with a small tokenizer."""
    tokenizer = build_tokenizer(["a city, a river and a road"], 300, TAGS)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train(updates: Updates, config: ExperimentConfig) -> tuple["_TimedTrainer", float]:
    """A trainer that has made its updates, and the seconds that they took."""
    gc.collect()
    torch.cuda.empty_cache()
    trainer = updates.trainer(config, _TimedTrainer)
    return trainer, train_seconds(trainer)


def _measure_updates(report: Report, name: str, updates: Updates, config: ExperimentConfig) -> None:
    """Rows of one setting: speed of each part, operations and memory."""
    trainer, total = _train(updates, config)
    shape, tokens, row = policy_shape(config.policy), updates.tokens, updates.row
    training = total - trainer.scoring_seconds - trainer.final_seconds
    report.add(f"{name}: old and reference", tokens / trainer.scoring_seconds, "tokens/s")
    report.add(f"{name}: forward, backward, AdamW", tokens / training, "tokens/s")
    report.add(f"{name}: pass after the updates", tokens / trainer.final_seconds, "tokens/s")
    # As `plan` counts: 2 per parameter and token for a forward pass, of which training with
    # checkpointing takes four; old, reference and final passes take one each.
    speed = 2 * shape.parameters * tokens * (3 + 4) / total
    if torch.cuda.is_available():
        report.plan(f"{name}: operations", speed / 1e12, GPU_SPEED / 1e12, "TFLOP/s")
        parts, moments = gpu_memory(config, shape)
        planned = (moments["update"] - parts["context"]) / GIB
        report.bound(f"{name}: memory", row["gpu_memory"], planned, "GiB", beyond="outside")
    else:
        report.add(f"{name}: operations", speed / 1e12, "TFLOP/s")
    report.bound(f"{name}: gate canary", row["gated_fraction_first"], 0.0)
    skipped = row["nonfinite_updates"]
    report.bound(f"{name}: updates skipped as not finite", skipped, 0.0, "updates")


class _TimedTrainer(SearchGRPOTrainer):
    """Knows how long the passes take that train nothing."""

    scoring_seconds = final_seconds = 0.0

    def _micro_batches(self, batch: dict[str, Any]) -> list[list[dict[str, Any]]]:
        started = timer()  # which waits for the GPU
        windows = super()._micro_batches(batch)
        self.scoring_seconds += timer() - started
        return windows

    def after_update(self) -> None:
        started = timer()
        super().after_update()
        self.final_seconds += timer() - started


def _synthetic_rollout(config: ExperimentConfig, lengths: tuple[int, int, int]) -> Rollout:
    """Trajectories of no, one, two and three searches in turns, of random tokens."""
    prompt, action, observation = lengths
    generator = torch_generator(0, "gpu-check", "rollout")

    def draw(count: int) -> list[int]:
        return torch.randint(20, 250, (count,), generator=generator).tolist()

    trajectories = []
    for index in range(config.trajectories_per_rollout):
        group, sample = divmod(index, config.rollout.group_size)
        trajectory = Trajectory(Question(str(group), "", ("",)), sample, draw(prompt))
        for turn in range(index % 4 + 1):
            if turn:
                trajectory.add_observation(draw(observation))
            start = len(trajectory.completion_ids)
            step = Action("answer", "", "", start, start + action)
            trajectory.add_action(step, draw(action), [-1.0] * action)
        trajectories.append(trajectory)
    return Rollout(trajectories, seconds=1.0, retrieval_seconds=0.0)


# Phases C and D.


def _bench(report: Report, profile: str, root: Path) -> None:
    config = load_experiment(f"{profile}/llds-action")
    warmstart(Run(config, root=root))
    for row in measure_profile(config, root):
        against = f"{row.baseline}, {row.baseline_value:.4g}" if row.baseline_value else None
        report.add(row.measure, row.value, row.unit, against)
        if row.ratio is not None:
            report.add(f"{row.measure}, ratio", row.ratio, "", row.aim)


def _side_by_side(report: Report, profile: str, root: Path, steps: int | None) -> None:
    settings = [f"training.steps={steps}"] if steps else []
    runs = [Run.load(f"{profile}/{arm}", 0, root, settings) for arm in _ARMS]
    warmstart(runs[0])
    errors: list[RunError] = []
    try:
        run_jobs(
            [Job.of(run, "train") for run in runs],
            failed=lambda job, error: errors.append(error),
            where=[{}] * len(runs),  # on the same card
        )
    finally:  # after Ctrl-C, too: what there is
        for run in runs:
            if run.metrics():
                _report_run(report, run)
    if errors:
        raise errors[0]


def _report_run(report: Report, run: Run) -> None:
    rows, name = run.metrics(), run.config.method
    spent = {
        part: fmean(row[part] for row in rows) for part in ("rollout_seconds", "update_seconds")
    }
    config = _on_this_card(run.config.name, run.overrides)
    planned = estimate(config, run.root / "none").throughput["seconds_per_step"]
    # Of no status: what `plan` takes a launch of a kernel to cost was set by such runs on an H200.
    report.add(f"{name}, side by side: a step", sum(spent.values()), "s", planned)
    for part, value in spent.items():
        report.add(f"{name}: {part}", value, "s")
    report.add(f"{name}: steps", len(rows), "steps", run.config.training.steps)
    reward = [row["reward"] for row in rows]
    for label, value in (("first", reward[0]), ("best", max(reward)), ("last", reward[-1])):
        report.add(f"{name}: reward, {label}", value)
    skipped = sum(row["nonfinite_updates"] for row in rows)
    report.bound(f"{name}: updates skipped as not finite", skipped, 0.0, "updates")
    report.bound(f"{name}: gate canary", max(r["gated_fraction_first"] for r in rows), 0.0)
    if torch.cuda.is_available():
        report.add(f"{name}: memory", max(row["gpu_memory"] for row in rows), "GiB")
