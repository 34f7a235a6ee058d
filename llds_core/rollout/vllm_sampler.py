"""The vLLM sampler: the contract of `TransformersSampler`, from an engine that TRL owns.

TRL builds the engine (in this process, or as the client of a server) and pushes the weights; here
it is only asked for tokens. Deltas from what TRL itself does with vLLM:

* the engine wakes, takes the weights once, serves all turns of a rollout and sleeps again; TRL
  brackets every turn. Its prefix cache lives in between, so that a turn computes only what is new.
* requests are added one by one while the engine is stepped, so that a trajectory goes on as soon as
  its search is answered. A server, and an engine that processes share, serve whole turns instead.
* every request has a budget and a seed of its own. vLLM looks for stop strings in decoded text;
  what it returns is cut again on the token ids, so that both backends end an action alike.
* ids and log-probabilities are those of the sampled tokens. Log-probabilities are taken at the
  sampling temperature and not renormalised to a nucleus, as with transformers, wherever vLLM has a
  mode for that: see `machine.vllm_server.logprobs_mode`.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from llds_core.errors import ConfigError, SamplerError, one_line
from llds_core.rollout.samplers import Generation, StopAtTag, end_of_sequence_ids

MOST_SEQUENCES = 512  # decoded at a time; the rest waits
_NEVER = -100.0  # the lowest bias that vLLM takes
_CONNECTIONS = 64  # of TRL's client


@dataclass(frozen=True)
class Request:
    """One context to continue: its ids, at most how many tokens to sample, with which seed, and
    what else vLLM is told, whatever the request.
    """

    token_ids: list[int]
    budget: int
    seed: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class VLLMSampler:
    """Samples with a vLLM engine.

    Attributes:
        engine: the engine, held awake by its `rollout` while sessions are used.
        stop: what ends an action.
        eos_ids: tokens that end a text.
        seed_of: seed of what a row samples in a turn; both count from 0.
        temperature: 0 for greedy decoding.
        top_p: nucleus mass in (0, 1].
        unused: ids that the policy scores and the tokenizer lacks, which are never sampled.
    """

    engine: "Engine"
    stop: StopAtTag
    eos_ids: set[int]
    seed_of: Callable[[int, int], int]
    temperature: float = 1.0
    top_p: float = 1.0
    unused: range = range(0)

    @cached_property
    def options(self) -> dict[str, Any]:
        """What vLLM is asked for, whatever the request."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": 0,  # of the sampled token only
            "stop": list(self.stop.tags),
            "include_stop_str_in_output": True,
            "stop_token_ids": sorted(self.eos_ids),
            # The text in which vLLM looks for a tag is then the text in which `stop` does.
            "skip_special_tokens": False,
            **({"logit_bias": dict.fromkeys(self.unused, _NEVER)} if self.unused else {}),
        }

    def session(self, prompts: Sequence[Sequence[int]]) -> "VLLMSession":
        """Start one context per prompt."""
        kind = ContinuousVLLMSession if self.engine.is_continuous else VLLMSession
        return kind(self, prompts)


class VLLMSession:
    """See `llds_core.rollout.samplers.Session`. The engine's prefix cache knows the contexts."""

    def __init__(self, sampler: VLLMSampler, prompts: Sequence[Sequence[int]]) -> None:
        self._sampler = sampler
        self._contexts = [list(prompt) for prompt in prompts]
        self._turns = [0] * len(prompts)

    def append(self, row: int, token_ids: Sequence[int]) -> None:
        """Insert observation tokens after what `row` holds."""
        self._contexts[row] += token_ids

    def generate(self, rows: Sequence[int], budgets: Sequence[int]) -> list[Generation]:
        """Sample one action for each of `rows`, at most `budgets` (>= 1) tokens each.

        Raises:
            SamplerError: when the engine ended an action for no reason that the protocol knows.
        """
        requests = [self._request(*each) for each in zip(rows, budgets, strict=True)]
        made = self._sampler.engine.generate(requests)
        return [self._kept(*each) for each in zip(made, rows, budgets, strict=True)]

    def _request(self, row: int, budget: int) -> Request:
        seed = self._sampler.seed_of(row, self._turns[row])
        self._turns[row] += 1
        return Request(list(self._contexts[row]), budget, seed, self._sampler.options)

    def _kept(self, made: Generation, row: int, budget: int) -> Generation:
        """End the action with the token that ends it, and continue the context of `row` by it."""
        ids, ends = made.token_ids, self._sampler.eos_ids
        for length, token in enumerate(ids, 1):
            if token in ends or self._sampler.stop(ids[:length]):
                made = Generation(ids[:length], made.logprobs[:length])
                made.drop_end(ends)
                break
        else:
            if len(ids) != budget:
                raise SamplerError(
                    f"vLLM ended row {row} after {len(ids)} of {budget} tokens with neither a "
                    f"closing tag nor an end token (last ids {ids[-8:]}): compare the server's "
                    "tokenizer and max_model_len with the policy's"
                )
        self._contexts[row] += made.token_ids
        return made


class ContinuousVLLMSession(VLLMSession):
    """See `llds_core.rollout.samplers.ContinuousSession`."""

    def __init__(self, sampler: VLLMSampler, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__(sampler, prompts)
        self._engine = cast(ColocatedEngine, sampler.engine)
        self._budgets: dict[int, int] = {}  # of the rows that the engine works on

    def add(self, row: int, budget: int) -> None:
        """Ask for an action of `row`, of at most `budget` (>= 1) tokens."""
        self._budgets[row] = budget
        self._engine.add(row, self._request(row, budget))

    def step(self) -> list[tuple[int, Generation]]:
        """Work on all actions for a moment; return the finished ones. Raises as `generate` does."""
        done = self._engine.step()
        return [(row, self._kept(made, row, self._budgets.pop(row))) for row, made in done]

    def close(self) -> None:
        """Drop what is unfinished."""
        self._engine.drop(self._budgets)
        self._budgets = {}


@dataclass(frozen=True)
class ColocatedEngine:
    """vLLM in this process, or in each of the trainer's."""

    generation: Any  # TRL's `VLLMGeneration` in colocate mode: engine and path of its weights

    @property
    def is_continuous(self) -> bool:
        """Whether requests can be added at any time."""
        return bool(self.generation.tensor_parallel_size == 1)

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Hold the engine awake, with the policy's present weights, for one rollout; TRL has pushed
        those of this step before it asks for one.
        """
        generation = self.generation
        if generation.enable_sleep_mode:
            if generation._llm_weights_sleeping:
                generation.sync_weights()
            generation.llm.wake_up(tags=["kv_cache"])
        yield
        while self._shared([]) is not None:
            pass
        if generation.enable_sleep_mode:
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Complete `requests`, in order."""
        return self._shared(requests) or []

    def add(self, row: int, request: Request) -> None:
        """Ask for the completion of one request, named by its row."""
        prompt = {"type": "token", "prompt_token_ids": request.token_ids}
        self.generation.llm.llm_engine.add_request(str(row), prompt, _sampling(request))

    def step(self) -> list[tuple[int, Generation]]:
        """Work on all requests for a moment; return the finished ones."""
        outputs = self.generation.llm.llm_engine.step()
        return [(int(each.request_id), _completion(each)) for each in outputs if each.finished]

    def drop(self, rows: Iterable[int]) -> None:
        """Forget requests that are not finished."""
        self.generation.llm.llm_engine.abort_request([str(row) for row in rows])

    def _shared(self, own: Sequence[Request]) -> list[Generation] | None:
        """Serve the requests of all processes that share a copy of the policy; return one's own.

        The processes of such a group must ask for the same tokens at the same time, but their
        rollouts take different numbers of turns: a process without a further turn asks for nothing
        until none of them asks any more, which returns None.
        """
        generation, asked, place = self.generation, [own], 0
        if generation.tensor_parallel_size > 1:
            asked = [own] * generation.tensor_parallel_size
            torch.distributed.all_gather_object(asked, own, group=generation.tp_group)
            place = torch.distributed.get_rank(group=generation.tp_group)
        requests = [request for part in asked for request in part]
        if not requests:
            return None
        outputs = generation.llm.generate(
            [{"prompt_token_ids": request.token_ids} for request in requests],
            sampling_params=[_sampling(request) for request in requests],
            use_tqdm=False,
        )
        first = sum(map(len, asked[:place]))
        return [_completion(output) for output in outputs[first : first + len(own)]]


def _sampling(request: Request) -> Any:
    """vLLM's `SamplingParams` of a request of which only the end is wanted."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    own = {"max_tokens": request.budget, "seed": request.seed}
    return SamplingParams(**request.options, **own, output_kind=RequestOutputKind.FINAL_ONLY)


def _completion(output: Any) -> Generation:
    """What a finished `RequestOutput` holds."""
    (sample,) = output.outputs
    sampled = zip(sample.token_ids, sample.logprobs, strict=True)
    return Generation(list(sample.token_ids), [known[token].logprob for token, known in sampled])


def require_vllm() -> None:
    """Refuse a vLLM sampler where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "sampler.backend=vllm, but the package vllm is not installed: install the extra gpu "
            "(pip install -e '.[gpu]') or set sampler.backend=transformers"
        )


@contextmanager
def own_sampler(
    model: Path, **options: Any
) -> Iterator[tuple[VLLMSampler, PreTrainedTokenizerBase]]:
    """A greedy sampler whose engine holds the weights in the folder `model`, in this process for as
    long as the context lasts, and its tokenizer; `options` are those of vLLM's `LLM`.
    """
    require_vllm()
    # A worker process would outlive a killed evaluation, and keep its GPU.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    try:
        alone = SimpleNamespace(llm=LLM(str(model), **options), tensor_parallel_size=1)
    except Exception as error:  # vLLM raises whatever its parts do
        raise SamplerError(
            f"vLLM cannot serve {model} ({one_line(error, 200)}): free the GPU, name another "
            "checkpoint, or set sampler.backend=transformers"
        ) from error
    tokenizer = alone.llm.get_tokenizer()
    config = alone.llm.llm_engine.model_config
    declared = config.try_get_generation_config().get("eos_token_id", [])
    ends = end_of_sequence_ids(declared, tokenizer)
    engine, stop = ColocatedEngine(alone), StopAtTag(tokenizer)
    unused = range(len(tokenizer), config.get_vocab_size())
    try:
        yield VLLMSampler(engine, stop, ends, lambda *_: 0, 0.0, unused=unused), tokenizer
    finally:
        alone.llm.llm_engine.engine_core.shutdown()
        del alone.llm
        cleanup_dist_env_and_memory()


@dataclass(frozen=True)
class ServerEngine:
    """vLLM in a server of its own, which every process asks for its own rows."""

    client: Any  # TRL's `VLLMClient`; only the main process's takes part in pushing weights
    wait_for_everyone: Callable[[], None]  # returns when all processes have called it
    is_continuous = False

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """See `ColocatedEngine`."""
        # The main process has just pushed the weights: nobody may ask before it is done.
        self.wait_for_everyone()
        yield

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """See `ColocatedEngine`. Budgets and seeds differ by row, hence one call each; the server
        batches them.
        """
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(pool.map(self._complete, requests))

    def _complete(self, request: Request) -> Generation:
        try:
            answer = self.client.generate(
                prompts=[request.token_ids],
                max_tokens=request.budget,
                generation_kwargs={**request.options, "seed": request.seed},
            )
        except Exception as error:  # TRL's client raises nothing more specific
            raise SamplerError(
                f"the vLLM server did not answer ({one_line(error, 200)}): look at its log, start "
                "it again and re-issue the command"
            ) from error
        (ids,), (logprobs,) = answer["completion_ids"], answer["logprobs"]
        (names,) = answer["logprob_token_ids"]
        sampled = zip(ids, logprobs, names, strict=True)
        chosen = [values[known.index(token)] for token, values, known in sampled]
        return Generation(list(ids), chosen)


Engine = ColocatedEngine | ServerEngine
