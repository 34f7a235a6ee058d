"""Updates of TRL's own trainer with LLDS, and the penalty that each should have got."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig

from llds_core.integrations.trl import LLDSGRPOTrainer
from llds_core.losses import displacement, llds_penalty

WIDTHS = (8, 3, 5, 6)
ADVANTAGES = (
    (1.0, -1.0, 0.5, 0.0),
    (-0.2, 0.3, -1.0, 2.0),
    (-1.0, -0.5, -0.1, 0.4),
    (1.0, 0.0, 0.0, -1.0),
)


def even_tokens(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Share of even ids; nothing for prompt `a`, whose responses are preserved untrained."""
    share = [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
    return [0.0 if prompt == "a" else value for prompt, value in zip(prompts, share, strict=True)]


def trainer_of(
    kind: type, policy: Path, folder: Path, options: dict[str, Any] | None = None, **settings: Any
) -> Any:
    given = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": []}
    given |= {"num_generations": 4, "per_device_train_batch_size": 4, "num_iterations": 2}
    given |= {"gradient_accumulation_steps": 2, "learning_rate": 0.01, "max_steps": 4}
    given |= {"shuffle_dataset": False, "max_completion_length": 8, "save_strategy": "no"}
    given |= {"logging_steps": 1, "disable_tqdm": True, "dataloader_pin_memory": False}
    args = GRPOConfig(str(folder), **given | settings)
    prompts = Dataset.from_dict({"prompt": ["a", "b", "a", "b"]})
    given = {"model": str(policy), "args": args, "train_dataset": prompts, **(options or {})}
    return kind(reward_funcs=[even_tokens], **given)


def window(trainer: Any, *, tools: bool, size: int = 2) -> list[dict[str, Any]]:
    """`size` micro-batches of a rollout, of unequal lengths, as TRL would hold them."""
    generator = torch.Generator().manual_seed(0)
    micro_batches = []
    for width, advantages in zip(WIDTHS[:size], ADVANTAGES, strict=False):
        ids = torch.randint(5, 250, (4, 2 + width), generator=generator)
        micro = {
            "prompt_ids": ids[:, :2],
            "prompt_mask": torch.ones(4, 2, dtype=torch.long),
            "completion_ids": ids[:, 2:],
            "completion_mask": torch.ones(4, width, dtype=torch.long),
            "advantages": torch.tensor(advantages),
            "num_items_in_batch": torch.tensor(4.0 * sum(WIDTHS[:size])),
        }
        if tools:
            micro["tool_mask"] = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1])[:width].expand(4, -1)
        with torch.no_grad():
            logprobs = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, torch.ones_like(ids), width
            )[0]
        noise = torch.randn(logprobs.shape, generator=generator)
        micro_batches.append({**micro, "old_per_token_logps": logprobs + 0.1 * noise})
    return micro_batches


def gradient_of(trainer: Any) -> torch.Tensor:
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    return torch.cat([gradient.flatten() for gradient in gradients])


def update(trainer: Any, micro_batches: list[dict[str, Any]], model: Any = None) -> tuple:
    """Loss and gradient of one update, by the trainer's own loss on each micro-batch."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = len(micro_batches)
    trainer._buffered_inputs = micro_batches
    losses = []
    for step, micro in enumerate(micro_batches):
        trainer._step = step
        losses.append(trainer._compute_loss(model or trainer.model, micro))
    loss = torch.stack(losses).sum()
    loss.backward()
    return float(loss.detach()), gradient_of(trainer)


def whole(trainer: Any, micro_batches: list[dict[str, Any]], **options: Any) -> tuple:
    """Penalty, metrics and gradient of one padded batch, in one call of the pure function."""
    trainer.model.zero_grad()
    trainer.model.train()
    rows: dict[str, list[torch.Tensor]] = {"new": [], "old": [], "mask": []}
    for micro in micro_batches:
        ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], 1)
        width = micro["completion_ids"].shape[1]
        new = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, torch.ones_like(ids), width
        )[0]
        mask = micro.get("tool_mask", micro["completion_mask"])
        for name, tensor in (("new", new), ("old", micro["old_per_token_logps"]), ("mask", mask)):
            rows[name].append(torch.nn.functional.pad(tensor, (0, max(WIDTHS) - width)))
    new, old, mask = (torch.cat(rows[name]) for name in ("new", "old", "mask"))
    advantages = torch.cat([micro["advantages"] for micro in micro_batches])
    penalty, metrics = llds_penalty(new, old, mask, advantages, **options)
    penalty.backward()
    metrics |= displacement(new, old, mask, advantages)
    return float(penalty.detach()), metrics, gradient_of(trainer)


def main(policy: Path, folder: Path) -> None:
    """To be spawned: this process's half of four micro-batches, with weight 0 and 3, averaged as
    DDP does; it saves what it saw.
    """
    trainer = trainer_of(LLDSGRPOTrainer, policy, folder)
    rank, size = trainer.accelerator.process_index, trainer.accelerator.num_processes
    micro_batches = window(trainer, tools=True, size=4)
    share = len(micro_batches) // size
    mine = micro_batches[rank * share : (rank + 1) * share]
    model = trainer.accelerator.prepare_model(trainer.model)
    assert size == 1 or model is not trainer.model  # DDP, as in training
    found: dict[str, Any] = {}
    for normalizer in ("preserved", "all"):
        trainer.llds_normalizer = normalizer
        gradients = []
        for trainer.llds_weight in (0.0, 3.0):
            trainer.model.zero_grad()
            trainer._metrics["train"].clear()
            gradients.append(update(trainer, mine, model)[1].clone())
        found[normalizer] = gradients[1] - gradients[0], dict(trainer._metrics["train"])
    if rank == 0:
        alone = trainer_of(LLDSGRPOTrainer, policy, folder)  # whose backward pass waits for nobody
        for normalizer in ("preserved", "all"):
            found[f"expected {normalizer}"] = whole(alone, micro_batches, normalizer=normalizer)
    torch.save(found, folder / f"process-{rank}.pt")
