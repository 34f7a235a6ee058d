"""Trainers that keep what they computed, for tests to look at."""

from typing import Any

import torch
from scripted import build
from trl import GRPOTrainer

from llds_core.training.trainer import SearchGRPOTrainer


class NoPenaltyCode(SearchGRPOTrainer):
    """The trainer as it would be had nobody ever written the penalty."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        return GRPOTrainer._compute_loss(self, model, inputs)


class Recorded(SearchGRPOTrainer):
    """Keeps what it computed: of every micro-batch, of every update, and the row of every step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.records: list[dict[str, Any]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.rows: list[dict[str, Any]] = []
        super().__init__(*args, on_step=lambda row, made: self.rows.append(row), **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled():
            self.live = result[0]
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        (gradient,) = torch.autograd.grad(loss, self.live, retain_graph=True)
        self.records.append(
            {
                "update": self.state.global_step,
                "inputs": dict(inputs),
                "logprobs": self.live.detach(),
                "loss": loss.detach(),
                "gradient": gradient,
            }
        )
        return loss

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        return super()._clip_grad_norm(model)


def run(args: Any, cls: type[SearchGRPOTrainer] = Recorded, **options: Any) -> Any:
    trainer = build(args, cls, **options)
    trainer.train()
    return trainer
