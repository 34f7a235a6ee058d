"""Warm start: supervised training on scripted search traces, from which a random policy learns to
search, or a pre-trained one the protocol.

The result is shared by all runs of a profile, which are paired thereby. It is a run directory of
its own and is resumed like one. The loss is next-token prediction on policy tokens, with retrieved
tokens at a lower weight: reading them is how a small model learns to copy from them. The tokenizer
of a policy made here sees the corpus too, so that a name takes as few tokens in a held-out question
as in a training one; a pre-trained policy keeps its own. `training.dtype` is what products are
computed in here, too; weights stay in float32.
"""

import ctypes
import gc
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from llds_core.config import ExperimentConfig
from llds_core.config.seeding import child_seed, numpy_generator
from llds_core.errors import CheckpointError, ConfigError
from llds_core.machine.memory import check_buildable
from llds_core.rollout.environment import Environment, build_environment
from llds_core.rollout.prompts import cut_observation, encode_plain, encode_prompt, prompt_text
from llds_core.rollout.protocol import TAGS
from llds_core.runs import Run, RunDirectory, check_recorded, read_manifest
from llds_core.runs.checkpoints import rotate_checkpoints
from llds_core.runs.policies import (
    build_policy,
    build_tokenizer,
    given_policy,
    load_policy,
    policy_digest,
)
from llds_core.training.recorder import AtomicCheckpointMixin
from llds_core.training.settings import OneGPUMixin
from llds_core.training.traces import Trace, make_traces
from llds_core.worlds.atlas import World

_logger = logging.getLogger("llds_core")
# Batches sorted by length together: enough for little padding, few enough for varied batches.
_BUCKET = 16


def start_policy(run: Run) -> Path:
    """Folder of the policy that `run` starts from, warm-started first where that is due."""
    return warmstart(run) if run.config.warm_starts else run.start_policy


def warmstart(run: Run) -> Path:
    """Train the start policy of `run`, or continue, or return at once when it is there: its folder.

    Raises:
        ConfigError: when the run starts from `policy.path` as it is.
        RunError: when it began with another policy, corpus or configuration.
    """
    if not run.config.warm_starts:
        raise ConfigError(
            f"runs of {run.config.profile} start from policy.path={run.config.policy.path} as it "
            "is, and there is nothing to make: set training.warmstart=true to warm-start it first"
        )
    path, policy = run.warmstart_path, run.start_policy
    given = given_policy(run.config, run.root) if run.config.policy.path else None
    if policy.is_dir() and (manifest := read_manifest(path))["status"] == "complete":
        if given:
            check_recorded(path, manifest, "policy", policy_digest(given))
        return policy
    config = run.warmstart_config
    check_buildable(config.policy)
    steps = config.warmstart.steps
    with RunDirectory(path, config, config.warmstart.seed) as directory:
        torch.set_num_threads(config.warmstart.threads)
        if given:
            directory.record("policy", policy_digest(given))
        trainer = _build_trainer(config, directory, given)
        done, resume = directory.rewind()
        with tqdm(total=steps, initial=done, desc="warm start", unit="step") as bar:
            trainer.add_callback(_Log(directory, bar))
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        trainer.model.save_pretrained(policy)
        trainer.processing_class.save_pretrained(policy)
    del trainer
    _give_memory_back()
    return policy


def _give_memory_back() -> None:
    """Batches differ in length, and glibc keeps what they freed: of SmolLM2's 12 GB at the peak 9
    would stay while the runs train.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _build_trainer(
    config: ExperimentConfig, directory: RunDirectory, given: Path | None
) -> "WarmstartTrainer":
    settings = config.warmstart
    environment = build_environment(config)
    world = environment.world
    directory.record("corpus", environment.retriever.identity)
    retriever = environment.failing(seed=settings.seed, failure_rate=settings.failure_rate)
    count = settings.steps * settings.batch_size
    traces = make_traces(world, retriever, settings, top_k=config.retrieval.top_k, count=count)
    if given:
        model, tokenizer = load_policy(given)
    else:
        texts = _tokenizer_texts(config, world, traces)
        tokenizer = build_tokenizer(texts, config.policy.vocab_size, TAGS)
        model = build_policy(config.policy, tokenizer, settings.seed)
    _logger.info("warm start: %d traces, vocabulary %d", len(traces), len(tokenizer))
    arguments = WarmstartArguments(
        output_dir=str(directory.checkpoints),
        use_cpu=not torch.cuda.is_available(),
        bf16=config.training.dtype == "bfloat16",
        max_steps=settings.steps,
        per_device_train_batch_size=1,  # an item of the data set is a whole batch
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        train_sampling_strategy="sequential",  # the batches arrive in order
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        save_steps=settings.save_every,
        logging_steps=10,
        seed=child_seed(settings.seed, "warmstart", "trainer") % 2**31,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = WarmstartTrainer(
        model=model,
        args=arguments,
        train_dataset=_batches(traces, config, tokenizer),
        data_collator=lambda items: items[0],
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _tokenizer_texts(config: ExperimentConfig, world: World, traces: Sequence[Trace]) -> list[str]:
    prompts = [prompt_text(trace.question.question, config.rollout.prompt) for trace in traces]
    written = ["".join(text for text, _ in trace.segments) for trace in traces]
    # As often as traces repeat a question, or names outside of the training questions would be
    # spelt out.
    repeats = max(1, len(traces) // len(world.train))
    return prompts + written + repeats * [" " + passage.title for passage in world.passages]


def _batches(
    traces: Sequence[Trace], config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, torch.Tensor]]:
    """Padded batches of similar lengths in random order: `input_ids` and `weights`, (B, T) each."""
    size = config.warmstart.batch_size
    encoded = _encode(traces, config, tokenizer)
    random = numpy_generator(config.warmstart.seed, "warmstart", "batches")
    batches = []
    for start in range(0, len(encoded), size * _BUCKET):
        bucket = sorted(encoded[start : start + size * _BUCKET], key=lambda pair: len(pair[0]))
        groups = [bucket[i : i + size] for i in range(0, len(bucket), size)]
        batches += [
            _pad(groups[i], tokenizer.pad_token_id) for i in random.permutation(len(groups))
        ]
    return batches


def _encode(
    traces: Sequence[Trace], config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], list[float]]]:
    """Token ids of each trace and the weights of their predictions."""
    template, observed = config.rollout.prompt, config.warmstart.observation_weight
    # Each text once, and all together: one by one they take a sixth of a warm start.
    texts = list(dict.fromkeys(text for trace in traces for text, _ in trace.segments))
    ids_of = dict(zip(texts, encode_plain(texts, tokenizer), strict=True))
    asked = dict.fromkeys(trace.question.question for trace in traces)
    prompts = {question: encode_prompt(question, template, tokenizer) for question in asked}
    encoded = []
    for trace in traces:
        ids = list(prompts[trace.question.question])
        weights = [0.0] * len(ids)
        for text, by_policy in trace.segments:
            tokens = ids_of[text]
            if not by_policy:
                # As in a rollout, so that the policy sees observations of the length it will meet.
                tokens = cut_observation(tokens, config.rollout.max_observation_tokens, tokenizer)
            ids += tokens
            weights += [1.0 if by_policy else observed] * len(tokens)
        encoded.append((ids, weights))
    return encoded


def _pad(rows: Sequence[tuple[list[int], list[float]]], pad_id: int) -> dict[str, torch.Tensor]:
    ids = [torch.tensor(ids) for ids, _ in rows]
    weights = [torch.tensor(weights) for _, weights in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "weights": pad_sequence(weights, batch_first=True),
    }


class WarmstartArguments(OneGPUMixin, TrainingArguments):
    """`TrainingArguments` of one GPU."""


class WarmstartTrainer(AtomicCheckpointMixin, Trainer):
    """`Trainer` with a weight per token."""

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Weighted mean of the next-token negative log-likelihood."""
        weights = inputs["weights"][:, 1:]
        # Prompts and padding carry no weight: their logits, the largest tensor here, are never
        # made.
        scored = weights > 0
        with self.accelerator.autocast():
            # Causal and padded on the right: no token sees padding, which has no weight.
            hidden = model.base_model(input_ids=inputs["input_ids"], use_cache=False)
            logits = model.get_output_embeddings()(hidden.last_hidden_state[:, :-1][scored])
        losses = nn.functional.cross_entropy(
            logits.float(), inputs["input_ids"][:, 1:][scored], reduction="none"
        )
        return (losses * weights[scored]).sum() / weights.sum()


class _Log(TrainerCallback):
    """Writes losses to the run directory, shows progress and keeps the last two checkpoints."""

    def __init__(self, directory: RunDirectory, bar: tqdm) -> None:
        self._directory = directory
        self._bar = bar

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            keys = ("loss", "learning_rate", "grad_norm")
            self._directory.append_metrics(
                {"step": state.global_step, **{key: logs[key] for key in keys if key in logs}}
            )
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rotate_checkpoints(self._directory.checkpoints, keep=2, best=None)
        _give_memory_back()


def load_start_policy(
    run: Run, environment: Environment
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the policy that `run` starts from, in float32 whatever `training.dtype` says."""
    if run.config.warm_starts:
        trained_on = read_manifest(run.warmstart_path).get("corpus")
        corpus = environment.retriever.identity
        if trained_on != corpus:
            raise CheckpointError(
                f"the start policy in {run.warmstart_path} was made on corpus {trained_on}, the "
                f"world is now {corpus}: delete that folder to make it again"
            )
    return load_policy(run.start_policy)
