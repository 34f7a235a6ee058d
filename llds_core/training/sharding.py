"""Policies whole and sharded by FSDP2: a copy to sample from, and the weights of the reference.

Processes sample for different numbers of tokens, so none may wait for another inside a forward
pass, which is what sharded parameters do. A copy costs the memory of the weights once more; vLLM
keeps its own and needs none.
"""

from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel


@torch.no_grad()
def whole_policy(policy: PreTrainedModel, copy: PreTrainedModel | None) -> PreTrainedModel:
    """Return `copy`, made when it is None, with the present weights of the sharded `policy`.

    All processes call it together, before each rollout.
    """
    if copy is None:
        copy = AutoModelForCausalLM.from_config(policy.config, dtype=policy.dtype)
        copy.generation_config = policy.generation_config
        cast(Any, copy).to(policy.device)  # transformers loses the types of `to`
    present = dict(policy.named_parameters())
    for name, value in copy.named_parameters():
        weight = present[name]
        value.copy_(weight.full_tensor() if isinstance(weight, DTensor) else weight)
    return copy


@torch.no_grad()
def copy_to_sharded(policy: PreTrainedModel, sharded: PreTrainedModel) -> None:
    """Give `sharded` the weights that the whole `policy` has in the first process.

    Only there has transformers read them, to save host memory. accelerate passes them on for the
    model that is trained, but TRL shards a reference policy as each process holds it.
    """
    present = dict(policy.named_parameters())
    for name, value in sharded.named_parameters():
        whole = present[name].detach().to(value.device)
        placed = cast(DTensor, value)
        value.copy_(distribute_tensor(whole, placed.device_mesh, placed.placements))
