"""What the commands of the command line do; heavy modules are imported by the command that needs
them.
"""

import argparse
import json
import sys
from pathlib import Path

from llds_core.config import ExperimentConfig, load_experiment


def doctor(options: argparse.Namespace) -> int:
    """Check the machine."""
    from llds_core.doctor import examine

    findings = examine(options.profile, options.run_root)
    if options.json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=1))
    else:
        for finding in findings:
            print(finding.line())
    return int(any(finding.status == "fail" for finding in findings))


def warmstart(options: argparse.Namespace) -> None:
    """Make the start policy."""
    from llds_core.training.warmstart import warmstart

    path = warmstart(
        load_experiment(f"{options.profile}/grpo"), options.run_root, progress=not options.quiet
    )
    print(f"start policy: {path}")


def train(options: argparse.Namespace) -> None:
    """Train one run, and evaluate it when asked."""
    from llds_core.training.experiment import train

    config = load_experiment(options.experiment, options.overrides)
    path = train(
        config,
        options.seed,
        options.run_root,
        overrides=options.overrides,
        progress=not options.quiet,
    )
    print(f"run: {path}")
    if options.evaluate:
        _evaluate_both(config, options)


def _evaluate_both(config: ExperimentConfig, options: argparse.Namespace) -> None:
    from llds_core.evaluation import evaluate_run

    for checkpoint in ("best", "last"):
        path = evaluate_run(
            config,
            options.seed,
            options.run_root,
            overrides=options.overrides,
            checkpoint=checkpoint,
            progress=not options.quiet,
        )
        print(f"evaluation: {path}")


def evaluate(options: argparse.Namespace) -> None:
    """Score a checkpoint."""
    from llds_core.evaluation import evaluate_run

    config = load_experiment(options.experiment, options.overrides)
    path = evaluate_run(
        config,
        options.seed,
        options.run_root,
        overrides=options.overrides,
        checkpoint=options.checkpoint,
        split=options.split,
        progress=not options.quiet,
    )
    print(path.read_text("utf-8"))


def ask(options: argparse.Namespace) -> None:
    """Let an agent answer a question."""
    from llds_core.evaluation import ask
    from llds_core.reporting.trajectories import to_ansi

    trajectory = ask(
        load_experiment(options.experiment),
        options.question,
        options.seed,
        options.run_root,
        checkpoint=options.checkpoint,
        temperature=options.temperature,
    )
    print(to_ansi(trajectory, color=sys.stdout.isatty()))


def report(options: argparse.Namespace) -> None:
    """Run the notebooks."""
    from llds_core.reporting.notebooks import report, report_published

    if options.published:
        print(f"redrawn: {report_published(options.profile, progress=not options.quiet)}")
        return
    report(
        options.profile,
        options.seeds,
        options.run_root,
        options.out_dir,
        methods=options.arms,
        progress=not options.quiet,
    )


def reproduce(options: argparse.Namespace) -> None:
    """Run the main job, or with all arms the whole study."""
    from llds_core.reproduce import reproduce, reproduce_study

    progress = not options.quiet
    if options.arms == ["all"]:
        reproduce_study(
            options.profile,
            options.seeds,
            options.run_root,
            out_dir=options.out_dir,
            progress=progress,
        )
        return
    reproduce(
        options.profile,
        options.seeds,
        options.run_root,
        arms=options.arms,
        out_dir=options.out_dir,
        progress=progress,
    )


def mechanism(options: argparse.Namespace) -> None:
    """Measure checkpoints."""
    from llds_core.mechanism import measure
    from llds_core.reporting.published import publish_mechanism

    folder = measure(
        options.profile,
        options.arms,
        options.seed,
        options.run_root,
        questions=options.questions,
        last_step=options.last_step,
        smollm2=options.smollm2,
        progress=not options.quiet,
    )
    if options.publish:
        folder = publish_mechanism(options.run_root, options.profile, options.seed)
    print(f"tables: {folder}")


def study(options: argparse.Namespace) -> int:
    """Run a study, or show its queue."""
    from llds_core.queue import run_study, status
    from llds_core.studies import load_study

    study = load_study(options.study)
    if options.status:
        print(status(study, options.run_root, options.arms, options.seeds).to_string(index=False))
        return 0
    failures = run_study(
        study,
        options.run_root,
        arms=options.arms,
        seeds=options.seeds,
        minutes=options.minutes,
        progress=not options.quiet,
    )
    for failure in failures:
        print(failure, file=sys.stderr)
    return 0


def publish(options: argparse.Namespace) -> None:
    """Copy runs into the published results."""
    from llds_core.reporting.published import publish, update_readme, write_claims
    from llds_core.reporting.store import PUBLISHED

    table = publish(options.run_root, options.profile, options.arms, options.seeds)
    write_claims(PUBLISHED, options.profile)
    readme = Path("README.md")
    readme.write_text(update_readme(readme), "utf-8")
    print(f"published: {table}")


def bench(options: argparse.Namespace) -> None:
    """Measure speed."""
    from llds_core.bench import bench

    bench(options.profile, options.run_root, options.out, progress=not options.quiet)
