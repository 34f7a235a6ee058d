"""`SearchGRPOTrainer`: TRL's `GRPOTrainer` with multi-turn rollouts, trimmed micro-batches and the
LLDS penalty. Each delta from TRL is an override of one method.

Mini-batches hold whole groups, where TRL shuffles single rows; rows are sorted by length and a
micro-batch is trimmed to its longest row; old and reference log-probabilities are computed on
exactly the rows, order and width that are trained on. TRL pads everything to the longest trajectory
and computes them before it shuffles; a gate that opens at zero would see it. Only policy tokens are
scored (`policy_head`).

Several processes train as one: each samples its share of the rollout, then every one knows the
whole, so that mini-batches and denominators are those of a single process and each takes its share
of the rows.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from llds_core.config.seeding import torch_generator
from llds_core.errors import TrainingDivergedError
from llds_core.integrations.trl import keep_32_bits
from llds_core.losses import clamped_reference
from llds_core.rollout.loop import Rollout
from llds_core.rollout.protocol import Trajectory, validate_response_masks
from llds_core.training.micro_batches import (
    add_columns,
    answer_weight,
    correct_for_sampler,
    cut,
    gather_batch,
    likelihood_penalty,
    mini_batch_rows,
    rollout_columns,
    set_counts,
    trajectory_reward,
)
from llds_core.training.min_p_proxies import proxies_for, proxy_penalty, set_bounds
from llds_core.training.policy_head import (
    Also,
    PolicyHeadOutput,
    add_policy_head,
    forward_unpadded,
    policy_labels,
    use_unpadded_attention,
)
from llds_core.training.processes import copy_to_sharded, reshard, whole_policy
from llds_core.training.recorder import AtomicCheckpointMixin
from llds_core.training.settings import SearchGRPOConfig
from llds_core.training.step_metrics import Row, StepMetrics


class SearchGRPOTrainer(AtomicCheckpointMixin, GRPOTrainer):
    """GRPO on multi-turn search trajectories, with the LLDS penalty.

    Args:
        rollout: called with the rows of a rollout (each prompt repeated `num_generations` times),
            the policy and the step (1-based); returns one rewarded trajectory per row, in order.
        on_step: called with the metrics and trajectories of each finished step.
        options: `model`, `processing_class`, and `train_dataset`, whose rows hold `prompt` (text)
            and whatever `rollout` needs, in the order of training.
    """

    args: SearchGRPOConfig
    num_generations: int
    ref_model: Any
    metrics: StepMetrics  # of the step under way, from its rollout on
    is_over: Callable[[], bool]  # asked after each step: whether to save and end here
    _buffered_inputs: Any  # micro-batches of each mini-batch
    _window: list[dict[str, Any]]  # of them, those under way
    _micro: dict[str, Any]  # of the forward pass under way
    _part = 0  # of a mini-batch that is cut by tokens
    _captured: torch.Tensor
    _divergence: torch.Tensor | None

    def __init__(
        self,
        *,
        args: SearchGRPOConfig,
        rollout: Callable[[Sequence[dict[str, Any]], PreTrainedModel, int], Rollout],
        on_step: Callable[[Row, list[Trajectory]], None] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **options: Any,
    ) -> None:
        self.updates_per_step = args.training.updates_per_rollout
        self.nonfinite_in_a_row = 0
        self._rollout = rollout
        self._on_step = on_step
        self.is_over = lambda: False
        self._rows: Sequence[dict[str, Any]] = []
        self._loss_is_finite = True
        self._whole_policy: PreTrainedModel | None = None
        with warnings.catch_warnings():
            # The contract test watches this interface; users can do nothing about its being
            # experimental.
            warnings.filterwarnings("ignore", message=".*rollout_func.*experimental")
            super().__init__(
                args=args,
                reward_funcs=[trajectory_reward],
                rollout_func=lambda prompts, trainer: rollout_columns(self._collect()),
                callbacks=[_AfterUpdate(self), *callbacks],
                **options,
            )
        self.remove_callback(PrinterCallback)
        if self.ref_model is not None and self.accelerator.is_fsdp2:
            copy_to_sharded(self.model, self.ref_model)
        for policy in filter(None, (self.model, self.ref_model)):
            add_policy_head(policy, vocabulary=len(self.processing_class))
            if args.training.remove_padding:
                use_unpadded_attention(policy)

    def create_accelerator_and_postprocess(self) -> None:
        """See `keep_32_bits`."""
        super().create_accelerator_and_postprocess()
        keep_32_bits(self)

    @property
    def step(self) -> int:
        """Number of the step under way, from 1."""
        return self.state.global_step // self.updates_per_step + 1

    def _generate(self, prompts: list) -> tuple:
        reshard(self.model)  # whose weights are read now
        output = super()._generate(prompts)
        _, completion_ids, env_mask, *_ = output
        validate_response_masks(completion_ids, env_mask)
        return output

    def _collect(self) -> list[Trajectory]:
        """Run the rollout of the current step on the rows TRL has chosen for this process."""
        policy = self.accelerator.unwrap_model(self.model)
        if self.accelerator.is_fsdp2 and not self.use_vllm:
            policy = self._whole_policy = whole_policy(policy, self._whole_policy)
        rollout = self._rollout(self._rows, policy, self.step)
        shares = gather_object([rollout])
        whole = Rollout(
            trajectories=[t for share in shares for t in share.trajectories],
            dropped=[t for share in shares for t in share.dropped],
            seconds=max(share.seconds for share in shares),
            retrieval_seconds=max(share.retrieval_seconds for share in shares),
        )
        stored = self.args.training.trajectories_per_step
        self.metrics = StepMetrics(
            whole, self.step, self.num_generations, self.args.loss, stored=stored
        )
        return rollout.trajectories

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        per_generation = cast(int, self.args.steps_per_generation)  # TRL has set it
        is_due = self._step % (per_generation * self.num_iterations) == 0
        if (is_due and not self._part) or self._buffered_inputs is None:
            self._rows = generation_batch
            batch = self._generate_and_score_completions(generation_batch)
            batch = gather_batch(batch, self.accelerator, self.processing_class.pad_token_id)
            self._buffered_inputs = self._micro_batches(batch)
        number, place = divmod(self._step % per_generation, self.args.gradient_accumulation_steps)
        self._window = self._buffered_inputs[number]
        self._micro = self._window[place + self._part]
        return self._micro

    def _micro_batches(self, batch: dict[str, Any]) -> list[list[dict[str, Any]]]:
        """Cut a rollout into this process's trimmed micro-batches, by mini-batch; they carry their
        old and reference log-probabilities.
        """
        trajectories = self.metrics.trajectories
        add_columns(batch, trajectories, self.args.loss, self.num_generations)
        lengths = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).tolist()
        rows = mini_batch_rows(
            lengths,
            self.args,
            processes=self.accelerator.num_processes,
            generator=torch_generator(self.args.root_seed, "mini-batches", self.step),
        )
        windows = [cut(batch, shares, self.accelerator.process_index, self.args) for shares in rows]
        for window in windows:
            set_counts(window, self.args, self.accelerator)
        micro_batches = [micro for window in windows for micro in window]
        weight = answer_weight(trajectories, self.args.loss)
        for micro in micro_batches:
            micro["answer_weight"] = weight
            self._add_log_probabilities(micro)
        set_bounds(micro_batches, self.args.loss)
        self.metrics.close_rollout(micro_batches, weight)
        return windows

    @torch.no_grad()
    def _add_log_probabilities(self, micro: dict[str, Any]) -> None:
        """Old and reference log-probabilities on the rows, order, width and mode of the updates."""
        micro["proxies"] = proxies = proxies_for(micro, self.args.loss)
        output = self._forward(self.model, micro, proxies.make if proxies else None)
        mask = micro["policy_mask"]
        width = mask.shape[1]
        if output.extra is not None:
            micro["proxy_logps"] = output.extra[:, -width:]
        micro["old_per_token_logps"] = output.log_probs[:, -width:]
        micro["old_entropies"] = output.entropy[:, -width:]
        correct_for_sampler(micro, self.args.sampler)
        # The state that predicts a token stands one position before it.
        states = output.last_hidden_state[:, -width - 1 : -1] * mask[..., None]
        micro["pooled_states"] = states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        if self.beta != 0.0:
            reference = self._forward(self.ref_model, micro)
            micro["ref_per_token_logps"] = reference.log_probs[:, -width:]

    def _forward(
        self, model: nn.Module, micro: dict[str, Any], also: Also | None = None
    ) -> PolicyHeadOutput:
        """Score the policy tokens of a micro-batch; everything else gets log-probability 0: TRL
        exponentiates before it masks, and a token that has drifted far would turn into inf * 0.
        """
        ids = torch.cat([micro["prompt_ids"], micro["completion_ids"]], dim=1)
        attention = torch.cat([micro["prompt_mask"], micro["completion_mask"]], dim=1)
        labels = policy_labels(ids, micro["policy_mask"])
        with self.accelerator.autocast():
            if self.args.training.remove_padding:
                return forward_unpadded(model, ids, attention, labels, also)
            return model(input_ids=ids, attention_mask=attention, policy_labels=labels, also=also)

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        if not torch.is_grad_enabled():
            # TRL's own pass over the padded rollout: `_micro_batches` replaces it.
            shape = (len(input_ids), logits_to_keep)
            return torch.zeros(shape, device=input_ids.device), None, None
        compared = self.args.loss.lp_reg_weight > 0 and self.args.loss.lp_reg_kl == "full"
        also = self._micro["proxies"].divergence if compared else None
        output = self._forward(model, self._micro, also)
        self._captured = output.log_probs[:, -logits_to_keep:]
        extra = output.extra
        self._divergence = None if extra is None else extra[:, -logits_to_keep:]
        if self.beta != 0.0 and self.args.loss.kl_clamp is not None:
            self._micro["ref_per_token_logps"] = clamped_reference(
                self._captured, self._micro["ref_per_token_logps"], self.args.loss.kl_clamp
            )
        entropies = output.entropy[:, -logits_to_keep:]
        if self._entropy_bonus_enabled:
            # TRL averages the bonus over a micro-batch; the scale makes that the mini-batch.
            entropies = entropies * self._micro["entropy_scale"]
        return self._captured, entropies, None

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        # A copy: what the forward pass puts into it holds for this update only.
        self._micro = inputs = dict(inputs)
        loss = super()._compute_loss(model, inputs) * inputs.get("share", 1)
        logprobs, settings = self._captured, self.args.loss
        penalty, counts = likelihood_penalty(inputs, logprobs, settings)
        if settings.llds_weight > 0:
            loss = loss + settings.llds_weight * penalty
        if settings.lp_reg_weight > 0:
            held, held_counts = proxy_penalty(inputs, logprobs, self._divergence, settings)
            loss = loss + settings.lp_reg_weight * held
            self.metrics.add_lp_reg(held, held_counts)
        del self._captured, self._divergence
        self._loss_is_finite &= bool(torch.isfinite(loss))
        self.metrics.add_micro_batch(inputs, logprobs.detach(), loss, penalty, counts)
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on one micro-batch, or on all of a mini-batch that is cut by tokens; the rollout
        happens inside the first one of a step.
        """
        loss = super().training_step(*args, **kwargs)
        if self.args.training.max_tokens_per_micro_batch:
            for part in range(1, len(self._window)):
                self._part = part
                self._step -= 1  # to TRL they are one
                loss = loss + super().training_step(*args, **kwargs)
            self._part = 0
        self._metrics["train"].clear()  # TRL's own lists grow until a log call that never comes
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        # Every process must come to the same decision: one NaN is a NaN in the sum.
        judged = norm.detach().float() if self._loss_is_finite else torch.full_like(norm, torch.nan)
        finite = bool(torch.isfinite(self.accelerator.reduce(judged, reduction="sum")))
        self._loss_is_finite = True
        self.metrics.add_update(float(norm), finite, self._get_learning_rate())
        if finite:
            self.nonfinite_in_a_row = 0
            return norm
        # Without gradients the optimizer changes neither weights nor moments.
        model.zero_grad()
        self.nonfinite_in_a_row += 1
        if self.nonfinite_in_a_row >= self.args.training.max_nonfinite_updates:
            raise TrainingDivergedError(
                f"loss or gradient was not finite for {self.nonfinite_in_a_row} updates in a row "
                f"at step {self.step}: lower training.learning_rate; the last checkpoint is intact"
            )
        return norm

    @torch.no_grad()
    def after_update(self) -> None:
        """Measure how an update, and a step, moved the trajectories of the step, and hand the
        step's metrics on after its last update.
        """
        update = (self.state.global_step - 1) % self.updates_per_step
        is_last = update == self.updates_per_step - 1
        if not (is_last or self.args.diagnostics.each_update):
            return
        windows = self._buffered_inputs
        placed = [(number, micro) for number, window in enumerate(windows) for micro in window]
        generator = torch_generator(self.args.root_seed, "final", self.step)
        count = math.ceil(self.args.diagnostics.final_share * len(placed))
        drawn = {*torch.randperm(len(placed), generator=generator)[:count].tolist()}
        for index, (number, micro) in enumerate(placed):
            if not (self.args.diagnostics.each_update or index in drawn):
                continue
            width = micro["policy_mask"].shape[1]
            logprobs = self._forward(self.model, micro).log_probs[:, -width:]
            if self.args.diagnostics.each_update:
                trained = number == update % len(windows)
                self.metrics.add_update_logprobs(micro, logprobs, update, trained=trained)
            if is_last and index in drawn:
                self.metrics.add_final_logprobs(micro, logprobs)
        if not is_last:
            return
        if torch.cuda.is_available():
            self.metrics.add_gpu_memory(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        self.metrics.merge(gather_object([self.metrics.part]))
        if self._on_step is not None:
            row = self.metrics.row(updates=self.state.global_step)
            self._on_step(row, self.metrics.trajectories)

    def checkpoint_extra(self) -> dict:
        """What resuming needs beside TRL's own state."""
        return {"nonfinite_in_a_row": self.nonfinite_in_a_row}

    def is_resumable(self, step: int) -> bool:
        """All are, or every so many, and the one a run ends with."""
        every = self.args.training.resumable_every
        return every is None or step % every == 0 or bool(self.control.should_training_stop)

    def _send_telemetry(self) -> None:
        """No message leaves the machine."""


class _AfterUpdate(TrainerCallback):
    """Calls `after_update`, before the checkpoint of a step's last update is written."""

    def __init__(self, trainer: SearchGRPOTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.after_update()
        if state.global_step % self._trainer.updates_per_step == 0 and self._trainer.is_over():
            control.should_training_stop = control.should_save = True
