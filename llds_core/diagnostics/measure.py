"""`mechanism`: the studies of why likelihood falls, on the checkpoints along stored runs.

    <run root>/<profile>/mechanism-seed<k>/
        likelihood_change.csv   Figs 3a, 3b and 5: one row per checkpoint, question and optimizer
        theorem.csv             rank correlations of the change with its causes
        nll_by_round.csv        Fig. 6: negative log-likelihood against search rounds
        manifest.json           what was measured, with which code

A checkpoint that is in the tables already is not measured again, unless the number of questions has
changed, then all are, or the configuration of its run.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from llds_core.config import load_study, studies
from llds_core.diagnostics.group_update import OPTIMIZERS, group_changes, sample_groups
from llds_core.diagnostics.likelihood import nll_by_round, score_trajectories
from llds_core.diagnostics.summary import (
    TABLES,
    correlations,
    mechanism_path,
    read_manifest,
    read_table,
)
from llds_core.errors import ConfigError
from llds_core.files import write_json, write_table
from llds_core.rollout.environment import Environment, build_environment
from llds_core.runs import Run
from llds_core.runs.checkpoints import checkpoint_path, checkpoint_steps
from llds_core.runs.identity import changed_keys
from llds_core.runs.policies import load_policy, load_tokenizer
from llds_core.runs.provenance import git_state, package_versions
from llds_core.worlds.records import Question

# What runs of one table agree in, but for keys that a measurement does not take from the first run.
_SHARED = ("world", "data", "retrieval", "rollout")
_OWN = ("retrieval.failure_rate", "rollout.prompts_per_rollout", "rollout.group_size")
ROLLOUTS = 8  # responses to a question, as the paper's Fig. 3a; a run's own groups may be smaller


def measure(
    profile: str,
    methods: Sequence[str],
    seed: int,
    run_root: Path,
    *,
    questions: int = 50,
    steps: Sequence[int] = (),
) -> Path:
    """Measure every stored checkpoint of the runs of `methods`, or of arms of the profile's study,
    or those at `steps` (0: the start policy), on the first `questions` of training, `ROLLOUTS`
    responses each; return the folder of the tables. Questions whose prompts do not fit are refused
    before anything is measured, or left out, as `data.too_long` says.
    """
    runs = _runs(profile, methods, seed, run_root)
    for run in runs[1:]:
        for key, first, value in changed_keys({"config": runs[0].config.to_dict()}, run.config):
            if key.partition(".")[0] in _SHARED and key not in _OWN:
                what = f"{runs[0].arm} has {key}={first} and {run.arm} {value}"
                raise ConfigError(f"{what}: measure them one by one")
    folder = mechanism_path(run_root, profile, seed)
    asked = {"questions": questions, "rollouts": ROLLOUTS}
    stored = [_checkpoints(run, steps) for run in runs]
    environment = build_environment(runs[0].config)
    chosen = environment.world.train[:questions]
    loop = environment.rollout_loop(load_tokenizer(stored[0][-1][1]), seed=seed, failure_rate=0.0)
    skip = runs[0].config.data.too_long == "skip"
    fitting = [chosen[place] for place in loop.fitting(chosen, skip=skip)]
    before = read_manifest(folder)
    if {name: before.get(name) for name in asked} != asked:
        # Shares and correlations over other responses are not to be mixed with these.
        before = {}
        for file in folder.glob("*"):
            file.unlink()
    measured = {run.arm: run.manifest()["config_hash"] for run in runs}
    finished = before.get("runs", {})
    begun = finished | before.get("begun", {})  # whose rows the tables may hold
    write_json(folder / "manifest.json", before | asked | {"begun": begun | measured})
    tables = {name: read_table(folder / f"{name}.csv") for name in TABLES}
    for run, checkpoints in zip(runs, stored, strict=True):
        method = run.arm
        known = tables["likelihood_change"]
        done = set(known[known["method"] == method].get("step", ()))
        if begun.get(method) != measured[method]:
            done = set()
        for name, table in tables.items():  # what was cut off halfway, or is of another run
            kept = table.reindex(columns=["step"])["step"].isin(done)
            tables[name] = table[(table["method"] != method) | kept]
        for step, checkpoint in checkpoints:
            if step not in done:
                tqdm.write(f"{run.config.name} seed {seed}, step {step}")
                keys = {"profile": profile, "method": method, "seed": seed}
                for name, frame in _measure(run, environment, checkpoint, step, fitting).items():
                    found = pd.DataFrame(keys, frame.index).join(frame)
                    tables[name] = pd.concat([tables[name], found], ignore_index=True)
                    write_table(folder / f"{name}.csv", tables[name])
    manifest: dict[str, Any] = {
        "profile": profile,
        "seed": seed,
        **asked,
        "too_long": len(chosen) - len(fitting),
        "runs": finished | measured,
        **git_state(),
        "packages": package_versions(),
    }
    if not set(finished) <= set(measured):
        manifest["earlier"] = before  # by which code the others were measured
    write_json(folder / "manifest.json", manifest)
    return folder


def _runs(profile: str, names: Sequence[str], seed: int, root: Path) -> list[Run]:
    """Of each name the arm of the profile's study, else the method; `arm` is the name."""
    arms = load_study(profile).arms if profile in studies() else ()
    known = {arm.name: (arm.method, arm.overrides) for arm in arms}
    given = [(name, *known.get(name, (name, ()))) for name in names]
    return [replace(Run.load(f"{profile}/{m}", seed, root, o), arm=name) for name, m, o in given]


def _checkpoints(run: Run, wanted: Sequence[int]) -> list[tuple[int, Path]]:
    """Start policy and stored checkpoints of a run, by step; those that are `wanted`, or all."""
    run.checkpoint("last")  # refuses a run without any
    known = {0: run.start_policy}
    known |= {s: checkpoint_path(run.checkpoints, s) for s in checkpoint_steps(run.checkpoints)}
    if strange := set(wanted) - set(known):
        there = ", ".join(map(str, known))
        raise ConfigError(f"{run.title} has no checkpoint at step {min(strange)}: it has {there}")
    return [(step, path) for step, path in known.items() if step in wanted or not wanted]


def _measure(
    run: Run, environment: Environment, checkpoint: Path, step: int, questions: Sequence[Question]
) -> dict[str, pd.DataFrame]:
    config = run.config
    torch.set_num_threads(config.training.threads)
    # Runs in mixed precision update float32 weights: rounded ones would not move by such a step.
    model, tokenizer = load_policy(checkpoint)
    failure_rate = config.retrieval.failure_rate
    groups = sample_groups(
        model,
        tokenizer,
        environment.rollout_loop(tokenizer, seed=run.seed, failure_rate=failure_rate),
        questions,
        group_size=ROLLOUTS,
        step=step,
        seed=run.seed,
        reward=config.reward,
    )
    known: dict[str, Any] = {"pad_id": tokenizer.pad_token_id, "vocabulary": len(tokenizer)}
    rate = config.training.learning_rate
    changes, factors = [], []
    for optimizer in OPTIMIZERS:
        change = group_changes(
            model, groups, learning_rate=rate, optimizer=optimizer, step=step, **known
        )
        changes.append(change)
        factors.append(correlations(change).assign(step=step, optimizer=optimizer))
    scored = score_trajectories(model, [t for group in groups for t in group], **known)
    return {  # in the order of writing: a step that is in the last is in all
        "theorem": pd.concat(factors, ignore_index=True),
        "nll_by_round": nll_by_round(scored).assign(step=step),
        "likelihood_change": pd.concat(changes, ignore_index=True),
    }
