"""`reproduce`: the main job of a profile, from nothing to figures.

Checks the machine, makes the start policy, trains every arm (as many at a time as there are cores
for), scores the checkpoints on held-out questions, runs the notebooks and lists what was made.
Everything is resumable: the same command goes on where it was stopped, and finished parts are not
done again.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from llds_core.config import load_experiment
from llds_core.doctor import examine
from llds_core.errors import ConfigError, RunError
from llds_core.jobs import Job, run_jobs
from llds_core.studies import load_study


def reproduce(
    profile: str,
    seeds: Sequence[int],
    run_root: Path,
    *,
    arms: Sequence[str] = ("grpo", "llds-action"),
    out_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run the main job of `profile`.

    Args:
        profile: name of a profile.
        seeds: seeds of every arm.
        run_root: folder of all runs.
        arms: methods to run.
        out_dir: folder of the rendered output; None for `results/<profile>`.
        progress: show progress.

    Returns:
        The path of the index that lists every artefact.

    Raises:
        ConfigError: for an unknown profile or arm, or a machine that cannot run it.
        RunError: when a run fails, naming its log.
    """
    from llds_core.reporting.notebooks import report
    from llds_core.training.warmstart import warmstart

    configs = [load_experiment(f"{profile}/{arm}") for arm in arms]
    started = time.perf_counter()
    _check_machine(profile, run_root)
    _section("start policy")
    warmstart(configs[0], run_root, progress=progress)
    _minutes(started)
    _section(f"training {', '.join(arms)}; seeds {', '.join(map(str, seeds))}")
    jobs = [Job(config, seed) for seed in seeds for config in configs]
    run_jobs(jobs, "train", run_root, progress=progress)
    _minutes(started)
    _section("held-out questions")
    for checkpoint in ("best", "last"):
        run_jobs(jobs, "evaluate", run_root, progress=progress, extra=["--checkpoint", checkpoint])
    _minutes(started)
    _section("notebooks and figures")
    index = report(profile, list(seeds), run_root, out_dir, methods=arms, progress=progress)
    _minutes(started)
    _list(index)
    return index


def reproduce_study(
    profile: str,
    seeds: Sequence[int],
    run_root: Path,
    *,
    out_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run the whole study of `profile` from nothing: hours, resumable.

    Like `study`, but nothing that came with the project is read: runs are published below
    `out_dir`, and tables, claims and figures drawn from there.

    Args:
        profile: name of a profile that has a study.
        seeds: seeds to run; an arm that has other seeds only keeps those.
        run_root: folder of all runs.
        out_dir: folder of the output; None for `results/<profile>`.
        progress: show progress.

    Returns:
        The path of the index that lists every artefact.

    Raises:
        ConfigError: when the profile has no study, or the machine cannot run it.
        RunError: when runs fail, after all others are done.
    """
    from llds_core.mechanism import measure
    from llds_core.queue import run_study
    from llds_core.reporting.notebooks import MAIN_ARMS, report
    from llds_core.reporting.published import publish_mechanism, write_claims

    study = load_study(profile)
    started = time.perf_counter()
    _check_machine(profile, run_root)
    out_dir = Path("results") / profile if out_dir is None else out_dir
    published = out_dir / "published"
    others = {s for arm in study.arms if not set(arm.seeds) & set(seeds) for s in arm.seeds}
    _section(f"study {study.name}: {len(study.arms)} arms")
    failures = run_study(
        study, run_root, seeds=[*seeds, *others], published=published, progress=progress
    )
    _minutes(started)
    _section("mechanism")
    measure(profile, MAIN_ARMS, seeds[0], run_root, progress=progress)
    publish_mechanism(run_root, profile, seeds[0], published)
    write_claims(published, profile)
    _minutes(started)
    _section("notebooks and figures")
    index = report(profile, list(seeds), published, out_dir, methods=MAIN_ARMS, progress=progress)
    _minutes(started)
    _list(index)
    if failures:
        raise RunError(f"{len(failures)} runs failed, the first: {failures[0]}")
    return index


def _check_machine(profile: str, run_root: Path) -> None:
    _section("machine")
    findings = examine(profile, run_root)
    for finding in findings:
        print(finding.line())
    failed = [finding for finding in findings if finding.status == "fail"]
    if failed:
        raise ConfigError(f"this machine cannot run {profile}: {failed[0].line()}")


def _section(title: str) -> None:
    print(f"\n== {title}", flush=True)


def _minutes(started: float) -> None:
    print(f"   {(time.perf_counter() - started) / 60:.1f} minutes so far", flush=True)


def _list(index: Path) -> None:
    content = json.loads(index.read_text("utf-8"))
    _section(f"made in {index.parent}")
    for artefact in content["artefacts"]:
        print(f"{artefact['kind']:10} {index.parent / artefact['path']}")
    for run in content["runs"]:
        print(f"run        {run['path']} ({run['status']})")
    print(f"index      {index}")
