"""The section `loss`: the parts that every objective is put together from (docs/objectives.md)."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, StrictBool

from llds_core.config.checked import Number, checked


@checked
class LossConfig:
    """The objective: surrogate, KL, entropy bonus, and the penalties LLDS and Lp-Reg."""

    advantage_mean: Literal["group", "batch"] = "group"
    advantage_std: Literal["group", "batch", "none"] = "group"
    aggregate: Literal["token-mean", "token-mean-micro", "seq-mean-token-mean", "constant"] = (
        "token-mean"
    )
    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["clip", "cispo"] = "clip"
    """`cispo` clips the weight of a token, from above only, and never its gradient."""
    clip_low: Number = Field(default=0.2, ge=0, le=1)
    clip_high: Number = Field(default=0.2, ge=0)
    dual_clip: Number | None = Field(default=None, ge=1)
    """Largest ratio at negative advantages; null does not bound it."""
    kl_weight: Number = Field(default=0.001, ge=0)
    kl_clamp: Number | None = Field(default=None, ge=1e-6)
    """k3 above this value pulls no more, as in the official code (10); null never lets go."""
    entropy_weight: Number = Field(default=0.0, ge=0)
    llds_weight: Number = Field(default=0.0, ge=0)
    gate: Literal["action", "response", "token"] = "action"
    normalizer: Literal["preserved", "all"] = "preserved"
    preserve: Literal["nonnegative", "positive"] = "nonnegative"
    gate_threshold: Number = Field(default=0.0, ge=0)
    answer_weight: Number = Field(default=1.0, ge=0, le=1)
    answer_ramp: Literal["none", "paper", "code"] = "none"
    """LLDS-MA: how the answer weight follows the mean number of searches."""
    negative_advantages: StrictBool = True
    """False sets negative advantages of the surrogate to zero: incorrect responses push nothing
    down."""
    mask_truncated: StrictBool = False
    """Overlong filtering: trajectories that a limit has ended, not an answer, leave the loss."""
    lp_reg_weight: Number = Field(default=0.0, ge=0)
    lp_reg_kl: Literal["full", "token"] = "full"
    """Divergence from the proxy: over the vocabulary (paper), or k3 of the token (code)."""
    lp_reg_share: Number = Field(default=0.01, ge=0, le=1)
    """Share of the tokens that count as unlikely."""
    lp_reg_min_p: Number = Field(default=0.02, ge=0, le=0.99)
    """Share of the largest probability up to which the proxy takes a token for noise."""

    def __post_init__(self) -> None:
        for problem in _wrong_objectives(self):
            raise ValueError(problem)


def _wrong_objectives(loss: LossConfig) -> Iterator[str]:
    """Parts of an objective that do not go together."""
    if loss.ratio == "sequence" and loss.aggregate != "seq-mean-token-mean":
        yield (
            f"loss.ratio=sequence (GSPO) with loss.aggregate={loss.aggregate} weights "
            "sequences by length: set loss.aggregate=seq-mean-token-mean"
        )
    if loss.surrogate == "cispo":
        needed = {"ratio": "token", "aggregate": "token-mean", "clip_low": 1, "dual_clip": None}
        for key, value in needed.items():
            if (seen := getattr(loss, key)) != value:
                yield (
                    f"loss.surrogate=cispo with loss.{key}={seen}: it caps the weights of single "
                    f"tokens, from above, and averages over tokens; set loss.{key}="
                    f"{'null' if value is None else value}"
                )
    if loss.dual_clip is not None and loss.dual_clip < 1 + loss.clip_high:
        yield (
            f"loss.dual_clip={loss.dual_clip} cuts into the clip range, which ends at 1 + "
            f"loss.clip_high={1 + loss.clip_high:g}: set at least that, or null"
        )
    if loss.advantage_mean == "batch" and loss.advantage_std == "group":
        yield (
            "loss.advantage_mean=batch with loss.advantage_std=group scales by a spread that a "
            "group of equal rewards does not have: set loss.advantage_std=batch or none"
        )
    if loss.mask_truncated and loss.aggregate == "seq-mean-token-mean":
        yield (
            "loss.mask_truncated=true with loss.aggregate=seq-mean-token-mean would count what is "
            "left out as sequences: set loss.aggregate=token-mean"
        )
