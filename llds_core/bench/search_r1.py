"""The rollout that `bench` compares with: Search-R1's loop, written out for anyone to read."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from llds_core.retrieval.base import Hit, SearchKey
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.prompts import encode_plain
from llds_core.rollout.protocol import STOP_TAGS, parse_action, search_observation
from llds_core.rollout.samplers import evaluation_mode
from llds_core.worlds.records import Question

Tasks = Sequence[tuple[Question, int]]


def reencoding_rollout(loop: RolloutLoop, model: PreTrainedModel, tasks: Tasks) -> list[str]:
    """Text of every trajectory: text in, text out, and the whole context again every turn.

    Every turn tokenises what followed the prompt of all running contexts, pads them on the left,
    and calls `generate`, which keeps a cache within the turn and drops it after. A group's common
    prompt is computed once per trajectory.

    Args:
        loop: our own, whose tokenizer, search engine and limits are taken.
        model: samples the actions.
        tasks: questions, each with the number of its sample.
    """
    limits, tokenizer = loop.config, loop.tokenizer
    prompts = loop.prompts([question for question, _ in tasks])
    texts = [""] * len(tasks)
    active = list(range(len(tasks)))

    def contexts() -> list[list[int]]:
        # Text from data is text, here too: only the template's own control tokens are control.
        encoded = encode_plain([texts[row] for row in active], tokenizer)
        return [prompts[row] + ids for row, ids in zip(active, encoded, strict=True)]

    for turn in range(limits.max_searches + 1):
        replies = _generate(loop, model, contexts())
        actions = {row: parse_action(reply) for row, reply in zip(active, replies, strict=True)}
        for row, reply in zip(active, replies, strict=True):
            texts[row] += reply
        if turn == limits.max_searches:
            break
        queries = {row: q for row, (kind, q, _) in actions.items() if kind == "search" and q}
        found = _search(loop, tasks, queries, turn)
        active = [row for row in active if actions[row][0] != "answer"]
        for row in active:
            observation = search_observation(found[row]) if row in found else limits.feedback
            [tokens] = encode_plain([observation], tokenizer)
            [shown] = tokenizer.batch_decode([tokens[: limits.max_observation_tokens]])
            texts[row] += shown
        if active:
            sized = zip(active, contexts(), strict=True)
            active = [row for row, ids in sized if len(ids) < limits.max_total_tokens]
        if not active:
            break
    return [a + b for a, b in zip(tokenizer.batch_decode(prompts), texts, strict=True)]


def _generate(loop: RolloutLoop, model: Any, contexts: list[list[int]]) -> list[str]:
    limits, tokenizer = loop.config, loop.tokenizer
    batch = tokenizer.pad({"input_ids": contexts}, padding_side="left", return_tensors="pt")
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
    with evaluation_mode(model), torch.random.fork_rng():
        output = model.generate(
            **batch.to(model.device), generation_config=generation, tokenizer=tokenizer
        )
    new = output[:, batch["input_ids"].shape[1] :]
    return [_cut_after_tag(t) for t in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _search(
    loop: RolloutLoop, tasks: Tasks, queries: Mapping[int, str], turn: int
) -> dict[int, list[Hit]]:
    if not queries:
        return {}
    keys = [SearchKey(0, 1, tasks[row][0].id, tasks[row][1], turn) for row in queries]
    hits, _ = loop.retriever.search_keyed([*queries.values()], loop.top_k, keys)
    return dict(zip(queries, hits, strict=True))


def _cut_after_tag(text: str) -> str:
    ends = [text.find(tag) + len(tag) for tag in STOP_TAGS if tag in text]
    return text[: min(ends)] if ends else text
