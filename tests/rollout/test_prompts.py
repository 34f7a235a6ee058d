"""Prompts: the question as asked, once, through the chat template where there is one."""

import pytest

from llds_core.rollout.prompts import encode_prompt, prompt_text
from llds_core.rollout.protocol import TAGS
from llds_core.runs.policies import build_tokenizer


@pytest.mark.parametrize("template", ["short", "search-r1"])
@pytest.mark.parametrize(
    "question", ["where is it?", "  where is it ", "a {question} {0} {}", "%s", "{{x}}", "\\1"]
)
def test_prompt_ends_with_the_question_which_is_data(template: str, question: str) -> None:
    asked = f"Question: {question.strip().removesuffix('?')}?\n"
    assert prompt_text(question, template).endswith(asked)
    assert prompt_text(question, template).count(asked) == 1


def test_instructions_name_every_tag_of_the_protocol() -> None:
    text = prompt_text("where", "search-r1")
    assert all(tag in text for tag in TAGS)


def test_chat_template_wraps_the_prompt_and_opens_the_answer() -> None:
    tokenizer = build_tokenizer(["where is it"], 300, TAGS)
    assert tokenizer.decode(encode_prompt("where", "short", tokenizer)) == "Question: where?\n"
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    ids = encode_prompt("where", "short", tokenizer)
    assert tokenizer.decode(ids) == "[user]Question: where?\n[assistant]"
