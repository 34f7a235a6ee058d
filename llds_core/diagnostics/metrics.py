"""Every metric of a step, defined once: name, unit, what it means, and under which policy it is
measured.

A step is one rollout and all of its updates. `old` is the policy that sampled the rollout, `new`
the policy after the step's updates, `during` the policies in between. All means are over the whole
step: conditional means such as `loglik_correct` divide by the tokens that meet the condition, and
are null when none does. *Correct* means exact match 1, *preserved* means advantage >= 0 (or > 0, as
configured).
"""

from dataclasses import dataclass
from typing import Literal

Policy = Literal["old", "new", "during", "none"]


@dataclass(frozen=True)
class Metric:
    """Definition of one column of `metrics.jsonl`."""

    name: str
    unit: str
    meaning: str
    policy: Policy = "old"


_NATS = "nats per token"
_DEFINITIONS = (
    Metric("step", "steps", "rollouts made so far, this one included", "none"),
    Metric("updates", "updates", "optimizer steps made so far, skipped ones included", "none"),
    Metric("reward", "reward", "mean reward of the rollout"),
    Metric("em", "share", "share of trajectories whose answer matches exactly"),
    Metric("loglik_correct", _NATS, "mean log-likelihood of policy tokens of correct trajectories"),
    Metric("loglik_incorrect", _NATS, "as loglik_correct, incorrect trajectories"),
    Metric("loglik_correct_first", _NATS, "as loglik_correct, first actions only"),
    Metric("loglik_correct_later", _NATS, "as loglik_correct, all actions but the first"),
    Metric("loglik_incorrect_first", _NATS, "as loglik_incorrect, first actions only"),
    Metric("loglik_incorrect_later", _NATS, "as loglik_incorrect, all actions but the first"),
    Metric(
        "loglik_change_correct",
        "nats per trajectory",
        "mean change of the summed log-probability of correct trajectories over the step's updates",
        "new",
    ),
    Metric(
        "loglik_change_incorrect",
        "nats per trajectory",
        "as loglik_change_correct, incorrect trajectories",
        "new",
    ),
    Metric(
        "hidden_similarity",
        "cosine",
        "mean over (correct, incorrect) pairs of a group of the cosine of mean-pooled last-layer "
        "states of policy tokens",
    ),
    Metric("entropy", _NATS, "mean entropy of the next-token distribution at policy tokens"),
    Metric(
        "kl", _NATS, "mean k3 estimate of the divergence from the start policy at policy tokens"
    ),
    Metric(
        "sampler_gap",
        _NATS,
        "mean absolute difference between the sampler's log-probabilities, at its temperature, and "
        "the trainer's own of the same policy tokens",
    ),
    Metric("sampler_gap_max", _NATS, "largest such difference of a policy token of the step"),
    Metric("loss", "loss", "mean total loss of the step's updates", "during"),
    Metric(
        "grad_norm",
        "norm",
        "mean total gradient norm before clipping, finite updates only",
        "during",
    ),
    Metric("grad_norm_max", "norm", "as grad_norm, the largest", "during"),
    Metric(
        "ratio_max",
        "ratio",
        "largest likelihood ratio of a policy token to the policy that sampled",
        "during",
    ),
    Metric("ratio_min", "ratio", "as ratio_max, the smallest", "during"),
    Metric(
        "clip_fraction", "share", "share of policy tokens whose surrogate was clipped", "during"
    ),
    Metric(
        "llds_penalty",
        "loss",
        "mean LLDS penalty before its weight, computed for every method",
        "during",
    ),
    Metric(
        "gated_fraction",
        "share",
        "share of preserved policy tokens that the penalty acts on",
        "during",
    ),
    Metric(
        "gated_fraction_first",
        "share",
        "gated_fraction in the first mini-batch of the rollout: the canary, 0 on CPU in float32",
        "during",
    ),
    Metric("preserved_fraction", "share", "share of policy tokens in preserved trajectories"),
    Metric("answer_weight", "weight", "LLDS weight of answer tokens relative to other tokens"),
    Metric("response_length", "tokens", "mean policy tokens of a trajectory"),
    Metric("observation_length", "tokens", "mean observation tokens of a trajectory"),
    Metric("valid_searches", "searches", "mean executed searches of a trajectory"),
    Metric("valid_answers", "share", "share of trajectories that end in an answer"),
    Metric(
        "invalid_actions",
        "actions",
        "mean actions of a trajectory that were neither search nor answer",
    ),
    Metric(
        "failed_searches",
        "share",
        "share of executed searches that returned injected, unrelated passages",
    ),
    Metric("empty_searches", "share", "share of executed searches that returned nothing"),
    Metric("zero_variance_groups", "share", "share of groups whose rewards are all equal"),
    Metric(
        "padding",
        "share",
        "share of padded positions in the micro-batches of the updates",
        "during",
    ),
    Metric(
        "nonfinite_updates",
        "updates",
        "updates of this step that were skipped as non-finite",
        "during",
    ),
    Metric("learning_rate", "1", "learning rate of the last update", "during"),
    Metric(
        "gpu_memory",
        "GiB",
        "most GPU memory that torch held at a time, of any process; none on a CPU",
        "none",
    ),
    Metric("rollout_seconds", "seconds", "wall time of the rollout, search included", "none"),
    Metric("retrieval_seconds", "seconds", "part of it spent in the search engine", "none"),
    Metric(
        "update_seconds",
        "seconds",
        "wall time of the updates and of the passes for old log-probabilities",
        "none",
    ),
    Metric(
        "rollout_tokens_per_second", "tokens per second", "policy tokens sampled a second", "none"
    ),
    Metric(
        "update_tokens_per_second",
        "tokens per second",
        "prompt and response tokens trained on a second",
        "none",
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _DEFINITIONS}
