"""The multi-turn loop: think, search, read, answer, over a batch of trajectories.

At most `max_searches` turns may search; a trajectory still open after them gets one last turn whose
search is not executed (Search-R1, arXiv 2503.09516, `search_r1/llm_agent/generation.py`). Deltas
from the official loop: sampled ids are kept instead of encoding text again, generation stops at the
closing tag, and the context is never cut from the left: a trajectory without room for another
action ends with `length`.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import cast

from transformers import PreTrainedTokenizerBase

from llds_core.config import RolloutConfig
from llds_core.errors import ConfigError
from llds_core.retrieval.base import FailingRetriever, SearchKey, format_hits
from llds_core.rollout.prompts import cut_observation, encode_plain, encode_prompt
from llds_core.rollout.protocol import Action, Trajectory, information, parse_action
from llds_core.rollout.samplers import ContinuousSession, Generation, Sampler, Session
from llds_core.worlds.records import Question

_logger = logging.getLogger("llds_core")
_SEARCHES = 8  # at once, each of any number of queries


@dataclass(frozen=True)
class Rollout:
    """Trajectories in the order of the tasks, the wall time of all, and the part of it in which
    every open trajectory waited for the search engine; and trajectories that were replaced.
    """

    trajectories: list[Trajectory]
    seconds: float
    retrieval_seconds: float
    dropped: list[Trajectory] = field(default_factory=list)


@dataclass(frozen=True)
class RolloutLoop:
    """Runs trajectories with a retriever under the limits of a `RolloutConfig`.

    Attributes:
        tokenizer: encodes prompts and observations; never sampled text.
        retriever: search engine with keyed failures.
        config: limits and prompt template.
        top_k: passages per search.
        template: wording of the prompts, with `{question}` in it; None for that of `config`.
        encode: makes the token ids of the prompts; None for the template.
        refine: makes what is shown instead of the passages, one text for each of the trajectories
            that have just searched; None shows the passages.
        lock_step: every turn waits for all trajectories, as it does with a `refine` or a sampler
            without a `ContinuousSession`. Otherwise each goes on as soon as its search is answered.
            Draws are the same; what a batch of other rows does to rounding is not.
        skip_too_long: a question whose prompt leaves no room ends unanswered, instead of all.
    """

    tokenizer: PreTrainedTokenizerBase
    retriever: FailingRetriever
    config: RolloutConfig
    top_k: int
    template: str | None = None
    encode: Callable[[Sequence[Question]], list[list[int]]] | None = None
    refine: Callable[[Sequence[Trajectory]], list[str]] | None = None
    lock_step: bool = False
    skip_too_long: bool = False

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
                if not self.skip_too_long:
                    raise ConfigError(
                        f"the prompt of question {trajectory.question.id} takes "
                        f"{len(trajectory.prompt_ids)} tokens: "
                        f"raise rollout.max_total_tokens above {config.max_total_tokens}"
                    )
                trajectory.stop_reason = "too_long"
        session = sampler.session(prompts)
        rows = [row for row, each in enumerate(trajectories) if each.stop_reason is None]
        if isinstance(session, ContinuousSession) and not (self.lock_step or self.refine):
            waited = self._run_freely(session, trajectories, rows, step)
        else:
            waited = self._run_in_lock_step(session, trajectories, rows, step)
        return Rollout(trajectories, time.perf_counter() - started, waited)

    def _run_in_lock_step(
        self, session: Session, trajectories: Sequence[Trajectory], rows: list[int], step: int
    ) -> float:
        """Make each turn for all `rows` that are open; return the seconds of searching."""
        seconds = 0.0
        while rows:
            active = [trajectories[row] for row in rows]
            generations = session.generate(rows, [self._budget(t) for t in active])
            acted = zip(active, generations, strict=True)
            asking = [trajectory for trajectory, made in acted if self._act(trajectory, made)]
            before = time.perf_counter()
            if asking:
                self._search(asking, step)
            seconds += time.perf_counter() - before
            rows = self._show(session, trajectories, rows)
        return seconds

    def _run_freely(
        self,
        session: ContinuousSession,
        trajectories: Sequence[Trajectory],
        going: list[int],
        step: int,
    ) -> float:
        """Let each trajectory go on as soon as its search is answered; return the seconds in which
        all that were open waited for one.
        """
        seconds, decoding = 0.0, 0
        unasked: list[int] = []
        asked: dict[Future[None], list[int]] = {}
        pool = ThreadPoolExecutor(_SEARCHES)
        try:
            while going or decoding or asked:
                for row in going:
                    session.add(row, self._budget(trajectories[row]))
                decoding += len(going)
                ready: list[int] = []
                for row, made in session.step() if decoding else ():
                    decoding -= 1
                    is_search = self._act(trajectories[row], made)
                    (unasked if is_search else ready).append(row)
                # What is left while all searchers are at work is then asked in one call.
                if unasked and len(asked) < _SEARCHES:
                    searching = [trajectories[row] for row in unasked]
                    asked[pool.submit(self._search, searching, step)] = unasked
                    unasked = []
                is_idle = not (ready or decoding)
                before = time.perf_counter()
                answered, _ = wait(asked, None if is_idle else 0, FIRST_COMPLETED)
                seconds += is_idle * (time.perf_counter() - before)
                for future in answered:
                    future.result()
                    ready += asked.pop(future)
                going = self._show(session, trajectories, ready)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            session.close()
        return seconds

    def _room(self, trajectory: Trajectory) -> int:
        return self.config.max_total_tokens - trajectory.total_tokens

    def _budget(self, trajectory: Trajectory) -> int:
        return min(self.config.max_action_tokens, self._room(trajectory))

    def _act(self, trajectory: Trajectory, made: Generation) -> bool:
        """Add what was sampled to its trajectory; return whether it is a search to execute."""
        text = cast("str", self.tokenizer.decode(made.token_ids))
        kind, content, position = parse_action(text)
        if kind == "search" and not content:
            kind = "invalid"  # nothing to search for; an empty answer is an answer, and wrong
        start = len(trajectory.completion_ids)
        end = start + len(made.token_ids)
        trajectory.add_action(
            Action(kind, content, text, start, end), made.token_ids, made.logprobs
        )
        if kind == "answer":
            opened = start + self._token_at(position, made.token_ids)
            trajectory.answer, trajectory.answer_span = content, (opened, end)
            trajectory.stop_reason = "answer"
        elif len(trajectory.actions) > self.config.max_searches:
            trajectory.stop_reason = "turns"
        return kind == "search" and trajectory.stop_reason is None

    def _search(self, asking: Sequence[Trajectory], step: int) -> None:
        """Execute the search that each of `asking` ends with."""
        keys = [SearchKey(step, t.question.id, t.sample, len(t.actions) - 1) for t in asking]
        queries = [trajectory.actions[-1].content for trajectory in asking]
        found = self.retriever.search_keyed(queries, self.top_k, keys)
        for trajectory, hits, failed in zip(asking, *found, strict=True):
            action = replace(trajectory.actions[-1], executed=True, hits=tuple(hits))
            trajectory.actions[-1] = replace(action, retrieval_failed=failed)

    def _show(
        self, session: Session, trajectories: Sequence[Trajectory], rows: Iterable[int]
    ) -> list[int]:
        """Show those of `rows` that are still open what their action brought; return which of them
        have room for another.
        """
        going = [row for row in rows if trajectories[row].stop_reason is None]
        searched = [trajectories[row] for row in going if trajectories[row].actions[-1].executed]
        if self.refine and searched:
            texts = iter(self.refine(searched))
        else:
            texts = (format_hits(trajectory.actions[-1].hits) for trajectory in searched)
        limit = self.config.max_observation_tokens
        for row in going:
            trajectory = trajectories[row]
            executed = trajectory.actions[-1].executed
            text = information(next(texts)) if executed else self.config.feedback
            [tokens] = encode_plain([text], self.tokenizer)
            if executed and len(tokens) > limit:
                trajectory.cut_observations += 1
                if self.config.observation_cut == "text":
                    tokens = cut_observation(tokens, limit, self.tokenizer)
            tokens = tokens[: min(limit, self._room(trajectory))]
            trajectory.add_observation(tokens)
            session.append(row, tokens)
            if self._room(trajectory) < 1:
                trajectory.stop_reason = "length"
        return [row for row in going if trajectories[row].stop_reason is None]

    def prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        """Token ids of the prompts that `run` begins with."""
        if self.encode:
            return self.encode(questions)
        template = self.template or self.config.prompt
        return [encode_prompt(q.question, template, self.tokenizer) for q in questions]

    def fitting(self, questions: Sequence[Question], *, skip: bool) -> list[int]:
        """Places of the questions whose prompts leave room for an action; a `ConfigError` where the
        others may not be skipped.
        """
        limit = self.config.max_total_tokens
        fits = [len(ids) < limit for ids in self.prompts(questions)]
        if long := [q.id for q, fit in zip(questions, fits, strict=True) if not fit]:
            said = (
                f"{len(long)} of {len(questions)} training questions "
                f"({', '.join(long[:3])}{', …' * (len(long) > 3)}) "
                f"do not fit into rollout.max_total_tokens={limit}"
            )
            if not skip:
                raise ConfigError(f"{said}: raise it, or leave them out with data.too_long=skip")
            _logger.warning("%s: they are left out", said)
        return [place for place, fit in enumerate(fits) if fit]

    def _token_at(self, position: int, token_ids: list[int]) -> int:
        """Index of the sampled token whose text reaches past the letter at `position`."""
        lengths = (len(self.tokenizer.decode(token_ids[: i + 1])) for i in range(len(token_ids)))
        return next(i for i, length in enumerate(lengths) if length > position)
