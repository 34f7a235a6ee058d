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
from llds_core.retrieval.base import Hit, SearchKey, format_hits
from llds_core.retrieval.failures import FailingRetriever
from llds_core.rollout.prompts import encode_prompt
from llds_core.rollout.protocol import Action, Trajectory, information, parse_action
from llds_core.rollout.samplers import Generation, Sampler
from llds_core.worlds.records import Question


@dataclass(frozen=True)
class Rollout:
    """Trajectories in the order of the tasks, the wall time of all, and the engine's part of it."""

    trajectories: list[Trajectory]
    seconds: float
    retrieval_seconds: float


@dataclass(frozen=True)
class RolloutLoop:
    """Runs trajectories with a retriever under the limits of a `RolloutConfig`.

    Attributes:
        tokenizer: encodes prompts and observations; never sampled text.
        retriever: search engine with keyed failures.
        config: limits and prompt template.
        top_k: passages per search.
        seed: root seed of the injected search failures.
        template: wording of the prompts, with `{question}` in it; None for that of `config`.
        encode: makes the token ids of the prompts; None for the template.
        refine: makes what is shown instead of the passages, one text for each of the trajectories
            that have just searched; None shows the passages.
    """

    tokenizer: PreTrainedTokenizerBase
    retriever: FailingRetriever
    config: RolloutConfig
    top_k: int
    seed: int = 0
    template: str | None = None
    encode: Callable[[Sequence[Question]], list[list[int]]] | None = None
    refine: Callable[[Sequence[Trajectory]], list[str]] | None = None

    def run(
        self, tasks: Sequence[tuple[Question, int]], sampler: Sampler, *, step: int = 0
    ) -> Rollout:
        """Sample one trajectory per (question, sample index).

        Raises:
            ConfigError: when a prompt leaves no room for an action.
        """
        started = time.perf_counter()
        config = self.config
        prompts = self.prompts([question for question, _ in tasks])
        trajectories = [
            Trajectory(question, sample, ids, feedback=config.feedback)
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
        rows = list(range(len(trajectories)))
        retrieval_seconds = 0.0
        for turn in range(config.max_searches + 1):
            if not rows:
                break
            active = [trajectories[row] for row in rows]
            budgets = [min(config.max_action_tokens, self._room(t)) for t in active]
            generations = session.generate(rows, budgets)
            last_turn = turn == config.max_searches
            retrieval_seconds += self._take_turn(
                active, generations, turn, step, execute=not last_turn
            )
            if last_turn:
                for trajectory in active:
                    trajectory.stop_reason = trajectory.stop_reason or "turns"
                break
            going = [row for row in rows if trajectories[row].stop_reason is None]
            observed = self._observe([trajectories[row] for row in going])
            rows = []
            for row, tokens in zip(going, observed, strict=True):
                trajectories[row].add_observation(tokens)
                session.append(row, tokens)
                if self._room(trajectories[row]) < 1:
                    trajectories[row].stop_reason = "length"
                else:
                    rows.append(row)
        return Rollout(trajectories, time.perf_counter() - started, retrieval_seconds)

    def _room(self, trajectory: Trajectory) -> int:
        return self.config.max_total_tokens - trajectory.total_tokens

    def _take_turn(
        self,
        active: Sequence[Trajectory],
        generations: Sequence[Generation],
        turn: int,
        step: int,
        *,
        execute: bool,
    ) -> float:
        """Parse and execute one action per active trajectory; return the seconds of searching."""
        texts = [cast("str", self.tokenizer.decode(made.token_ids)) for made in generations]
        parsed = [parse_action(text) for text in texts]
        queries = {
            i: content
            for i, (kind, content, _) in enumerate(parsed)
            if execute and kind == "search" and content
        }
        asking = [active[i] for i in queries]
        keys = [SearchKey(self.seed, step, t.question.id, t.sample, turn) for t in asking]
        started = time.perf_counter()
        results: dict[int, tuple[list[Hit], bool]] = {}
        if queries:
            found = self.retriever.search_keyed([*queries.values()], self.top_k, keys)
            results = dict(zip(queries, zip(*found, strict=True), strict=True))
        seconds = time.perf_counter() - started
        for i, (trajectory, made) in enumerate(zip(active, generations, strict=True)):
            kind, content, position = parsed[i]
            if kind == "search" and not content:
                kind = "invalid"  # nothing to search for; an empty answer is an answer, and wrong
            start = len(trajectory.completion_ids)
            end = start + len(made.token_ids)
            hits, failed = results.get(i, ((), False))
            action = Action(kind, content, texts[i], start, end, i in results, tuple(hits), failed)
            trajectory.add_action(action, made.token_ids, made.logprobs)
            if kind == "answer":
                opened = start + self._token_at(position, made.token_ids)
                trajectory.answer, trajectory.answer_span = content, (opened, end)
                trajectory.stop_reason = "answer"
        return seconds

    def prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        """Token ids of the prompts that `run` begins with."""
        if self.encode:
            return self.encode(questions)
        template = self.template or self.config.prompt
        return [encode_prompt(q.question, template, self.tokenizer) for q in questions]

    def _observe(self, trajectories: Sequence[Trajectory]) -> list[list[int]]:
        """Tokens of the observation that follows the last action of each trajectory."""
        searched = [t for t in trajectories if t.actions[-1].executed]
        if self.refine and searched:
            texts = iter(self.refine(searched))
        else:
            texts = (format_hits(t.actions[-1].hits) for t in searched)
        observed = []
        for trajectory in trajectories:
            executed = trajectory.actions[-1].executed
            text = information(next(texts)) if executed else self.config.feedback
            tokens = self.tokenizer.encode(text, add_special_tokens=False)
            room = min(self.config.max_observation_tokens, max(self._room(trajectory), 0))
            observed.append(tokens[:room])
        return observed

    def _token_at(self, position: int, token_ids: list[int]) -> int:
        """Index of the sampled token whose text reaches past the letter at `position`."""
        lengths = (len(self.tokenizer.decode(token_ids[: i + 1])) for i in range(len(token_ids)))
        return next(i for i, length in enumerate(lengths) if length > position)
