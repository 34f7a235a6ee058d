"""The vLLM sampler against recorded engine output, and its engines against TRL's interface."""

import dataclasses
import sys
import threading
import types
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import pytest
import torch
from run_helpers import refused
from scripted_rollouts import BOTH, SPELLED, encode
from scripted_rollouts import TAGGED as TOKENIZER

from llds_core.errors import SamplerError
from llds_core.rollout.protocol import STOP_TAGS
from llds_core.rollout.samplers import Generation, StopAtTag
from llds_core.rollout.vllm_sampler import ColocatedEngine, Request, ServerEngine, VLLMSampler

EOS = TOKENIZER.eos_token_id
PROMPTS = [[7, 8, 9], [20, 21], [30]]
OVERRUN = encode("</search>.", SPELLED)
# Takes vLLM's keyword arguments that the sampler uses, and no others.
_TAKEN = "temperature top_p logprobs stop include_stop_str_in_output stop_token_ids "
_TAKEN += "skip_special_tokens max_tokens seed output_kind"
SamplingParams = make_dataclass("SamplingParams", _TAKEN.split())


class Recorded:
    """An engine that answers what it was given, and keeps what it was asked."""

    is_continuous = False

    def __init__(self, *answers: Sequence[Sequence[int]]) -> None:
        self.answers = list(answers)
        self.asked: list[list[Request]] = []

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        self.asked.append(list(requests))
        answer = self.answers.pop(0)
        return [Generation(list(ids), [-float(i + 1) for i in range(len(ids))]) for ids in answer]


def sampler(engine: Any, tokenizer: Any = TOKENIZER) -> VLLMSampler:
    eos = {tokenizer.eos_token_id}
    return VLLMSampler(engine, StopAtTag(tokenizer), eos, lambda row, turn: 100 * row + turn)


def request(ids: list[int], budget: int, seed: int) -> Request:
    return Request(ids, budget, seed, sampler(Recorded()).options)


def one(ids: Sequence[int], budget: int, tokenizer: Any = TOKENIZER) -> Generation:
    session = sampler(Recorded([ids]), tokenizer).session([[7]])
    return session.generate([0], [budget])[0]


@BOTH
@pytest.mark.parametrize("tag", STOP_TAGS)
@pytest.mark.parametrize("more", ["", " then</answer>"])
def test_an_action_ends_with_the_token_that_completes_the_tag(tokenizer, tag: str, more) -> None:
    """What follows is cut: from the action, its log-probabilities and the context."""
    ids = encode(f"it is{tag}", tokenizer)
    engine = Recorded([[*ids, *encode(more, tokenizer)]], [[46]])
    session = sampler(engine, tokenizer).session([[7]])
    (made,) = session.generate([0], [40])
    assert made == Generation(ids, [-float(i + 1) for i in range(len(ids))])
    session.generate([0], [1])
    assert engine.asked[1][0].token_ids == [7, *ids]


@pytest.mark.parametrize(
    ("ids", "kept", "budget"),
    [
        ([40, 41, EOS, 42], [40, 41], 4),  # an end of text is neither shown nor trained
        ([EOS, 42], [EOS], 4),
        ([40, 41, 42, 43], [40, 41, 42, 43], 4),
        # `>.` closes the tag and more: the token was sampled, and is not taken apart.
        ([*OVERRUN, 40], OVERRUN, 40),
    ],
)
def test_what_ends_an_action_is_the_last_of_it(ids, kept, budget: int) -> None:
    assert SPELLED.decode(OVERRUN[-1:]) == ">."
    assert one(ids, budget, SPELLED).token_ids == kept


@pytest.mark.parametrize("ids", [[], [40, 41]])
def test_an_end_without_a_reason_is_an_error(ids: list[int]) -> None:
    refused(SamplerError, f"ended row 0 after {len(ids)} of 5 tokens", one, ids, 5)


def test_rows_keep_their_contexts_budgets_and_seeds() -> None:
    engine = Recorded([[40, 41], [42, EOS], [43, 44, 45]], [[46], [47]])
    session = sampler(engine).session(PROMPTS)
    first = session.generate([0, 1, 2], [2, 9, 3])
    assert [made.token_ids for made in first] == [[40, 41], [42], [43, 44, 45]]
    session.append(2, [90, 91])
    session.append(0, [92])
    second = session.generate([2, 0], [1, 1])
    assert [made.token_ids for made in second] == [[46], [47]]
    assert engine.asked == [
        [request([7, 8, 9], 2, 0), request([20, 21], 9, 100), request([30], 3, 200)],
        [request([30, 43, 44, 45, 90, 91], 1, 201), request([7, 8, 9, 40, 41, 92], 1, 1)],
    ]
    assert PROMPTS == [[7, 8, 9], [20, 21], [30]]


def test_the_engine_is_asked_to_keep_stop_strings() -> None:
    options = sampler(Recorded()).options
    assert options["stop"] == list(STOP_TAGS) and options["include_stop_str_in_output"]
    assert options["stop_token_ids"] == [EOS]
    assert options["skip_special_tokens"] is False
    assert options["logprobs"] == 0


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = types.SimpleNamespace(FINAL_ONLY="final")
    module = types.SimpleNamespace(SamplingParams=SamplingParams, RequestOutputKind=kinds)
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", module)


@dataclass
class Generating:
    """TRL's `VLLMGeneration`, as far as the engine uses it; `log` is what happened, in order."""

    enable_sleep_mode: bool = False
    tensor_parallel_size: int = 1
    tp_group: Any = None
    _llm_weights_sleeping: bool = False
    log: list[Any] = field(default_factory=list)
    open: dict[str, tuple[int, Any]] = field(default_factory=dict)

    @property
    def llm(self) -> "Generating":
        return self

    @property
    def llm_engine(self) -> "Generating":
        return self

    def add_request(self, request_id: str, prompt: dict, params: SamplingParams) -> None:
        assert prompt["type"] == "token" and params.output_kind == "final"
        (output,) = self.generate([prompt], [params], use_tqdm=False)
        self.log[-1] = ("add", request_id)
        output.request_id = request_id
        self.open[request_id] = params.max_tokens, output

    def step(self) -> list[Any]:
        """One token of each request; an output that is not finished is of no use."""
        self.open = {name: (left - 1, output) for name, (left, output) in self.open.items()}
        outputs = [output for _, output in self.open.values()]
        for left, output in self.open.values():
            output.finished = left == 0
        self.open = {name: each for name, each in self.open.items() if each[0]}
        return outputs

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            del self.open[name]
        self.log.append(("abort", *names))

    def sync_weights(self) -> None:
        self._llm_weights_sleeping = False
        self.log.append("sync")

    def wake_up(self, tags: list[str]) -> None:
        self.log.append(("wake", *tags))

    def sleep(self, level: int) -> None:
        self.log.append(("sleep", level))

    def generate(
        self, prompts: list[dict], sampling_params: list[SamplingParams], use_tqdm: bool
    ) -> list[Any]:
        self.log.append(("generate", len(prompts)))
        outputs = []
        for prompt, asked in zip(prompts, sampling_params, strict=True):
            # Each token is the seed; the other entry of its place is a likelier token.
            ids = [asked.seed] * asked.max_tokens
            place = {asked.seed: types.SimpleNamespace(logprob=-float(len(prompt)))}
            place |= {-1: types.SimpleNamespace(logprob=-0.1)}
            sample = types.SimpleNamespace(token_ids=tuple(ids), logprobs=[place] * len(ids))
            outputs.append(types.SimpleNamespace(outputs=[sample]))
        return outputs


REQUESTS = [request([1, 2], 2, 50), request([3], 1, 60)]


def test_colocated_requests_carry_their_own_budget_and_seed() -> None:
    completions = ColocatedEngine(Generating()).generate(REQUESTS)
    assert completions == [Generation([50, 50], [-1.0, -1.0]), Generation([60], [-1.0])]


def test_requests_join_and_leave_one_by_one() -> None:
    """Contexts, budgets and seeds are those of whole turns; what is unfinished can be dropped."""
    generation = Generating()
    session = sampler(ColocatedEngine(generation)).session(PROMPTS)
    session.add(0, 3)
    session.add(1, 1)
    assert session.step() == [(1, Generation([100], [-2.0]))]
    session.append(1, [90])
    session.add(1, 1)
    assert session.step() == [(1, Generation([101], [-2.0]))]
    assert session.step() == [(0, Generation([0, 0, 0], [-2.0] * 3))]
    assert not generation.open
    session.add(2, 5)
    session.close()
    assert not generation.open and generation.log[-1] == ("abort", "2")
    assert [name for _, name in generation.log[:-1]] == ["0", "1", "1", "2"]
    assert session.generate([0], [1]) == [Generation([1], [-1.0])]


def test_the_engine_sleeps_after_all_turns_and_not_between() -> None:
    generation = Generating(enable_sleep_mode=True)
    engine = ColocatedEngine(generation)
    with engine.rollout():
        engine.generate(REQUESTS)
        engine.generate(REQUESTS[:1])
    turns = [("wake", "kv_cache"), ("generate", 2), ("generate", 1), ("sleep", 2)]
    assert generation.log == turns
    assert generation._llm_weights_sleeping
    with engine.rollout():
        pass
    assert generation.log[4:] == ["sync", ("wake", "kv_cache"), ("sleep", 2)]


def test_processes_that_share_a_policy_wait_for_the_last_turn(monkeypatch) -> None:
    """Two processes, here threads: one makes three turns, the other one; both serve all three."""
    barrier, shared, place = threading.Barrier(2), [None, None], threading.local()

    def all_gather_object(found: list[Any], own: Any, group: Any) -> None:
        shared[place.rank] = own
        barrier.wait(120)
        found[:] = shared
        barrier.wait(120)

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: place.rank)
    made: dict[int, list[Any]] = {0: [], 1: []}
    engines = [Generating(tensor_parallel_size=2), Generating(tensor_parallel_size=2)]

    def work(rank: int, turns: int) -> None:
        place.rank = rank
        engine = ColocatedEngine(engines[rank])
        with engine.rollout():
            for turn in range(turns):
                asked = [request([1], 1, 10 * rank + turn), request([1], 1, 100 + rank)]
                made[rank].append(engine.generate(asked))

    threads = [threading.Thread(target=work, args=args) for args in ((0, 3), (1, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()
    turns = [[[turn], [100]] for turn in range(3)]
    assert [[c.token_ids for c in turn] for turn in made[0]] == turns
    assert [[c.token_ids for c in turn] for turn in made[1]] == [[[10], [101]]]
    served = [("generate", 4), ("generate", 2), ("generate", 2)]
    assert [engine.log for engine in engines] == [served, served]


class Client:
    """TRL's `VLLMClient.generate`, as far as the engine uses it."""

    def __init__(self) -> None:
        self.together = threading.Barrier(2)

    def generate(self, prompts: list[list[int]], max_tokens: int, generation_kwargs: dict) -> dict:
        assert generation_kwargs["stop"] == list(STOP_TAGS)
        self.together.wait(120)  # both rows are asked at the same time
        seed = generation_kwargs["seed"]
        return {
            "completion_ids": [[seed] * max_tokens],
            "logprobs": [[[-0.1, -2.0]] * max_tokens],
            "logprob_token_ids": [[[5, seed]] * max_tokens],
        }


def test_a_server_is_asked_for_all_rows_at_once_and_answers_in_order() -> None:
    engine = ServerEngine(Client(), lambda: None)
    completions = engine.generate(REQUESTS)
    assert completions == [Generation([50, 50], [-2.0, -2.0]), Generation([60], [-2.0])]
    assert engine.generate([]) == []


def test_nobody_asks_the_server_before_the_weights_are_there() -> None:
    log: list[str] = []
    with ServerEngine(Client(), lambda: log.append("everyone")).rollout():
        log.append("turn")
    assert log == ["everyone", "turn"]


def test_a_failing_server_is_one_line() -> None:
    class Broken:
        def generate(self, **options: Any) -> dict:
            raise Exception("Request failed: 400, {\n  too long }")

    refused(SamplerError, "400", ServerEngine(Broken(), lambda: None).generate, REQUESTS)


def test_ids_that_the_tokenizer_lacks_are_never_asked_for() -> None:
    plain = sampler(Recorded())
    assert "logit_bias" not in plain.options
    biased = dataclasses.replace(plain, unused=range(400, 403)).options["logit_bias"]
    assert biased == {400: -100.0, 401: -100.0, 402: -100.0}
