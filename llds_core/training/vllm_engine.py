"""What TRL leaves open about its vLLM engine: whether it can start, its dtype and log-prob mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from trl import GRPOTrainer
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient

from llds_core.config import ExperimentConfig
from llds_core.errors import SamplerError
from llds_core.machine.vllm_server import logprobs_mode, server_command, spare_loopback
from llds_core.rollout.vllm_sampler import (
    MOST_SEQUENCES,
    ColocatedEngine,
    Engine,
    ServerEngine,
    require_vllm,
)

_HEALTH_SECONDS = 10.0


def check_vllm(config: ExperimentConfig, policy: Path) -> None:
    """Refuse, before anything is loaded, a vLLM sampler that could not start; the advice starts a
    server with the start policy `policy`.
    """
    sampler = config.sampler
    if sampler.backend != "vllm":
        return
    require_vllm()
    if sampler.mode == "server":
        spare_loopback()  # TRL's client, too, asks whatever proxy the environment names
        try:
            requests.get(f"{sampler.server_url}/health", timeout=_HEALTH_SECONDS).raise_for_status()
        except requests.RequestException as error:
            raise SamplerError(
                f"no vLLM server answers at sampler.server_url={sampler.server_url}: start it "
                f"with {server_command(config, policy)}"
            ) from error


@contextmanager
def engine_options(config: ExperimentConfig) -> Iterator[None]:
    """Add to the colocated engine that a trainer builds inside this context what TRL does not pass.

    Left alone, vLLM takes the dtype from the checkpoint's file and makes half precision of
    float32, and TRL fixes the log-prob mode for an importance correction that is not used here.
    """
    if config.sampler.backend != "vllm" or config.sampler.mode != "colocate":
        yield
        return
    made = vllm_generation.LLM
    options = {
        "dtype": config.training.dtype,
        "logprobs_mode": logprobs_mode(config.rollout),
        "enable_prefix_caching": True,
    }

    def make(**theirs: Any) -> Any:
        # TRL asks for the whole rollout at once: vLLM would reserve gigabytes for its logits, and
        # refuses more sequences than the tokens it takes in a pass.
        most = min(theirs.get("max_num_seqs", MOST_SEQUENCES), MOST_SEQUENCES)
        return made(**theirs | options | {"max_num_seqs": most})

    vllm_generation.LLM = make
    try:
        yield
    finally:
        vllm_generation.LLM = made


def open_engine(trainer: GRPOTrainer) -> Engine:
    """The engine that TRL built for `trainer`."""
    generation: Any = trainer.vllm_generation
    if generation.mode == "colocate":
        return ColocatedEngine(generation)
    accelerator = trainer.accelerator
    client = (
        generation.vllm_client
        if accelerator.is_main_process
        else VLLMClient(base_url=generation.server_base_url)
    )
    return ServerEngine(client, accelerator.wait_for_everyone)
