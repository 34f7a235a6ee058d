"""Four policies of one published seed, small enough for git: what training starts from, GRPO at its
best and at its end, and GRPO with LLDS after as many steps.

    results/published/<profile>/agents/
        agents.json            per agent: folder, title, run, step, digest of the policy it was
        start/ best/ end/ llds/    policies, weights in 16 bits

So a question can be asked before anything is trained here, and a study that goes on with another
processor begins its runs where the published ones began.
"""

import json
import shutil
from pathlib import Path

from llds_core.errors import DataError
from llds_core.files import project_path, write_json
from llds_core.reporting.store import PUBLISHED, find_published, load_run
from llds_core.rollout.protocol import Trajectory
from llds_core.runs import Run, RunDirectory
from llds_core.worlds import Question

_SIZE_MB = 8  # of one agent: a language model is no file for git


def publish_agents(grpo: Run, llds: Run, published: Path = PUBLISHED) -> Path:
    """Copy the four policies of a seed that both runs share; return the folder.

    Raises:
        CheckpointError: when the runs did not keep them.
        DataError: when a policy is too large for git.
    """
    from llds_core.runs.policies import load_policy, policy_digest  # loads transformers

    target = published / grpo.config.profile / "agents"
    run = load_run(grpo.path)
    end = run.length
    after = llds.checkpoint(f"last-{end}")
    same = int(after.name.rpartition("-")[2])
    best = int(run.manifest["best_step"])
    collapse = f", collapsed at step {run.collapse_step}" if run.collapse_step else ""
    chosen = {
        "start": ("before training", grpo, 0, grpo.start_policy),
        "best": (f"GRPO, step {best}, its best", grpo, best, grpo.checkpoint("best")),
        "end": (f"GRPO, step {end}{collapse}", grpo, end, grpo.checkpoint("last")),
        "llds": (f"GRPO + LLDS, step {same}", llds, same, after),
    }
    shutil.rmtree(target, ignore_errors=True)
    listed = []
    for name, (title, of, step, folder) in chosen.items():
        model, tokenizer = load_policy(folder, "float16")
        if (size := 2e-6 * model.num_parameters()) > _SIZE_MB:
            raise DataError(f"{folder} takes {size:.0f} MB in 16 bits: too large to publish")
        model.save_pretrained(target / name)
        tokenizer.save_pretrained(target / name)
        about = {"method": of.config.method, "seed": of.seed, "step": step}
        listed.append({"name": name, "title": title, **about, "policy": policy_digest(folder)})
    listed[0]["warmstart"] = grpo.warmstart_path.name
    write_json(target / "agents.json", listed)
    return target


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
