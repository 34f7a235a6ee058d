"""SkyRL's training step on ranks that are objects of this process, and a model of one table."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from skyrl.backends.skyrl_train.distributed.dispatch import ActorInfo, MeshRank
from skyrl.backends.skyrl_train.training_batch import TrainingInputBatch
from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry
from skyrl.backends.skyrl_train.workers.worker import PolicyWorkerBase
from skyrl.backends.skyrl_train.workers.worker_dispatch import WorkerDispatch
from skyrl.train.config import make_config
from skyrl.train.trainer import RayPPOTrainer

from llds_core.integrations.skyrl import LldsAlgorithmConfig, LldsTrainerMixin

WEIGHT = 0.5
VOCABULARY = 7
ALONE = {"sp": 0, "tp": 0, "pp": 0, "pp_size": 1}


class Trainer(LldsTrainerMixin, RayPPOTrainer):
    """As `llds_core.integrations.skyrl.run` makes it."""


def configuration(**settings: Any) -> Any:
    """As SkyRL makes it of a command line; two mini-batches of four responses per rollout."""
    given = {
        "trainer.train_batch_size": 2,
        "trainer.policy_mini_batch_size": 1,
        "trainer.micro_train_batch_size_per_gpu": 1,
        "trainer.logger": "console",
        "trainer.algorithm.use_kl_loss": "false",
        "trainer.algorithm.max_seq_len": 16,
        "trainer.algorithm.llds_weight": WEIGHT,
        **{f"trainer.{name}": value for name, value in settings.items()},
    }
    return make_config(algorithm_cls=LldsAlgorithmConfig).from_cli_overrides(given)


def algorithm(**settings: Any) -> LldsAlgorithmConfig:
    return configuration(**{f"algorithm.{k}": v for k, v in settings.items()}).trainer.algorithm


class Bigram(torch.nn.Module):
    """A model with SkyRL's signature: log-probabilities of the last tokens, and entropies."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.logits = torch.nn.Parameter(
            torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64).float()
        )

    def forward(self, sequences: torch.Tensor, num_actions: int, **_: Any) -> tuple:
        logprobs = self.logits.log_softmax(-1)[sequences[:, :-1]]
        taken = logprobs.gather(-1, sequences[:, 1:, None])[..., 0]
        return taken[:, -num_actions:], {"entropy": torch.zeros(sequences.shape)}


class Handle:
    """A worker in this process, called as Ray would call it."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        def remote(*references: Any, **options: Any) -> Any:
            return ray.put(getattr(self._worker, name)(*map(ray.get, references), **options))

        return SimpleNamespace(remote=remote)


class Rank(Handle):
    """A worker of SkyRL's with a model of ours."""

    def __init__(self, cfg: Any, model: torch.nn.Module, dp_size: int) -> None:
        worker = object.__new__(PolicyWorkerBase)
        worker.cfg, worker.model = cfg.trainer, model
        worker.policy_loss_fn = PolicyLossRegistry.get(cfg.trainer.algorithm.policy_loss_type)
        worker.mesh_rank = SimpleNamespace(dp_size=dp_size)
        worker.device_mesh = SimpleNamespace(get_group=lambda name: None)
        worker.scheduler = SimpleNamespace(get_last_lr=lambda: [0.0])
        worker.strategy = SimpleNamespace(
            backward=lambda loss, model, optimizer: (loss / dp_size).backward(),
            all_reduce=lambda metrics, op, group: metrics,
        )
        worker.optimizer = None
        super().__init__(worker)


class Ranks:
    """A group of them that share a model, and so its gradient; `optim_step` puts it aside."""

    def __init__(self, cfg: Any, dp_size: int) -> None:
        self.model = Bigram()
        self.gradients: list[torch.Tensor] = []
        self.actor_infos = [
            ActorInfo(
                handle=Rank(cfg, self.model, dp_size),
                rank=MeshRank(dp=dp, world_size=dp_size, dp_size=dp_size, **ALONE),
            )
            for dp in range(dp_size)
        ]

    def async_run_ray_method(self, dispatch: str, method: str, **_: Any) -> list:
        if method == "optim_step":
            assert self.model.logits.grad is not None
            self.gradients.append(self.model.logits.grad)
            self.model.logits.grad = None
        return [ray.put(0.0)]


def rollout(noise: float = 0.3) -> TrainingInputBatch:
    """Two mini-batches of four responses of unequal length, sampled by another policy."""
    width = 6
    generator = torch.Generator().manual_seed(2)
    sequences = torch.randint(0, VOCABULARY, (8, width + 2), generator=generator)
    mask = torch.ones(8, width, dtype=torch.long)
    mask[0, 3:] = mask[2, 2:4] = mask[3, 1:] = mask[5, :2] = mask[7, 5:] = 0
    signs = torch.tensor([1.0, -1.0, 0.0, 0.5, 1.0, -0.5, -0.5, 0.0])
    old = Bigram()(sequences, width)[0].detach()
    old = old + noise * torch.randn(8, width, generator=generator)
    data = TrainingInputBatch(
        {
            "sequences": sequences,
            "attention_mask": torch.ones_like(sequences),
            "action_log_probs": old,
            "rollout_logprobs": old + 0.01,
            "advantages": signs[:, None].expand(8, width).clone(),
            "loss_mask": mask,
            "response_mask": torch.ones_like(mask),
        }
    )
    data.metadata = {
        "response_length": width,
        "policy_mini_batch_boundaries": [(0, 4), (4, 8)],
        "policy_prompt_boundaries": [(0, 2), (2, 4), (4, 8)],
    }
    return data


def train(cfg: Any, dp_size: int, monkeypatch: pytest.MonkeyPatch, noise: float = 0.3) -> tuple:
    """Gradients of the updates of a rollout, and what SkyRL logs of it."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    ranks = Ranks(cfg, dp_size)

    def build_models(self: Any, *workers: Any) -> None:
        self.dispatch = WorkerDispatch(self.cfg, ranks)

    monkeypatch.setattr(RayPPOTrainer, "build_models", build_models)
    monkeypatch.setattr(RayPPOTrainer, "__init__", lambda self, cfg, **_: setattr(self, "cfg", cfg))
    cfg.trainer.placement.colocate_all = False
    cfg.trainer.placement.colocate_policy_ref = False
    trainer = Trainer(cfg=cfg)
    trainer.build_models(None, None, None)
    metrics = trainer._execute_training_step("policy", rollout(noise))
    return ranks.gradients, metrics
