"""How a question is answered: by the trained protocol, or by a baseline that needs no training.

The baselines are those of the papers (arXiv 2503.09516, 2512.04220), in prompts of our own:

- `direct` answers from what the model knows.
- `rag` searches once, for the question as it is asked, and answers with the passages in the prompt.
- `search-o1` (after arXiv 2501.05366) reasons and searches; the model itself, in a context of its
  own, first condenses what was found, and only that enters the reasoning.
- `search-r1` is the prompt and the protocol of trained policies, without the training.

All run through the one rollout loop, so that answers are taken from `<answer>` tags the policy
wrote, never from a passage. Models that were not trained on the protocol often leave the tags out:
every baseline alike then takes the last line of the last action, if that was no search. `policy`,
the trained protocol with the prompt of the profile, has no such fall-back, as in the papers.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from itertools import pairwise

import yaml
from transformers import PreTrainedTokenizerBase

from llds_core.config import FEEDBACK
from llds_core.evaluation.predictions import KEYS, POLICY, Key, Row
from llds_core.evaluation.scores import score_answer
from llds_core.retrieval.base import FailingRetriever, Hit, SearchKey, format_hits
from llds_core.rollout.environment import Environment
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.prompts import encode_plain, encode_text, prompt_text
from llds_core.rollout.protocol import ANY_TAG, Trajectory
from llds_core.rollout.samplers import Sampler
from llds_core.worlds.records import Question

BASELINES = ("direct", "rag", "search-o1", "search-r1")
NO_FACTS = "Nothing helpful was found."
PROMPTS = yaml.safe_load((files("llds_core") / "evaluation" / "prompts.yaml").read_text("utf-8"))

Names = tuple[str | int, ...]
SamplerFor = Callable[[Sequence[Names]], Sampler]
"""Makes a sampler for a batch of prompts, each with the names of its random stream."""


def prompt_digest(agent: str, template: str, feedback: str = FEEDBACK) -> str:
    """Twelve hex digits of the wording an agent uses."""
    if agent in PROMPTS:
        texts = [PROMPTS[agent], *([PROMPTS["refine"], NO_FACTS] if agent == "search-o1" else [])]
    else:
        texts = [prompt_text("?", _wording(agent, template))]
    texts += [feedback] if feedback != FEEDBACK else []
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _wording(agent: str, template: str) -> str:
    """Only a warm-started policy knows the protocol without being told."""
    return "search-r1" if agent != POLICY and template == "short" else template


@dataclass(frozen=True)
class Agent:
    """`policy` or one of `BASELINES` by `name`, in its environment."""

    name: str
    environment: Environment
    tokenizer: PreTrainedTokenizerBase

    def loop(
        self, sampler_for: SamplerFor, failure_rate: float = 0.0, seed: int = 0
    ) -> RolloutLoop:
        """The loop that plays the agent; searches fail on purpose with the probability
        `failure_rate`, keyed by `seed`. What it generates outside of its trajectories is drawn with
        `sampler_for`.
        """
        limits = self.environment.config.rollout
        if self.name in ("direct", "rag"):
            limits = replace(limits, max_searches=0)
        failing = self.environment.failing(seed=seed, failure_rate=failure_rate)
        return self.environment.rollout_loop(
            self.tokenizer,
            limits,
            seed=seed,
            failure_rate=failure_rate,
            template=_wording(self.name, self.environment.template),
            encode=partial(self._prompts, failing) if self.name in PROMPTS else None,
            refine=partial(self._condensed, sampler_for) if self.name == "search-o1" else None,
            skip_too_long=True,
        )

    def prediction(self, key: Key, trajectory: Trajectory, seconds: float) -> Row:
        """One line of predictions. Its `status` is `answer` (tagged), `fallback` (a baseline's last
        line), or why there is no answer (`turns`, `length`, `too_long`).
        """
        question, actions = trajectory.question, trajectory.actions
        answer, status = trajectory.answer, str(trajectory.stop_reason)
        if answer is None and self.name != POLICY and actions and actions[-1].kind == "invalid":
            written = trajectory.completion_ids[actions[-1].start : actions[-1].end]
            text = ANY_TAG.sub("\n", self._decoded(written))
            if lines := text.strip().splitlines():
                answer, status = lines[-1].strip(), "fallback"
        return {
            **dict(zip(KEYS, key, strict=True)),
            "question": question.question,
            "golden_answers": list(question.golden_answers),
            "prediction": answer,
            "status": status,
            **score_answer(answer, question.golden_answers),
            "searches": trajectory.searches + (self.name == "rag"),  # it searches before its turn
            "seconds": round(seconds, 3),
            "segments": self._segments(trajectory),
        }

    def _segments(self, trajectory: Trajectory) -> list[dict[str, str]]:
        """The whole trajectory in order, as texts with a kind: `prompt`, `policy`, then what came
        back: `observation` (after the `documents` it was condensed from, if so) or `feedback`.
        """
        ids, decode = trajectory.completion_ids, self.tokenizer.decode
        parts = [("prompt", str(decode(trajectory.prompt_ids)))]
        bounds = pairwise([*(action.start for action in trajectory.actions), len(ids)])
        for action, (_, end) in zip(trajectory.actions, bounds, strict=True):
            parts.append(("policy", str(decode(ids[action.start : action.end]))))
            if action.executed and self.name == "search-o1":
                parts.append(("documents", format_hits(action.hits)))
            came_back = "observation" if action.executed else "feedback"
            parts.append((came_back, str(decode(ids[action.end : end]))))
        return [{"kind": kind, "text": text} for kind, text in parts if text]

    def _prompts(
        self, retriever: FailingRetriever, questions: Sequence[Question]
    ) -> list[list[int]]:
        """Token ids of the prompts, with what a search for the question finds where they ask it."""
        config, template = self.environment.config, PROMPTS[self.name]
        documents = [""] * len(questions)
        if "{documents}" in template:
            asked = [question.question for question in questions]
            keys = [SearchKey(0, question.id, 0, 0) for question in questions]
            found, _ = retriever.search_keyed(asked, config.retrieval.top_k, keys)
            documents = [self._documents(hits) for hits in found]
        limit = str(config.rollout.max_searches)
        return [
            self._filled(template, question.question, documents=text, searches=limit)
            for question, text in zip(questions, documents, strict=True)
        ]

    def _condensed(self, sampler_for: SamplerFor, trajectories: Sequence[Trajectory]) -> list[str]:
        """Search-o1's reading of documents: the model condenses them in a context of its own."""
        names = [
            (t.question.metadata["kind"], t.question.id, t.sample, "refine", len(t.actions))
            for t in trajectories
        ]
        limits, prompts = self.environment.config.rollout, []
        for trajectory in trajectories:
            search = trajectory.actions[-1]
            reasoning = self._decoded(trajectory.completion_ids[: search.end])
            # Its end is what the query came from: a long one loses its beginning.
            reasoning = self._cut(reasoning, slice(-(limits.max_total_tokens // 4), None)).strip()
            found = self._documents(search.hits) or "(none)"
            values = {"reasoning": reasoning, "query": search.content, "documents": found}
            question = trajectory.question.question
            prompts.append(self._filled(PROMPTS["refine"], question, nothing=NO_FACTS, **values))
        budgets = [limits.max_observation_tokens] * len(prompts)
        made = sampler_for(names).session(prompts).generate(range(len(prompts)), budgets)
        return [self._decoded(each.token_ids).strip() or NO_FACTS for each in made]

    def _filled(self, template: str, question: str, **values: str) -> list[int]:
        """Fill in what is in braces once; what is filled in may hold braces itself."""
        values["question"] = question if question.strip().endswith("?") else f"{question.strip()}?"
        text = re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)
        return encode_text(text, self.tokenizer)

    def _documents(self, hits: Sequence[Hit]) -> str:
        room = self.environment.config.rollout.max_observation_tokens
        return self._cut(format_hits(hits).strip(), slice(room))

    def _cut(self, text: str, kept: slice) -> str:
        [ids] = encode_plain([text], self.tokenizer)
        return text if ids == ids[kept] else str(self.tokenizer.decode(ids[kept]))

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
