"""Training with the vLLM sampler through TRL's own engine code, over an engine that is a fake: a
transformers model that takes weights and requests as vLLM does.
"""

import importlib.machinery
import logging
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import refused
from trl.generation import vllm_generation

from llds_core.config import load_experiment
from llds_core.errors import ConfigError, SamplerError
from llds_core.machine.vllm_server import server_command
from llds_core.rollout.samplers import TransformersSampler
from llds_core.runs import Run
from llds_core.runs.policies import load_policy
from llds_core.training.experiment import SearchRollout, train
from llds_core.training.settings import check_vllm

VLLM = ["sampler.backend=vllm", "sampler.memory_share=0.4"]


class FakeLLM:
    """vLLM's `LLM`, as far as TRL and the sampler use it."""

    made: list["FakeLLM"] = []

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.model, self.tokenizer = load_policy(options["model"])
        self.log: list[str] = []
        self.open: dict[str, tuple[dict, SimpleNamespace]] = {}
        self.pushed: list[dict[str, torch.Tensor]] = []
        FakeLLM.made.append(self)

    @property
    def llm_engine(self) -> Any:
        weights = SimpleNamespace(load_weights=self._load_weights)
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=weights))
        executor = SimpleNamespace(driver_worker=runner)
        mine = {name: getattr(self, name) for name in ("add_request", "step", "abort_request")}
        return SimpleNamespace(model_executor=executor, **mine)

    def add_request(self, request_id: str, prompt: dict, params: SimpleNamespace) -> None:
        self.open[request_id] = prompt, params

    def abort_request(self, names: list[str]) -> None:
        assert not names

    def step(self) -> list[Any]:
        """Finish half of what is open."""
        chosen = [*self.open][: -(-len(self.open) // 2)]
        outputs = self.generate(*zip(*map(self.open.pop, chosen), strict=True))
        for name, output in zip(chosen, outputs, strict=True):
            output.request_id, output.finished = name, True
        return outputs

    def _load_weights(self, named: list[tuple[str, torch.Tensor]]) -> None:
        own = dict(self.model.named_parameters())
        if not self.log or self.log[-1] != "weights":
            self.log.append("weights")
            self.pushed.append({})
        for name, value in named:
            own[name].data.copy_(value)
            self.pushed[-1][name] = value.clone()

    def reset_prefix_cache(self) -> None:
        self.log.append("reset")

    def generate(
        self, prompts: list[dict], sampling_params: list[SimpleNamespace], use_tqdm: bool = False
    ) -> list[Any]:
        self.log.append("generate")
        streams = [np.random.default_rng(asked.seed) for asked in sampling_params]
        sampler = TransformersSampler(self.model, self.tokenizer, None, streams=streams)
        session = sampler.session([prompt["prompt_token_ids"] for prompt in prompts])
        budgets = [asked.max_tokens for asked in sampling_params]
        made = session.generate(range(len(prompts)), budgets)
        outputs = []
        for action in made:
            places = [
                {token: SimpleNamespace(logprob=value)}
                for token, value in zip(action.token_ids, action.logprobs, strict=True)
            ]
            sample = SimpleNamespace(token_ids=action.token_ids, logprobs=places)
            outputs.append(SimpleNamespace(outputs=[sample]))
        return outputs


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    sampling = types.ModuleType("vllm.sampling_params")
    sampling.SamplingParams = SimpleNamespace  # a request's options, as attributes
    sampling.RequestOutputKind = SimpleNamespace(FINAL_ONLY="final")
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", FakeLLM, raising=False)
    # TRL sets these for its engine and leaves them set.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(FakeLLM, "made", [])
    return FakeLLM


def test_each_rollout_uses_the_trained_weights_pushed_once(vllm, root, monkeypatch) -> None:
    held: list[dict[str, torch.Tensor]] = []
    original = SearchRollout.__call__

    def watched(self: SearchRollout, rows: Any, model: Any, step: int) -> Any:
        held.append({name: value.detach().clone() for name, value in model.named_parameters()})
        return original(self, rows, model, step)

    monkeypatch.setattr(SearchRollout, "__call__", watched)
    run = Run.load("smoke/grpo", 0, root, ["training.steps=2", *VLLM])
    train(run)
    (engine,) = vllm.made
    wanted = {
        "gpu_memory_utilization": 0.4,
        "max_model_len": run.config.rollout.max_total_tokens,
        "dtype": "float32",
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "max_num_seqs": run.config.trajectories_per_rollout,
    }
    assert {name: engine.options[name] for name in wanted} == wanted
    rollouts = " ".join(engine.log).split("weights reset ")
    assert rollouts[0] == "" and len(rollouts) == 3
    for turns in rollouts[1:]:
        assert set(turns.split()) == {"generate"} and len(turns.split()) >= 2
    for pushed, weights in zip(engine.pushed, held, strict=True):
        assert pushed.keys() == weights.keys()
        assert all(torch.equal(pushed[name], weights[name]) for name in weights)
    assert not all(torch.equal(held[0][name], held[1][name]) for name in held[0])
    for row in run.metrics():
        assert 0 < row["sampler_gap"] < 1e-5
        assert row["sampler_gap"] <= row["sampler_gap_max"] < 1e-4


def test_transformers_and_trainer_agree_on_log_probabilities(smoke_runs: Path) -> None:
    run = Run.load("smoke/grpo", 0, smoke_runs)
    assert len(run.metrics()) == 3
    for row in run.metrics():
        assert row["sampler_gap"] < 1e-5 and row["sampler_gap_max"] < 1e-4
    assert "gap_alarm" not in (run.path / "log.txt").read_text()


def test_log_probabilities_of_other_weights_raise_the_alarm(root, monkeypatch) -> None:
    original = SearchRollout.__call__

    def corrupted(self: SearchRollout, rows: Any, model: Any, step: int) -> Any:
        made = original(self, rows, model, step)
        for trajectory in made.trajectories:
            mask = trajectory.response_mask
            trajectory.sampler_logprobs[:] = [
                value - 0.25 * own
                for value, own in zip(trajectory.sampler_logprobs, mask, strict=True)
            ]
        return made

    monkeypatch.setattr(SearchRollout, "__call__", corrupted)
    run = Run.load("smoke/grpo", 7, root, ["training.steps=1"])
    train(run)
    (row,) = run.metrics()
    assert row["sampler_gap"] == pytest.approx(0.25, abs=1e-5)
    log = (run.path / "log.txt").read_text().splitlines()
    (line,) = [text for text in log if "gap_alarm" in text]
    assert logging.getLevelName(logging.WARNING) in line
    assert "step 1" in line and "0.25" in line and "0.05" in line


def test_a_missing_vllm_is_refused_before_anything_is_loaded(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = load_experiment("smoke/grpo", VLLM)
    refused(ConfigError, "vllm is not installed", check_vllm, config, Path("policy"))
    check_vllm(load_experiment("smoke/grpo"), Path("policy"))


def test_a_missing_server_is_refused_with_the_command_that_starts_it(vllm: Any) -> None:
    overrides = ["sampler.mode=server", "sampler.server_url=http://127.0.0.1:9", *VLLM]
    config = load_experiment("smoke/grpo", [*overrides, "sampler.tensor_parallel=2"])
    said = r"no vLLM server answers at .*http://127.0.0.1:9:"
    line = refused(SamplerError, said, check_vllm, config, Path("policy"))
    assert line.endswith(server_command(config, Path("policy")))
    for part in ("serve policy", "--port 9", "--tensor-parallel-size 2", "--dtype float32"):
        assert part in line
