"""Policies on disk: whole or refused in one line; tokenizers whose tags are single tokens."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import CONFIG as SMOKE
from run_helpers import refused
from safetensors.torch import load_file, save_file

from llds_core.config import PolicyConfig
from llds_core.errors import CheckpointError
from llds_core.rollout.protocol import TAGS
from llds_core.runs import Run
from llds_core.runs.checkpoints import (
    checkpoint_path,
    checkpoint_steps,
    remove_leftovers,
    rotate_checkpoints,
)
from llds_core.runs.policies import END, PAD, build_policy, build_tokenizer, load_policy

TEXTS = ["which city is where and why"] * 3
TOKENIZER = build_tokenizer(TEXTS, 400, TAGS)
CONFIG = PolicyConfig(
    vocab_size=400, hidden_size=32, intermediate_size=48, layers=2, heads=2, key_value_heads=1
)
DAMAGE = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "cut": lambda content: content[: int(len(content) * 0.99)],
    "another form": lambda content: b"[]",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    build_policy(CONFIG, TOKENIZER, 0).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.mark.parametrize("tag", TAGS)
def test_tag_is_one_token_that_decodes_to_itself(tag: str) -> None:
    """Also when special tokens are skipped: a tag is text of the protocol, not control."""
    ids = TOKENIZER.encode(f"is{tag}where", add_special_tokens=False)
    assert ids.count(TOKENIZER.convert_tokens_to_ids(tag)) == 1
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == f"is{tag}where"


def test_tokenizer_keeps_to_its_size_is_deterministic_and_survives_storage(whole: Path) -> None:
    texts = ["".join(chr(97 + (i * j) % 23) for j in range(3, 9)) for i in range(300)]
    assert len(build_tokenizer(texts, 350, TAGS)) == 350
    assert build_tokenizer(TEXTS, 400, TAGS).get_vocab() == TOKENIZER.get_vocab()
    _, loaded = load_policy(whole)
    text = f"is <search>where's 1234, the city?</search>\n\n  “it” ({END}) e\u0301. x2\t!!\n"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    for one in (TOKENIZER, loaded):
        assert (one.pad_token, one.eos_token) == (PAD, END)
        assert one.pad_token_id != one.eos_token_id


def test_policy_is_deterministic_in_its_seed_and_leaves_the_global_generator_alone(whole) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = build_policy(CONFIG, TOKENIZER, 3).state_dict()
        load_policy(whole)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        second, other = (build_policy(CONFIG, TOKENIZER, seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_loaded_policy_equals_the_stored_one_in_the_type_asked_for(whole: Path) -> None:
    stored, (loaded, _) = build_policy(CONFIG, TOKENIZER, 0).state_dict(), load_policy(whole)
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())
    assert load_policy(whole, "bfloat16")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_damaged_file_is_refused(copy: Path, file: str, damage: str) -> None:
    (copy / file).write_bytes(DAMAGE[damage]((copy / file).read_bytes()))
    refused(CheckpointError, f"{copy} cannot be loaded", load_policy, copy)


def test_missing_or_misshapen_weight_is_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    weights = load_file(file)
    lost = {name: w for name, w in weights.items() if "layers.0.mlp.down_proj" not in name}
    for changed in (lost, weights | {"model.norm.weight": torch.ones(5)}):
        save_file(changed, file, metadata={"format": "pt"})
        refused(CheckpointError, str(copy), load_policy, copy)


def make(folder: Path, *steps: int) -> Path:
    for step in steps:
        checkpoint_path(folder, step).mkdir(parents=True)
        (checkpoint_path(folder, step) / "weights").write_text("x", "utf-8")
    return folder


def test_steps_are_sorted_as_numbers_and_leftovers_are_none(tmp_path: Path) -> None:
    """Those of killed saves and deletions are removed; copies by the user are not."""
    make(tmp_path, 12, 2, 1_234_567)
    (tmp_path / "step-000001.bak").mkdir()
    for name in (".partial-2", ".partial-delete-3"):
        (tmp_path / name / "checkpoint-8").mkdir(parents=True)
    assert checkpoint_steps(tmp_path) == [2, 12, 1_234_567]
    assert checkpoint_steps(tmp_path / "none") == []
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_best_and_last_of_the_first_steps(tmp_path: Path) -> None:
    run = Run(SMOKE, 0, tmp_path)
    folder = make(run.checkpoints, 4, 8, 12)
    # Evaluating a run that is still training must not delete what the run is writing.
    (folder / ".partial-2").mkdir()
    rewards = [0.1, 0.1, 0.1, 0.1, 0.4, 0.4, 0.4, 0.4, 0.2, 0.2, 0.2, 0.2]
    rows = [{"step": step, "reward": reward} for step, reward in enumerate(rewards, 1)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    for which, step in (("best-7", 4), ("best-12", 8), ("last-9", 8), ("last", 12)):
        assert run.checkpoint(which) == checkpoint_path(folder, step)
    assert (folder / ".partial-2").is_dir()
    for which in ("best-3", "best-99"):
        named = f'no checkpoint "{which}": name a number of steps from 4, its first .*, to 12'
        refused(CheckpointError, named, run.checkpoint, which)
    # One that a collapse ended keeps what it was given.
    longer = Run.load("smoke/grpo", 0, tmp_path, ["training.steps=20"])
    assert longer.checkpoint("last-20") == checkpoint_path(folder, 12)


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(2, None, [4, 5]), (2, 2, [2, 4, 5]), (2, 5, [4, 5]), (9, None, [1, 2, 3, 4, 5])],
)
def test_rotation_keeps_the_latest_and_the_best(tmp_path, keep, best, left) -> None:
    rotate_checkpoints(make(tmp_path, 1, 2, 3, 4, 5), keep, best)
    assert checkpoint_steps(tmp_path) == left
    assert len(list(tmp_path.iterdir())) == len(left)


def test_deletion_killed_half_way_leaves_no_half_checkpoint(tmp_path, monkeypatch) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    make(tmp_path, 1, 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        rotate_checkpoints(tmp_path, 1, None)
    assert checkpoint_steps(tmp_path) == [2]
