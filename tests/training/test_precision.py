"""Gradient checkpointing, mixed precision and optimizers of the trainer."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorded, run
from safetensors.torch import load_file
from scripted import TOKENIZER, largest_difference, policy, settings, weights
from transformers import Trainer

from llds_core.config import load_experiment
from llds_core.errors import ConfigError
from llds_core.rollout.samplers import TransformersSampler
from llds_core.runs import Run
from llds_core.training.settings import search_grpo_config
from llds_core.training.warmstart import WarmstartArguments, warmstart

_STRONG = ("training.steps=2", "loss.llds_weight=1.0", "loss.entropy_weight=0.01")


class _Checkpointed(Recorded):
    """Keeps whether layers were checkpointed: gradients by log-probabilities there are none."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super(Recorded, self)._compute_loss(model, inputs)
        self.records.append({"loss": loss.item(), "saved": self.model.is_gradient_checkpointing})
        return loss


def _run(folder: Path, *overrides: str) -> _Checkpointed:
    return run(settings(folder, *_STRONG, *overrides, method="llds-action"), _Checkpointed)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> _Checkpointed:
    """In float32, without checkpointing."""
    return _run(tmp_path_factory.mktemp("plain"))


def test_gradient_checkpointing_changes_no_loss_and_no_gradient(plain, tmp_path) -> None:
    saving = _run(tmp_path / "saving", "training.gradient_checkpointing=true")
    assert saving.records[-1]["saved"] and not plain.records[-1]["saved"]
    assert saving.args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    losses = [[record["loss"] for record in trainer.records] for trainer in (plain, saving)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(saving.gradients) == len(plain.gradients) == 8
    for mine, other in zip(saving.gradients, plain.gradients, strict=True):
        assert largest_difference(mine, other) < 1e-6
        assert any(gradient.abs().max() > 1e-4 for gradient in mine.values())
    assert largest_difference(weights(saving.model), weights(plain.model)) < 1e-6
    assert [row["gated_fraction_first"] for row in saving.rows] == [0, 0]
    assert all(row["gated_fraction"] > 0 for row in saving.rows)


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_bfloat16_keeps_float32_weights_and_an_exact_canary(plain, tmp_path, checkpointing) -> None:
    saving = f"training.gradient_checkpointing={checkpointing}"
    half = _run(tmp_path / "half", "training.dtype=bfloat16", saving)
    moments = [s["exp_avg"] for s in half.optimizer.state.values() if "exp_avg" in s]
    kept = [*half.model.parameters(), *half.ref_model.parameters(), *moments]
    assert {value.dtype for value in (*kept, *half.gradients[0].values())} == {torch.float32}
    # It did compute in 16 bits, ...
    logliks = [trainer.rows[0]["loglik_correct"] for trainer in (half, plain)]
    assert logliks[0] != logliks[1] and logliks[0] == pytest.approx(logliks[1], abs=0.05)
    # ... and old, reference and new policy alike.
    assert [row["gated_fraction_first"] for row in half.rows] == [0, 0]
    assert half.rows[0]["kl"] == 0 and half.rows[1]["kl"] > 0
    assert largest_difference(weights(plain.model), weights(half.model)) > 0


def test_the_sampler_computes_in_the_precision_of_training() -> None:
    prompts = [TOKENIZER.encode("which city"), TOKENIZER.encode("why")]

    def logprobs(autocast: torch.dtype | None) -> list[float]:
        sampler = TransformersSampler(policy(), TOKENIZER, None, temperature=0, autocast=autocast)
        (made, _) = sampler.session(prompts).generate([0, 1], [4, 4])
        return made.logprobs

    plain, half = logprobs(None), logprobs(torch.bfloat16)
    assert plain != half and plain == pytest.approx(half, abs=0.1)


def test_a_warm_start_computes_in_the_precision_of_training(tmp_path: Path) -> None:
    def start(dtype: str) -> dict[str, torch.Tensor]:
        short = ["warmstart.steps=2", f"training.dtype={dtype}"]
        made = warmstart(Run.load("smoke/grpo", 0, tmp_path, short))
        return load_file(made / "model.safetensors")

    plain, half = start("float32"), start("bfloat16")
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert 0 < largest_difference(plain, half) < 0.05


def test_the_optimizer_of_the_configuration_is_used_or_named(tmp_path, monkeypatch) -> None:
    adamw = search_grpo_config(load_experiment("smoke/grpo"), 0, tmp_path)
    assert Trainer.get_optimizer_cls_and_kwargs(adamw)[0] is torch.optim.AdamW
    config = load_experiment("smoke/grpo", ["training.optimizer=adamw-8bit"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert search_grpo_config(config, 0, tmp_path).optim == "adamw_bnb_8bit"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        search_grpo_config(config, 0, tmp_path)


@pytest.mark.parametrize("visible", [0, 1, 4])
def test_a_process_uses_one_gpu(visible: int, tmp_path: Path) -> None:
    """Of several, transformers would take all, and spread every batch over them."""
    config = load_experiment("smoke/grpo", ["training.micro_batch_size=8"])
    args = search_grpo_config(config, 0, tmp_path)
    warm = WarmstartArguments(output_dir=str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    for each in (args, warm):
        each._n_gpu = visible  # as found on a machine with so many
        assert each.n_gpu == min(1, visible)
        assert each.train_batch_size == 8


@pytest.mark.parametrize(("sharding", "wanted"), [("fsdp2", True), ("none", None)])
def test_sharded_gradients_are_reduced_after_every_micro_batch(tmp_path, sharding, wanted) -> None:
    overrides = [f"hardware.sharding={sharding}", "hardware.processes=2"]
    args = search_grpo_config(load_experiment("smoke/grpo", overrides), 0, tmp_path)
    kept = args.accelerator_config.gradient_accumulation_kwargs or {}
    assert kept.get("sync_each_batch") is wanted
