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
_TEMPLATES = {"direct": _DIRECT, "rag": _RAG, "search-o1": _AGENTIC}
_TAG = re.compile("|".join(map(re.escape, TAGS)))

Names = tuple[str | int, ...]
SamplerFor = Callable[[Sequence[Names]], Sampler]
"""Makes a sampler for a batch of prompts, each with the names of its random stream."""


def prompt_digest(agent: str, config: RolloutConfig) -> str:
    """Twelve hex digits of the wording an agent uses."""
    if agent in _TEMPLATES:
        texts = [_TEMPLATES[agent], *([_REFINE, NO_FACTS] if agent == "search-o1" else [])]
    else:
        texts = [prompt_text("?", config.prompt if agent == POLICY else "search-r1")]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def agent_loop(
    agent: str,
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    sampler_for: SamplerFor,
    failure_rate: float = 0.0,
    seed: int = 0,
) -> RolloutLoop:
    """The loop that plays an agent.

    Args:
        agent: `policy` or one of `BASELINES`.
        environment: world, search engine and limits.
        tokenizer: of the model.
        sampler_for: makes the sampler of whatever the agent generates outside of its trajectories.
        failure_rate: probability that a search fails on purpose, in [0, 1].
        seed: root seed of these failures.
    """
    limits = environment.config.rollout
    encode = refine = None
    if agent in _TEMPLATES:
        encode = partial(_prompts, _TEMPLATES[agent], environment, tokenizer)
    if agent in ("direct", "rag"):
        limits = replace(limits, max_searches=0)
    elif agent == "search-o1":
        refine = partial(_condensed, tokenizer, limits, sampler_for)
    elif agent == "search-r1":
        limits = replace(limits, prompt="search-r1")
    engine = FailingRetriever(
        environment.retriever,
        failure_rate=failure_rate,
        passages=environment.world.passages,
        seed=seed,
    )
    top_k = environment.config.retrieval.top_k
    return RolloutLoop(
        tokenizer, engine, limits, top_k=top_k, seed=seed, encode=encode, refine=refine
    )


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
        text = _TAG.sub("\n", _decoded(ids, tokenizer))
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
    ids = trajectory.completion_ids
    parts = [("prompt", str(tokenizer.decode(trajectory.prompt_ids)))]
    ends = [action.start for action in trajectory.actions[1:]] + [len(ids)]
    for action, end in zip(trajectory.actions, ends, strict=True):
        parts.append(("policy", str(tokenizer.decode(ids[action.start : action.end]))))
        if action.executed and agent == "search-o1":
            parts.append(("documents", format_hits(action.hits)))
        came_back = "observation" if action.executed else "feedback"
        parts.append((came_back, str(tokenizer.decode(ids[action.end : end]))))
    return [{"kind": kind, "text": text} for kind, text in parts if text]


def _prompts(
    template: str,
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
) -> list[list[int]]:
    """Token ids of a template for each question, with what its search finds where that is asked."""
    rollout = environment.config.rollout
    documents = [""] * len(questions)
    if "{documents}" in template:
        top_k = environment.config.retrieval.top_k
        found = environment.retriever.search([q.question for q in questions], top_k)
        room = rollout.max_observation_tokens
        documents = [_cut(format_hits(hits).strip(), room, tokenizer) for hits in found]
    values = {"searches": str(rollout.max_searches)}
    return [
        encode_text(_filled(template, question=q.question, documents=text, **values), tokenizer)
        for q, text in zip(questions, documents, strict=True)
    ]


def _condensed(
    tokenizer: PreTrainedTokenizerBase,
    limits: RolloutConfig,
    sampler_for: SamplerFor,
    trajectories: Sequence[Trajectory],
) -> list[str]:
    """Search-o1's reading of documents: the model condenses them in a context of its own."""
    names = [
        (t.question.metadata["kind"], t.question.id, t.sample, "refine", len(t.actions))
        for t in trajectories
    ]
    prompts = [_refine_prompt(trajectory, tokenizer, limits) for trajectory in trajectories]
    budgets = [limits.max_observation_tokens] * len(prompts)
    made = sampler_for(names).session(prompts).generate(range(len(prompts)), budgets)
    return [_decoded(each.token_ids, tokenizer).strip() or NO_FACTS for each in made]


def _refine_prompt(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, limits: RolloutConfig
) -> list[int]:
    search = trajectory.actions[-1]
    documents = format_hits(search.hits).strip() or "(none)"
    reasoning = _decoded(trajectory.completion_ids[: search.end], tokenizer)
    # The end of the reasoning is what the query came from: a long one loses its beginning.
    reasoning = _cut(reasoning, limits.max_total_tokens // 4, tokenizer, keep="end")
    text = _filled(
        _REFINE,
        nothing=NO_FACTS,
        question=trajectory.question.question,
        reasoning=reasoning.strip(),
        query=search.content,
        documents=_cut(documents, limits.max_observation_tokens, tokenizer),
    )
    return encode_text(text, tokenizer)


def _decoded(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _filled(template: str, **values: str) -> str:
    """Fill in what is in braces once; what is filled in may hold braces itself."""
    if not values["question"].strip().endswith("?"):
        values["question"] = f"{values['question'].strip()}?"
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)


def _cut(text: str, tokens: int, tokenizer: PreTrainedTokenizerBase, keep: str = "start") -> str:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) <= tokens:
        return text
    return str(tokenizer.decode(ids[:tokens] if keep == "start" else ids[-tokens:]))
