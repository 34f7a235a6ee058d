"""Outcome rewards: exact match and token F1 as SQuAD has them, Search-R1 v0.3's format reward.

Everything works on an extracted prediction, never on a whole transcript: what a retrieved passage
says cannot score.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from llds_core.config import RewardConfig
from llds_core.rollout.protocol import Trajectory, block_sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_VALID_FORM = re.compile("think( search information think)* answer")


def normalize_answer(text: str) -> str:
    """Lower-case, drop ASCII punctuation and articles, collapse white space, as SQuAD does; before
    that, one Unicode form (NFC), because a tokenizer may compose what a golden answer does not.
    """
    text = unicodedata.normalize("NFC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, golden_answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals one of the normalised golden answers, else 0.0."""
    wanted = {normalize_answer(answer) for answer in golden_answers}
    return float(normalize_answer(prediction) in wanted)


def sub_exact_match(prediction: str, golden_answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction contains one of the normalised golden answers, else 0.0.

    A golden answer of which normalisation leaves nothing ("The", "?") is contained in an empty one
    only.
    """
    text = normalize_answer(prediction)
    wanted = [normalize_answer(answer) for answer in golden_answers]
    return float(any(answer in text if answer else not text for answer in wanted))


def f1_score(prediction: str, golden_answers: Sequence[str]) -> float:
    """Best F1 of the normalised tokens of the prediction against each golden answer, in [0, 1]."""
    return max(_token_f1(prediction, answer) for answer in golden_answers)


def score(trajectory: Trajectory, config: RewardConfig) -> None:
    """Set `correct` (exact match) and `reward` (as configured) of a finished trajectory.

    Only what the policy wrote is scored; no answer earns nothing.
    """
    golden = trajectory.question.golden_answers
    answer = trajectory.answer
    trajectory.correct = answer is not None and exact_match(answer, golden) == 1.0
    if config.kind == "format":
        trajectory.reward = _format_reward(trajectory, config)
    elif config.kind == "f1":
        trajectory.reward = 0.0 if answer is None else f1_score(answer, golden)
    else:
        trajectory.reward = float(trajectory.correct)


def overlong_punishment(tokens: int, budget: int, share: float) -> float:
    """DAPO's soft overlong punishment, in [-1, 0]: 0 up to the last `share` of the `budget`, from
    there falling linearly to -1 at its end (arXiv 2503.14476v2, Eq. 13; `tokens` are the policy's).
    """
    buffer = share * budget
    return min(0.0, max(-1.0, (budget - buffer - tokens) / buffer))


def _format_reward(trajectory: Trajectory, credits: RewardConfig) -> float:
    """Credit for form beside exact match (Search-R1 v0.3, `qa_em_format.py`). The form is valid
    when blocks read think, any number of (search, information, think), answer.

    | answer | valid form | invalid form |
    |---|---|---|
    | correct | 1 | 1 - `structure` |
    | wrong | `structure` (+ `retrieval` if a passage held a golden answer) | `final` |
    | none | the same | 0 |
    """
    valid = _VALID_FORM.fullmatch(" ".join(block_sequence(trajectory))) is not None
    if trajectory.correct:
        return 1.0 if valid else 1.0 - credits.structure
    if valid:
        hits = [hit for action in trajectory.actions for hit in action.hits]
        golden = trajectory.question.golden_answers
        held = any(sub_exact_match(hit.contents, golden) for hit in hits)
        return credits.structure + credits.retrieval * held
    return 0.0 if trajectory.answer is None else credits.final


def _token_f1(prediction: str, answer: str) -> float:
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))
