"""Rounds of searching for a model that was never trained to search, for Figure 6.

SmolLM2 (`llds_core.runs.smollm2`) has never seen the search protocol and cannot be made to search a
given number of times, so that `scripted_rounds` writes the actions and the real rollout loop does
the rest. What is measured is how likely the model finds text it is handed, not what it would write.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from llds_core.config import RolloutConfig
from llds_core.retrieval.base import FailingRetriever, Retriever
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.prompts import encode_plain
from llds_core.rollout.protocol import Trajectory
from llds_core.rollout.samplers import Generation
from llds_core.worlds.records import Question

_CONFIRMATIONS = (
    ("The passages say {answer}. I search once more to confirm it.", "{topic} of {query}"),
    ("It seems to be {answer}, but I want to be sure.", "facts about {query}"),
)


def scripted_rounds(
    tokenizer: PreTrainedTokenizerBase,
    retriever: Retriever,
    questions: Sequence[Question],
    *,
    rounds: Sequence[int] = (1, 2, 3),
    top_k: int = 3,
) -> list[Trajectory]:
    """Play scripted actions through the real rollout loop: every question, with 1, 2, 3 searches.

    Round by round, a script asks the hops of the question, then confirms what the last hop found,
    and ends in the accepted answer. With fewer rounds than hops the answer is one that no passage
    has shown. The prompt explains the protocol (`search-r1`).

    Args:
        tokenizer: of the model that is to score the trajectories.
        retriever: search engine of the questions' world, without failures.
        questions: with the atlas world's `steps` and `kind` in their metadata.
        rounds: numbers of searches, each at least 1.
        top_k: passages per search.

    Returns:
        Trajectories by rounds, then by question; `sampler_logprobs` are NaN.
    """
    tasks = [(question, count) for count in rounds for question in questions]
    sampler = _ScriptedSampler(tokenizer, [_script(question, count) for question, count in tasks])
    # Nothing is cut: a token limit would change what is compared between rounds.
    limits = RolloutConfig(
        max_searches=max(rounds),
        max_action_tokens=512,
        max_observation_tokens=2048,
        max_total_tokens=8192,
        prompt="search-r1",
    )
    failing = FailingRetriever(retriever, failure_rate=0.0, passages=(), seed=0)
    loop = RolloutLoop(tokenizer, failing, limits, top_k=top_k)
    return loop.run(tasks, sampler).trajectories


def _script(question: Question, rounds: int) -> list[str]:
    """Texts of the actions: `rounds` searches and the answer."""
    hops = question.metadata["steps"]
    topic = question.metadata["kind"].rpartition("-")[2]
    answer = question.golden_answers[0]
    actions = []
    for number in range(rounds):
        if number == 0:
            thought, query = f"I need to find out about {hops[0]['query']}.", hops[0]["query"]
        elif number < len(hops):
            thought = f"{hops[number - 1]['query']} belongs to {hops[number]['query']}."
            query = hops[number]["query"]
        else:
            thought, query = _CONFIRMATIONS[(number - len(hops)) % len(_CONFIRMATIONS)]
            thought = thought.format(answer=answer)
            query = query.format(topic=topic, query=hops[-1]["query"])
        actions.append(f"<think> {thought} </think>\n<search> {query} </search>")
    last = f"<think> The answer is {answer}. </think>\n<answer> {answer} </answer>"
    return [*actions, last]


class _ScriptedSampler:
    """Sampler and session in one that writes given texts instead of sampling."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, scripts: Sequence[list[str]]) -> None:
        self._tokenizer = tokenizer
        self._scripts = [iter(script) for script in scripts]

    def session(self, prompts: Sequence[Sequence[int]]) -> "_ScriptedSampler":
        """One script per prompt."""
        return self

    def generate(self, rows: Sequence[int], budgets: Sequence[int]) -> list[Generation]:
        """Write the next action of each of `rows`; budgets are generous enough to be ignored."""
        texts = [next(self._scripts[row]) for row in rows]
        written = encode_plain(texts, self._tokenizer)
        return [Generation(ids, [float("nan")] * len(ids)) for ids in written]

    def append(self, row: int, token_ids: Sequence[int]) -> None:
        """The script knows what it will find."""
