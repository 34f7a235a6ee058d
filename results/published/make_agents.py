"""Publishes the four agents of a seed whose runs of GRPO and LLDS are on this machine:

python results/published/make_agents.py PROFILE SEED RUN_ROOT
"""

import shutil
import sys
from pathlib import Path

from llds_core.errors import DataError
from llds_core.files import write_json
from llds_core.reporting.store import PUBLISHED, load_run
from llds_core.runs import Run
from llds_core.runs.policies import load_policy, policy_digest

_SIZE_MB = 8  # of one agent: a language model is no file for git


def publish_agents(grpo: Run, llds: Run, published: Path = PUBLISHED) -> Path:
    """Copy the four policies of a seed that both runs share; return the folder.

    Raises:
        CheckpointError: when the runs did not keep them.
        DataError: when a policy is too large for git.
    """
    target = published / grpo.config.profile / "agents"
    run = load_run(grpo.path)
    end = run.length
    after = llds.checkpoint(f"last-{end}")
    same = int(after.name.rpartition("-")[2])
    best = int(run.manifest["best_step"])
    collapse = f", collapsed at step {run.collapse_step}" if run.collapse_step else ""
    fell = load_run(llds.path).collapse_step
    later = f", collapses at step {fell}" if fell else ""
    chosen = {
        "start": ("before training", grpo, 0, grpo.start_policy),
        "best": (f"GRPO, step {best}, its best", grpo, best, grpo.checkpoint("best")),
        "end": (f"GRPO, step {end}{collapse}", grpo, end, grpo.checkpoint("last")),
        "llds": (f"GRPO + LLDS, step {same}{later}", llds, same, after),
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


if __name__ == "__main__":
    profile, seed, root = sys.argv[1:]
    arms = (Run.load(f"{profile}/{arm}", int(seed), Path(root)) for arm in ("grpo", "llds-action"))
    print(publish_agents(*arms))
