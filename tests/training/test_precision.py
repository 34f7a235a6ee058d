"""Gradient checkpointing, mixed precision and optimizers of the trainer."""

import importlib.util
from pathlib import Path

import pytest
import torch
from scripted import build, largest_difference, settings, weights
from transformers import Trainer

from llds_core.config import load_experiment
from llds_core.errors import ConfigError
from llds_core.rollout.samplers import TransformersSampler
from llds_core.training.settings import SearchGRPOConfig, search_grpo_config
from llds_core.training.trainer import SearchGRPOTrainer
from llds_core.training.warmstart import WarmstartArguments

_STRONG = ("training.steps=2", "loss.llds_weight=1.0", "loss.entropy_weight=0.01")


class _Recorded(SearchGRPOTrainer):
    """Keeps losses and gradients, and whether layers were checkpointed."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.checkpointed = False
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.losses.append(loss.item())
        self.checkpointed = self.model.is_gradient_checkpointing
        return loss

    def _clip_grad_norm(self, model):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        return super()._clip_grad_norm(model)


def _run(folder: Path, *overrides: str, method: str = "llds-action") -> tuple[_Recorded, list]:
    rows = []
    trainer = build(
        settings(folder, *_STRONG, *overrides, method=method),
        _Recorded,
        on_step=lambda row, trajectories: rows.append(row),
    )
    trainer.train()
    return trainer, rows


def test_gradient_checkpointing_changes_no_loss_and_no_gradient(tmp_path: Path) -> None:
    plain, _ = _run(tmp_path / "plain")
    saving, rows = _run(tmp_path / "saving", "training.gradient_checkpointing=true")
    assert saving.checkpointed and not plain.checkpointed
    assert saving.args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert saving.losses == pytest.approx(plain.losses, abs=1e-6)
    assert len(saving.gradients) == len(plain.gradients) == 8
    for mine, other in zip(saving.gradients, plain.gradients, strict=True):
        assert largest_difference(mine, other) < 1e-6
        assert any(gradient.abs().max() > 1e-4 for gradient in mine.values())
    assert largest_difference(weights(saving.model), weights(plain.model)) < 1e-6
    assert [row["gated_fraction_first"] for row in rows] == [0, 0]
    assert all(row["gated_fraction"] > 0 for row in rows)


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_bfloat16_keeps_float32_weights_and_an_exact_canary(
    tmp_path: Path, checkpointing: str
) -> None:
    trainer, rows = _run(
        tmp_path / "half",
        "training.dtype=bfloat16",
        f"training.gradient_checkpointing={checkpointing}",
    )
    full, full_rows = _run(tmp_path / "full")
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert {p.dtype for p in trainer.ref_model.parameters()} == {torch.float32}
    assert {g.dtype for g in trainer.gradients[0].values()} == {torch.float32}
    moments = [s for s in trainer.optimizer.state.values() if "exp_avg" in s]
    assert {s["exp_avg"].dtype for s in moments} == {torch.float32}
    # It did compute in 16 bits, ...
    assert rows[0]["loglik_correct"] != full_rows[0]["loglik_correct"]
    assert rows[0]["loglik_correct"] == pytest.approx(full_rows[0]["loglik_correct"], abs=0.05)
    # ... and old, reference and new policy alike.
    assert [row["gated_fraction_first"] for row in rows] == [0, 0]
    assert rows[0]["kl"] == 0 and rows[1]["kl"] > 0
    assert largest_difference(weights(full.model), weights(trainer.model)) > 0


def test_the_sampler_computes_in_the_precision_of_training() -> None:
    from scripted import TOKENIZER, policy

    prompts = [TOKENIZER.encode("which city"), TOKENIZER.encode("why")]

    def logprobs(autocast: torch.dtype | None) -> list[float]:
        sampler = TransformersSampler(policy(), TOKENIZER, None, temperature=0, autocast=autocast)
        (made, _) = sampler.session(prompts).generate([0, 1], [4, 4])
        return made.logprobs

    plain, half = logprobs(None), logprobs(torch.bfloat16)
    assert plain != half and plain == pytest.approx(half, abs=0.1)


def test_eight_bit_adam_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_experiment("smoke/grpo", ["training.optimizer=adamw-8bit"])
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name)
    )
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        search_grpo_config(config, 0, tmp_path)


def test_the_optimizer_of_the_configuration_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    config = load_experiment("smoke/grpo", ["training.optimizer=adamw-8bit"])
    assert search_grpo_config(config, 0, tmp_path).optim == "adamw_bnb_8bit"
    adamw = search_grpo_config(load_experiment("smoke/grpo"), 0, tmp_path)
    assert Trainer.get_optimizer_cls_and_kwargs(adamw)[0] is torch.optim.AdamW


@pytest.mark.parametrize("kind", [SearchGRPOConfig, WarmstartArguments])
@pytest.mark.parametrize("visible", [0, 1, 4])
def test_a_process_uses_one_gpu(kind: type, visible: int, tmp_path: Path) -> None:
    """Of several, transformers would take all, and spread every batch over them."""
    args = kind(output_dir=str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    args._n_gpu = visible  # as found on a machine with so many
    assert args.n_gpu == min(1, visible)
    assert args.train_batch_size == 8


def test_sharded_gradients_are_reduced_after_every_micro_batch(tmp_path: Path) -> None:
    for sharding, wanted in (("fsdp2", True), ("none", None)):
        config = load_experiment(
            "smoke/grpo", [f"hardware.sharding={sharding}", "hardware.processes=2"]
        )
        options = search_grpo_config(config, 0, tmp_path).accelerator_config
        kept = options.gradient_accumulation_kwargs or {}
        assert kept.get("sync_each_batch") is wanted
