"""A model trained with LLDS by verl's own worker, on a CPU in one process (`make test-verl`)."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="needs verl: `make test-verl` installs it and runs this")

import hydra
import tiny_policy as tiny
from tensordict import TensorDict
from tiny_policy import GROUP, PROMPT, PROMPTS
from verl import DataProto
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.padding import response_from_nested, response_to_nested

ACTOR = "actor_rollout_ref.actor"
LLDS = (
    f"{ACTOR}.policy_loss._target_=llds_core.integrations.verl.LldsPolicyLossConfig",
    f"{ACTOR}.policy_loss.loss_mode=llds",
)
# Imported by verl's trainer and worker, with packages that nothing else does here.
UNUSED = [f"verl.workers.rollout.{name}" for name in ("llm_server", "utils")]
UNUSED += ["torchdata.stateful_dataloader"]
ROLLOUTS = 6


class CPU(PlatformCUDA):
    """Where verl asks for a device, in the words of its plug-ins for hardware."""

    device_name = "cpu"
    device_module = SimpleNamespace(
        get_device_name=lambda: "CPU",
        is_available=lambda: False,
        empty_cache=lambda: None,
        mem_get_info=lambda: (0, 0),
        **{f"{of}memory_{kind}": int for of in ("", "max_") for kind in ("allocated", "reserved")},
    )

    def current_device(self) -> Any:
        return "cpu"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A saved model, in a process that verl takes for a rank with a device."""
    with pytest.MonkeyPatch.context() as patch:
        for name in UNUSED:
            patch.setitem(sys.modules, name, MagicMock())
        patch.setattr(platform_manager, "_current_platform", CPU())
        rank = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        # The engine is registered for CUDA and NPU only.
        for name, value in {**rank, "MASTER_PORT": "0", "VERL_ENGINE_DEVICE": "cuda"}.items():
            patch.setenv(name, value)
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
        yield tiny.save_qwen2(tmp_path_factory.mktemp("qwen2"))
        torch.distributed.destroy_process_group()


def configuration(model: str, *words: str) -> Any:
    """As verl makes it of a command line: two mini-batches of two micro-batches, twice."""
    given = {
        "algorithm.adv_estimator": "grpo",
        "data.train_batch_size": PROMPTS,
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.n": GROUP,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": GROUP,
        "actor_rollout_ref.model.path": model,
        "+actor_rollout_ref.model.load_tokenizer": "false",
        "actor_rollout_ref.model.use_remove_padding": "false",
        "+actor_rollout_ref.model.override_config.attn_implementation": "eager",
        f"{ACTOR}.strategy": "fsdp2",
        f"+{ACTOR}.fsdp_config.mixed_precision": "{param_dtype: fp32}",
        f"{ACTOR}.fsdp_config.use_torch_compile": "false",
        f"{ACTOR}.optim.lr": tiny.LEARNING_RATE,
        f"{ACTOR}.ppo_mini_batch_size": PROMPTS // 2,
        f"{ACTOR}.ppo_micro_batch_size_per_gpu": GROUP,
        f"{ACTOR}.ppo_epochs": 2,
    }
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        overrides = [f"{name}={value}" for name, value in given.items()]
        return hydra.compose("ppo_trainer", overrides=[*overrides, *words])


def batch_of(sampled: dict[str, torch.Tensor]) -> DataProto:
    """What verl's trainer has after generation and reward."""
    tokens, mask = sampled["tokens"], sampled["mask"]
    last = mask[:, PROMPT:].sum(1, keepdim=True) - 1
    rewards = torch.zeros(len(tokens), tiny.WIDTH).scatter_(1, last, sampled["rewards"][:, None])
    tensors = {
        "prompts": tokens[:, :PROMPT],
        "responses": tokens[:, PROMPT:],
        "input_ids": tokens,
        "attention_mask": mask,
        "position_ids": tiny.positions_of(mask),
        "response_mask": sampled["policy_mask"],
        "token_level_rewards": rewards,
    }
    return DataProto.from_dict(
        tensors=tensors,
        non_tensors={"uid": np.arange(len(tokens)) // GROUP},
        meta_info={"temperature": 1.0, "global_token_num": mask.sum(1).tolist()},
    )


def train(model: str, *words: str, rollouts: int = ROLLOUTS) -> SimpleNamespace:
    """The steps of verl's `fit` between one generation and the next, by its trainer and worker."""
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer, compute_advantage
    from verl.workers.engine_workers import ActorRolloutRefWorker

    cfg = configuration(model, *words)
    worker = ActorRolloutRefWorker(cfg.actor_rollout_ref, role="actor")
    worker.init_model()
    policy = worker.actor.engine.module
    trainer: Any = SimpleNamespace(config=cfg, actor_rollout_wg=worker)
    generator = torch.Generator().manual_seed(1)
    run = SimpleNamespace(batches=[], logged=[], weights=[])
    for _ in range(rollouts):
        sampled = tiny.sample(lambda **inputs: policy(**inputs, use_cache=False).logits, generator)
        batch = batch_of(sampled)
        batch = batch.union(RayPPOTrainer._compute_old_log_prob(trainer, batch)[0])
        batch = compute_advantage(batch, cfg.algorithm.adv_estimator, config=cfg.algorithm)
        run.batches.append(sampled | {"advantages": batch.batch["advantages"][:, 0]})
        run.logged.append(RayPPOTrainer._update_actor(trainer, batch).meta_info["metrics"])
        weights = policy.state_dict()
        run.weights.append({name: value.full_tensor().clone() for name, value in weights.items()})
    return run


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def train_unpadded(model: str, *words: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], Any]:
    """A rollout as verl's default trainer has it (`use_v1`): rows without padding, straight to the
    worker. Its sample, what was logged, and the weights after it.
    """
    from verl.trainer.ppo.ray_trainer import compute_advantage
    from verl.workers.engine_workers import ActorRolloutRefWorker

    cfg = configuration(model, *words)
    worker = ActorRolloutRefWorker(cfg.actor_rollout_ref, role="actor")
    worker.init_model()
    policy, generator = worker.actor.engine.module, torch.Generator().manual_seed(1)
    sampled = tiny.sample(lambda **inputs: policy(**inputs, use_cache=False).logits, generator)
    places = sampled["mask"].bool()
    parts = {"prompts": slice(PROMPT), "responses": slice(PROMPT, None), "input_ids": slice(None)}
    rows = {
        name: [ids[part][here[part]] for ids, here in zip(sampled["tokens"], places, strict=True)]
        for name, part in parts.items()
    }
    rows["position_ids"] = [torch.arange(len(ids)) for ids in rows["input_ids"]]
    written = zip(sampled["policy_mask"], places[:, PROMPT:], strict=True)
    rows["response_mask"] = rows["loss_mask"] = [mask[here] for mask, here in written]
    data = TensorDict({name: nested(each) for name, each in rows.items()}, len(places))
    scored = data.clone()
    tensordict_utils.assign_non_tensor(
        scored, calculate_entropy=True, compute_loss=False, temperature=1.0
    )
    old = worker.compute_log_prob(scored)["log_probs"]
    data["old_log_probs"] = response_from_nested(old, data["response_mask"])
    batch = compute_advantage(batch_of(sampled), cfg.algorithm.adv_estimator, config=cfg.algorithm)
    advantages = batch.batch["advantages"]
    data["advantages"] = response_to_nested(advantages, data["response_mask"])
    size = cfg.actor_rollout_ref.actor.ppo_mini_batch_size * GROUP
    asked = {"epochs": 2, "seed": 42, "dataloader_kwargs": {"shuffle": False}, "temperature": 1.0}
    asked |= {"global_batch_size": size, "mini_batch_size": size, "calculate_entropy": False}
    asked |= {"distillation_use_topk": False, "distillation_only": False}
    tensordict_utils.assign_non_tensor(data, **asked)
    logged = worker.update_actor(data)["metrics"]
    weights = {name: value.full_tensor().clone() for name, value in policy.state_dict().items()}
    return sampled | {"advantages": advantages[:, 0]}, logged, weights


def with_weight(weight: float) -> tuple[str, ...]:
    return (*LLDS, f"+{ACTOR}.policy_loss.llds_weight={weight}")


@pytest.fixture(scope="module")
def base(model: str) -> SimpleNamespace:
    return train(model)


@pytest.fixture(scope="module")
def off(model: str) -> SimpleNamespace:
    return train(model, *with_weight(0))


@pytest.fixture(scope="module")
def on(model: str) -> SimpleNamespace:
    return train(model, *with_weight(1))


def test_the_base_loss_learns_the_task(base: SimpleNamespace) -> None:
    rewards = [batch["rewards"].mean().item() for batch in base.batches]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.1


def test_weight_0_is_the_base_loss_to_the_bit_and_measures(base, off) -> None:
    for ours, theirs in zip(off.weights, base.weights, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for logged in off.logged:
        first, *later = logged["actor/llds/gated_fraction"]
        assert first == logged["actor/llds/change"][0] == 0 < max(later)


def test_the_penalty_starts_at_the_second_mini_batch_and_works_against_displacement(
    off: SimpleNamespace, on: SimpleNamespace
) -> None:
    plain, ours = off.logged[0], on.logged[0]  # the same responses
    assert ours["actor/grad_norm"][0] == plain["actor/grad_norm"][0]
    assert ours["actor/grad_norm"][1] != plain["actor/grad_norm"][1]
    assert ours["actor/llds/penalty"][1] == plain["actor/llds/penalty"][1] > 0
    assert sum(ours["actor/llds/penalty"][2:]) < sum(plain["actor/llds/penalty"][2:])
    for logged in on.logged:
        first, *later = logged["actor/llds/gated_fraction"]
        assert first == 0 < max(later)


def test_a_rollout_s_updates_are_those_of_plain_torch(model, off, on) -> None:
    batch = on.batches[0]
    apart = tiny.distance(model, on.weights[0], off.weights[0], batch)
    for weight, run in ((0, off), (1, on)):
        expected = tiny.plain_updates(model, batch, weight, normalizer="all")
        assert tiny.distance(model, run.weights[0], expected, batch) < 1e-3 * apart


def test_so_are_those_of_the_default_trainer_without_padding(model, off) -> None:
    batch, logged, weights = train_unpadded(model, *with_weight(1))
    first, *later = logged["actor/llds/gated_fraction"]
    assert first == 0 < max(later)
    expected = tiny.plain_updates(model, batch, 1, normalizer="all")
    apart = tiny.distance(model, weights, off.weights[0], batch)
    assert tiny.distance(model, weights, expected, batch) < 1e-3 * apart


def test_bypass_mode_is_refused_where_the_loss_is_shown_it(model: str) -> None:
    shown = f"+{ACTOR}.policy_loss.rollout_correction=${{algorithm.rollout_correction}}"
    cfg = configuration(model, *LLDS, shown)
    assert omega_conf_to_dataclass(cfg.actor_rollout_ref.actor).policy_loss.loss_mode == "llds"
    cfg.algorithm.rollout_correction.bypass_mode = True
    with pytest.raises(Exception, match="bypass_mode=True makes"):
        omega_conf_to_dataclass(cfg.actor_rollout_ref.actor)
