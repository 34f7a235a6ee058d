"""The prompt a policy sees: instructions once, then the question.

Wordings of ours: `search-r1` explains the protocol to a pre-trained model (after Search-R1, arXiv
2503.09516); `short` is for policies that were warm-started on the protocol and need only the
question. The published training file brings its own. A chat template is applied when the tokenizer
has one, as the official code does for base models too.
"""

from collections.abc import Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from llds_core.rollout.protocol import OBSERVATION_END
from llds_core.worlds.text import well_formed

_INSTRUCTIONS = """\
Answer the question at the end. Whenever you learn something, first think about it inside <think> \
and </think>. If a fact is missing, ask the search engine with <search> your query </search>; \
what it finds comes back between <information> and </information>. You may search several times. \
As soon as nothing is missing, write the bare answer inside <answer> and </answer>, without \
explanation, for example <answer> Beijing </answer>. Question: {question}
"""
_PRIVATE = "\ue000"
# Some templates ask for today's date: a run that is continued tomorrow would read other prompts.
_RENDERED: dict[str, Any] = {"add_generation_prompt": True, "strftime_now": lambda _: "26 Jul 2024"}
_TEMPLATES = {"search-r1": _INSTRUCTIONS, "short": "Question: {question}\n"}


def prompt_text(question: str, template: str) -> str:
    """Return the prompt for `question` under `template` (`short`, `search-r1`, or a text with
    `{question}` in it); a missing question mark is added.
    """
    question = question.strip()
    if not question.endswith("?"):
        question += "?"
    # `replace`, not `format`: a question may hold braces.
    text = template if "{question}" in template else _TEMPLATES[template]
    return text.replace("{question}", question)


def encode_prompt(question: str, template: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the prompt's token ids, through the chat template when the tokenizer has one."""
    return encode_text(prompt_text(question, template), tokenizer)


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return token ids of one user message, through the chat template when there is one, whose own
    control tokens are the only ones.
    """
    if tokenizer.chat_template is None:
        return encode_plain([text], tokenizer)[0]
    special = (token for token in tokenizer.added_tokens_decoder.values() if token.special)
    if not any(token.content in text for token in special):
        message = [{"role": "user", "content": well_formed(text)}]
        ids = tokenizer.apply_chat_template(message, return_dict=False, **_RENDERED)
        return cast("list[int]", ids)
    parts = [tokenizer.encode(part, add_special_tokens=False) for part in _around(tokenizer)]
    return [*parts[0], *encode_plain([text], tokenizer)[0], *parts[1]]


def _around(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the chat template puts before and after a text: a private character takes its place."""
    message = [{"role": "user", "content": _PRIVATE}]
    rendered = tokenizer.apply_chat_template(message, tokenize=False, **_RENDERED)
    return cast(str, rendered).split(_PRIVATE, 1)


def encode_plain(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts from data, in which nothing is a control token, whatever it spells."""
    texts = [well_formed(text) for text in texts]
    ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return cast("list[list[int]]", ids)


def cut_observation(tokens: list[int], limit: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """At most `limit` tokens of an observation: passages are cut, its closing tag stays."""
    if len(tokens) <= limit:
        return tokens
    [end] = encode_plain([OBSERVATION_END], tokenizer)
    return [*tokens[: max(0, limit - len(end))], *end][:limit]
