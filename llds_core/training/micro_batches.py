"""Rows of a rollout: put together from all processes, cut into micro-batches."""

from typing import Any

import torch
from accelerate import Accelerator

from llds_core.training.settings import SearchGRPOConfig

_PER_TOKEN = (
    *("completion_ids", "completion_mask", "tool_mask", "policy_mask", "answer_mask"),
    *("action_ids", "sampling_per_token_logps"),
)


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


def penalty_tokens(micro: dict[str, Any], args: SearchGRPOConfig) -> torch.Tensor:
    """Mask (B, T) of the tokens that the denominator of the penalty counts."""
    if args.llds_normalizer == "all":
        return micro["policy_mask"]
    advantages = micro["group_advantages"]
    kept = advantages >= 0 if args.llds_preserve == "nonnegative" else advantages > 0
    return micro["policy_mask"] * kept[:, None]


def trim(batch: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Select `rows` and cut padding that all of them share: prompts are padded left, completions
    right.
    """
    chosen = {
        key: value[rows] if torch.is_tensor(value) and value.dim() else value
        for key, value in batch.items()
    }
    prompt = int(chosen["prompt_mask"].sum(1).max())
    completion = int(chosen["completion_mask"].sum(1).max())
    for key in ("prompt_ids", "prompt_mask"):
        chosen[key] = chosen[key][:, -prompt:]
    for key in _PER_TOKEN:
        chosen[key] = chosen[key][:, :completion]
    # TRL's own passes over the padded rollout were skipped: these are placeholders.
    for key in ("old_per_token_logps", "ref_per_token_logps"):
        chosen.pop(key, None)
    return chosen
