"""The command that starts the vLLM server of `sampler.mode=server`."""

import os
import shlex
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from llds_core.config import ExperimentConfig

_LOOPBACK = ("localhost", "127.0.0.0/8", "127.0.0.1", "0.0.0.0", "::1")


def logprobs_mode(temperature: float) -> Literal["raw_logprobs", "processed_logprobs"]:
    """vLLM's mode whose log-probabilities are those of the transformers sampler.

    Raw ones ignore the nucleus and the temperature: exact at temperature 1, whatever the nucleus.
    Processed ones are taken after both: exact without a nucleus, whatever the temperature. With
    both, vLLM has no such mode, and the processed ones are renormalised to the nucleus.
    """
    return "raw_logprobs" if temperature == 1 else "processed_logprobs"


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
        "logprobs-mode": logprobs_mode(config.rollout.temperature),
        "weight-transfer-config": '{"backend": "nccl"}',
    }
    words = ["vllm", "serve", str(policy)]
    words += [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    # Weights are pushed through endpoints that vLLM only opens in this mode.
    return f"VLLM_SERVER_DEV_MODE=1 {shlex.join(words)}"
