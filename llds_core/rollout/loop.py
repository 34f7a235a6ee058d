"""The multi-turn loop: think, search, read, answer, over a batch of trajectories.

At most `max_searches` turns may search; a trajectory still open after them gets one last turn whose
search is not executed (Search-R1, arXiv 2503.09516, `search_r1/llm_agent/generation.py`). Deltas
from the official loop: sampled ids are kept instead of encoding text again, generation stops at the
closing tag, and the context is never cut from the left: a trajectory without room for another
action ends with `length`.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from llds_core.config import RolloutConfig
from llds_core.errors import ConfigError
from llds_core.retrieval.base import Hit, SearchKey, format_hits
from llds_core.retrieval.failures import FailingRetriever
from llds_core.rollout.prompts import encode_prompt
from llds_core.rollout.protocol import (
    Action,
    ActionKind,
    Trajectory,
    information,
    parse_action,
)
from llds_core.rollout.samplers import ContinuousSession, Generation, Sampler, Session
from llds_core.worlds.records import Question

_SEARCHES = 4  # at once, each of any number of queries

Found = tuple[list[Hit], bool]
"""Hits of one search, and whether they were replaced by unrelated ones."""


@dataclass(frozen=True)
class _Turn:
    """An action as it was sampled; `query` is empty where nothing is searched."""

    made: Generation
    text: str
    kind: ActionKind
    content: str
    position: int  # of the opening tag in `text`
    query: str


@dataclass(frozen=True)
class Rollout:
    """Trajectories in the order of the tasks, the wall time of all, and the part of it in which
    every open trajectory waited for the search engine.
    """

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
        lock_step: every turn waits for all trajectories, as it does with a `refine` or a sampler
            without a `ContinuousSession`. Otherwise each goes on as soon as its search is answered.
            Draws are the same; what a batch of other rows does to rounding is not.
    """

    tokenizer: PreTrainedTokenizerBase
    retriever: FailingRetriever
    config: RolloutConfig
    top_k: int
    seed: int = 0
    template: str | None = None
    encode: Callable[[Sequence[Question]], list[list[int]]] | None = None
    refine: Callable[[Sequence[Trajectory]], list[str]] | None = None
    lock_step: bool = False

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
        if isinstance(session, ContinuousSession) and not (self.lock_step or self.refine):
            waited = self._run_freely(session, trajectories, step)
        else:
            waited = self._run_in_lock_step(session, trajectories, step)
        return Rollout(trajectories, time.perf_counter() - started, waited)

    def _run_in_lock_step(
        self, session: Session, trajectories: Sequence[Trajectory], step: int
    ) -> float:
        """Make each turn for all trajectories that are open; return the seconds of searching."""
        rows: Sequence[int] = range(len(trajectories))
        seconds = 0.0
        while rows:
            active = [trajectories[row] for row in rows]
            generations = session.generate(rows, [self._budget(t) for t in active])
            turns = [self._read(*each) for each in zip(active, generations, strict=True)]
            asking = [i for i, turn in enumerate(turns) if turn.query]
            before = time.perf_counter()
            found = self._search([(active[i], turns[i].query) for i in asking], step)
            seconds += time.perf_counter() - before
            results = dict(zip(asking, found, strict=True))
            for i, trajectory in enumerate(active):
                self._act(trajectory, turns[i], results.get(i))
            rows = self._show(session, trajectories, rows)
        return seconds

    def _run_freely(
        self, session: ContinuousSession, trajectories: Sequence[Trajectory], step: int
    ) -> float:
        """Let each trajectory go on as soon as its search is answered; return the seconds in which
        all that were open waited for one.
        """
        seconds = 0.0
        unasked: dict[int, _Turn] = {}
        asked: dict[Future[list[Found]], dict[int, _Turn]] = {}
        pool = ThreadPoolExecutor(_SEARCHES)
        try:
            self._go_on(session, trajectories, range(len(trajectories)))
            while session.is_busy or asked or unasked:
                acted = []
                for row, made in session.step():
                    turn = self._read(trajectories[row], made)
                    if turn.query:
                        unasked[row] = turn
                    else:
                        self._act(trajectories[row], turn, None)
                        acted.append(row)
                # What is asked while all searchers are at work, they are asked together later.
                if unasked and len(asked) < _SEARCHES:
                    queries = [(trajectories[row], turn.query) for row, turn in unasked.items()]
                    asked[pool.submit(self._search, queries, step)] = unasked
                    unasked = {}
                before = time.perf_counter()
                idle = not (session.is_busy or acted)
                done, _ = wait(asked, None if idle else 0, FIRST_COMPLETED)
                seconds += idle * (time.perf_counter() - before)
                for future in done:
                    turns = asked.pop(future)
                    for (row, turn), found in zip(turns.items(), future.result(), strict=True):
                        self._act(trajectories[row], turn, found)
                        acted.append(row)
                self._go_on(session, trajectories, self._show(session, trajectories, acted))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            session.close()
        return seconds

    def _go_on(
        self, session: ContinuousSession, trajectories: Sequence[Trajectory], rows: Sequence[int]
    ) -> None:
        for row in rows:
            session.add(row, self._budget(trajectories[row]))

    def _room(self, trajectory: Trajectory) -> int:
        return self.config.max_total_tokens - trajectory.total_tokens

    def _budget(self, trajectory: Trajectory) -> int:
        return min(self.config.max_action_tokens, self._room(trajectory))

    def _read(self, trajectory: Trajectory, made: Generation) -> _Turn:
        """Parse what was sampled; a search of the last turn is not executed."""
        text = cast("str", self.tokenizer.decode(made.token_ids))
        kind, content, position = parse_action(text)
        if kind == "search" and not content:
            kind = "invalid"  # nothing to search for; an empty answer is an answer, and wrong
        is_executed = kind == "search" and len(trajectory.actions) < self.config.max_searches
        return _Turn(made, text, kind, content, position, content if is_executed else "")

    def _search(self, asking: Sequence[tuple[Trajectory, str]], step: int) -> list[Found]:
        """Hits for each query, and whether they were replaced by unrelated ones."""
        if not asking:
            return []
        keys = [
            SearchKey(self.seed, step, t.question.id, t.sample, len(t.actions)) for t, _ in asking
        ]
        found = self.retriever.search_keyed([query for _, query in asking], self.top_k, keys)
        return list(zip(*found, strict=True))

    def _act(self, trajectory: Trajectory, turn: _Turn, found: Found | None) -> None:
        """Add a turn to its trajectory, with what its search `found` if it was executed."""
        ids = turn.made.token_ids
        start = len(trajectory.completion_ids)
        end = start + len(ids)
        hits, failed = found or ((), False)
        trajectory.add_action(
            Action(
                turn.kind, turn.content, turn.text, start, end, bool(found), tuple(hits), failed
            ),
            ids,
            turn.made.logprobs,
        )
        if turn.kind == "answer":
            opened = start + self._token_at(turn.position, ids)
            trajectory.answer, trajectory.answer_span = turn.content, (opened, end)
            trajectory.stop_reason = "answer"
        elif len(trajectory.actions) > self.config.max_searches:
            trajectory.stop_reason = "turns"

    def _show(
        self, session: Session, trajectories: Sequence[Trajectory], rows: Iterable[int]
    ) -> list[int]:
        """Show those of `rows` that are still open what their action brought; return which of them
        have room for another.
        """
        going = [row for row in rows if trajectories[row].stop_reason is None]
        observed = self._observe([trajectories[row] for row in going])
        for row, tokens in zip(going, observed, strict=True):
            trajectories[row].add_observation(tokens)
            session.append(row, tokens)
            if self._room(trajectories[row]) < 1:
                trajectories[row].stop_reason = "length"
        return [row for row in going if trajectories[row].stop_reason is None]

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
