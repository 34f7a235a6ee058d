"""LLDS in SkyRL, on its real wheel (`make test-skyrl` builds an environment for it)."""

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("skyrl", reason="needs SkyRL: `make test-skyrl` installs it and runs this")

import ray
from skyrl.backends.skyrl_train.utils.ppo_utils import (
    PolicyLossRegistry,
    apply_loss_reduction_to_advantages_minibatch,
    register_policy_loss,
    sync_registries,
)
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.trainer import RayPPOTrainer
from skyrl_ranks import WEIGHT, Bigram, Trainer, algorithm, configuration, rollout, train
from slow_llds import four_responses, slow_penalty

from llds_core.errors import ConfigError
from llds_core.integrations import skyrl as adapter
from llds_core.integrations.skyrl import LldsAlgorithmConfig, LldsTrainerMixin, check_config

BASES = (
    *("regular", "dual_clip", "gspo", "sapo", "cispo", "rollout_is", "dppo"),
    *("clip_cov", "kl_cov", "importance_sampling"),
)
REDUCTIONS = ("token_mean", "sequence_mean", "seq_mean_token_sum_norm", "prompt_mean")


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    new, old, mask, advantages = four_responses()
    return {
        "log_probs": new,
        "old_log_probs": old,
        "advantages": advantages / mask.sum(),
        "loss_mask": mask,
        "rollout_logprobs": old + 0.01,
    }


def expected(batch: dict[str, torch.Tensor], gate: str, normalizer: str) -> tuple:
    """Penalty and gradient of a slow transcription."""
    tensors = (batch[name] for name in ("log_probs", "old_log_probs", "loss_mask"))
    signs = batch["advantages"][:, 0].tolist()
    return slow_penalty(*tensors, signs, gate=gate, normalizer=normalizer)


def compute(config: Any, name: str, batch: dict[str, torch.Tensor]) -> tuple:
    """Loss, gradient and metrics of one micro-batch."""
    new = batch["log_probs"].clone().requires_grad_()
    loss, metrics = PolicyLossRegistry.get(name)(**{**batch, "log_probs": new}, config=config)
    loss.backward()
    return loss.detach(), new.grad, metrics


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=0, atol=1e-6)


@pytest.mark.parametrize("gate", ["action", "response", "token"])
@pytest.mark.parametrize("base", BASES)
def test_it_is_the_base_loss_plus_weight_times_a_slow_transcription(batch, base, gate) -> None:
    normalizer = "all" if gate == "response" else "preserved"
    count = batch["loss_mask"].sum() if normalizer == "all" else batch["loss_mask"][[0, 2, 3]].sum()
    settings = {"llds_gate": gate, "llds_normalizer": normalizer, "llds_denominator": float(count)}
    loss, gradient, _ = compute(algorithm(policy_loss_type=base), base, batch)
    penalty, pull = expected(batch, gate, normalizer)
    ours, our_gradient, metrics = compute(algorithm(base_loss=base, **settings), "llds", batch)
    assert penalty > 0
    close(ours, loss + WEIGHT * penalty)
    close(our_gradient, gradient + WEIGHT * pull)
    close(metrics["llds/penalty_loss"], penalty)
    settings["llds_weight"] = 0
    off, gradient_off, _ = compute(algorithm(base_loss=base, **settings), "llds", batch)
    assert torch.equal(off, loss) and torch.equal(gradient_off, gradient)


@pytest.mark.parametrize("normalizer", ["preserved", "all"])
@pytest.mark.parametrize("base", ["regular", "gspo", "rollout_is"])
def test_the_losses_of_micro_batches_add_up(batch, base, normalizer) -> None:
    config = algorithm(base_loss=base, llds_normalizer=normalizer, llds_denominator=23)
    whole, gradient, metrics = compute(config, "llds", batch)
    for parts in ([[0], [1], [2], [3]], [[1, 3], [0, 2]], [[0, 1, 2], [3]]):
        pieces = [compute(config, "llds", {k: v[rows] for k, v in batch.items()}) for rows in parts]
        close(sum(piece[0] for piece in pieces), whole)
        order = [row for rows in parts for row in rows]
        close(torch.cat([piece[1] for piece in pieces]), gradient[order])
        said = sum(piece[2]["llds/penalty_loss"] for piece in pieces)
        close(said, metrics["llds/penalty_loss"])


def test_the_scale_that_skyrl_gives_advantages_changes_no_penalty(batch) -> None:
    said = set()
    for reduction in (*REDUCTIONS, "token_mean_legacy"):
        scaled = apply_loss_reduction_to_advantages_minibatch(
            batch["advantages"], batch["loss_mask"], reduction, 2, 16, [(0, 2), (2, 4)]
        )
        given = {**batch, "advantages": scaled}
        _, _, metrics = compute(algorithm(llds_denominator=23), "llds", given)
        said.add(metrics["llds/penalty_loss"])
    assert len(said) == 1


def test_old_equal_to_new_does_nothing_and_shows_it(batch: dict[str, torch.Tensor]) -> None:
    batch["log_probs"] = batch["old_log_probs"]
    _, gradient, _ = compute(algorithm(policy_loss_type="regular"), "regular", batch)
    settings = {"llds_weight": 100, "llds_denominator": 23}
    _, ours, metrics = compute(algorithm(**settings), "llds", batch)
    assert torch.equal(ours, gradient)
    assert metrics["llds/penalty_loss"] == metrics["llds/gated_fraction"] == 0


def test_padding_and_what_stands_under_the_mask_do_nothing(batch: dict[str, torch.Tensor]) -> None:
    """The micro-batches that SkyRL adds to even out its ranks, and observations."""
    config = algorithm(llds_denominator=23)
    _, gradient, metrics = compute(config, "llds", batch)
    other = {k: v.clone() for k, v in batch.items()}
    for name in ("log_probs", "old_log_probs", "advantages"):
        other[name][batch["loss_mask"] == 0] = 0.7
    close(compute(config, "llds", other)[1], gradient)
    nothing = {**batch, "loss_mask": torch.zeros(4, 10)}
    loss, gradient, metrics = compute(config, "llds", nothing)
    assert loss == metrics["llds/penalty_loss"] == 0 and not gradient.any()


# SkyRL's own trainer, dispatch, object store and worker; only the model, the ranks in one process
# and the optimizer are ours.


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("normalizer", ["preserved", "all"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_skyrls_own_step_on_ranks_and_micro_batches_is_the_whole_mini_batch(
    reduction: str, normalizer: str, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    settings = {"algorithm.loss_reduction": reduction, "update_epochs_per_batch": 2}
    base, _ = train(configuration(**settings, **{"algorithm.llds_weight": 0}), 1, monkeypatch)
    settings["algorithm.llds_normalizer"] = normalizer
    model, data, pulls, penalties, logliks = Bigram(), rollout(), [], [], []
    for rows in (slice(0, 4), slice(4, 8)):
        new = model(data["sequences"][rows], 6)[0]
        piece = {
            "log_probs": new.detach(),
            "old_log_probs": data["action_log_probs"][rows],
            "advantages": data["advantages"][rows],
            "loss_mask": data["loss_mask"][rows],
        }
        penalty, pull = expected(piece, "action", normalizer)
        penalties.append(penalty)
        rewarded = (piece["loss_mask"] * (piece["advantages"] > 0)).bool()
        logliks.append(piece["old_log_probs"][rewarded].mean().item())
        pulls.append(WEIGHT * torch.autograd.grad(new, model.logits, pull)[0])
    assert min(penalties) > 0
    for dp_size, micro in ((1, 4), (1, 1), (1, 3), (2, 2), (2, 1)):
        ours, metrics = train(
            configuration(micro_train_batch_size_per_gpu=micro, **settings), dp_size, monkeypatch
        )
        assert len(ours) == len(base) == 4
        for step, gradient in enumerate(ours):
            close(gradient, base[step] + pulls[step % 2])
        if dp_size == 1:  # several ranks add up by an all-reduce, which stands still here
            close(metrics["loss_metrics/llds/penalty_loss"], sum(penalties) / 2)
            close(metrics["loss_metrics/llds/loglik_rewarded"], sum(logliks) / 2)
            assert metrics["loss_metrics/llds/gated_fraction_first"] > 0  # these never were equal


def test_a_first_update_shows_that_nothing_changed(monkeypatch, ray_session) -> None:
    _, metrics = train(configuration(), 1, monkeypatch, noise=0.0)
    names = ("penalty_loss", "gated_fraction", "gated_fraction_first", "change_rewarded_first")
    assert [metrics[f"loss_metrics/llds/{name}"] for name in names] == [0, 0, 0, 0]


def test_micro_batches_by_tokens_are_the_whole_mini_batch_too(monkeypatch, ray_session) -> None:
    whole, _ = train(configuration(micro_train_batch_size_per_gpu=4), 1, monkeypatch)
    packed, _ = train(configuration(max_tokens_per_microbatch=17), 2, monkeypatch)
    for one, other in zip(whole, packed, strict=True):
        close(one, other)


def test_a_process_that_imported_nothing_gets_the_loss_and_its_configuration(ray_session) -> None:
    """`initialize_ray` syncs the registries; a worker reads the loss there, by its import path.

    Loading the configuration imports the adapter in the worker, which registers the loss again.
    """
    sync_registries()

    def worker(cfg: Any) -> tuple:
        from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry

        found = PolicyLossRegistry.get(cfg.trainer.algorithm.policy_loss_type)
        zeros = torch.zeros(1, 2)
        config = cfg.trainer.algorithm
        config.llds_denominator = 2.0
        loss, metrics = found(zeros - 1, zeros, zeros, config=config, loss_mask=zeros + 1)
        return found.__module__, type(config).__module__, loss.item(), metrics

    cfg = configuration()
    found, of, loss, metrics = ray.get(ray.remote(num_cpus=1)(worker).remote(cfg))
    assert found == of == "llds_core.integrations.skyrl"
    assert loss == WEIGHT and metrics["llds/penalty_loss"] == metrics["llds/gated_fraction"] == 1


def test_the_entry_point_hands_on_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    import skyrl.train.utils.utils as utils

    seen: list[Any] = []
    monkeypatch.setattr(utils, "validate_cfg", seen.append)
    monkeypatch.setattr(utils, "initialize_ray", seen.append)
    task = SimpleNamespace(remote=seen.append)
    fake_ray = SimpleNamespace(get=lambda result: None, remote=lambda **_: lambda run: task)
    monkeypatch.setattr(adapter, "ray", fake_ray)
    words = ["trainer.override_entrypoint=llds_core.integrations.skyrl"]
    words += ["trainer.algorithm.llds_weight=0.3", "trainer.algorithm.base_loss=gspo"]
    monkeypatch.setattr(sys, "argv", ["main_base", *words])
    from skyrl.train.entrypoints.main_base import main

    main()
    cfg, *others = seen
    assert len(others) == 2 and all(other is cfg for other in others)
    assert isinstance(cfg.trainer.algorithm, LldsAlgorithmConfig)
    assert (cfg.trainer.algorithm.llds_weight, cfg.trainer.algorithm.base_loss) == (0.3, "gspo")


def test_the_task_runs_skyrls_experiment_with_this_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from skyrl.train.entrypoints.main_base import BasePPOExp

    made: list[Any] = []
    for kind in (BasePPOExp, RayPPOTrainer):
        monkeypatch.setattr(kind, "__init__", lambda self, cfg, **_: setattr(self, "cfg", cfg))
    monkeypatch.setattr(
        BasePPOExp, "run", lambda self: made.append(self.get_trainer(cfg=self.cfg, tracker=None))
    )
    adapter.run(configuration())
    assert isinstance(made[0], LldsTrainerMixin) and isinstance(made[0], RayPPOTrainer)


def test_skyrl_accepts_the_configuration() -> None:
    from skyrl.train.utils.utils import validate_cfg

    validate_cfg(configuration(**{"placement.policy_num_gpus_per_node": 1}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"algorithm.policy_loss_type": "gspo"}, "base_loss=gspo"),
        ({"algorithm.base_loss": "llds"}, "base_loss=llds: give one of"),
        ({"algorithm.base_loss": "cross_entropy"}, "base_loss=cross_entropy: give one of"),
        ({"algorithm.base_loss": "ppo"}, "base_loss=ppo: give one of"),
        ({"policy_mini_batch_size": 2}, "needs a second"),
        ({"fully_async.enabled": "true"}, "synchronous trainer"),
        ({"algorithm.advantage_estimator": "gae"}, "advantage_estimator=grpo"),
        ({"algorithm.advantage_estimator": "reinforce++"}, "advantage_estimator=grpo"),
        ({"algorithm.advantage_batch_normalize": "true"}, "set it to false"),
        ({"policy.model.lora.dropout": 0.1}, "set it to 0"),
        (
            {
                "algorithm.base_loss": "kl_cov",
                "algorithm.off_policy_correction.tis_ratio_type": "token",
            },
            "another base_loss",
        ),
    ],
)
def test_what_does_nothing_or_harm_is_refused_in_one_line(settings, said) -> None:
    check_config(configuration())
    check_config(configuration(policy_mini_batch_size=2, update_epochs_per_batch=2))
    with pytest.raises(ConfigError, match=said) as error:
        Trainer(cfg=configuration(**settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", [{"llds_gate": "actions"}, {"llds_weight": -0.1}])
def test_unknown_options_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting)).removeprefix("llds_")):
        algorithm(**setting)


def test_a_plain_configuration_or_trainer_is_refused(batch: dict[str, torch.Tensor]) -> None:
    plain = SkyRLTrainConfig.from_cli_overrides(["trainer.algorithm.policy_loss_type=llds"])
    with pytest.raises(ConfigError, match="algorithm_cls=LldsAlgorithmConfig"):
        check_config(plain)
    for config in (plain.trainer.algorithm, algorithm()):
        with pytest.raises(ConfigError, match="LldsTrainerMixin"):
            compute(config, "llds", batch)


def test_advantages_per_token_are_refused(batch: dict[str, torch.Tensor]) -> None:
    batch["advantages"] = batch["advantages"].clone()
    batch["advantages"][0, 0] = 2.0
    with pytest.raises(ConfigError, match="advantage_estimator=grpo"):
        compute(algorithm(llds_denominator=23), "llds", batch)


def test_a_loss_of_ones_own_is_a_base(batch: dict[str, torch.Tensor]) -> None:
    @register_policy_loss("mine")
    def mine(log_probs: torch.Tensor, *_: Any, **__: Any) -> tuple:
        return 3 * log_probs.sum(), {}

    try:
        loss, _, metrics = compute(algorithm(base_loss="mine", llds_denominator=23), "llds", batch)
        close(loss, 3 * batch["log_probs"].sum() + WEIGHT * metrics["llds/penalty_loss"])
    finally:
        PolicyLossRegistry.unregister("mine")
        adapter._base_loss.cache_clear()


def test_a_worker_imports_no_trainer_and_no_inference_engine() -> None:
    code = "import sys, llds_core.integrations.skyrl; "
    code += "assert not {'vllm', 'skyrl.train.trainer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
