"""The packaged model: what is missing is said; where it is installed, it is trained for real."""

import importlib.metadata
import json
import shutil
from functools import cache
from importlib import import_module
from itertools import pairwise

import pytest
import torch
from given_policies import smollm2_absent
from run_helpers import no_space, refused
from transformers import AutoTokenizer, LlamaForCausalLM

from llds_core.config import load_experiment
from llds_core.errors import RunError
from llds_core.rollout.prompts import encode_prompt
from llds_core.rollout.protocol import TAGS
from llds_core.rollout.samplers import StopAtTag
from llds_core.runs import Run
from llds_core.runs import smollm2 as packaged
from llds_core.runs.policies import load_policy
from llds_core.runs.smollm2 import load_smollm2, unpack_smollm2

installed = pytest.mark.skipif(bool(smollm2_absent()), reason=smollm2_absent())


def test_a_full_disk_leaves_no_half_model(monkeypatch, tmp_path):
    class Half:
        def save_pretrained(self, folder):
            folder.mkdir()
            no_space()

    monkeypatch.setattr(packaged, "load_smollm2", lambda: (Half(), Half()))
    refused(RunError, "cannot be unpacked", unpack_smollm2, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    """A run root, the model as a run of `smol` unpacks it, and the package's own tokenizer."""
    root = tmp_path_factory.mktemp("smol")
    config = load_experiment("smol/grpo", ["training.warmstart=false"])
    tokenizers = []

    def load():
        model, tokenizer = load_smollm2()
        tokenizers.append(tokenizer)
        return model, tokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packaged, "load_smollm2", load)
        # transformers reads the file four times, ten seconds each.
        patch.setattr("gguf.GGUFReader", cache(import_module("gguf").GGUFReader))
        folder = Run(config, 0, root).start_policy
        assert Run(config, 0, root).start_policy == folder  # and nothing is unpacked again
        (tokenizer,) = tokenizers
        yield root, folder, tokenizer
    shutil.rmtree(root)  # gigabytes


@pytest.mark.slow
@installed
def test_the_real_model_reads_and_writes(smol):
    assert importlib.metadata.version(packaged.PACKAGE) == packaged.VERSION
    model, tokenizer = load_policy(smol[1])
    assert isinstance(model, LlamaForCausalLM) and model.dtype == torch.float32
    assert model.num_parameters() == 134_515_008
    ids = tokenizer.encode("The capital of France is", add_special_tokens=False)
    with torch.no_grad():
        best = model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
    assert tokenizer.decode([best]) == " Paris"


@pytest.mark.slow
@installed
def test_the_unpacked_tokenizer_is_that_of_the_package(smol):
    given = smol[2]
    unpacked = AutoTokenizer.from_pretrained(smol[1])
    assert type(unpacked) is type(given)
    assert (unpacked.eos_token, unpacked.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert unpacked.eos_token_id == unpacked.pad_token_id == 2
    assert not unpacked.clean_up_tokenization_spaces
    for text in ("<think> 1,234 people </think>\n\n<search>", "São  Tomé e\u0301 ."):
        assert unpacked.encode(text) == given.encode(text)
        assert unpacked.decode(unpacked.encode(text)) == text
    prompts = [encode_prompt("Where?", "search-r1", each) for each in (unpacked, given)]
    assert prompts[0] == prompts[1]
    # A tag takes several tokens, and its last letter may be part of a longer one.
    stop = StopAtTag(unpacked)
    for tag in TAGS:
        ids = unpacked.encode(f"x {tag}")
        assert len(ids) > 3 and stop(ids) == (tag in ("</search>", "</answer>"))
        assert not any(stop(ids[:end]) for end in range(1, len(ids)))


@pytest.mark.slow
@installed
def test_smol_is_warm_started_trained_and_evaluated(smol):
    from llds_core.evaluation.held_out import evaluate_run
    from llds_core.training.experiment import train

    root = smol[0] / "small"
    given = root / "policies" / smol[1].name
    model, tokenizer = load_policy(smol[1])
    # Two of its thirty layers: the same vocabulary and tokenizer, in a quarter of the time.
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    for part in (model, tokenizer):
        part.save_pretrained(given)
    changed = [
        *("world.cities=60", "world.countries=cities", "training.dtype=float32"),
        *("warmstart.steps=1", "warmstart.batch_size=2", "warmstart.warmup_steps=0"),
        *("warmstart.save_every=1", "warmstart.threads=1", "retrieval.top_k=1"),
        *("rollout.prompts_per_rollout=2", "rollout.group_size=2", "rollout.max_action_tokens=6"),
        *("rollout.max_searches=1", "evaluation.max_searches=2", "rollout.prompt=short"),
        "training.steps=1",
        *("training.updates_per_rollout=2", "training.micro_batch_size=2", "training.threads=1"),
        *("training.warmup_steps=0", "evaluation.questions=2", "evaluation.samples=0"),
    ]
    run = Run.load("smol/llds-action", 0, root, changed)
    train(run)
    assert run.manifest()["status"] == "complete"
    (row,) = run.metrics()
    assert row["gated_fraction_first"] == 0 and row["nonfinite_updates"] == 0
    trained = run.checkpoint("last")
    folders = (given, run.start_policy, trained)
    policies = [load_policy(folder)[0].state_dict() for folder in folders]
    for before, after in pairwise(policies):
        assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert (trained / "tokenizer.json").read_bytes() == (given / "tokenizer.json").read_bytes()
    found = json.loads(evaluate_run(run, "last").read_text())
    assert found["max_searches"] == 2 and found["results"]["greedy"]["all"]["n"] == 2
