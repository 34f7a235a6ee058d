"""LLDS in TRL's own `GRPOTrainer`: its rollouts, its rewards, its losses, plus weight × penalty.

    trainer = LLDSGRPOTrainer(..., args=GRPOConfig(steps_per_generation=8), llds_weight=0.2)

Any task and any `loss_type`; with tools, an action is a run of tokens that the model wrote.
"""

from dataclasses import replace
from typing import Any

import torch
import trl
from trl import GRPOConfig, GRPOTrainer

from llds_core.errors import ConfigError
from llds_core.integrations.adapters import (
    DISPLACEMENT,
    check_penalty,
    counted_tokens,
    displacement_metrics,
    one_per_response,
    penalty_and_sums,
)

# Up to 0.25 it counts steps before the loss, so that tokens of another update would divide; up to
# 0.27 it reads no `env_mask`. A copy that was never installed has no numbers.
if () < tuple(int(part) for part in trl.__version__.split(".")[:2] if part.isdigit()) < (0, 28):
    raise ConfigError(f"TRL {trl.__version__} is too old for LLDS: install trl>=0.28")
_SUMS = ("penalty_sum", "gated_tokens", "preserved_tokens", *DISPLACEMENT)
_Trainer: Any = object  # what comes next in the order of a subclass, of which types know nothing


def keep_32_bits(trainer: Any) -> None:
    """Keep what modules return, and sums of gradients, in 32 bits under FSDP2.

    accelerate's own policy casts them to the type of the products: log-probabilities would be
    rounded to steps of 0.008 nats and more, which no gate and no clipping survives.
    """
    if not getattr(trainer.accelerator, "is_fsdp2", False):  # accelerate before 1.6 has none
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    given = plugin.mixed_precision_policy
    if given and given.output_dtype in (torch.bfloat16, torch.float16):
        kept = {"output_dtype": None, "reduce_dtype": torch.float32}
        plugin.mixed_precision_policy = replace(given, **kept)


class LLDSMixin(_Trainer):
    """Adds the LLDS penalty to a `GRPOTrainer`, or to a subclass that keeps its forward pass:
    `class Mine(LLDSMixin, MyGRPOTrainer)`, the mixin first.

    Old log-probabilities are TRL's: computed by the trained model before the first update, also
    where vLLM samples. The penalty is divided by the tokens of all micro-batches of the update, on
    all processes; no split of a mini-batch changes it.

    Logged with TRL's own metrics, per update: `llds/penalty` (before the weight),
    `llds/gated_fraction` (preserved tokens that it pulls up), and on the first update of a rollout
    `llds/gated_fraction_first`: nothing has changed yet, so that anything above 0 is numerical
    noise and calls for a threshold. Of the responses of positive advantage `llds/loglik_rewarded`
    (nats per token, when they were sampled) and, from the second pass over a rollout on, what
    updates did to them: `llds/change_rewarded` (nats per response) and `llds/displaced_fraction`
    (those that became less likely). Both end in `_first` on the first update, where they are noise,
    and in `_by_others` on the others of the first pass: a response has had no update of its own,
    which would lift it. Below 0 is displacement.

    Args:
        positional, options: those of the trainer, by position or by name; `args` with at least two
            updates per rollout, best of several mini-batches (`steps_per_generation`).
        llds_weight: weight of the penalty, >= 0 (paper: 0.2). With 0 training is the trainer's own,
            to the bit, under any settings, and the metrics are logged where they mean something:
            not where an update takes parts of two rollouts, or advantages differ by token.
        llds_gate, llds_normalizer, llds_preserve, llds_gate_threshold: those of
            `llds_core.losses.llds_penalty`.

    Raises:
        ConfigError: for settings under which the penalty would do nothing, or see noise.
        ValueError: for options that `llds_penalty` does not know.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        order = cls.__mro__
        if GRPOTrainer in order and order.index(GRPOTrainer) < order.index(LLDSMixin):
            raise ConfigError(f"{cls.__name__} never calls LLDSMixin: write it before GRPOTrainer")

    def __init__(
        self,
        *positional: Any,
        llds_weight: float = 0.2,
        llds_gate: str = "action",
        llds_normalizer: str = "preserved",
        llds_preserve: str = "nonnegative",
        llds_gate_threshold: float = 0.0,
        **options: Any,
    ) -> None:
        if not isinstance(self, GRPOTrainer):
            raise ConfigError(
                f"{type(self).__name__} is no GRPOTrainer: write LLDSMixin before GRPOTrainer or a "
                "subclass of it (AsyncGRPOTrainer and RLOOTrainer have losses of their own)"
            )
        self.llds_weight = llds_weight
        self.llds_gate = llds_gate
        self.llds_normalizer = llds_normalizer
        self.llds_preserve = llds_preserve
        self.llds_gate_threshold = llds_gate_threshold
        check_penalty(self)  # rather here than after the first rollout
        args = options.get("args", positional[2] if len(positional) > 2 else None)
        if llds_weight > 0 and args is not None:
            _check_settings(args)  # before a model is loaded
        super().__init__(*positional, **options)
        self._llds_is_whole = _updates(self.args).is_integer()
        self._llds_passes: list[torch.Tensor] = []
        if llds_weight == 0:
            return
        _check_settings(self.args)  # accelerator_config may have changed them
        if noise := _largest_noise(self.model):
            raise ConfigError(
                f"the model drops out {noise:g} of its values, or jitters, which moves "
                "log-probabilities more than an update does: set disable_dropout=True in "
                "GRPOConfig, and load the model with attention_dropout=0, or what its "
                "configuration calls it"
            )

    def create_accelerator_and_postprocess(self) -> None:
        """See `keep_32_bits`; without weight all is as TRL has it."""
        super().create_accelerator_and_postprocess()
        if self.llds_weight > 0:
            keep_32_bits(self)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled():
            self._llds_passes.append(output[0])
        return output

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer has it; an error where that goes past the penalty."""
        self._llds_was_asked = False
        loss = super().compute_loss(*args, **kwargs)
        if self.llds_weight > 0 and self.model.training and not self._llds_was_asked:
            raise ConfigError(
                f"`compute_loss` of {type(self).__name__} does not call `_compute_loss`, and no "
                "penalty would be added (Liger in older TRL, Unsloth): switch it off"
            )
        return loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._llds_was_asked, self._llds_passes = True, []
        loss = super()._compute_loss(model, inputs)
        if not self.model.training:  # what is evaluated was sampled by the same policy
            return loss
        passes, self._llds_passes = self._llds_passes, []
        old = inputs.get("old_per_token_logps")
        # With one update per rollout TRL keeps no old ones: they are the present ones.
        is_known = len(passes) == 1 and (old is not None or _updates(self.args) == 1)
        by_token = inputs["advantages"].dim() > 1
        if not self.llds_weight and (by_token or not is_known or not self._llds_is_whole):
            return loss
        if not is_known:
            raise ConfigError(
                f"the loss of {type(self).__name__} took log-probabilities from "
                f"`_get_per_token_logps_and_entropies` {len(passes)} times and has "
                f"{'none' if old is None else 'those'} of before the update; LLDS needs both once "
                "(a fused loss, PAPO and DPPO differ): take another trainer, or llds_weight=0"
            )
        window = self.args.gradient_accumulation_steps
        position = self._step % window
        if position == 0:
            self._llds_count = self._tokens_of_update()
            self._llds_sums = torch.zeros(len(_SUMS), device=loss.device)
        old = passes[0].detach() if old is None else old
        penalty, counts = penalty_and_sums(
            self, passes[0], old, *_constants(inputs), denominator=self._llds_count
        )
        self._llds_sums += torch.stack([counts[name].float() for name in _SUMS])
        if position == window - 1:
            self._log_update()
        return loss + self.llds_weight * penalty if self.llds_weight > 0 else loss

    def _tokens_of_update(self) -> torch.Tensor:
        """What the update under way divides by: the count of all processes, shared among them, for
        their gradients are averaged.
        """
        held = self._buffered_inputs
        ahead = range(self._step, self._step + self.args.gradient_accumulation_steps)
        counts = [counted_tokens(self, *_constants(held[step % len(held)])) for step in ahead]
        return self.accelerator.reduce(torch.stack(counts).sum().float(), reduction="mean")

    def _log_update(self) -> None:
        found = self.accelerator.reduce(self._llds_sums, reduction="sum").tolist()
        sums = dict(zip(_SUMS, found, strict=True))
        tokens = self._llds_count.item() * self.accelerator.num_processes
        gated = sums["gated_tokens"] / max(sums["preserved_tokens"], 1)
        metrics = {"penalty": sums["penalty_sum"] / max(tokens, 1), "gated_fraction": gated}
        first_pass = len(self._buffered_inputs)
        place = self._step % (first_pass * self.num_iterations)  # in the rollout
        is_first = place < self.args.gradient_accumulation_steps
        if is_first:
            metrics["gated_fraction_first"] = gated
        suffix = "_first" if is_first else "_by_others" if place < first_pass else ""
        for name, value in (metrics | displacement_metrics(sums, suffix)).items():
            self._metrics["train"][f"llds/{name}"].append(value)


def _largest_noise(model: torch.nn.Module) -> float:
    """The largest share that a module of `model` drops, also where it drops by a function, or by
    which it jitters.
    """
    modules = [*model.modules()]
    shares = [module.p for module in modules if isinstance(module, torch.nn.Dropout)]
    named = [item for module in modules for item in vars(module).items()]
    words = ("dropout", "pdrop", "jitter")
    shares += [p for n, p in named if isinstance(p, float) and any(word in n for word in words)]
    return max(shares, default=0)


def _constants(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask of tokens that the model wrote, and an advantage per response."""
    mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    advantages = inputs["advantages"]
    if advantages.dim() > 1:
        advantages = one_per_response(advantages, mask, "GRPOTrainer")
    return mask, advantages


class LLDSGRPOTrainer(LLDSMixin, GRPOTrainer):
    """TRL's `GRPOTrainer` with the LLDS penalty; arguments as in `LLDSMixin`."""


def _updates(args: GRPOConfig) -> float:
    """Updates per rollout."""
    return (args.steps_per_generation or 1) * args.num_iterations / args.gradient_accumulation_steps


def _check_settings(args: GRPOConfig) -> None:
    """Refuse less than two updates per rollout, updates on parts of two rollouts, advantages whose
    sign is rounding, and noise on the embedding.
    """
    if args.neftune_noise_alpha:
        raise ConfigError(
            f"neftune_noise_alpha={args.neftune_noise_alpha} moves log-probabilities more than an "
            "update does: leave it out"
        )
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ConfigError(
            f"multi_objective_aggregation={args.multi_objective_aggregation} gives groups of equal "
            "rewards advantages of either sign, and the sign says what is preserved: set "
            "sum_then_normalize"
        )
    steps, window = args.steps_per_generation or 1, args.gradient_accumulation_steps
    if (updates := _updates(args)) < 2 or not updates.is_integer():
        raise ConfigError(
            f"steps_per_generation={steps} × num_iterations={args.num_iterations} / "
            f"gradient_accumulation_steps={window} makes {updates:g} updates per rollout: "
            "LLDS is 0 on the first and needs a whole number of at least 2; "
            f"set steps_per_generation={8 * window} for 8 mini-batches per rollout, and give no "
            "generation_batch_size"
        )
