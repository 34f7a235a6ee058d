"""The Search-R1 turn protocol: from the text of one action to what it does, and back to an
observation.

Only text the policy wrote in the action at hand is ever parsed. Prompts, retrieved passages and
feedback never pass through `parse_action`, so that no tag inside them can act or score (arXiv
2503.09516; in the official `search_r1/llm_agent/generation.py` the whole decoded text is scored).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llds_core.config import FEEDBACK
from llds_core.retrieval.base import Hit, format_hits
from llds_core.worlds.records import Question

THINK, SEARCH, INFORMATION, ANSWER = "think", "search", "information", "answer"
TAGS = tuple(
    f"<{slash}{name}>" for name in (THINK, SEARCH, INFORMATION, ANSWER) for slash in ("", "/")
)
ANY_TAG = re.compile("|".join(TAGS))
STOP_TAGS = (f"</{SEARCH}>", f"</{ANSWER}>")

OBSERVATION_END = f"</{INFORMATION}>\n\n"

_ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_BLOCK = re.compile(r"<(think|search|answer)>(.*?)</\1>", re.DOTALL)

ActionKind = Literal["search", "answer", "invalid"]
StopReason = Literal["answer", "turns", "length", "too_long"]


@dataclass(frozen=True)
class Action:
    """One contiguous run of policy tokens and what came of it.

    Attributes:
        kind: `search`, `answer`, or `invalid` when neither tag pair is complete.
        content: stripped text inside the tags; empty for `invalid`.
        text: everything the policy wrote in this action.
        start: index of the first token in the trajectory's `completion_ids`.
        end: index after the last token.
        executed: the search was run; false for answers and for a search in the last, search-less
            turn.
        hits: passages shown to the policy.
        retrieval_failed: the injected failure replaced the true hits by unrelated passages.
    """

    kind: ActionKind
    content: str
    text: str
    start: int
    end: int
    executed: bool = False
    hits: tuple[Hit, ...] = ()
    retrieval_failed: bool = False


@dataclass
class Trajectory:
    """One rollout of one question. Lists over tokens have the length of `completion_ids`.

    Attributes:
        sample: index within the question's group.
        completion_ids: policy and observation tokens, exactly as sampled or inserted.
        response_mask: 1 on policy tokens, 0 on observations.
        action_ids: 1..K on the tokens of action k, 0 on observations.
        sampler_logprobs: log-probability of each policy token when it was sampled (temperature
            applied, top-p not renormalised); 0 on observations.
        answer_span: token range in `completion_ids` from the answer's opening tag to its closing
            tag, or None.
        stop_reason: `answer`, `turns` (turn budget spent), `length` (no room for another action) or
            `too_long` (none for the first).
        correct: exact match of the answer, whatever the reward is.
        feedback: what an invalid action was answered with.
        cut_observations: how many were longer than their limit.
        logprob_changes: by how much the updates of its step moved the log-probability of each
            policy token, in nats; 0 on observations, empty where it was not measured.
    """

    question: Question
    sample: int
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    response_mask: list[int] = field(default_factory=list)
    action_ids: list[int] = field(default_factory=list)
    sampler_logprobs: list[float] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    answer: str | None = None
    answer_span: tuple[int, int] | None = None
    stop_reason: StopReason | None = None
    reward: float = 0.0
    correct: bool = False
    feedback: str = FEEDBACK
    cut_observations: int = 0
    logprob_changes: list[float] = field(default_factory=list)

    @property
    def searches(self) -> int:
        """Number of executed searches."""
        return sum(action.executed for action in self.actions)

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens."""
        return len(self.prompt_ids) + len(self.completion_ids)

    def add_action(
        self, action: Action, token_ids: Sequence[int], logprobs: Sequence[float]
    ) -> None:
        """Append the tokens of `action` as policy tokens."""
        self.actions.append(action)
        self.completion_ids += token_ids
        self.sampler_logprobs += logprobs
        self.response_mask += [1] * len(token_ids)
        self.action_ids += [len(self.actions)] * len(token_ids)

    def add_observation(self, token_ids: Sequence[int]) -> None:
        """Append `token_ids` as observation tokens."""
        self.completion_ids += token_ids
        for values in (self.sampler_logprobs, self.response_mask, self.action_ids):
            values += [0] * len(token_ids)


def parse_action(text: str) -> tuple[ActionKind, str, int]:
    """Return the kind and stripped content of the first complete search or answer in the text of
    one action, and the index of its opening tag (-1 without one).
    """
    match = _ACTION.search(text)
    if match is None:
        return "invalid", "", -1
    kind: ActionKind = "search" if match[1] == SEARCH else "answer"
    return kind, match[2].strip(), match.start()


def search_observation(hits: Sequence[Hit]) -> str:
    """Text inserted after a search; the wrapping is the protocol's, the passages are data."""
    return information(format_hits(hits))


def information(text: str) -> str:
    """Wrap `text` as what a search has brought."""
    return f"\n\n<{INFORMATION}>{text.strip()}{OBSERVATION_END}"


def block_sequence(trajectory: Trajectory) -> list[str]:
    """Names of the blocks of a trajectory for the format reward: `think`, `search`, `information`
    and `answer`, and `text` for what stands outside of them, white space apart, or is no block.

    Works on actions, so that tags inside retrieved passages are no blocks.
    """
    blocks = []
    for action in trajectory.actions:
        position = 0
        for match in _BLOCK.finditer(action.text):
            if action.text[position : match.start()].strip():
                blocks.append("text")
            # A tag within a block is unbalanced or nested.
            blocks.append("text" if ANY_TAG.search(match[2]) else match[1])
            position = match.end()
        # The corrective message is text between blocks, too; what the token of a closing tag holds
        # beyond it (`>.`) is none: the official code cuts it off.
        blocks += ["text"] * (action.kind == "invalid")
        if action.executed:
            blocks.append(INFORMATION)
    return blocks


def validate_response_masks(
    completion_ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]] | None
) -> None:
    """Check that every completion token is marked as policy (1) or observation (0).

    Kinds are carried from the rollout, never read off token ids: a padding or tag id inside a
    passage means nothing. TRL trains on every token whose mask is missing or too short,
    observations included, without a word.

    Raises:
        ValueError: when masks are missing, of another length, hold other values, or a row has no
            policy token.
    """
    masks = masks or []
    if len(masks) != len(completion_ids):
        rows = f"{len(masks)} rows for {len(completion_ids)} trajectories"
        raise ValueError(f"env_mask has {rows}: return one list of 0 and 1 each")
    for row, (ids, mask) in enumerate(zip(completion_ids, masks, strict=True)):
        if len(mask) != len(ids) or not {1} <= set(mask) <= {0, 1}:
            raise ValueError(
                f"env_mask of trajectory {row} has {len(mask)} values {sorted(set(mask))} for "
                f"{len(ids)} tokens: mark each with 0 or 1, those of its first action with 1"
            )
