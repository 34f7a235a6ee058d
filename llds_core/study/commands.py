"""Commands of the main job, of studies and of agents; `llds_core.__main__` offers them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from llds_core.config import load_experiment, load_study, studies
from llds_core.config import options as cli
from llds_core.config.given import numbers, words
from llds_core.errors import ConfigError, DataError
from llds_core.runs import DEFAULT_ROOT as ROOT
from llds_core.runs import Run


def reproduce(
    profile: cli.Profile = "desk",
    *,
    overrides: cli.Overrides,
    seeds: cli.MainSeeds = "",
    arms: cli.Arms = "grpo,llds-action",
    layout: cli.Layout = None,
    retriever_env: Annotated[Path | None, Option(help="environment of the search service")] = None,
    machine_rank: cli.Rank = 0,
    main_address: cli.Address = "127.0.0.1",
    main_port: cli.Port = 29500,
    out_dir: cli.OutDir = None,
    run_root: cli.Root = ROOT,
    quiet: cli.Quiet = False,
) -> None:
    """Do the main job: checks, start policy, all runs, notebooks, figures."""
    from llds_core.machine.launch import Machine
    from llds_core.study.reproduce import reproduce

    reproduce(
        profile,
        _main_seeds(profile, seeds),
        run_root,
        arms=_named(arms),
        overrides=overrides,
        layout=layout,
        retriever_env=retriever_env,
        machine=Machine(machine_rank, main_address, main_port),
        out_dir=out_dir,
    )


def demo(
    study: Annotated[str, Argument(help=f"one of: {', '.join(studies())}")] = "desk",
    show: Annotated[bool, Option("--open/--no-open", help="in a browser")] = True,
) -> None:
    """Show a published collapse step by step and token by token: no training."""
    import webbrowser

    from llds_core.files import project_path
    from llds_core.reporting.store import published_root

    plan = load_study(study)
    page = project_path(published_root(plan) / plan.profile / "explorer.html")
    if not page.exists():
        raise DataError(f"no trajectories are published of study {study}: make runs of your own")
    print(f"open {page}")
    if show:
        webbrowser.open(page.as_uri())


def ask(
    experiment: cli.AnyExperiment,
    question: Annotated[str, Argument(help="in quotes")],
    seed: cli.Seed = 0,
    temperature: Annotated[float, Option(help="0 is greedy", min=0, max=10)] = 0.0,
    checkpoint: cli.Checkpoint = "best",
    run_root: cli.Root = ROOT,
    quiet: cli.Quiet = False,
) -> None:
    """Show a trained agent think, search and answer; with a profile alone, those that are published
    of it.
    """
    from llds_core.evaluation.held_out import ask_each, unknown_places
    from llds_core.reporting.trajectories import to_ansi
    from llds_core.study.published_agents import ask_agents

    is_run = "/" in experiment
    if not is_run and (seed, checkpoint, run_root) != (0, "best", ROOT):
        raise ConfigError(
            "--seed, --checkpoint and --run-root are of a run of yours: name it, as in "
            f"llds ask {experiment}/grpo"
        )
    run = Run.load(experiment if is_run else f"{experiment}/grpo", seed, run_root)
    if is_run:
        answers = {"": ask_each(run, question, [checkpoint], temperature=temperature)[0]}
    else:
        answers = ask_agents(experiment, question, temperature=temperature)
    if warning := unknown_places(run.config, question):
        print(warning, end="\n\n")
    for title, trajectory in answers.items():
        print(f"== {title}\n" if title else "", end="")
        print(to_ansi(trajectory, color=sys.stdout.isatty()), end="\n" if is_run else "\n\n")


def baselines(
    profile: cli.Profile,
    overrides: cli.Overrides,
    baselines: Annotated[
        str, Option(metavar="NAME,NAME", help="ways to answer")
    ] = "direct,rag,search-o1,search-r1",
    seed: cli.Seed = 0,
    split: cli.Split = "test",
    checkpoint: cli.Checkpoint = "best",
    run_root: cli.Root = ROOT,
    quiet: cli.Quiet = False,
    benchmarks: cli.Benchmarks = "",
    limit: cli.Limit = None,
    mode: cli.Mode = "greedy",
    samples: cli.Samples = 1,
    method: cli.Method = None,
    publish: cli.Publish = False,
) -> None:
    """Answer questions with a model as it is, in several ways."""
    from llds_core.evaluation.evaluate import ROOT, EvaluationPlan, run_baselines
    from llds_core.evaluation.models import open_asked
    from llds_core.evaluation.predictions import POLICY
    from llds_core.reporting.store import PUBLISHED

    plan = EvaluationPlan(POLICY, words(benchmarks), limit, words(mode), samples, split, seed)
    environment, model = open_asked(profile, overrides, method, checkpoint, seed, run_root)
    folder = (PUBLISHED if publish else ROOT) / profile
    print(f"table: {run_baselines(environment, model, plan, words(baselines), folder)}")


def report(
    profile: cli.Profile,
    published: Annotated[bool, Option("--published", help="of results/published alone")] = False,
    seeds: cli.MainSeeds = "",
    arms: cli.Arms = "grpo,llds-action",
    out_dir: cli.OutDir = None,
    run_root: cli.Root = ROOT,
    quiet: cli.Quiet = False,
) -> None:
    """Run the notebooks and write figures, tables and the index of a profile."""
    from llds_core.study.notebooks import report
    from llds_core.study.redraw import report_published

    if published:
        print(f"redrawn: {report_published(profile)}")
    else:
        report(profile, _main_seeds(profile, seeds), run_root, out_dir, methods=_named(arms))


def study(
    study: Annotated[str, Argument(help="name of a study, e.g. desk, or a YAML file")],
    arms: Annotated[str, Option(metavar="NAME,NAME", help="only these arms or groups")] = "",
    seeds: Annotated[str, Option(metavar="N,N", help="only these")] = "",
    status: Annotated[bool, Option("--status", help="show the queue and run nothing")] = False,
    run_root: cli.Root = ROOT,
    quiet: cli.Quiet = False,
) -> int:
    """Run what is left of a study and publish each run as it ends."""
    from llds_core.reporting.store import published_root
    from llds_core.study import runner

    planned, chosen = load_study(study), words(arms)
    published = published_root(planned)
    only = numbers(seeds) if seeds else None
    if status:
        table = runner.status(runner.planned_runs(planned, run_root, chosen, only), published)
        print(table.to_string(index=False, float_format="%.1f"))
        print(runner.what_is_left(planned, table, run_root, published))
        return 0
    failures = runner.run_study(planned, run_root, chosen, only, published)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 2 if failures else 0


def mechanism(
    profile: cli.Profile,
    seed: cli.Seed = 0,
    arms: cli.Arms = "grpo,llds-action",
    questions: Annotated[
        int, Option(help="number of training questions, from the first", min=1)
    ] = 50,
    steps: Annotated[str, Option(metavar="N,N", help="only these checkpoints")] = "",
    publish: cli.Publish = False,
    run_root: cli.Root = ROOT,
    quiet: cli.Quiet = False,
) -> None:
    """Measure why likelihood falls, on the checkpoints of stored runs."""
    from llds_core.diagnostics.measure import measure
    from llds_core.study.published import publish_mechanism

    chosen = numbers(steps) if steps else ()
    folder = measure(profile, _named(arms), seed, run_root, questions=questions, steps=chosen)
    if publish:
        folder = publish_mechanism(run_root, profile, seed)
    print(f"tables: {folder}")


def _named(arms: str) -> tuple[str, ...]:
    """At least one arm."""
    if not (names := words(arms)):
        raise ConfigError(f'--arms is "{arms}": name at least one method, e.g. grpo')
    return names


def _main_seeds(profile: str, given: str) -> Sequence[int]:
    """Seeds as given, else the first of the study, so that its run is what is repeated."""
    if given:
        return numbers(given)
    return load_study(profile).arms[0].seeds[:1] if profile in studies() else (0,)


def slurm(
    profile: cli.Profile,
    overrides: cli.Overrides,
    hours: Annotated[int, Option(help="wall time to ask for", min=1)] = 24,
    layout: cli.Layout = None,
    seeds: cli.Seeds = "0",
    arms: cli.Arms = "grpo,llds-action",
    run_root: cli.Root = ROOT,
) -> None:
    """Print the main job as a Slurm batch script."""
    from llds_core.machine.launch import batch_script

    script = batch_script(
        load_experiment(f"{profile}/grpo", overrides, layout),
        arms=_named(arms),
        seeds=numbers(seeds),
        run_root=run_root,
        overrides=overrides,
        layout=layout,
        hours=hours,
    )
    print(script, end="")
