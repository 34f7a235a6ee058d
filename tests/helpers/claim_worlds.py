"""Made-up studies for the tests of claims: one in which every claim of the paper holds, and the
pieces to break it with. Windows of 3 steps; GRPO is given 30 steps.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from llds_core.diagnostics.metrics import METRICS
from llds_core.reporting.store import StoredRun

WINDOW = 3
STEPS = 30
COLLAPSE = 20
CONFIG = {
    "loss": {"llds_weight": 0.0},
    "training": {"updates_per_rollout": 16, "learning_rate": 1e-4},
    "diagnostics": {"window": WINDOW},
}


def made(arm, seed, columns, *, status="complete", reason=None, **config):
    """A run from columns that are constant or one value a step; `config` sets training or loss."""
    metrics = pd.DataFrame(np.nan, index=range(len(columns["reward"])), columns=list(METRICS))
    metrics["step"] = range(1, len(metrics) + 1)
    metrics = metrics.assign(**columns)
    settings = {name: {**CONFIG[name], **config.get(name, {})} for name in CONFIG}
    settings["training"].setdefault("steps", len(metrics))
    manifest = {"profile": "desk", "method": arm, "seed": seed, "status": status, "arm": arm}
    manifest |= {"config_hash": "abc", "config": settings, "reason": reason}
    return StoredRun(Path(f"{arm}{seed}"), manifest, metrics)


def fallen(arm, seed, at=COLLAPSE, *, columns=None, cut=None, **values):
    """A run that tells the paper's story and collapses near step `at` of `STEPS`."""
    rng = np.random.default_rng([seed, at])
    step = np.arange(1, STEPS + 1)
    at += seed % 2
    decline, alive = at - 12, step < at
    noise = rng.normal(0, 0.004, STEPS)
    loglik = np.where(step < decline, -0.25, -0.25 - 0.02 * (step - decline)) + noise
    loglik -= np.where(step > at - 4, 0.3 * (step - at + 4.0), 0)
    past = np.clip(step - at + 6, 0, None)
    story = {
        "reward": np.where(alive, 0.3 + 0.3 * np.minimum(step / 10, 1), 0.02) + noise,
        "loglik_correct": np.where(step > at + 8, np.nan, loglik),
        "loglik_correct_first": loglik - 0.1 * past,
        "loglik_correct_later": loglik - 0.001 * step,
        "loglik_incorrect": -0.4 - 0.06 * step,
        "loglik_change_correct": -0.01 * 1.3**step,
        "hidden_similarity": 0.9,
        "entropy": 0.3 + 0.1 * np.clip(step - decline - 1, 0, None) + noise,
        "response_length": 45 + 40 * noise,
        "valid_searches": 1.4 + noise,
        "grad_norm": 0.3 + noise + 0.5 * past,
    }
    run = made(arm, seed, story | (columns or {}), **values)
    return run if cut is None else StoredRun(run.path, run.manifest, run.metrics.iloc[:cut])


def stable(arm, seed, steps=STEPS, level=0.7, *, columns=None, **values):
    """A run whose reward rises to `level` and stays."""
    rng = np.random.default_rng([seed, steps])
    noise = rng.normal(0, 0.004, steps)
    step = np.arange(1, steps + 1)
    story = {
        "reward": 0.3 + (level - 0.3) * np.minimum(step / 10, 1) + noise,
        "loglik_correct": -0.25 + noise,
        "loglik_correct_first": -0.24 + noise,
        "loglik_correct_later": -0.26 - noise,
        "loglik_incorrect": -0.4 + noise,
        "loglik_change_correct": 1.0 + noise,
        "hidden_similarity": 0.9,
        "entropy": 0.3 + noise,
        "response_length": 45 + noise,
        "valid_searches": 1.4 + noise,
        "grad_norm": 0.4 + noise,
    }
    return made(arm, seed, story | (columns or {}), **values)


def arm(make, *seeds, **values):
    """Runs of one arm, made by name and seed."""
    return lambda name: [make(name, seed, **values) for seed in seeds]


def weighted(weight):
    return {"llds_weight": weight}


SIX, THREE, TWO = range(6), range(3), range(2)
LONG = 2 * STEPS
FADING = {"loglik_correct_first": -0.24 - 0.001 * np.arange(LONG)}
ARMS = {
    "grpo": arm(fallen, *SIX),
    "llds-action": arm(stable, *SIX, steps=LONG, columns=FADING, loss=weighted(2)),
    "llds-action-long": arm(stable, 6, steps=3 * STEPS),
    "llds-weight-0.01": arm(fallen, *THREE, at=22, loss=weighted(0.01)),
    "llds-weight-0.1": arm(fallen, *THREE, at=24, loss=weighted(0.1)),
    "llds-weight-0.2": arm(stable, *THREE, loss=weighted(0.2)),
    "llds-response": arm(stable, *THREE, steps=LONG, level=0.6),
    "llds-token": arm(stable, *THREE, steps=LONG, level=0.5),
    "llds-positive": arm(fallen, *THREE, at=22),
    "llds-preserved": arm(stable, *THREE, level=0.8),
    "llds-ma": arm(stable, *THREE, steps=LONG, columns={"valid_searches": 2.2}),
    "grpo-no-negative": arm(stable, *THREE),
    **{
        f"grpo-{cure}": arm(stable, *THREE, level=0.5)
        for cure in ("kl-0.01", "kl-0.1", "grad-clip", "large-batch")
    },
    "grpo-lr-half": arm(stable, *THREE, level=0.5, training={"learning_rate": 5e-5}),
    "grpo-lr-seventh": arm(stable, *THREE, level=0.5, training={"learning_rate": 1.4e-5}),
    "grpo-entropy-0.001": arm(stable, *THREE),
    "grpo-entropy-0.01": arm(stable, *THREE),
    "grpo-epochs-1": arm(fallen, *THREE, at=23, training={"updates_per_rollout": 8}),
    "grpo-long-epochs-1": arm(stable, *THREE, steps=4 * STEPS, training={"updates_per_rollout": 4}),
    "grpo-epochs-2": arm(fallen, *THREE, at=17, training={"updates_per_rollout": 32}),
    "grpo-one-epoch-1": arm(stable, *TWO, training={"updates_per_rollout": 1}),
    "grpo-one-epoch-4": arm(fallen, *TWO, at=25, training={"updates_per_rollout": 4}),
    "grpo-one-epoch-32": arm(fallen, *TWO, at=17, training={"updates_per_rollout": 32}),
}
EM = {"grpo": 0.2, "llds-action": 0.3, "llds-response": 0.28, "llds-token": 0.25, "llds-ma": 0.4}


def study(without=(), scores=None, only=None, **changes):
    """Runs of `ARMS`, without some or `only` some, with some replaced (an underscore stands for a
    hyphen), each with its `scores`, those of `heldout()` for None.
    """
    arms = ARMS | {name.replace("_", "-"): make for name, make in changes.items()}
    names = [name for name in arms if name not in without and (not only or name in only)]
    runs = [run for name in names for run in arms[name](name)]
    for (arm, seed, checkpoint), em in (heldout() if scores is None else scores).items():
        for run in runs:
            if (run.arm, run.seed) == (arm, seed):
                scored = {"checkpoint": f"step-{run.planned}"}
                scored["results"] = {"greedy": {"all": {"em": em}}}
                run.manifest.setdefault("evaluation", {})[checkpoint] = scored
    return runs


def heldout(**changes):
    """Held-out exact match by arm, seed and checkpoint, of long runs within `STEPS`, too."""
    levels = EM | {name.replace("_", "-"): level for name, level in changes.items()}
    return {
        (name, seed, checkpoint): level + 0.002 * (seed * len(name) % 7)
        for name, level in levels.items()
        for seed in SIX
        for checkpoint in ("best", "last", f"best-{STEPS}", f"last-{STEPS}")
    }


def changes(shares=(0.2, 0.7), matches=(0.3, 0.6), method="grpo", seeds=TWO, questions=50):
    """Frame of likelihood changes at steps 0 and 15, and one checkpoint after the collapse."""
    rows = []
    for seed in seeds:
        for step, share, match in zip((0, 15, 28), (*shares, 0.0), (*matches, 0.0), strict=True):
            for optimizer in ("sgd", "adamw"):
                drops = int(questions * share) + seed if optimizer == "adamw" else 0
                for question in range(questions + 5):
                    skipped = question >= questions
                    delta = np.nan if skipped else 0.1 - 0.2 * (question < drops)
                    rows.append((method, seed, step, optimizer, question, skipped, delta, 10))
                    rows[-1] += (10 * match + (question == 0 and seed),)
    names = ["method", "seed", "step", "optimizer", "question_id", "skipped", "delta"]
    names += ["first_search_reached_incorrect", "first_search_reached_equal"]
    return pd.DataFrame(rows, columns=names)


def theorem(sign=1, seeds=TWO):
    """Frame of rank correlations with the signs of the theorem, or the opposite ones."""
    factors = {"driver": -0.5, "pull": -0.2, "own": 0.5, "support": 0.3}
    factors |= {"loglik_incorrect": 0.4, "similarity": -0.3}
    return pd.DataFrame(
        [
            {"method": "grpo", "seed": seed, "step": step, "factor": factor}
            | {"spearman": value, "partial": value / 2}
            for seed in seeds
            for step in (0, 15)
            for factor, value in (
                (name, sign * (rho + 0.01 * seed)) for name, rho in factors.items()
            )
        ]
    )


def rounds(rise=0.2, seeds=TWO):
    """Frame of negative log-likelihoods by tool round; the third is reached by too few."""
    return pd.DataFrame(
        [
            {"method": "grpo", "seed": seed, "step": step, "view": "position", "rounds": position}
            | {"nll": 0.3 + rise * position + 0.01 * seed * position, "trajectories": count}
            for seed in seeds
            for step in (0, 15)
            for position, count in ((0, 200), (1, 60), (2, 5))
        ]
    )


def mechanism(**frames):
    found = {"likelihood_change": changes(), "theorem": theorem(), "nll_by_round": rounds()}
    return found | frames
