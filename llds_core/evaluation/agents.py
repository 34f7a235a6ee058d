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
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from llds_core.config import RolloutConfig
from llds_core.retrieval.base import format_hits
from llds_core.retrieval.failures import FailingRetriever
from llds_core.rollout.environment import Environment
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.prompts import encode_text, prompt_text
from llds_core.rollout.protocol import TAGS, Trajectory
from llds_core.rollout.samplers import Sampler
from llds_core.worlds.records import Question

POLICY = "policy"
BASELINES = ("direct", "rag", "search-o1", "search-r1")
NO_FACTS = "Nothing helpful was found."
_FORM = (
    "inside <answer> and </answer>, without explanation, for example <answer> Beijing </answer>."
)

_DIRECT = f"""\
Answer the question from what you know. Write nothing but the bare answer {_FORM}
Question: {{question}}
"""
_RAG = f"""\
Answer the question with the help of the documents. Write nothing but the bare answer {_FORM}
Documents:
{{documents}}
Question: {{question}}
"""
_AGENTIC = f"""\
Answer the question at the end, reasoning step by step. You have a search engine: to look up a \
fact, write <search> your query </search>. A helper reads what was found and tells you the facts \
that matter between <information> and </information>; then go on. You may search {{searches}} \
times at most. When you know the answer, write the bare answer {_FORM}
Question: {{question}}
"""
_REFINE = """\
Somebody is answering a question and has asked a search engine. Read the documents and write, in \
one or two sentences, the facts in them that help with the next step. Write only facts from the \
documents; if none helps, write: {nothing}
Question: {question}
Reasoning so far: {reasoning}
Search query: {query}
Documents:
{documents}
"""
_TAG = re.compile("|".join(map(re.escape, TAGS)))

Names = tuple[str | int, ...]
SamplerFor = Callable[[Sequence[Names]], Sampler]
"""Makes a sampler for a batch of prompts, each with the names of its random stream."""


def prompt_digest(agent: str, config: RolloutConfig) -> str:
    """Twelve hex digits of the wording an agent uses."""
    texts = {
        "direct": [_DIRECT],
        "rag": [_RAG],
        "search-o1": [_AGENTIC, _REFINE, NO_FACTS],
        "search-r1": [prompt_text("?", "search-r1")],
        POLICY: [prompt_text("?", config.prompt)],
    }[agent]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def agent_loop(
    agent: str,
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    sampler_for: SamplerFor,
) -> RolloutLoop:
    """The loop that plays an agent; searches never fail on purpose.

    Args:
        agent: `policy` or one of `BASELINES`.
        environment: world, search engine and limits.
        tokenizer: of the model.
        sampler_for: makes the sampler of whatever the agent generates outside of its trajectories.
    """
    limits, top_k = environment.config.rollout, environment.config.retrieval.top_k
    options = {}
    if agent in ("direct", "rag"):
        limits = replace(limits, max_searches=0)
        prompts = _direct_prompts if agent == "direct" else partial(_rag_prompts, environment)
        options = {"encode": partial(prompts, tokenizer)}
    elif agent == "search-o1":
        options = {
            "encode": partial(_agentic_prompts, limits.max_searches, tokenizer),
            "refine": _Refiner(tokenizer, limits, sampler_for),
        }
    elif agent == "search-r1":
        limits = replace(limits, prompt="search-r1")
    engine = FailingRetriever(environment.retriever, failure_rate=0.0, passages=(), seed=0)
    return RolloutLoop(tokenizer, engine, limits, top_k=top_k, **options)


def searches_of(agent: str, trajectory: Trajectory) -> int:
    """Searches that went into an answer, the one of `rag` included."""
    return trajectory.searches + (agent == "rag")


def answer_of(
    agent: str, trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase
) -> tuple[str | None, str]:
    """The prediction and its status: `answer` (tagged), `fallback` (a baseline's last line), or
    why there is none (`turns`, `length`).
    """
    if trajectory.answer is not None:
        return trajectory.answer, "answer"
    last = trajectory.actions[-1]
    if agent != POLICY and last.kind == "invalid":
        ids = trajectory.completion_ids[last.start : last.end]
        text = _TAG.sub("\n", tokenizer.decode(ids, skip_special_tokens=True))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-1], "fallback"
    return None, str(trajectory.stop_reason)


def segments(
    agent: str, trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, str]]:
    """The whole trajectory in order, as texts with a kind: `prompt`, `policy`, then what came back:
    `observation` (with `documents` before it when it was condensed from them) or `feedback`.
    """
    parts = [("prompt", trajectory.prompt_ids)]
    ends = [action.start for action in trajectory.actions[1:]] + [len(trajectory.completion_ids)]
    for action, end in zip(trajectory.actions, ends, strict=True):
        parts.append(("policy", trajectory.completion_ids[action.start : action.end]))
        came_back = "observation" if action.executed else "feedback"
        parts.append((came_back, trajectory.completion_ids[action.end : end]))
    written = [{"kind": kind, "text": tokenizer.decode(ids)} for kind, ids in parts if ids]
    if agent != "search-o1":
        return written
    found = iter(action for action in trajectory.actions if action.executed)
    result = []
    for part in written:
        if part["kind"] == "observation":
            result.append({"kind": "documents", "text": format_hits(next(found).hits)})
        result.append(part)
    return result


def _direct_prompts(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[list[int]]:
    return [encode_text(_filled(_DIRECT, question=q.question), tokenizer) for q in questions]


def _rag_prompts(
    environment: Environment, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[list[int]]:
    config = environment.config
    found = environment.retriever.search([q.question for q in questions], config.retrieval.top_k)
    room = config.rollout.max_observation_tokens
    texts = [
        _filled(
            _RAG, documents=_cut(format_hits(hits).strip(), room, tokenizer), question=q.question
        )
        for q, hits in zip(questions, found, strict=True)
    ]
    return [encode_text(text, tokenizer) for text in texts]


def _agentic_prompts(
    searches: int, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[list[int]]:
    return [
        encode_text(_filled(_AGENTIC, searches=str(searches), question=q.question), tokenizer)
        for q in questions
    ]


class _Refiner:
    """Search-o1's reading of documents: the model condenses them in a context of its own."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, limits: RolloutConfig, sampler_for: SamplerFor
    ) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._sampler_for = sampler_for

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[str]:
        names = [
            (t.question.metadata["kind"], t.question.id, t.sample, "refine", len(t.actions))
            for t in trajectories
        ]
        prompts = [self._prompt(trajectory) for trajectory in trajectories]
        budget = self._limits.max_observation_tokens
        session = self._sampler_for(names).session(prompts)
        made = session.generate(range(len(prompts)), [budget] * len(prompts))
        texts = [self._tokenizer.decode(g.token_ids, skip_special_tokens=True) for g in made]
        return [text.strip() or NO_FACTS for text in texts]

    def _prompt(self, trajectory: Trajectory) -> list[int]:
        limits, search = self._limits, trajectory.actions[-1]
        documents = format_hits(search.hits).strip() or "(none)"
        written = trajectory.completion_ids[: search.end]
        reasoning = self._tokenizer.decode(written, skip_special_tokens=True)
        # The end of the reasoning is what the query came from: a long one loses its beginning.
        reasoning = _cut(reasoning, limits.max_total_tokens // 4, self._tokenizer, keep="end")
        text = _filled(
            _REFINE,
            nothing=NO_FACTS,
            question=trajectory.question.question,
            reasoning=reasoning.strip(),
            query=search.content,
            documents=_cut(documents, limits.max_observation_tokens, self._tokenizer),
        )
        return encode_text(text, self._tokenizer)


def _filled(template: str, **values: str) -> str:
    """Fill in what is in braces once; what is filled in may hold braces itself."""
    if "question" in values and not values["question"].strip().endswith("?"):
        values["question"] = f"{values['question'].strip()}?"
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)


def _cut(text: str, tokens: int, tokenizer: PreTrainedTokenizerBase, keep: str = "start") -> str:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) <= tokens:
        return text
    return tokenizer.decode(ids[:tokens] if keep == "start" else ids[-tokens:])
