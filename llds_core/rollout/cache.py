"""A KV cache for batches whose rows come and go.

transformers' `DynamicCache` copies everything it holds to append one token, and every row pays for
the longest one. Here tokens are appended in place, finished rows can be set aside and merged back,
and holes (columns that a row has only as padding) can be squeezed out.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

_SPARE_COLUMNS = 64


class _GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # of transformers
    """Keeps spare columns behind what it holds; `keys` and `values` are views without them."""

    keys: torch.Tensor
    values: torch.Tensor
    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, heads, M, D) states; return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < new:
            batch, heads, _, size = key_states.shape
            shape = (batch, heads, new + _SPARE_COLUMNS, size)
            buffers = (key_states.new_empty(shape), value_states.new_empty(shape))
            if old:
                buffers[0][..., :old, :] = self.keys
                buffers[1][..., :old, :] = self.values
            self._buffers = buffers
        keys, values = self._buffers
        keys[..., old:new, :] = key_states
        values[..., old:new, :] = value_states
        self.keys, self.values = keys[..., :new, :], values[..., :new, :]
        return self.keys, self.values


class RowCache:
    """Keys and values of a batch of contexts, with the mask of what is real.

    Attributes:
        states: what a transformers model takes as `past_key_values`.
        mask: (B, T) int64, 1 on real tokens; T columns are held by `states`.
    """

    def __init__(
        self, mask: torch.Tensor, states: Iterable[tuple[torch.Tensor, torch.Tensor]] = ()
    ) -> None:
        self.mask = mask
        self.states = Cache(layer_class_to_replicate=_GrowingLayer)
        for number, (keys, values) in enumerate(states):
            self.states.update(keys, values, number)

    @property
    def held(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values (B, heads, T, D) of each layer."""
        layers = cast("list[_GrowingLayer]", self.states.layers)
        return [(layer.keys, layer.values) for layer in layers]

    def select(self, rows: Sequence[int]) -> "RowCache":
        """Copy `rows`, in that order; a row may be named more than once."""
        chosen = torch.tensor(rows, device=self.mask.device)
        states = ((keys[chosen], values[chosen]) for keys, values in self.held)
        return RowCache(self.mask[chosen], states)

    def squeeze(self) -> "RowCache":
        """Move the real tokens of every row to the left and drop the columns nobody needs."""
        width = int(self.mask.sum(1).max())
        if width == self.mask.shape[1]:
            return self
        # Stable: real tokens stay in order, holes go to the end.
        order = self.mask.argsort(dim=1, descending=True, stable=True)[:, :width]

        def left(states: torch.Tensor) -> torch.Tensor:
            return states.gather(2, order[:, None, :, None].expand_as(states[:, :, :width]))

        states = ((left(keys), left(values)) for keys, values in self.held)
        return RowCache(self.mask.gather(1, order), states)


def merge(caches: Sequence[RowCache], order: Sequence[int]) -> RowCache:
    """Stack the rows of `caches`, then put row `order[i]` of the stack at place i."""
    width = max(cache.mask.shape[1] for cache in caches)
    chosen = torch.tensor(order, device=caches[0].mask.device)

    def stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        wide = [pad(part, (0, 0, 0, width - part.shape[-2])) for part in parts]
        return torch.cat(wide)[chosen]

    layers = (zip(*layer, strict=True) for layer in zip(*(c.held for c in caches), strict=True))
    states = ((stack(keys), stack(values)) for keys, values in layers)
    return RowCache(stack([cache.mask[..., None] for cache in caches])[..., 0], states)
