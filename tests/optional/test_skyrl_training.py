"""A model trained with LLDS by SkyRL's own worker, on a CPU in one process (`make test-skyrl`)."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

pytest.importorskip("skyrl", reason="needs SkyRL: `make test-skyrl` installs it and runs this")

import ray
import tiny_policy as tiny
from skyrl.backends.skyrl_train.distributed import fsdp_utils
from skyrl.backends.skyrl_train.distributed.dispatch import ActorInfo
from skyrl.backends.skyrl_train.workers.worker import PPORayActorGroup
from skyrl.backends.skyrl_train.workers.worker_dispatch import WorkerDispatch
from skyrl.train.trainer import RayPPOTrainer
from skyrl_ranks import Handle, Trainer, configuration
from tiny_policy import GROUP, PROMPT, PROMPTS
from torch.distributed import device_mesh

LLDS = "loss_metrics/llds"
ROLLOUTS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A saved model, in a process where SkyRL's calls for CUDA get the CPU."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    with pytest.MonkeyPatch.context() as patch:
        make_mesh = device_mesh.init_device_mesh
        for module in (device_mesh, fsdp_utils):
            patch.setattr(module, "init_device_mesh", lambda _, **shape: make_mesh("cpu", **shape))
        # Imported by SkyRL's model; called with `remove_microbatch_padding` only.
        patch.setitem(sys.modules, "flash_attn.bert_padding", MagicMock())
        patch.setattr(torch.cuda, "current_device", lambda: "cpu")
        patch.setattr(torch.cuda, "set_device", lambda _: None)
        patch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
        yield tiny.save_qwen2(tmp_path_factory.mktemp("qwen2"))
    torch.distributed.destroy_process_group()
    ray.shutdown()


def make_trainer(model: str, kind: type, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple:
    """A trainer, with SkyRL's policy worker behind its dispatch, and the worker's model."""
    from skyrl.backends.skyrl_train.workers.fsdp.fsdp_worker import FSDPPolicyWorkerBase

    cfg = configuration(
        **{
            "train_batch_size": PROMPTS,
            "policy_mini_batch_size": PROMPTS // 2,
            "micro_train_batch_size_per_gpu": GROUP,
            "micro_forward_batch_size_per_gpu": GROUP,
            "update_epochs_per_batch": 2,
            "flash_attn": "false",
            "remove_microbatch_padding": "false",
            "gradient_checkpointing": "false",
            "policy.model.path": model,
            "policy.optimizer_config.lr": tiny.LEARNING_RATE,
            "policy.fsdp_config.mixed_precision.param_dtype": "fp32",
            "placement.colocate_all": "false",
            "placement.colocate_policy_ref": "false",
            **settings,
        }
    )
    cfg.generator.n_samples_per_prompt = GROUP
    rank = {"world_size": 1, "rank": 0, "local_rank": 0, "sequence_parallel_size": 1}
    worker = FSDPPolicyWorkerBase(cfg=cfg.trainer, master_addr="127.0.0.1", master_port=1, **rank)
    worker.init_worker_process_group()
    worker.init_model(model, num_training_steps=100)
    group = object.__new__(PPORayActorGroup)
    group.actor_infos = [ActorInfo(Handle(worker), worker.get_mesh_rank())]

    def build_models(self: Any, *workers: Any) -> None:
        self.dispatch = WorkerDispatch(self.cfg, group)

    monkeypatch.setattr(RayPPOTrainer, "build_models", build_models)
    parts = dict.fromkeys(("tracker", "train_dataset", "inference_engine_client", "generator"))
    trainer = kind(cfg=cfg, tokenizer=SimpleNamespace(pad_token_id=0), **parts)
    trainer.build_models(None, None, None)
    return trainer, worker.model.model


def output_of(sampled: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What SkyRL's generators return."""
    tokens, mask = sampled["tokens"], sampled["mask"].bool()

    def within(part: slice, rows: torch.Tensor) -> list[list[int]]:
        pairs = zip(rows, mask[:, part], strict=True)
        return [row[keep].tolist() for row, keep in pairs]

    prompt, response = slice(0, PROMPT), slice(PROMPT, None)
    return {
        "prompt_token_ids": within(prompt, tokens[:, prompt]),
        "response_ids": within(response, tokens[:, response]),
        "loss_masks": within(response, sampled["policy_mask"]),
        "rewards": sampled["rewards"].tolist(),
        "rollout_logprobs": None,
    }


def train(model: str, kind: type = Trainer, **settings: Any) -> SimpleNamespace:
    """The steps of SkyRL's `train` between one generation and the next."""
    with pytest.MonkeyPatch.context() as patch:
        trainer, policy = make_trainer(model, kind, patch, **settings)
    optim_step = trainer.dispatch.optim_step
    trainer.dispatch.optim_step = lambda of: run.norms.append(optim_step(of)) or run.norms[-1]
    generator = torch.Generator().manual_seed(1)
    run = SimpleNamespace(batches=[], logged=[], norms=[], weights=[])
    uids = [str(row // GROUP) for row in range(PROMPTS * GROUP)]
    for _ in range(ROLLOUTS):
        sampled = tiny.sample(lambda **inputs: policy(**inputs).logits, generator)
        output, _ = trainer.postprocess_generator_output(output_of(sampled), uids)
        batch = trainer.convert_to_training_input(output, uids)
        batch = trainer.fwd_logprobs_values_reward(batch)
        batch = trainer.compute_advantages_and_returns(batch)
        run.batches.append(sampled | {"advantages": batch["advantages"][:, -1].clone()})
        batch.pop("rewards")
        batch.metadata.pop("uids")
        run.logged.append(trainer.train_critic_and_policy(batch))
        weights = policy.state_dict()
        run.weights.append({name: value.full_tensor().clone() for name, value in weights.items()})
    return run


@pytest.fixture(scope="module")
def base(model: str) -> SimpleNamespace:
    """SkyRL's own trainer and loss."""
    return train(model, RayPPOTrainer, **{"algorithm.policy_loss_type": "regular"})


@pytest.fixture(scope="module")
def off(model: str) -> SimpleNamespace:
    return train(model, **{"algorithm.llds_weight": 0})


@pytest.fixture(scope="module")
def on(model: str) -> SimpleNamespace:
    return train(model, **{"algorithm.llds_weight": 1})


def test_the_base_loss_learns_the_task(base: SimpleNamespace) -> None:
    rewards = [batch["rewards"].mean().item() for batch in base.batches]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.1


def test_weight_0_is_the_base_loss_to_the_bit_and_measures(base, off) -> None:
    for ours, theirs in zip(off.weights, base.weights, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(logged[f"{LLDS}/gated_fraction"] > 0 for logged in off.logged)
    assert not any(LLDS in name for logged in base.logged for name in logged)


def test_the_penalty_starts_at_the_second_mini_batch_and_works_against_displacement(
    off: SimpleNamespace, on: SimpleNamespace
) -> None:
    assert on.norms[0] == off.norms[0] and on.norms[1] != off.norms[1]
    plain, ours = off.logged[0], on.logged[0]  # the same responses
    assert ours[f"{LLDS}/penalty_loss"] < plain[f"{LLDS}/penalty_loss"]
    assert ours[f"{LLDS}/change_rewarded"] > plain[f"{LLDS}/change_rewarded"]
    for logged in on.logged:
        assert logged[f"{LLDS}/gated_fraction_first"] == 0 < logged[f"{LLDS}/gated_fraction"]
        assert logged[f"{LLDS}/change_rewarded_first"] == 0


def test_a_rollout_s_updates_are_those_of_plain_torch(model, off, on) -> None:
    batch = on.batches[0]
    apart = tiny.distance(model, on.weights[0], off.weights[0], batch)
    for weight, run in ((0, off), (1, on)):
        expected = tiny.plain_updates(model, batch, weight, normalizer="preserved")
        assert tiny.distance(model, run.weights[0], expected, batch) < 1e-3 * apart
