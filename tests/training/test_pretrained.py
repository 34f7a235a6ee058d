"""Runs from a policy that is given: a Llama with a chat template and multi-token tags."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from files_world import write_files_world
from given_policies import save_llama
from huggingface_hub import errors as hub_errors
from run_helpers import refused
from transformers import AutoTokenizer, LlamaForCausalLM

from llds_core.config import laid_over
from llds_core.errors import CheckpointError, ConfigError, DownloadError, RunError
from llds_core.rollout.prompts import encode_prompt
from llds_core.runs import Run, read_manifest, read_trajectories
from llds_core.runs.checkpoints import checkpoint_path
from llds_core.runs.policies import load_policy, policy_digest
from llds_core.training.experiment import train
from llds_core.training.warmstart import start_policy, warmstart
from llds_core.worlds.question_sets import MIX_FILE

_SMALL = (
    *("training.steps=2", "training.updates_per_rollout=2", "training.epochs=1"),
    *("rollout.prompts_per_rollout=2", "rollout.group_size=2", "training.micro_batch_size=2"),
    *("rollout.max_action_tokens=6", "rollout.max_total_tokens=1100", "rollout.prompt=search-r1"),
)
_WARM = (
    *("training.warmstart=true", "warmstart.steps=2", "warmstart.batch_size=2"),
    *("warmstart.save_every=1", "warmstart.learning_rate=1e-3"),
)


def run_from(policy: Path, root: Path, *extra: str) -> Run:
    small = [*_SMALL, f"policy.path={policy}"]
    return Run.load("smoke/llds-action", 0, root, laid_over(small, extra))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("given") / "llama")


@pytest.fixture(scope="module")
def trained(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_from(llama, tmp_path_factory.mktemp("trained"))
    train(run)
    return run


def test_training_moves_every_weight_of_a_given_llama(llama: Path, trained: Run) -> None:
    manifest = trained.manifest()
    assert (manifest["status"], manifest["start_policy"]) == ("complete", str(llama))
    assert manifest["policy"] == policy_digest(llama)
    before, after = load_policy(llama)[0], load_policy(trained.checkpoint("last"))[0]
    assert isinstance(after, LlamaForCausalLM)
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert not torch.equal(old, new), name
    row = trained.metrics()[-1]
    assert row["gated_fraction_first"] == 0 and row["kl"] >= 0


def test_its_tokenizer_and_chat_template_are_used_and_stored_as_they_were(llama, trained) -> None:
    given = AutoTokenizer.from_pretrained(llama)
    first = read_trajectories(trained.path)[0]
    assert first["prompt_ids"] == encode_prompt(first["question"], "search-r1", given)
    text = given.decode(first["prompt_ids"])
    assert text.startswith("<|im_start|>user\n") and text.endswith("<|im_start|>assistant\n")
    stored = AutoTokenizer.from_pretrained(trained.checkpoint("last"))
    assert type(stored) is type(given)
    assert stored.special_tokens_map == given.special_tokens_map
    assert (stored.eos_token_id, stored.pad_token_id) == (given.eos_token_id, given.pad_token_id)
    assert stored.chat_template == given.chat_template
    text = "<think> São  Tomé, 1,234 </think>\n\n<search> e\u0301 </search><|im_end|>"
    assert stored.encode(text) == given.encode(text)
    assert stored.decode(stored.encode(text)) == text


def test_stopped_and_resumed_it_is_bit_identical(llama: Path, trained: Run, tmp_path: Path) -> None:
    def stop(row: dict) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    run = run_from(llama, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(run, after_step=stop)
    train(run)
    assert run.manifest()["resumed"]
    files = [checkpoint_path(each.checkpoints, 2) / "model.safetensors" for each in (run, trained)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert read_trajectories(run.path) == read_trajectories(trained.path)


def test_a_given_policy_is_warm_started_when_asked(llama: Path, tmp_path: Path) -> None:
    run = run_from(llama, tmp_path, *_WARM)
    folder = start_policy(run)
    assert folder == run.start_policy
    assert read_manifest(folder.parent)["policy"] == policy_digest(llama)
    torch.backends.cuda.enable_cudnn_sdp(True)
    given, made = load_policy(llama), load_policy(folder)
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # its backward pass gives NaN on some cards
    assert made[1].get_vocab() == given[1].get_vocab()
    for old, new in zip(given[0].parameters(), made[0].parameters(), strict=True):
        assert not torch.equal(old, new)
    # The start policy itself is what the run's manifest names.
    train(run)
    assert run.manifest()["policy"] == policy_digest(folder)


@pytest.mark.parametrize(("make", "extra"), [(train, ()), (start_policy, _WARM)])
def test_another_policy_behind_the_same_path_is_refused(tmp_path, make, extra) -> None:
    policy = save_llama(tmp_path / "llama")
    before = policy_digest(policy)
    make(run_from(policy, tmp_path / "runs", *extra, "training.steps=1"))
    shutil.rmtree(policy)
    save_llama(policy, seed=1)
    again = run_from(policy, tmp_path / "runs", *extra)
    refused(RunError, f"began with policy {before}, now", make, again)


@pytest.mark.parametrize(
    ("policy", "make", "kind", "said"),
    [
        ("data/policy/nothing", train, CheckpointError, "run make data PROFILE=smoke"),
        ("{here}/empty", train, CheckpointError, "holds no weights"),
        ("owner/gated", train, DownloadError, "owner/gated is gated: accept its licence"),
        ("owner/gated", warmstart, ConfigError, "to warm-start it first"),
    ],
)
def test_a_policy_that_cannot_be_had_is_one_line(
    tmp_path: Path,
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    make: Callable,
    kind: type,
    said: str,
) -> None:
    def refuse(repo: str, **kwargs: object) -> str:
        huggingface_hub.utils.validate_repo_id(repo)
        response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/x"))
        raise hub_errors.GatedRepoError("no", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    shutil.copytree(llama, tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    run = run_from(Path(policy.format(here=tmp_path)), tmp_path / "runs")
    refused(kind, said, make, run)


def test_questions_that_do_not_fit_are_named_before_the_first_step(llama, tmp_path) -> None:
    write_files_world(tmp_path / "data", train=6)
    mix = tmp_path / "data" / MIX_FILE
    rows = pq.read_table(mix).to_pylist()
    rows[3]["question"] += " where" * 1100
    pq.write_table(pa.Table.from_pylist(rows), mix)
    options = ("world.name=files", f"data.folder={tmp_path / 'data'}", "training.steps=6")
    stopped, run = (
        run_from(llama, tmp_path / "runs", *options, f"data.too_long={choice}")
        for choice in ("error", "skip")
    )
    said = refused(ConfigError, "data.too_long=skip", train, stopped)
    assert said.startswith(
        "1 of 11 training questions (nq/row_3) do not fit into rollout.max_total_tokens=1100: "
    )
    assert stopped.metrics() == []
    train(run)
    assert len(run.metrics()) == 6
    digest = hashlib.sha256(mix.read_bytes()).hexdigest()
    assert run.manifest()["train_sha256"] == digest
    # Every other question came once before any came again.
    asked = [row["question"] for row in read_trajectories(run.path)]
    assert len({*asked}) == 10 and not any("where where" in question for question in asked)
