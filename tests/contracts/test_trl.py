"""What `SearchGRPOTrainer` takes for granted about the installed TRL.

It overrides private methods. Each test names what to look at again when it fails after an upgrade.
"""

import inspect
from importlib.metadata import version
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from given_policies import save_one_layer_policy
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

TESTED = "1.16.0"
ADVICE = (
    "TRL's {what} has changed: re-check the override in llds_core/training/trainer.py, "
    "run tests/training, then change this test"
)
SIGNATURES = {
    "_prepare_inputs": ["self", "generation_batch"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_generate": ["self", "prompts"],
    "_compute_loss": ["self", "model", "inputs"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "_clip_grad_norm": ["self", "model"],
}
LOGPS = ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
SIGNATURES["_get_per_token_logps_and_entropies"] = LOGPS
OF_COMPLETIONS = {"completion_ids", "completion_mask", "tool_mask"}
OF_COMPLETIONS |= {f"{policy}_per_token_logps" for policy in ("old", "ref", "sampling")}
OTHERS = {"prompt_ids", "prompt_mask", "advantages", "num_items_in_batch"}


def test_trl_is_the_tested_version() -> None:
    message = f"trl is {trl.__version__}, tested with {TESTED}: run tests/training first"
    assert version("trl") == trl.__version__ == TESTED, message


@pytest.mark.parametrize("name", SIGNATURES)
def test_overridden_method_has_the_known_signature(name: str) -> None:
    found = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    known = SIGNATURES[name]
    if known is LOGPS:  # more may follow
        assert "compute_entropy" in found, ADVICE.format(what=name)
        found = found[: len(LOGPS)]
    assert found == known, ADVICE.format(what=f"{name}({', '.join(found)})")


GENERATE, CLIENT = GRPOTrainer._generate, VLLMClient.generate
ENGINE = [f"self.{name}" for name in ("llm = LLM(", "vllm_client = VLLMClient(", "tp_group")]
ENGINE += ["self.enable_sleep_mode", "self._llm_weights_sleeping", "self.llm.sleep(level=2)"]
ENGINE += [f'self.llm.wake_up(tags=["{tag}"])' for tag in ("weights", "kv_cache")]
ENGINE += ["self.tensor_parallel_size", "self.server_base_url"]


@pytest.mark.parametrize(
    ("where", "in_order"),
    [
        # Clipping belongs to the trainer below, and comes before the step.
        (Trainer, ["self._clip_grad_norm(model)", "self.optimizer.step()"]),
        # A missing mask trains on observations: why the trainer validates masks itself.
        (GENERATE, ['extra_fields.pop("env_mask", None)']),
        # The vLLM engine counts on one push of weights per rollout, before it.
        (GENERATE, ["self.vllm_generation.sync_weights()", "self.rollout_func(prompts, self)"]),
        (CLIENT, ["prompts: ", "max_tokens: ", "generation_kwargs: "]),
        (CLIENT, ["sampling_params.update(generation_kwargs"]),
        *((VLLMGeneration, [text]) for text in ENGINE),
    ],
)
def test_source_has_what_trainer_and_vllm_engine_count_on(where: Any, in_order: list[str]) -> None:
    source = inspect.getsource(where)
    places = [source.find(text) for text in in_order]
    advice = ADVICE.format(what=where.__qualname__) + "; see llds_core/rollout/vllm_sampler.py too"
    assert -1 not in places and places == sorted(places), advice
    assert "_clip_grad_norm" not in vars(GRPOTrainer)


class Spy(GRPOTrainer):
    """Stock TRL, watched."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.events: list[tuple] = []
        self.batches: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        fresh = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        self.events.append(("prepare", fresh, len(generation_batch)))
        return super()._prepare_inputs(generation_batch)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.events.append(("score", [row["prompt"] for row in inputs]))
        batch = super()._generate_and_score_completions(inputs)
        self.batches.append(batch)
        return batch

    def _generate(self, prompts: list) -> tuple:
        output = super()._generate(prompts)
        self.events.append(("generate", len(output)))
        self.generated = output
        return output

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> tuple:
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        who = "reference" if model is self.ref_model else "policy"
        entropy = kwargs.get("compute_entropy", False)
        self.events.append(("logps", who, torch.is_grad_enabled(), len(args), entropy))
        self.logps = result
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.events.append(("loss",))
        loss = super()._compute_loss(model, inputs)
        logps, entropies, _ = self.logps
        (gradient,) = torch.autograd.grad(loss, logps, retain_graph=True)
        self.last = (inputs, logps, entropies, gradient)
        self.events.append(("end of loss",))
        return loss

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        self.events.append(("clip", bool(torch.isfinite(norm))))
        return norm


MASKS = [[1, 0, 0, 1, 1], [1, 1, 0], [1, 1], [1, 0, 1, 1]]


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Spy:
    """A stock trainer after 2 x 2 trajectories: 2 epochs of 2 updates of 2 micro-batches."""
    folder = tmp_path_factory.mktemp("spy")
    completions = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14], [15, 16, 17, 18]]

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list]:
        return {
            "prompt_ids": [[20, 21], [20, 21], [22, 23, 24], [22, 23, 24]],
            "completion_ids": completions,
            "logprobs": [[-1.0] * len(ids) for ids in completions],
            "env_mask": MASKS,
            "value": [1.0, 0.0, 0.0, 1.0],
        }

    def reward(value: list[float], **kwargs: Any) -> list[float]:
        return value

    args = GRPOConfig(
        output_dir=str(folder / "run"),
        use_cpu=not torch.cuda.is_available(),
        **{"bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False},
        **{"num_generations": 2, "per_device_train_batch_size": 1, "steps_per_generation": 4},
        **{"gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 4, "beta": 0.1},
        **{"loss_type": "dapo", "max_completion_length": 8, "shuffle_dataset": False},
        **{"report_to": [], "save_strategy": "no", "disable_tqdm": True},
    )
    trainer = Spy(
        model=str(save_one_layer_policy(folder / "policy")),
        args=args,
        reward_funcs=[reward],
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        rollout_func=rollout,
    )
    trainer.train()
    return trainer


def test_one_generation_a_rollout_with_each_prompt_repeated_in_place(spy: Spy) -> None:
    scores = [event for event in spy.events if event[0] == "score"]
    assert scores == [("score", ["a", "a", "b", "b"])], ADVICE.format(what="rollout batch")
    prepares = [event for event in spy.events if event[0] == "prepare"]
    assert [fresh for _, fresh, _ in prepares] == [True] + [False] * 7, ADVICE.format(what="_step")


def test_generate_returns_eight_values_with_the_mask_third(spy: Spy) -> None:
    advice = ADVICE.format(what="_generate")
    assert ("generate", 8) in spy.events, advice
    _, completion_ids, mask, *_ = spy.generated
    assert mask == MASKS, advice
    assert [len(ids) for ids in completion_ids] == [len(row) for row in mask], advice


def test_batch_has_the_known_keys_and_shapes(spy: Spy) -> None:
    (batch,) = spy.batches
    advice = ADVICE.format(what="batch dict")
    assert set(batch) == OF_COMPLETIONS | OTHERS, advice
    for name in OF_COMPLETIONS:
        assert batch[name].shape == (4, 5), f"{name}: {advice}"
    assert batch["advantages"].shape == (4,), advice
    assert batch["num_items_in_batch"].item() == 10, advice  # policy tokens of the whole rollout
    assert batch["prompt_mask"].tolist()[0] == [0, 1, 1], advice  # prompts are padded left
    assert batch["completion_mask"].tolist()[2] == [1, 1, 0, 0, 0], advice
    # Padding is marked as policy here: the mask means nothing without the completion mask.
    assert batch["tool_mask"].tolist()[2] == [1, 1, 1, 1, 1], advice


def test_scoring_asks_for_old_and_reference_log_probabilities_without_gradient(spy: Spy) -> None:
    start = spy.events.index(("score", ["a", "a", "b", "b"]))
    end = spy.events.index(("loss",))
    passes = [event for event in spy.events[start:end] if event[0] == "logps"]
    advice = ADVICE.format(what="_generate_and_score_completions")
    assert [event[1] for event in passes] == ["policy", "reference"], advice
    # The placeholder reads the width of the completion as the second argument after the ids.
    assert all(event[2] is False and event[3] >= 3 for event in passes), advice


def test_loss_computes_log_probabilities_exactly_once_with_gradient(spy: Spy) -> None:
    advice = ADVICE.format(what="_compute_loss")
    events = spy.events[spy.events.index(("loss",)) :]
    kinds = [event[0] for event in events if event[0] in ("loss", "logps")]
    assert kinds == ["loss", "logps"] * 8, advice
    for _, who, gradient, _, entropy in (event for event in events if event[0] == "logps"):
        assert who == "policy" and gradient and entropy, advice


def test_loss_is_differentiable_by_what_the_log_probability_method_returned(spy: Spy) -> None:
    inputs, logps, entropies, gradient = spy.last
    advice = ADVICE.format(what="_compute_loss")
    mask = (inputs["tool_mask"] * inputs["completion_mask"]).bool()
    assert logps.shape == entropies.shape == mask.shape, advice
    assert (gradient[mask] != 0).all(), advice
    assert (gradient[~mask] == 0).all(), advice


def test_gradient_is_clipped_once_an_update_after_all_micro_batches(spy: Spy) -> None:
    kinds = [event[0] for event in spy.events if event[0] in ("loss", "clip")]
    assert kinds == ["loss", "loss", "clip"] * 4, ADVICE.format(what="order of loss and clipping")
    assert all(event[1] for event in spy.events if event[0] == "clip")
