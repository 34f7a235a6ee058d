"""The command that starts the vLLM server of `sampler.mode=server`."""

import os
import shlex
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from llds_core.config import ExperimentConfig, RolloutConfig

_LOOPBACK = ("localhost", "127.0.0.0/8", "127.0.0.1", "0.0.0.0", "::1")


def logprobs_mode(rollout: RolloutConfig) -> Literal["raw_logprobs", "processed_logprobs"]:
    """vLLM's mode whose log-probabilities are those of the transformers sampler.

    Processed ones are taken after temperature, nucleus and the mask of ids that are no tokens:
    exact without a nucleus. Raw ones ignore all three: at temperature 1 with a nucleus they are off
    by the probability of such ids. With another temperature and a nucleus, vLLM has no such mode,
    and the processed ones are renormalised to the nucleus.
    """
    is_raw = rollout.temperature == 1 and rollout.top_p < 1
    return "raw_logprobs" if is_raw else "processed_logprobs"


def spare_loopback() -> None:
    """Let no proxy of the environment stand between this machine and itself, whoever asks."""
    for name in ("no_proxy", "NO_PROXY"):
        spared = os.environ.get(name, "").split(",")
        os.environ[name] = ",".join(dict.fromkeys([*filter(None, spared), *_LOOPBACK]))


def server_command(config: ExperimentConfig, policy: Path | str) -> str:
    """Shell command of the vLLM server that `config` expects, serving the start policy."""
    sampler = config.sampler
    arguments = {
        "port": urlsplit(sampler.server_url).port,
        "tensor-parallel-size": sampler.tensor_parallel,
        "max-model-len": config.rollout.max_total_tokens,
        "dtype": config.training.dtype,
        "logprobs-mode": logprobs_mode(config.rollout),
        "weight-transfer-config": '{"backend": "nccl"}',
    }
    words = ["vllm", "serve", str(policy)]
    words += [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    # Weights are pushed through endpoints that vLLM only opens in this mode.
    return f"VLLM_SERVER_DEV_MODE=1 {shlex.join(words)}"
