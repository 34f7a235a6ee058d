"""LLDS inside TRL's own trainer, on a plain task: text in, text out, a reward on the text."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from given_policies import save_one_layer_policy
from run_helpers import one_line
from trl import GRPOConfig, GRPOTrainer

from llds_core.errors import ConfigError
from llds_core.integrations.trl import LLDSGRPOTrainer, LLDSMixin
from llds_core.losses import llds_penalty

LLDS = {"llds/penalty", "llds/gated_fraction", "llds/gated_fraction_first"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_one_layer_policy(tmp_path_factory.mktemp("policy"))


def even_tokens(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Share of even ids; nothing for prompt `a`, whose responses are preserved untrained."""
    share = [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
    return [0.0 if prompt == "a" else value for prompt, value in zip(prompts, share, strict=True)]


def trainer_of(
    kind: type, policy: Path, folder: Path, options: dict[str, Any] | None = None, **settings: Any
) -> Any:
    args = GRPOConfig(
        output_dir=str(folder),
        **{
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "num_generations": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_iterations": 2,
            "learning_rate": 0.01,
            "max_steps": 4,
            "shuffle_dataset": False,
            "max_completion_length": 8,
            "report_to": [],
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **settings,
        },
    )
    prompts = Dataset.from_dict({"prompt": ["a", "b", "a", "b"]})
    return kind(
        model=str(policy),
        args=args,
        reward_funcs=[even_tokens],
        train_dataset=prompts,
        **(options or {}),
    )


def trained(*args: Any, **kwargs: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    trainer = trainer_of(*args, **kwargs)
    trainer.train()
    return trainer.model.state_dict(), [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_weight_0_trains_as_stock_trl_to_the_bit_and_more_changes_training(
    policy: Path, tmp_path: Path, loss_type: str
) -> None:
    settings = {"loss_type": loss_type, "beta": 0.1}
    stock, _ = trained(GRPOTrainer, policy, tmp_path, **settings)
    off, rows = trained(LLDSGRPOTrainer, policy, tmp_path, {"llds_weight": 0.0}, **settings)
    assert all(torch.equal(stock[name], off[name]) for name in stock)
    on, regularised = trained(LLDSGRPOTrainer, policy, tmp_path, {"llds_weight": 5.0}, **settings)
    assert any(not torch.equal(stock[name], on[name]) for name in stock)
    for first, second in (rows[:2], rows[2:], regularised[:2], regularised[2:]):
        assert set(first) >= LLDS and LLDS - set(second) == {"llds/gated_fraction_first"}
        assert first["llds/penalty"] < 1e-6 < second["llds/penalty"]
        assert 0 < second["llds/gated_fraction"] < 1
    # The first update is the same without LLDS.
    assert math.isclose(rows[0]["grad_norm"], regularised[0]["grad_norm"], rel_tol=1e-4)


def window(trainer: Any, *, tools: bool) -> list[dict[str, Any]]:
    """Two micro-batches of a rollout, of unequal lengths, as TRL would hold them."""
    generator = torch.Generator().manual_seed(0)
    micro_batches = []
    for width, advantages in ((8, [1.0, -1.0, 0.5, 0.0]), (3, [-0.2, 0.3, -1.0, 2.0])):
        ids = torch.randint(5, 250, (4, 2 + width), generator=generator)
        micro = {
            "prompt_ids": ids[:, :2],
            "prompt_mask": torch.ones(4, 2, dtype=torch.long),
            "completion_ids": ids[:, 2:],
            "completion_mask": torch.ones(4, width, dtype=torch.long),
            "advantages": torch.tensor(advantages),
            "num_items_in_batch": torch.tensor(44.0),
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


@pytest.mark.parametrize("normalizer", ["preserved", "all"])
@pytest.mark.parametrize("tools", [False, True])
def test_an_update_of_unequal_micro_batches_gets_the_penalty_of_the_whole(
    policy: Path, tmp_path: Path, tools: bool, normalizer: str
) -> None:
    found = []
    for weight in (0.0, 3.0):
        options = {"llds_weight": weight, "llds_normalizer": normalizer, "llds_gate": "action"}
        trainer = trainer_of(LLDSGRPOTrainer, policy, tmp_path, options)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 2
        trainer._buffered_inputs = window(trainer, tools=tools)
        losses = []
        for step, micro in enumerate(trainer._buffered_inputs):
            trainer._step = step
            losses.append(trainer._compute_loss(trainer.model, micro))
        sum(losses).backward()
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        found.append((float(sum(losses)), torch.cat([g.flatten() for g in gradients])))
    # The same from one padded batch, in one call of the pure function.
    trainer.model.zero_grad()
    rows: dict[str, list[torch.Tensor]] = {"new": [], "old": [], "mask": []}
    for micro in trainer._buffered_inputs:
        ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], 1)
        width = micro["completion_ids"].shape[1]
        new = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, torch.ones_like(ids), width
        )[0]
        mask = micro.get("tool_mask", micro["completion_mask"])
        for name, tensor in (("new", new), ("old", micro["old_per_token_logps"]), ("mask", mask)):
            rows[name].append(torch.nn.functional.pad(tensor, (0, 8 - width)))
    new, old, mask = (torch.cat(rows[name]) for name in ("new", "old", "mask"))
    advantages = torch.cat([micro["advantages"] for micro in trainer._buffered_inputs])
    penalty, metrics = llds_penalty(new, old, mask, advantages, normalizer=normalizer)
    (3.0 * penalty).backward()
    expected = torch.cat(
        [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    )
    assert found[1][0] - found[0][0] == pytest.approx(3 * float(penalty), rel=1e-5)
    torch.testing.assert_close(found[1][1] - found[0][1], expected, rtol=1e-4, atol=1e-6)
    logged = trainer._metrics["train"]
    assert logged["llds/penalty"] == [pytest.approx(float(penalty), rel=1e-5)]
    assert logged["llds/gated_fraction"] == [pytest.approx(float(metrics["gated_fraction"]))]


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"num_iterations": 1}, "num_iterations=2"),
        ({"num_iterations": 3, "steps_per_generation": 1}, "num_iterations=4"),  # 1.5 updates
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, "num_iterations=4"),
        ({"num_iterations": 1, "steps_per_generation": 5}, "num_iterations=2"),
    ],
)
def test_a_penalty_that_would_be_0_is_refused_with_settings_that_work(
    policy: Path, tmp_path: Path, settings: dict[str, int], fix: str
) -> None:
    with pytest.raises(ConfigError) as error:
        trainer_of(LLDSGRPOTrainer, policy, tmp_path, **settings)
    assert f"set {fix}" in one_line(error)
    name, value = fix.split("=")
    trainer_of(LLDSGRPOTrainer, policy, tmp_path, **{**settings, name: int(value)})


class Fused(GRPOTrainer):
    """A loss that sees hidden states only."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        return next(model.parameters()).sum()


class LLDSFused(LLDSMixin, Fused):
    pass


class Misplaced(LLDSMixin):
    pass


def test_what_it_cannot_do_is_refused_in_one_line(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="log-probabilities") as error:
        trained(LLDSFused, policy, tmp_path)
    one_line(error)
    with pytest.raises(ConfigError, match="is no GRPOTrainer") as error:
        trainer_of(Misplaced, policy, tmp_path)
    one_line(error)
    for options, said in (
        ({"llds_gate": "actions"}, "gate is"),
        ({"llds_weight": -1.0}, "llds_weight is -1"),
        ({"llds_preserve": "all"}, "preserve is"),
    ):
        with pytest.raises(ValueError, match=said):
            trainer_of(LLDSGRPOTrainer, policy, tmp_path, options)


def test_dropout_is_refused_until_it_is_switched_off(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    class Dropping(LLDSGRPOTrainer):
        def __init__(self, *, model: str, **options: Any) -> None:
            loaded = AutoModelForCausalLM.from_pretrained(model)
            loaded.model.norm = torch.nn.Sequential(loaded.model.norm, torch.nn.Dropout(0.1))
            super().__init__(model=loaded, **options)

    with pytest.raises(ConfigError, match="disable_dropout=True") as error:
        trainer_of(Dropping, policy, tmp_path)
    one_line(error)
    trainer_of(Dropping, policy, tmp_path, disable_dropout=True)


def test_evaluation_is_stock(policy: Path, tmp_path: Path) -> None:
    trainer = trainer_of(LLDSGRPOTrainer, policy, tmp_path)
    metrics = trainer.evaluate(Dataset.from_dict({"prompt": ["a"] * 8}))
    assert "eval_loss" in metrics and not any("llds" in name for name in metrics)
