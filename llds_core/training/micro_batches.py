"""Rows of a rollout: given to TRL, put together from all processes, cut into mini-batches and
micro-batches.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator

from llds_core.config import LossConfig, SamplerConfig
from llds_core.losses import (
    action_ids,
    answer_weight_ramp,
    group_advantages,
    llds_penalty,
    penalty_tokens,
    sampler_correction,
)
from llds_core.rollout.protocol import Trajectory
from llds_core.training.settings import SearchGRPOConfig

_SUMS = ("dapo", "cispo")  # TRL's losses that are sums, over a count of the whole rollout
_MASK_WEIGHT = 0.2  # of the official code of LLDS-MA
_TRL_EPSILON = 1e-4  # what TRL adds to a deviation


def add_columns(
    batch: dict[str, Any], trajectories: Sequence[Trajectory], loss: LossConfig, group_size: int
) -> None:
    """Add to a whole rollout of TRL's what the loss needs, one row per trajectory."""
    device = batch["completion_ids"].device
    batch["rows"] = torch.arange(len(trajectories), device=device)
    batch["answer_mask"] = torch.zeros_like(batch["completion_ids"])
    for row, trajectory in enumerate(trajectories):
        if trajectory.answer_span is not None:
            batch["answer_mask"][row, slice(*trajectory.answer_span)] = 1
    if loss.mask_truncated:
        answered = torch.tensor([t.stop_reason == "answer" for t in trajectories], device=device)
        batch["tool_mask"] = batch["tool_mask"] * answered[:, None]
        batch["num_items_in_batch"] = (batch["tool_mask"] * batch["completion_mask"]).sum()
    batch["policy_mask"] = batch["tool_mask"] * batch["completion_mask"]
    batch["action_ids"] = action_ids(batch["policy_mask"])
    rewards = torch.tensor([t.reward for t in trajectories], device=device)
    if loss.advantage_mean == "batch":  # TRL's mean is the group's
        batch["advantages"] = group_advantages(
            rewards, batch["rows"], mean="batch", std=loss.advantage_std, eps=_TRL_EPSILON
        )
    else:
        # The mean of eight rewards of 0.2 rounds in TRL, and leaves a sign where there is none.
        centred = group_advantages(rewards, batch["rows"] // group_size, std="none")
        batch["advantages"] = torch.where(centred == 0, 0.0, batch["advantages"])
    # Who is preserved is decided by the true sign, whatever the surrogate is given.
    batch["group_advantages"] = batch["advantages"]
    if not loss.negative_advantages:
        batch["advantages"] = batch["advantages"].clamp(min=0)


def gather_batch(batch: dict[str, Any], accelerator: Accelerator, pad_id: int) -> dict[str, Any]:
    """Return the rows of all processes, in the order of their ranks; scalars are global already."""
    gathered = {}
    for key, value in batch.items():
        if torch.is_tensor(value) and value.dim():
            # Prompts are padded left, completions right.
            value = accelerator.pad_across_processes(
                value,
                dim=1,
                pad_index=pad_id if key.endswith("_ids") else 0,
                pad_first=key.startswith("prompt"),
            )
            value = accelerator.gather(value)
        gathered[key] = value
    return gathered


def mini_batch_rows(
    lengths: Sequence[int], args: SearchGRPOConfig, *, processes: int, generator: torch.Generator
) -> list[list[list[int]]]:
    """Rows by mini-batch and process; `lengths` are tokens per row, rows of a group adjacent."""
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps

    def arranged(rows: list[int]) -> list[int]:
        # The least padding; no gradient changes unless each micro-batch is a mean of its own.
        return rows if args.micro_batch_means else sorted(rows, key=lengths.__getitem__)

    if args.training.mini_batches == "balanced":
        shares = _balanced(lengths, processes)
        starts = range(0, len(shares[0]), size)
        return [[arranged(share[start : start + size]) for share in shares] for start in starts]
    unit = cast(int, args.num_generations) if args.training.mini_batches == "groups" else 1
    units = torch.randperm(len(lengths) // unit, generator=generator)
    rows = (units[:, None] * unit + torch.arange(unit)).flatten()
    batches = [arranged(batch.tolist()) for batch in rows.split(size * processes)]
    # Every process takes rows of all lengths, or some would wait.
    return [[batch[rank::processes] for rank in range(processes)] for batch in batches]


def _balanced(lengths: Sequence[int], processes: int) -> list[list[int]]:
    """Rows of each process, equally many and nearly equally long together: the largest differencing
    method (Karmarkar and Karp) with which the official code deals out a rollout.
    """
    ordered = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    # A division has a set (tokens, rows) for each process, the largest first.
    divisions = [
        sorted(((lengths[row], [row]) for row in ordered[start : start + processes]), reverse=True)
        for start in range(0, len(ordered), processes)
    ]
    while len(divisions) > 1:
        divisions.sort(key=lambda sets: (sets[0][0] - sets[-1][0], sets[0]))
        first, second = divisions.pop(), divisions.pop()
        pairs = zip(first, reversed(second), strict=True)
        divisions.append(sorted(((a + b, x + y) for (a, x), (b, y) in pairs), reverse=True))
    return [sorted(rows) for _, rows in divisions[0]]


def answer_weight(trajectories: Sequence[Trajectory], loss: LossConfig) -> float:
    """Weight of the answer in the penalty of a step, by how much its trajectories search."""
    if loss.answer_ramp == "none":
        return loss.answer_weight
    # In 32 bits: runs are continued to the bit.
    searches = torch.tensor(sum(t.searches for t in trajectories) / len(trajectories)).item()
    # The official ramp has a slope of its own and ends at the penalty's weight.
    official = loss.answer_ramp == "code" and loss.llds_weight > 0
    budget = 1 + loss.llds_weight / _MASK_WEIGHT if official else 2.0
    ramp = answer_weight_ramp(searches, ramp=loss.answer_ramp, budget=budget)
    return ramp * loss.answer_weight


def _counted(micro: dict[str, Any], args: SearchGRPOConfig) -> torch.Tensor:
    options = {"normalizer": args.loss.normalizer, "preserve": args.loss.preserve}
    return penalty_tokens(micro["policy_mask"], micro["group_advantages"], **options)


def likelihood_penalty(
    micro: dict[str, Any], logprobs: torch.Tensor, loss: LossConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """LLDS's penalty on a micro-batch, a part of its mini-batch's; without weight, a number."""
    with torch.set_grad_enabled(loss.llds_weight > 0):
        return llds_penalty(
            logprobs,
            micro["old_per_token_logps"],
            micro["policy_mask"],
            micro["group_advantages"],
            gate=loss.gate,
            normalizer=loss.normalizer,
            answer_mask_BT=micro["answer_mask"],
            answer_weight=micro["answer_weight"],
            preserve=loss.preserve,
            gate_threshold=loss.gate_threshold,
            denominator=micro["penalty_count"],
        )


def cut(
    batch: dict[str, Any], shares: Sequence[list[int]], rank: int, args: SearchGRPOConfig
) -> list[dict[str, Any]]:
    """Micro-batches of process `rank`, of a mini-batch whose rows are dealt out in `shares`."""
    budget, size = args.training.max_tokens_per_micro_batch, args.per_device_train_batch_size
    if budget is None:
        rows = shares[rank]
        return [_trim(batch, rows[start : start + size]) for start in range(0, len(rows), size)]
    lengths = [batch[f"{part}_mask"].sum(1).tolist() for part in ("prompt", "completion")]
    pieces = pack(shares, lengths, budget, padded=not args.training.remove_padding)[rank]
    return [_trim(batch, piece) for piece in pieces]


def pack(
    shares: Sequence[list[int]], lengths: Sequence[Sequence[int]], budget: int, *, padded: bool
) -> list[list[list[int]]]:
    """Rows of each micro-batch of each process: neighbours of at most `budget` tokens together,
    with their padding where they are `padded`. Processes train, and TRL gathers, row by row, so
    that all have the same numbers of rows. `lengths` are those of prompts and of completions.
    """

    def tokens(rows: list[int]) -> int:
        if padded:
            return len(rows) * sum(max(length[row] for row in rows) for length in lengths)
        return sum(length[row] for row in rows for length in lengths)

    starts = [0]
    for end in range(2, len(shares[0]) + 1):
        if any(tokens(share[starts[-1] : end]) > budget for share in shares):
            starts.append(end - 1)
    ends = [*starts[1:], None]
    return [[share[a:b] for a, b in zip(starts, ends, strict=True)] for share in shares]


def set_counts(
    window: Sequence[dict[str, Any]], args: SearchGRPOConfig, accelerator: Accelerator
) -> None:
    """Give the micro-batches of a mini-batch what their parts of it are divided by. The denominator
    of the penalty is the whole mini-batch's count.
    """
    by_tokens = args.training.max_tokens_per_micro_batch is not None
    counted = 1 if by_tokens else len(window)  # micro-batches, to TRL
    penalty_count = per_process([_counted(m, args) for m in window], accelerator)
    tokens = per_process([micro["policy_mask"] for micro in window], accelerator)
    rows = sum(len(micro["rows"]) for micro in window)
    for micro in window:
        own_tokens = counted * micro["policy_mask"].sum()
        micro["penalty_count"], micro["policy_count"] = penalty_count, tokens
        micro["entropy_scale"] = own_tokens / tokens.clamp(min=1)
        if args.micro_batch_means:
            own_count = _counted(micro, args).sum()
            micro |= {"penalty_count": counted * own_count, "entropy_scale": 1.0}
            micro["policy_count"] = own_tokens
        if by_tokens and args.loss_type not in _SUMS:
            # TRL's mean is that of the rows of a micro-batch.
            micro["share"] = len(micro["rows"]) / rows
            micro["entropy_scale"] = micro["entropy_scale"] / micro["share"]


def per_process(masks: Sequence[torch.Tensor], accelerator: Accelerator) -> torch.Tensor:
    """The count of all processes, shared among them: gradients are averaged over them."""
    count = torch.stack([mask.sum() for mask in masks]).sum()
    total = accelerator.reduce(count.float(), reduction="sum")
    return cast(torch.Tensor, total) / accelerator.num_processes


def _trim(batch: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    prompt, completion = (
        int(batch[f"{part}_mask"][rows].sum(1).max()) for part in ("prompt", "completion")
    )
    trimmed = {}
    for key, value in batch.items():
        if key in ("old_per_token_logps", "ref_per_token_logps"):
            continue  # TRL's own passes over the padded rollout were skipped: placeholders
        if torch.is_tensor(value) and value.dim():
            value = value[rows]
        if torch.is_tensor(value) and value.dim() == 2:
            # Prompts are padded left, completions right.
            value = value[:, -prompt:] if key.startswith("prompt") else value[:, :completion]
        trimmed[key] = value
    return trimmed


def correct_for_sampler(micro: dict[str, Any], sampler: SamplerConfig) -> None:
    """Weigh a micro-batch's advantages by how the trainer's probabilities, its old ones, differ
    from the sampler's. The surrogate is linear in weights that are not negative.
    """
    if sampler.correction != "none":
        weight = sampler_correction(
            micro["old_per_token_logps"],
            micro["sampling_per_token_logps"],
            micro["policy_mask"],
            mode=sampler.correction,
            cap=sampler.correction_cap,
        )
        micro["advantages"] = micro["advantages"][:, None] * weight


def rollout_columns(trajectories: Sequence[Trajectory]) -> dict[str, list]:
    """What TRL's `rollout_func` returns: token lists and their masks, one entry per trajectory."""
    return {
        "prompt_ids": [t.prompt_ids for t in trajectories],
        "completion_ids": [t.completion_ids for t in trajectories],
        "logprobs": [t.sampler_logprobs for t in trajectories],
        "env_mask": [t.response_mask for t in trajectories],
        "trajectory_reward": [t.reward for t in trajectories],
    }


def trajectory_reward(trajectory_reward: list[float | None], **kwargs: Any) -> list[float | None]:
    """TRL's reward function: the reward the rollout has already set."""
    return trajectory_reward
