"""The prompt a policy sees: instructions once, then the question.

Wordings of ours: `search-r1` explains the protocol to a pre-trained model (after Search-R1, arXiv
2503.09516); `short` is for policies that were warm-started on the protocol and need only the
question. The published training file brings its own. A chat template is applied when the tokenizer
has one, as the official code does for base models too.
"""

from typing import cast

from transformers import PreTrainedTokenizerBase

_INSTRUCTIONS = """\
Answer the question at the end. Whenever you learn something, first think about it inside <think> \
and </think>. If a fact is missing, ask the search engine with <search> your query </search>; \
what it finds comes back between <information> and </information>. You may search several times. \
As soon as nothing is missing, write the bare answer inside <answer> and </answer>, without \
explanation, for example <answer> Beijing </answer>. Question: {question}
"""
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
    """Return token ids of one user message, through the chat template when there is one."""
    if tokenizer.chat_template is None:
        return cast("list[int]", tokenizer.encode(text, add_special_tokens=False))
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return cast("list[int]", ids)
