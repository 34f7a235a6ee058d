"""LLDS inside TRL's own trainer, on a plain task: text in, text out, a reward on the text."""

import math
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
import trl_updates
from datasets import Dataset
from given_policies import save_one_layer_policy
from run_helpers import refused
from shared_trainers import spawn, wait
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOTrainer
from trl.trainer import grpo_trainer
from trl_updates import even_tokens, trainer_of, update, whole, window

from llds_core import integrations
from llds_core.errors import ConfigError
from llds_core.integrations.trl import LLDSGRPOTrainer, LLDSMixin

LLDS = {"llds/penalty", "llds/gated_fraction", "llds/loglik_rewarded"}
LATER = {"llds/change_rewarded", "llds/displaced_fraction"}
FIRST = {f"{name}_first" for name in LATER | {"llds/gated_fraction"}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_one_layer_policy(tmp_path_factory.mktemp("policy"))


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
        assert set(first) >= LLDS | FIRST and set(second) >= LLDS | LATER
        assert not LATER & set(first) and not FIRST & set(second)
        assert first["llds/loglik_rewarded"] == second["llds/loglik_rewarded"] < 0
        assert first["llds/penalty"] < 1e-6 < second["llds/penalty"]
        assert 0 < second["llds/gated_fraction"] < 1
    # The first update is the same without LLDS.
    assert math.isclose(rows[0]["grad_norm"], regularised[0]["grad_norm"], rel_tol=1e-4)


def lora(**settings: Any) -> Any:
    peft = pytest.importorskip("peft", reason="needs peft")
    return peft.LoraConfig(r=4, target_modules="all-linear", **settings)


OTHERS = {"gate": "token", "preserve": "positive", "gate_threshold": 0.05}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("plain", {"normalizer": "all"}),
        ("tools", {"normalizer": "preserved"}),
        ("tools", {"normalizer": "preserved", **OTHERS}),
        ("lora", {"normalizer": "all"}),
    ],
)
def test_an_update_of_unequal_micro_batches_gets_the_penalty_of_the_whole(
    policy: Path, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    found = []
    for weight in (0.0, 3.0):
        given = {f"llds_{name}": value for name, value in options.items()} | {"llds_weight": weight}
        if kind == "lora":
            given["peft_config"] = lora(init_lora_weights=False)  # none of them is zero
        trainer = trainer_of(LLDSGRPOTrainer, policy, tmp_path, given)
        micro_batches = window(trainer, tools=kind == "tools")
        found.append(update(trainer, micro_batches))
    penalty, metrics, expected = whole(trainer, micro_batches, **options)
    assert penalty > 0
    values = {name: value.item() for name, value in metrics.items()}
    assert found[1][0] - found[0][0] == pytest.approx(3 * penalty, rel=1e-5)
    torch.testing.assert_close(found[1][1] - found[0][1], 3 * expected, rtol=1e-4, atol=1e-6)
    if kind == "lora":
        named = trainer.model.named_parameters()
        assert all("lora" in name for name, value in named if value.grad is not None)
    logged = trainer._metrics["train"]
    assert logged["llds/penalty"] == [pytest.approx(penalty, rel=1e-5)]
    assert logged["llds/gated_fraction"] == [pytest.approx(values["gated_fraction"])]
    loglik = values["loglik_sum"] / values["rewarded_tokens"]
    assert logged["llds/loglik_rewarded"] == [pytest.approx(loglik, rel=1e-5)]
    assert values["rewarded"] == 4 and "llds/change_rewarded" not in logged  # a first update
    trainer._step += 1  # of the second pass, as far as the trainer knows
    trainer._log_update()
    trainer._buffered_inputs *= 2  # of the first pass, but not the first
    trainer._log_update()
    for suffix in ("", "_first", "_by_others"):
        change = [pytest.approx(values["change_sum"] / 4, rel=1e-4)]
        assert logged[f"llds/change_rewarded{suffix}"] == change
        assert logged[f"llds/displaced_fraction{suffix}"] == [values["displaced"] / 4]
    empty = [{**micro, "completion_mask": 0 * micro["completion_mask"]} for micro in micro_batches]
    trainer._buffered_inputs, trainer._step = empty + micro_batches, len(empty)
    assert trainer._tokens_of_update() == trainer._llds_count  # its own, not the first update's


def test_weight_0_measures_any_run_and_refuses_none(policy: Path, tmp_path: Path) -> None:
    settings = {"num_iterations": 1}  # TRL's default: it keeps no old log-probabilities
    stock, _ = trained(GRPOTrainer, policy, tmp_path, **settings)
    off, rows = trained(LLDSGRPOTrainer, policy, tmp_path, {"llds_weight": 0.0}, **settings)
    assert all(torch.equal(stock[name], off[name]) for name in stock)
    assert all(row["llds/loglik_rewarded"] < 0 for row in rows)
    assert all(row["llds/change_rewarded_first"] == row["llds/penalty"] == 0 for row in rows)
    assert not LATER & {name for row in rows for name in row}


@pytest.mark.slow
def test_two_processes_get_the_penalty_and_the_metrics_of_one(policy: Path, tmp_path: Path) -> None:
    """Four micro-batches, two on each process, whose gradients DDP averages over gloo."""
    assert wait(spawn(2, trl_updates.main, policy, tmp_path)) == [0, 0]
    one, two = (torch.load(tmp_path / f"process-{rank}.pt") for rank in (0, 1))
    for normalizer in ("preserved", "all"):
        penalty, metrics, expected = one[f"expected {normalizer}"]
        fraction = float(metrics["gated_fraction"])
        assert penalty > 0 and 0 < fraction < 1
        for gradient, logged in (one[normalizer], two[normalizer]):
            torch.testing.assert_close(gradient, 3 * expected, rtol=1e-4, atol=1e-6)
            assert logged["llds/penalty"] == [pytest.approx(penalty, rel=1e-5)]
            assert logged["llds/gated_fraction"] == [pytest.approx(fraction, rel=1e-5)]


def test_lora_trains_and_its_dropout_is_refused_until_it_is_switched_off(policy, tmp_path) -> None:
    options = {"peft_config": lora(), "llds_weight": 5.0}
    _, rows = trained(LLDSGRPOTrainer, policy, tmp_path, options, learning_rate=0.1)
    for first, second in (rows[:2], rows[2:]):
        assert first["llds/penalty"] < 1e-6 < second["llds/penalty"]
    options["peft_config"] = lora(lora_dropout=0.1)
    made = (LLDSGRPOTrainer, policy, tmp_path, options)
    refused(ConfigError, "disable_dropout=True", trainer_of, *made)
    trainer_of(*made, disable_dropout=True)


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"num_iterations": 1}, "steps_per_generation=16"),
        ({"num_iterations": 3, "steps_per_generation": 1}, "steps_per_generation=16"),  # 1.5
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, "steps_per_generation=32"),
        ({"num_iterations": 1, "steps_per_generation": 5}, "steps_per_generation=16"),
    ],
)
def test_a_penalty_that_would_be_0_is_refused_with_settings_that_work(
    policy: Path, tmp_path: Path, settings: dict[str, int], fix: str
) -> None:
    made = (LLDSGRPOTrainer, policy, tmp_path)
    refused(ConfigError, f"set {fix} for 8 mini-batches", trainer_of, *made, **settings)
    name, value = fix.split("=")
    trainer_of(*made, **settings | {name: int(value)})


class Fused(GRPOTrainer):
    """A loss that sees hidden states only."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        return next(model.parameters()).sum()


class Past(GRPOTrainer):
    """A loss of its own, one level higher."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return next(model.parameters()).sum()


class Twice(GRPOTrainer):
    """Scores a second time, as PAPO does on a masked image."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        return super()._compute_loss(model, inputs) + super()._compute_loss(model, inputs)


class Uneven(LLDSGRPOTrainer):
    """An advantage of its own for one token."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        wide = inputs["advantages"][:, None].repeat(1, inputs["completion_mask"].shape[1])
        wide[0, 0] += 1
        return super()._compute_loss(model, inputs | {"advantages": wide})


class Forgetful(LLDSGRPOTrainer):
    """Keeps no log-probabilities of before the update, as DPPO does not."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        return {k: v for k, v in output.items() if k != "old_per_token_logps"}


def mixed(*bases: type) -> type:
    return type("Mixed", (LLDSMixin, *bases), {})


def test_what_it_cannot_do_is_refused_in_one_line(policy: Path, tmp_path: Path) -> None:
    for kind, said in (
        (mixed(Fused), "0 times and has those"),
        (mixed(Past), "does not call `_compute_loss`"),
        (mixed(Twice), "2 times and has those"),
        (Forgetful, "1 times and has none"),
        (Uneven, "differ by up to 1 within"),
    ):
        refused(ConfigError, said, trained, kind, policy, tmp_path)
        # Weight 0 refuses nothing, and measures nothing there.
        _, rows = trained(kind, policy, tmp_path, {"llds_weight": 0.0})
        assert rows and not [key for row in rows for key in row if "llds/" in key]
    noisy = {"neftune_noise_alpha": 5.0}
    refused(ConfigError, "leave it out", trainer_of, LLDSGRPOTrainer, policy, tmp_path, **noisy)
    behind = ("Behind", (GRPOTrainer, LLDSMixin), {})
    refused(ConfigError, "write it before GRPOTrainer", type, *behind)
    for kind in (mixed(), mixed(RLOOTrainer)):
        refused(ConfigError, "is no GRPOTrainer", trainer_of, kind, policy, tmp_path)
    for options, said in (
        ({"llds_gate": "actions"}, "gate is"),
        ({"llds_weight": -1.0}, "llds_weight is -1"),
        ({"llds_preserve": "all"}, "preserve is"),
    ):
        refused(ValueError, said, trainer_of, LLDSGRPOTrainer, policy, tmp_path, options)


@pytest.mark.parametrize("version", ["0.27.2", "0.28.0", "1.17.0.dev0", "unknown"])
def test_a_trl_that_counts_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(trl, "__version__", version)
    monkeypatch.delitem(sys.modules, name := LLDSMixin.__module__)
    monkeypatch.setattr(integrations, "trl", None, raising=False)  # is the old one again afterwards
    if version == "0.27.2":
        refused(ConfigError, f"TRL {version} .* install trl>=0.28", import_module, name)
    else:
        import_module(name)


class Dropping(LLDSGRPOTrainer):
    """Drops out in attention, which TRL's `disable_dropout` does not reach, or else elsewhere."""

    def __init__(
        self, *, model: str, attention: float, jitter: float = 0.0, **options: Any
    ) -> None:
        loaded = AutoModelForCausalLM.from_pretrained(model, attention_dropout=attention)
        loaded.model.norm.input_jitter_noise = jitter
        if not attention and not jitter:
            loaded.model.norm = torch.nn.Sequential(loaded.model.norm, torch.nn.Dropout(0.1))
        super().__init__(model=loaded, **options)


def test_dropout_is_refused_until_it_is_switched_off(policy: Path, tmp_path: Path) -> None:
    made = (Dropping, policy, tmp_path)
    module, attention = {"attention": 0.0}, {"attention": 0.1}
    refused(ConfigError, "disable_dropout=True", trainer_of, *made, module)
    trainer_of(*made, module, disable_dropout=True)
    refused(ConfigError, "attention_dropout=0", trainer_of, *made, attention, disable_dropout=True)
    trainer_of(*made, attention | {"llds_weight": 0.0})
    jitters = module | {"jitter": 0.01}
    refused(ConfigError, "or jitters", trainer_of, *made, jitters, disable_dropout=True)


@pytest.mark.parametrize("short", [torch.float16, torch.bfloat16])
def test_log_probabilities_keep_32_bits_under_fsdp2(short: torch.dtype) -> None:
    """Rounded to 16 bits, most losses of likelihood are 0 and the gate stays shut."""
    half = dict.fromkeys(("param_dtype", "reduce_dtype", "output_dtype"), short)
    theirs = MixedPrecisionPolicy(**half)

    class Sharded:
        plugin = SimpleNamespace(mixed_precision_policy=theirs)

        def create_accelerator_and_postprocess(self) -> None:
            state = SimpleNamespace(fsdp_plugin=self.plugin)
            self.accelerator = SimpleNamespace(is_fsdp2=True, state=state)

    trainer = type("Mine", (LLDSMixin, Sharded), {"__init__": lambda self: None})()
    for trainer.llds_weight in (0.0, 0.2):
        trainer.create_accelerator_and_postprocess()
        policy = trainer.plugin.mixed_precision_policy
        assert (policy == theirs) == (trainer.llds_weight == 0)
    assert policy == MixedPrecisionPolicy(param_dtype=short, reduce_dtype=torch.float32)
    trainer.create_accelerator_and_postprocess()
    assert trainer.plugin.mixed_precision_policy == policy


def test_arguments_stand_where_those_of_trl_do(policy: Path, tmp_path: Path) -> None:
    made = trainer_of(LLDSGRPOTrainer, policy, tmp_path)
    given = (str(policy), made.reward_funcs, made.args, made.train_dataset)
    assert LLDSGRPOTrainer(*given).args.num_iterations == 2
    sums, given = {"multi_objective_aggregation": "normalize_then_sum"}, (policy, tmp_path)
    refused(ConfigError, "set sum_then_normalize", trainer_of, LLDSGRPOTrainer, *given, **sums)


def test_weight_0_needs_no_args_as_trl_needs_none(policy, tmp_path, monkeypatch) -> None:
    small = {"use_cpu": True, "bf16": False, "max_steps": 1, "max_completion_length": 4}
    monkeypatch.setattr(grpo_trainer, "GRPOConfig", partial(GRPOConfig, **small))
    monkeypatch.chdir(tmp_path)  # where TRL's default writes
    prompts = Dataset.from_dict({"prompt": ["b"]})
    given = {"train_dataset": prompts}
    refused(ConfigError, "set steps_per_gen", LLDSGRPOTrainer, str(policy), even_tokens, **given)
    trainer = LLDSGRPOTrainer(str(policy), even_tokens, **given, llds_weight=0)
    trainer.train()
    assert trainer.args.output_dir.endswith("-GRPO") and trainer.state.global_step == 1


@pytest.mark.parametrize("case", ["by token", "parts of two rollouts"])
def test_weight_0_measures_nothing_where_it_would_mislead(policy, tmp_path, case) -> None:
    class ByToken(LLDSGRPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            wide = inputs["advantages"][:, None].expand_as(inputs["completion_mask"])
            return super()._compute_loss(model, inputs | {"advantages": wide})

    kind, settings = ByToken, {}
    if case != "by token":
        kind = LLDSGRPOTrainer
        settings = {"steps_per_generation": 3, "num_iterations": 1, "max_steps": 2}
    trainer = trainer_of(kind, policy, tmp_path, {"llds_weight": 0.0}, **settings)
    trainer.train()
    assert not [key for row in trainer.state.log_history for key in row if "llds/" in key]


def test_evaluation_is_stock(policy: Path, tmp_path: Path) -> None:
    trainer = trainer_of(LLDSGRPOTrainer, policy, tmp_path)
    metrics = trainer.evaluate(Dataset.from_dict({"prompt": ["a"] * 8}))
    assert "eval_loss" in metrics and not any("llds" in name for name in metrics)
