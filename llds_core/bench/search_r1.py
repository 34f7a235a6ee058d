"""The rollout that `bench` compares with: Search-R1's loop, written out for anyone to read."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llds_core.config import ExperimentConfig
from llds_core.retrieval.base import SearchKey
from llds_core.retrieval.failures import FailingRetriever
from llds_core.rollout.environment import Environment
from llds_core.rollout.prompts import encode_prompt
from llds_core.rollout.protocol import STOP_TAGS, parse_action, search_observation
from llds_core.worlds.records import Question

Tasks = list[tuple[Question, int]]


class ReencodingRollout:
    """A rollout as in Search-R1's loop: text in, text out, and the whole context again every turn.

    Every turn tokenises the text of all running contexts, pads them on the left, and calls
    `generate`, which keeps a cache within the turn and drops it after. A group's common prompt is
    computed once per trajectory.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        environment: Environment,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._config = config
        self._model: Any = model  # whose class knows `generate`
        self._tokenizer = tokenizer
        self._template = environment.template
        self._retriever = FailingRetriever(
            environment.retriever,
            failure_rate=config.retrieval.failure_rate,
            passages=environment.world.passages,
            seed=0,
        )

    @torch.no_grad()
    def run(self, tasks: Tasks) -> list[str]:
        """Return the text of every trajectory."""
        limits, tokenizer = self._config.rollout, self._tokenizer
        prompts = [encode_prompt(q.question, self._template, tokenizer) for q, _ in tasks]
        texts = tokenizer.batch_decode(prompts)
        active = list(range(len(tasks)))
        training = self._model.training
        self._model.eval()
        for turn in range(limits.max_searches + 1):
            replies = self._generate([texts[row] for row in active])
            parsed = [parse_action(reply) for reply in replies]
            found = self._search(tasks, active, parsed, turn)
            going = []
            for row, reply, (kind, *_) in zip(active, replies, parsed, strict=True):
                texts[row] += reply
                if kind == "answer":
                    continue
                observation = search_observation(found[row]) if row in found else limits.feedback
                tokens = tokenizer.encode(observation, add_special_tokens=False)
                (seen,) = tokenizer.batch_decode([tokens[: limits.max_observation_tokens]])
                longer = texts[row] + seen
                length = len(tokenizer.encode(longer, add_special_tokens=False))
                if turn < limits.max_searches:
                    texts[row] = longer
                if length < limits.max_total_tokens:
                    going.append(row)
            active = going
            if not active:
                break
        self._model.train(training)
        return texts

    def _generate(self, texts: list[str]) -> list[str]:
        limits, tokenizer = self._config.rollout, self._tokenizer
        form: dict[str, Any] = {"add_special_tokens": False, "return_token_type_ids": False}
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", **form)
        batch = batch.to(self._model.device)
        generation = GenerationConfig(
            do_sample=True,
            temperature=limits.temperature,
            top_k=0,
            max_new_tokens=limits.max_action_tokens,
            stop_strings=list(STOP_TAGS),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        # `generate` samples from the global stream; a measurement must not move it.
        with torch.random.fork_rng():
            output = self._model.generate(
                **batch, generation_config=generation, tokenizer=tokenizer
            )
        new = output[:, batch["input_ids"].shape[1] :]
        return [_cut_after_tag(t) for t in tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _search(
        self, tasks: Tasks, active: list[int], parsed: Sequence[tuple[str, str, int]], turn: int
    ) -> dict[int, Any]:
        pairs = zip(active, parsed, strict=True)
        wanted = {row: query for row, (kind, query, _) in pairs if kind == "search" and query}
        if not wanted or turn == self._config.rollout.max_searches:
            return {}
        keys = [SearchKey(0, 1, tasks[row][0].id, tasks[row][1], turn) for row in wanted]
        queries, top_k = list(wanted.values()), self._config.retrieval.top_k
        hits, _ = self._retriever.search_keyed(queries, top_k, keys)
        return dict(zip(wanted, hits, strict=True))


def _cut_after_tag(text: str) -> str:
    ends = [text.find(tag) + len(tag) for tag in STOP_TAGS if tag in text]
    return text[: min(ends)] if ends else text
