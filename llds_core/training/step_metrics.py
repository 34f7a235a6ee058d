"""Sums over one step, from which its metrics row is made (definitions:
`llds_core.diagnostics.metrics`).

Everything is accumulated as numerator and denominator over all micro-batches and updates, so that a
row never shows the last micro-batch's value for the step's.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from llds_core.config import LossConfig
from llds_core.diagnostics.metrics import METRICS
from llds_core.losses import kl_k3
from llds_core.rollout.loop import Rollout

Row = dict[str, float | int | None]


@dataclass
class Part:
    """What one process has summed up of a step: `sums` over `counts` are its means."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    extremes: dict[str, float] = field(default_factory=dict)  # of names in `_min`, the least
    states: dict[int, torch.Tensor] = field(default_factory=dict)  # pooled, by trajectory
    # By update and correct trajectory: how far its summed log-probability had moved by then.
    moves: dict[tuple[int, int], float] = field(default_factory=dict)
    # Numbers of the questions that an update had trajectories of.
    updated: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    # By stored trajectory: how far the step moved the log-probability of each of its tokens.
    changes: dict[int, list[float]] = field(default_factory=dict)


class StepMetrics:
    """Accumulates the metrics of one step; of several processes, each its share.

    All of them know the whole rewarded `rollout` of `step` (from 1); `group_size` consecutive
    trajectories answer the same question. The first `stored` ones get their `logprob_changes`.
    """

    def __init__(
        self, rollout: Rollout, step: int, group_size: int, loss: LossConfig, *, stored: int = 0
    ) -> None:
        self.trajectories = rollout.trajectories
        self._rollout = rollout
        self._step = step
        self._group_size = group_size
        self._loss = loss
        self._stored = stored
        self._correct = torch.tensor([t.correct for t in self.trajectories])
        self.part = Part()
        self._started = time.perf_counter()

    def close_rollout(self, micro_batches: Sequence[dict[str, Any]], weight: float) -> None:
        """Take what the old policy's passes over the micro-batches computed."""
        self.part.sums["answer_weight"], self.part.counts["answer_weight"] = weight, 1.0
        for micro in micro_batches:
            mask = micro["policy_mask"].bool()
            rows = micro["rows"].cpu()
            logprobs = micro["old_per_token_logps"]
            correct = self._correct[rows].to(mask.device)[:, None].expand_as(mask)
            first = micro["action_ids"] == 1
            for name, chosen in (("correct", correct), ("incorrect", ~correct)):
                self._add_masked(f"loglik_{name}", logprobs, mask & chosen)
                self._add_masked(f"loglik_{name}_first", logprobs, mask & chosen & first)
                self._add_masked(f"loglik_{name}_later", logprobs, mask & chosen & ~first)
            self._add_masked("entropy", micro["old_entropies"], mask)
            gap = (micro["sampling_per_token_logps"] - logprobs).abs()
            self._add_masked("sampler_gap", gap, mask)
            if mask.any():
                self._extreme("sampler_gap_max", gap[mask].max().item())
            if "ref_per_token_logps" in micro:
                self._add_masked("kl", kl_k3(logprobs, micro["ref_per_token_logps"])[0], mask)
            attention = micro["prompt_mask"].sum() + micro["completion_mask"].sum()
            positions = micro["prompt_mask"].numel() + micro["completion_mask"].numel()
            self._add("padding", positions - int(attention), positions)
            self.part.states |= dict(
                zip(rows.tolist(), micro["pooled_states"].float().cpu(), strict=True)
            )

    def add_update_logprobs(
        self, micro: dict[str, Any], logprobs: torch.Tensor, update: int, *, trained: bool
    ) -> None:
        """Take the log-probabilities of a micro-batch after an update, one that was `trained` on it
        or not.
        """
        moved = _moved(micro, logprobs).tolist()
        for row, change in zip(micro["rows"].tolist(), moved, strict=True):
            if trained:
                self.part.updated[update].add(row // self._group_size)
            if self._correct[row]:
                self.part.moves[update, row] = change

    def add_final_logprobs(self, micro: dict[str, Any], logprobs: torch.Tensor) -> None:
        """Take the log-probabilities of a micro-batch after the step's last update."""
        change = _moved(micro, logprobs).cpu()
        rows = micro["rows"].cpu()
        correct, trained = self._correct[rows], micro["policy_mask"].any(1).cpu()
        for name, chosen in (("correct", correct & trained), ("incorrect", ~correct & trained)):
            self._add(f"loglik_change_{name}", change[chosen].sum().item(), int(chosen.sum()))
        by_token = (logprobs - micro["old_per_token_logps"]) * micro["policy_mask"]
        for place, row in enumerate(rows.tolist()):
            if row < self._stored:
                length = len(self.trajectories[row].completion_ids)
                self.part.changes[row] = by_token[place, :length].tolist()

    def add_micro_batch(
        self,
        micro: dict[str, Any],
        logprobs: torch.Tensor,
        loss: torch.Tensor,
        penalty: torch.Tensor,
        counts: dict[str, torch.Tensor],
    ) -> None:
        """Take one micro-batch of one update, with what `llds_penalty` returned."""
        mask = micro["policy_mask"].bool()
        log_ratio = logprobs - micro["old_per_token_logps"]
        if self._loss.ratio == "sequence":
            mean = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
            log_ratio = mean.expand_as(mask)
        ratio = log_ratio.exp()
        advantages = micro["advantages"].reshape(len(ratio), -1)  # (B, 1) or (B, T)
        low, high = 1 - self._loss.clip_low, 1 + self._loss.clip_high
        clipped = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
        self._add_masked("clip_fraction", clipped.float(), mask)
        if mask.any():
            self._extreme("ratio_max", ratio[mask].max().item())
            self._extreme("ratio_min", ratio[mask].min().item())
        gated, preserved = (counts[key].item() for key in ("gated_tokens", "preserved_tokens"))
        self._add("gated_fraction", gated, preserved)
        self._add("preserved_fraction", preserved, int(mask.sum()))
        if not self.part.counts["loss"]:  # the first update has not ended
            self._add("gated_fraction_first", gated, preserved)
        # Micro-batches of an update add up: the counts are set by `add_update`.
        self.part.sums["loss"] += loss.item()
        self.part.sums["llds_penalty"] += penalty.item()
        self.part.sums["trained_tokens"] += int(
            micro["prompt_mask"].sum() + micro["completion_mask"].sum()
        )

    def add_lp_reg(self, value: torch.Tensor, counts: dict[str, torch.Tensor]) -> None:
        """Take what `lp_reg_penalty` returned for one micro-batch of one update."""
        self.part.sums["lp_reg_penalty"] += value.item()
        self._add("held_fraction", counts["held_tokens"].item(), counts["response_tokens"].item())

    def add_update(self, grad_norm: float, finite: bool, learning_rate: float) -> None:
        """Take the end of one update."""
        self.part.counts["loss"] += 1
        self.part.counts["llds_penalty"] += 1
        if self._loss.lp_reg_weight > 0:
            self.part.counts["lp_reg_penalty"] += 1
        self.part.sums["nonfinite_updates"] += not finite
        self.part.sums["learning_rate"], self.part.counts["learning_rate"] = learning_rate, 1
        if finite:
            self._add("grad_norm", grad_norm, 1)
            self._extreme("grad_norm_max", grad_norm)

    def add_gpu_memory(self, size: int) -> None:
        """Take the highest GPU memory of this process in the step, in bytes."""
        self._extreme("gpu_memory", size / 2**30)

    def merge(self, parts: Sequence[Part]) -> None:
        """Take the parts of all processes, this one's among them, in place of its own."""
        self.part = whole = Part()
        for part in parts:
            for row, values in part.changes.items():
                self.trajectories[row].logprob_changes = values
            for name, value in part.sums.items():
                whole.sums[name] += value
            for name, value in part.counts.items():
                whole.counts[name] += value
            for name, value in part.extremes.items():
                self._extreme(name, value)
            whole.states |= part.states
            whole.moves |= part.moves
            for update, questions in part.updated.items():
                whole.updated[update] |= questions
        # Every process has counted the same updates.
        whole.sums["nonfinite_updates"] /= len(parts)

    def row(self, *, updates: int) -> Row:
        """Return the step's metrics, one value for every name in `METRICS`."""
        trajectories, rollout, part = self.trajectories, self._rollout, self.part
        count = len(trajectories)
        # What dynamic sampling has replaced was sampled all the same.
        sampled = [*trajectories, *rollout.dropped]
        starts = range(0, len(sampled), self._group_size)
        groups = [sampled[start : start + self._group_size] for start in starts]
        actions = [action for t in trajectories for action in t.actions]
        searches = sum(t.searches for t in trajectories)
        tokens = sum(len(t.response_mask) for t in trajectories)
        policy_tokens = sum(sum(t.response_mask) for t in trajectories)
        update_seconds = time.perf_counter() - self._started
        values: Row = {name: _ratio(part.sums[name], part.counts[name]) for name in METRICS}
        values |= part.extremes
        return values | {
            "step": self._step,
            "updates": updates,
            "reward": sum(t.reward for t in sampled) / len(sampled),
            "em": sum(t.correct for t in sampled) / len(sampled),
            "response_length": policy_tokens / count,
            "observation_length": (tokens - policy_tokens) / count,
            "valid_searches": searches / count,
            "valid_answers": sum(t.answer is not None for t in trajectories) / count,
            "invalid_actions": sum(a.kind == "invalid" for a in actions) / count,
            "hidden_similarity": self._similarity(),
            **self._by_update(),
            "failed_searches": _ratio(sum(a.retrieval_failed for a in actions), searches),
            "empty_searches": _ratio(
                sum(a.executed and all(hit.is_blank for hit in a.hits) for a in actions), searches
            ),
            "cut_observations": _ratio(sum(t.cut_observations for t in trajectories), searches),
            "zero_variance_groups": sum(len({t.reward for t in group}) == 1 for group in groups)
            / len(groups),
            "dropped_groups": len(rollout.dropped) // self._group_size,
            "nonfinite_updates": int(part.sums["nonfinite_updates"]),
            "rollout_seconds": rollout.seconds,
            "retrieval_seconds": rollout.retrieval_seconds,
            "update_seconds": update_seconds,
            "rollout_tokens_per_second": policy_tokens / rollout.seconds,
            "update_tokens_per_second": part.sums["trained_tokens"] / update_seconds,
        }

    def _by_update(self) -> Row:
        """How updates moved the correct trajectories of questions that had incorrect ones, too."""
        moved: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        for (update, row), by_now in sorted(self.part.moves.items()):
            change = by_now - self.part.moves.get((update - 1, row), 0.0)
            moved[update, row // self._group_size].append(change)
        found: dict[str, list[float]] = {"own_update": [], "other_updates": []}
        for (update, question), changes in moved.items():
            if len(changes) < self._group_size:
                own = question in self.part.updated[update]
                found["own_update" if own else "other_updates"].append(fmean(changes))
        values: Row = {}
        for which, means in found.items():
            values[f"fall_{which}"] = _ratio(sum(mean < 0 for mean in means), len(means))
            values[f"change_{which}"] = _ratio(sum(means), len(means))
        return values

    def _similarity(self) -> float | None:
        states = torch.stack([state for _, state in sorted(self.part.states.items())])
        directions = torch.nn.functional.normalize(states, dim=1).split(self._group_size)
        similarities = []
        for group, correct in zip(directions, self._correct.split(self._group_size), strict=True):
            # No state: a trajectory that `loss.mask_truncated` has left no token.
            wrong = ~correct & group.any(1)
            if correct.any() and wrong.any():
                similarities.append((group[correct] @ group[wrong].T).mean().item())
        return _ratio(sum(similarities), len(similarities))

    def _add(self, name: str, numerator: float, denominator: float) -> None:
        self.part.sums[name] += numerator
        self.part.counts[name] += denominator

    def _add_masked(self, name: str, values: torch.Tensor, mask: torch.Tensor) -> None:
        self._add(name, values[mask].double().sum().item(), int(mask.sum()))

    def _extreme(self, name: str, value: float) -> None:
        pick = min if name.endswith("_min") else max
        self.part.extremes[name] = pick(value, self.part.extremes.get(name, value))


def _moved(micro: dict[str, Any], logprobs: torch.Tensor) -> torch.Tensor:
    """Change of the summed log-probability of each row of a micro-batch since its rollout, (B,)."""
    return ((logprobs - micro["old_per_token_logps"]) * micro["policy_mask"].bool()).sum(1)


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
