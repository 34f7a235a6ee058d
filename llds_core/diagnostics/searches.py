"""What searching does to likelihood: Figures 5 and 6 of arXiv 2512.04220.

- `first_search_matches` (Fig. 5): incorrect responses whose first search found what a correct one
  of the same group found. They share a good first action, and are pushed down with it.
- `nll_by_round` (Fig. 6): negative log-likelihood of actions against search rounds.

The paper says neither when two searches match nor how rounds are counted; both readings of either
are measured.
"""

from collections import defaultdict
from collections.abc import Sequence

import pandas as pd
import torch

from llds_core.diagnostics.likelihood import Scored
from llds_core.rollout.protocol import Action, Trajectory

_JACCARD = 0.5
_ROUND_COLUMNS = ["view", "rounds", "nll", "entropy", "tokens", "trajectories"]


def first_search_matches(group: Sequence[Trajectory]) -> dict[str, int]:
    """Count the incorrect responses of a group, scored responses to one question, that begin like a
    correct one (Fig. 5): `incorrect` ones; of them `equal`, whose first action searched and found
    the same set of documents as that of a correct one, and `similar`, with a Jaccard index of at
    least 0.5. Two searches that find nothing are equal. All 0 without a correct response.
    """
    right, wrong = ([t for t in group if t.correct == side] for side in (True, False))
    found, asked = (
        [ids for t in side if (ids := _first_documents(t)) is not None] for side in (right, wrong)
    )
    similar = [any(_jaccard(ids, other) >= _JACCARD for other in found) for ids in asked]
    return {
        "incorrect": len(wrong) if right else 0,
        "equal": sum(ids in found for ids in asked),
        "similar": sum(similar),
    }


def _first_documents(trajectory: Trajectory) -> frozenset[str] | None:
    first: Action = trajectory.actions[0]
    return frozenset(hit.id for hit in first.hits) if first.executed else None


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def nll_by_round(scored: Sequence[Scored]) -> pd.DataFrame:
    """Mean negative log-likelihood per policy token against search rounds, which are executed
    searches (Fig. 6).

    Returns:
        Rows of two views. `position` looks at one action at a time: row t is action t (from 0) of
        the trajectories with more than t rounds. `total` looks at whole responses: row R holds all
        actions of the trajectories with exactly R rounds.

        Columns `view`, `rounds` (t or R), `nll` and `entropy` in nats per token, pooled over
        trajectories, `tokens` and `trajectories`; ascending in `rounds`, and empty without any.
        The entropy is the NLL that the model's own samples would have there.
    """
    collected: defaultdict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
    for item in scored:
        rounds = item.trajectory.searches
        values = torch.stack([-item.logprobs, item.entropies], dim=1)
        collected["total", rounds].append(values)
        for position in range(rounds):
            collected["position", position].append(values[item.action_ids == position + 1])
    rows = []
    for (view, rounds), parts in sorted(collected.items()):
        nll, entropy = torch.cat(parts).double().mean(0).tolist()
        tokens = sum(map(len, parts))
        rows.append((view, rounds, nll, entropy, tokens, len(parts)))
    return pd.DataFrame(rows, columns=_ROUND_COLUMNS)
