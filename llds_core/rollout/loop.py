"""The multi-turn loop: think, search, read, answer, over a batch of trajectories.

At most `max_searches` turns may search; a trajectory still open after them gets one last turn whose
search is not executed (Search-R1, arXiv 2503.09516, `search_r1/llm_agent/generation.py`). Deltas
from the official loop: sampled ids are kept instead of encoding text again, generation stops at the
closing tag, and the context is never cut from the left: a trajectory without room for another
action ends with `length`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from llds_core.config import RolloutConfig
from llds_core.errors import ConfigError
from llds_core.retrieval.base import SearchKey, format_hits
from llds_core.retrieval.failures import FailingRetriever
from llds_core.rollout.prompts import encode_prompt
from llds_core.rollout.protocol import (
    FEEDBACK,
    Action,
    Trajectory,
    action_position,
    information,
    parse_action,
)
from llds_core.rollout.samplers import Generation, Sampler
from llds_core.worlds.records import Question


@dataclass(frozen=True)
class Rollout:
    """Trajectories in the order of the tasks, and what they cost.

    Attributes:
        trajectories: one per (question, sample).
        seconds: wall time of the whole rollout.
        retrieval_seconds: part of it spent in the search engine.
    """

    trajectories: list[Trajectory]
    seconds: float
    retrieval_seconds: float


class RolloutLoop:
    """Runs trajectories with a retriever under the limits of a `RolloutConfig`.

    Args:
        tokenizer: encodes prompts and observations; never sampled text.
        retriever: search engine with keyed failures.
        config: limits and prompt template.
        top_k: passages per search.
        seed: root seed of the injected search failures.
        encode: makes the token ids of the prompts; None for the template of `config`.
        refine: makes what is shown instead of the passages, one text for each of the trajectories
            that have just searched; None shows the passages.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        retriever: FailingRetriever,
        config: RolloutConfig,
        *,
        top_k: int,
        seed: int = 0,
        encode: Callable[[Sequence[Question]], list[list[int]]] | None = None,
        refine: Callable[[Sequence[Trajectory]], list[str]] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._retriever = retriever
        self._config = config
        self._top_k = top_k
        self._seed = seed
        self._encode = encode or self._encode_template
        self._refine = refine
        self._feedback = tokenizer.encode(FEEDBACK, add_special_tokens=False)

    def run(
        self, tasks: Sequence[tuple[Question, int]], sampler: Sampler, *, step: int = 0
    ) -> Rollout:
        """Sample one trajectory per (question, sample index).

        Raises:
            ConfigError: when a prompt leaves no room for an action.
        """
        started = time.perf_counter()
        config = self._config
        prompts = self._encode([question for question, _ in tasks])
        trajectories = [
            Trajectory(question, sample, ids)
            for (question, sample), ids in zip(tasks, prompts, strict=True)
        ]
        for trajectory in trajectories:
            if self._room(trajectory) < 1:
                raise ConfigError(
                    f"the prompt of question {trajectory.question.id} takes "
                    f"{len(trajectory.prompt_ids)} tokens: "
                    f"raise rollout.max_total_tokens above {config.max_total_tokens}"
                )
        session = sampler.session([trajectory.prompt_ids for trajectory in trajectories])
        active = list(range(len(trajectories)))
        retrieval_seconds = 0.0
        for turn in range(config.max_searches + 1):
            if not active:
                break
            budgets = [
                min(config.max_action_tokens, self._room(trajectories[row])) for row in active
            ]
            generations = session.generate(active, budgets)
            last_turn = turn == config.max_searches
            retrieval_seconds += self._take_turn(
                trajectories, active, generations, turn, step, execute=not last_turn
            )
            if last_turn:
                for row in active:
                    trajectories[row].stop_reason = trajectories[row].stop_reason or "turns"
                break
            refined = self._refined(trajectories, active)
            still_active = []
            for row in active:
                trajectory = trajectories[row]
                if trajectory.stop_reason is None:
                    session.append(row, self._observe(trajectory, refined.get(row)))
                    if self._room(trajectory) < 1:
                        trajectory.stop_reason = "length"
                    else:
                        still_active.append(row)
            active = still_active
        return Rollout(trajectories, time.perf_counter() - started, retrieval_seconds)

    def _room(self, trajectory: Trajectory) -> int:
        return self._config.max_total_tokens - trajectory.total_tokens

    def _take_turn(
        self,
        trajectories: list[Trajectory],
        active: list[int],
        generations: list[Generation],
        turn: int,
        step: int,
        *,
        execute: bool,
    ) -> float:
        """Parse and execute one action per active row; return the seconds of searching."""
        parsed = []
        for generation in generations:
            text = cast("str", self._tokenizer.decode(generation.token_ids))
            parsed.append((*parse_action(text), text))
        searching = [
            i
            for i, (kind, content, _) in enumerate(parsed)
            if execute and kind == "search" and content
        ]
        queries = [parsed[i][1] for i in searching]
        keys = [
            SearchKey(
                self._seed,
                step,
                trajectories[active[i]].question.id,
                trajectories[active[i]].sample,
                turn,
            )
            for i in searching
        ]
        started = time.perf_counter()
        found = self._retriever.search_keyed(queries, self._top_k, keys) if queries else ([], [])
        seconds = time.perf_counter() - started
        results = dict(zip(searching, zip(*found, strict=True), strict=True))
        for i, row in enumerate(active):
            kind, content, text = parsed[i]
            trajectory, generation = trajectories[row], generations[i]
            if kind == "search" and not content:
                kind = "invalid"  # nothing to search for; an empty answer is an answer, and wrong
            start = len(trajectory.completion_ids)
            end = start + len(generation.token_ids)
            hits, failed = results.get(i, ((), False))
            action = Action(kind, content, text, start, end, i in results, tuple(hits), failed)
            trajectory.add_action(action, generation.token_ids, generation.logprobs)
            if kind == "answer":
                trajectory.answer = content
                trajectory.answer_span = self._answer_span(generation.token_ids, text, start)
                trajectory.stop_reason = "answer"
        return seconds

    def _encode_template(self, questions: Sequence[Question]) -> list[list[int]]:
        template = self._config.prompt
        return [encode_prompt(q.question, template, self._tokenizer) for q in questions]

    def _refined(self, trajectories: list[Trajectory], active: Sequence[int]) -> dict[int, str]:
        """Texts by row in place of the passages that rows have just found."""
        rows = [row for row in active if trajectories[row].actions[-1].executed]
        if self._refine is None or not rows:
            return {}
        return dict(zip(rows, self._refine([trajectories[row] for row in rows]), strict=True))

    def _observe(self, trajectory: Trajectory, refined: str | None) -> list[int]:
        """Append the observation that follows the last action; return its tokens."""
        action = trajectory.actions[-1]
        if action.executed:
            text = information(format_hits(action.hits) if refined is None else refined)
            tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        else:
            tokens = self._feedback
        tokens = tokens[: min(self._config.max_observation_tokens, max(self._room(trajectory), 0))]
        trajectory.add_observation(tokens)
        return tokens

    def _answer_span(self, token_ids: list[int], text: str, start: int) -> tuple[int, int]:
        """Token range from the parsed answer's opening tag to the end of the action.

        Found on the sampled tokens: the first one whose text reaches past the tag's first letter.
        """
        position = action_position(text)
        first = next(
            i
            for i in range(len(token_ids))
            if len(self._tokenizer.decode(token_ids[: i + 1])) > position
        )
        return start + first, start + len(token_ids)
