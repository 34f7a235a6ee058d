"""Token samplers for multi-turn rollouts.

A `Session` holds one context per trajectory and extends it with sampled tokens (`generate`) and
inserted ones (`append`), so that a backend may keep what it has computed. The transformers backend
keeps the KV cache across turns, computes a prompt that a group shares once, and stops at the token
that completes a tag, whatever number of tokens the tag takes. It returns the sampled ids; nothing
is ever decoded and encoded again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TopPLogitsWarper

from llds_core.rollout.cache import RowCache, merge
from llds_core.rollout.protocol import STOP_TAGS

# Finished rows leave the batch when no more than this share of it is still open.
_PARK_BELOW = 0.6


@dataclass
class Generation:
    """One sampled action: ids and their log-probabilities."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def drop_end(self, ends: set[int]) -> bool:
        """Drop a last token out of `ends`, and say whether there was one: the end of text of an
        invalid action is neither trained nor shown before the correction
        (`search_r1/llm_agent/generation.py` decodes without special tokens). An action of nothing
        else keeps it: a row needs a policy token.
        """
        dropped = len(self.token_ids) > 1 and self.token_ids[-1] in ends
        if dropped:
            del self.token_ids[-1], self.logprobs[-1]
        return dropped


class Session(Protocol):
    """Contexts of one rollout batch, indexed by row."""

    def generate(self, rows: Sequence[int], budgets: Sequence[int]) -> list[Generation]:
        """Sample one action for each of `rows`, at most `budgets` tokens each. Rows left out are
        done for good.
        """

    def append(self, row: int, token_ids: Sequence[int]) -> None:
        """Insert observation tokens after what `row` holds."""


@runtime_checkable
class ContinuousSession(Session, Protocol):
    """A session whose rows need not wait for each other."""

    def add(self, row: int, budget: int) -> None:
        """Ask for an action of `row`, of at most `budget` tokens."""

    def step(self) -> list[tuple[int, Generation]]:
        """Work on the actions that were asked for, for a moment; return the finished ones."""

    def close(self) -> None:
        """Drop what is unfinished."""


class Sampler(Protocol):
    """Opens sessions."""

    def session(self, prompts: Sequence[Sequence[int]]) -> Session:
        """Start one context per prompt."""


class StopAtTag:
    """Recognises the token that completes `</search>` or `</answer>`, for tags of one or of many
    tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tags: Sequence[str] = STOP_TAGS) -> None:
        self._tokenizer = tokenizer
        self.tags = tags
        # Only a token whose text holds ">" can complete a tag: everything else skips the decoding.
        pieces = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
        self._closing = {index for index, piece in enumerate(pieces) if ">" in piece}
        self._window = 4 * max(map(len, tags))

    def __call__(self, token_ids: list[int]) -> bool:
        """Whether the last of `token_ids` completes a stop tag."""
        if token_ids[-1] not in self._closing:
            return False
        # A byte-level token holds at least one byte, so a tag spans at most `window` tokens.
        text = self._tokenizer.decode(token_ids[-self._window :])
        return any(tag in text for tag in self.tags)


def end_of_sequence_ids(declared: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a text: the tokenizer's and the `eos_token_id` of generation settings."""
    also = declared if isinstance(declared, list) else [declared]
    return {tokenizer.eos_token_id, *also} - {None}


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Put `model` in evaluation mode and give its own mode back."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def rounded_weights(model: PreTrainedModel, rounding: str) -> Iterator[None]:
    """Round the weights of `model` to `bfloat16` or, each matrix scaled to its range, to `float8`
    (e4m3), and give them back; `none` leaves them.
    """
    exact = {} if rounding == "none" else {p: p.detach().clone() for p in model.parameters()}
    try:
        for weight, value in exact.items():
            if rounding == "bfloat16":
                weight.data.copy_(value.bfloat16())
            else:
                scale = value.abs().max().clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
                weight.data.copy_((value / scale).to(torch.float8_e4m3fn).to(value.dtype) * scale)
        yield
    finally:
        for weight, value in exact.items():
            weight.data.copy_(value)


@dataclass
class TransformersSampler:
    """Samples with a transformers model, keeping the KV cache across turns.

    Attributes:
        model: causal language model; used in evaluation mode and without gradients.
        tokenizer: its tokenizer.
        generator: random stream, on the model's device; None when there are `streams`, or with
            greedy decoding.
        temperature: 0 for greedy decoding.
        top_p: nucleus mass in (0, 1]; recorded log-probabilities are not renormalised to it.
        stop: what ends an action; None for the tags of the protocol.
        streams: one random stream per prompt of a session, one number a token: what a row samples
            then does not depend on the rows beside it.
        autocast: what matrix products are computed in, as in mixed-precision training; None for the
            type of the weights.

    Raises:
        ValueError: when a temperature above 0 has nothing to draw from.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    generator: torch.Generator | None
    _: KW_ONLY
    temperature: float = 1.0
    top_p: float = 1.0
    stop: StopAtTag | None = None
    streams: Sequence[np.random.Generator] | None = None
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.temperature and self.generator is None and self.streams is None:
            # torch would draw from its global generator.
            raise ValueError(f"temperature is {self.temperature}: pass a generator or streams")
        self.ends = self.stop or StopAtTag(self.tokenizer)
        self.warper = TopPLogitsWarper(self.top_p) if self.top_p < 1 else None
        declared = self.model.generation_config.eos_token_id
        self.eos_ids = end_of_sequence_ids(declared, self.tokenizer)
        self.vocabulary = len(self.tokenizer)

    def session(self, prompts: Sequence[Sequence[int]]) -> "TransformersSession":
        """Start one context per prompt; equal prompts share their computation."""
        return TransformersSession(self, prompts)

    def pick(
        self, logits: torch.Tensor, rows: Sequence[int | None] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample from `logits` (B, V); return ids (B,) and their log-probabilities (B,).

        `rows` says whose of the `streams` draws; None stands for a row that only keeps its place,
        and must not move its stream.
        """
        # An embedding may have more rows than the tokenizer has tokens: they stand for nothing.
        logits = logits[:, : self.vocabulary].float()
        if self.temperature == 0:
            tokens = logits.argmax(-1)
            return tokens, logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
        logits = logits / self.temperature
        logprobs = logits.log_softmax(-1)
        kept = logprobs.exp() if self.warper is None else self.warper(None, logits).softmax(-1)
        # One uniform number a row: `torch.multinomial` draws one per entry of the vocabulary. In
        # float64, so that rounding cannot reach beyond the last token that has any probability.
        cumulative = kept.double().cumsum(-1)
        draw = torch.empty_like(cumulative[:, :1])
        if self.streams is None:
            draw.uniform_(generator=self.generator)
        else:
            numbers = [0.0 if row is None else self.streams[row].random() for row in rows]
            draw.copy_(torch.tensor(numbers, dtype=torch.float64)[:, None])
        tokens = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True)
        return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)


class TransformersSession:
    """See `Session`.

    Blocks are padded on the right and masked, which leaves holes between a row's tokens in the
    cache; positions are counted over real tokens, so that a hole changes nothing but memory.
    """

    def __init__(self, sampler: TransformersSampler, prompts: Sequence[Sequence[int]]) -> None:
        self._sampler = sampler
        self._device = sampler.model.device
        self._pending = [list(prompt) for prompt in prompts]
        self._rows: list[int] = []  # of the cache
        self._cache: RowCache

    def append(self, row: int, token_ids: Sequence[int]) -> None:
        """Insert observation tokens after what `row` holds."""
        self._pending[row] += token_ids

    @torch.no_grad()
    def generate(self, rows: Sequence[int], budgets: Sequence[int]) -> list[Generation]:
        """Sample one action for each of `rows`, at most `budgets` (>= 1) tokens each."""
        dtype = self._sampler.autocast
        autocast = torch.autocast(self._device.type, dtype, enabled=dtype is not None)
        with evaluation_mode(self._sampler.model), autocast:
            return self._generate(list(rows), list(budgets))

    def _generate(self, rows: list[int], budgets: list[int]) -> list[Generation]:
        results = [Generation() for _ in rows]
        closed: set[int] = set()
        working = list(range(len(rows)))  # which result each cache row belongs to
        parked: list[RowCache] = []
        parked_rows: list[int] = []
        logits = self._feed_pending(rows)
        while True:
            owners = [None if index in closed else rows[index] for index in working]
            tokens, logprobs = self._sampler.pick(logits, owners)
            sampled = zip(working, tokens.tolist(), logprobs.tolist(), strict=True)
            for index, token, logprob in sampled:
                if index in closed:
                    continue
                made = results[index]
                made.token_ids.append(token)
                made.logprobs.append(logprob)
                ended = token in self._sampler.eos_ids or self._sampler.ends(made.token_ids)
                if ended or len(made.token_ids) == budgets[index]:
                    closed.add(index)
                    if not made.drop_end(self._sampler.eos_ids):
                        # Its last token is fed together with the observation that follows.
                        self._pending[rows[index]].append(token)
            if len(closed) == len(rows):
                break
            still_open = [i for i, index in enumerate(working) if index not in closed]
            if len(still_open) <= _PARK_BELOW * len(working):
                done = [i for i, index in enumerate(working) if index in closed]
                parked.append(self._cache.select(done))
                parked_rows += [working[i] for i in done]
                self._cache = self._cache.select(still_open)
                tokens = tokens[still_open]
                working = [working[i] for i in still_open]
                still_open = list(range(len(working)))
            mask = torch.zeros(len(working), 1, dtype=torch.long, device=self._device)
            mask[still_open] = 1
            logits = self._forward(tokens[:, None], mask)
        if parked:
            stacked = working + parked_rows
            order = [stacked.index(index) for index in range(len(rows))]
            self._cache = merge([self._cache, *parked], order)
        return results

    def _feed_pending(self, rows: list[int]) -> torch.Tensor:
        """Feed what `rows` have not yet seen; return logits (B, V) after each row's last token."""
        blocks = [tuple(self._pending[row]) for row in rows]
        for row in rows:
            self._pending[row] = []
        before, self._rows = self._rows, rows
        if before:
            if rows != before:  # finished trajectories leave
                self._cache = self._cache.select([before.index(row) for row in rows])
            self._cache = self._cache.squeeze()
            return self._feed(blocks)
        # First turn: a prompt shared by a group is computed once and its cache row copied.
        unique = list(dict.fromkeys(blocks))
        where = {block: index for index, block in enumerate(unique)}
        nothing = torch.zeros(len(unique), 0, dtype=torch.long, device=self._device)
        self._cache = RowCache(nothing)
        logits = self._feed(unique)
        chosen = [where[block] for block in blocks]
        self._cache = self._cache.select(chosen)
        return logits[chosen]

    def _feed(self, blocks: Sequence[Sequence[int]]) -> torch.Tensor:
        # Padded with id 0: any id would do, as it is masked, and 0 is in every vocabulary.
        ids = pad_sequence([torch.tensor(block) for block in blocks], batch_first=True)
        lengths = torch.tensor([*map(len, blocks)])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return self._forward(ids.to(self._device), mask.to(self._device))

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Extend the cache by `ids` (B, M); return logits (B, V) after each row's last real one."""
        cache = self._cache
        positions = cache.mask.sum(1, keepdim=True) + mask.cumsum(1) - 1
        cache.mask = torch.cat([cache.mask, mask], dim=1)
        output = self._sampler.model.base_model(
            input_ids=ids,
            attention_mask=cache.mask,
            position_ids=positions.clamp(min=0),
            past_key_values=cache.states,
            use_cache=True,
        )
        rows = torch.arange(len(ids), device=self._device)
        hidden = output.last_hidden_state[rows, mask.sum(1) - 1]
        head = self._sampler.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return cast("torch.Tensor", head(hidden))
