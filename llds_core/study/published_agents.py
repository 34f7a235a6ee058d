"""Four policies of one published seed, small enough for git: what training starts from, GRPO at its
best and at its end, and GRPO with LLDS after as many steps.

    results/published/<profile>/agents/       made by `results/published/make_agents.py`
        agents.json            per agent: folder, title, run, step, digest of the policy it was
        start/ best/ end/ llds/    policies, weights in 16 bits

So a question can be asked before anything is trained here, and a study that goes on with another
processor begins its runs where the published ones began.
"""

import json
import shutil
from pathlib import Path

from llds_core.errors import DataError
from llds_core.files import project_path
from llds_core.reporting.store import PUBLISHED, find_published
from llds_core.rollout.protocol import Trajectory
from llds_core.runs import Run, RunDirectory
from llds_core.worlds import Question


def take_start(run: Run, published: Path = PUBLISHED) -> bool:
    """Let `run` begin at the published start policy, where that is of the warm start it needs and
    none was begun here. Rounding differs between processors: a policy made here is another one.

    The manifest of the warm start then says where it was taken from, and the digest of the policy
    before its weights were rounded to 16 bits. Return whether it was taken.
    """
    begun = (run.warmstart_path / "manifest.json").exists()
    if begun or not has_agents(run.config.profile, published):
        return False
    study = published / run.config.profile
    start = json.loads((project_path(study) / "agents/agents.json").read_text("utf-8"))[0]
    of = find_published(project_path(published), run.config.profile, start["method"], start["seed"])
    if of is None or start.get("warmstart") != run.warmstart_path.name:
        return False
    shutil.copytree(project_path(study) / "agents/start", run.start_policy, dirs_exist_ok=True)
    config = run.warmstart_config
    with RunDirectory(run.warmstart_path, config, config.warmstart.seed) as directory:
        directory.update(taken_from=str(study / "agents/start"), rounded_from=start["policy"])
        directory.record("corpus", of.manifest["corpus"])
    return True


def has_agents(profile: str, published: Path = PUBLISHED) -> bool:
    """Whether agents of a profile are published."""
    return (project_path(published) / profile / "agents/agents.json").is_file()


def ask_agents(
    profile: str, question: str | Question, *, temperature: float = 0.0, published: Path = PUBLISHED
) -> dict[str, Trajectory]:
    """Let the published agents of a profile answer a question: trajectories by title.

    Raises:
        DataError: when none are published.
    """
    from llds_core.evaluation.held_out import ask_each  # loads transformers

    folder = project_path(published) / profile / "agents"
    if not has_agents(profile, published):
        raise DataError(
            f"no agents of profile {profile} are published: train one, and name it as in "
            f"llds ask {profile}/grpo"
        )
    agents = json.loads((folder / "agents.json").read_text("utf-8"))
    run = Run.load(f"{profile}/grpo", agents[0]["seed"])
    paths = [str(folder / agent["name"]) for agent in agents]
    answers = ask_each(run, question, paths, temperature=temperature)
    return {agent["title"]: answer for agent, answer in zip(agents, answers, strict=True)}
