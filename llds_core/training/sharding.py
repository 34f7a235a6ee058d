"""Policies whole and sharded by FSDP2: a copy to sample from, and the weights of the reference.

Processes sample for different numbers of tokens, so none may wait for another inside a forward
pass, which is what sharded parameters do. A copy costs the memory of the weights once more; vLLM
keeps its own and needs none.
"""

from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel


class WholePolicy:
    """A copy of a policy sharded by FSDP2, brought up to date before each rollout."""

    def __init__(self) -> None:
        self._copy: PreTrainedModel | None = None

    @torch.no_grad()
    def of(self, policy: PreTrainedModel) -> PreTrainedModel:
        """Return the copy with the present weights of `policy`; all processes call it together."""
        if self._copy is None:
            self._copy = AutoModelForCausalLM.from_config(policy.config, dtype=policy.dtype)
            self._copy.generation_config = policy.generation_config
            cast(Any, self._copy).to(policy.device)  # transformers loses the types of `to`
        present = dict(policy.named_parameters())
        for name, value in self._copy.named_parameters():
            weight = present[name]
            value.copy_(weight.full_tensor() if isinstance(weight, DTensor) else weight)
        return self._copy


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
