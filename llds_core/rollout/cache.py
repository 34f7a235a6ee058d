"""A KV cache for batches whose rows come and go.

transformers' `DynamicCache` copies everything it holds to append one token, and every row pays for
the longest one. Here tokens are appended in place, finished rows can be set aside and merged back,
and holes (columns that a row has only as padding) can be squeezed out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

_SPARE_COLUMNS = 64


class _GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # of transformers
    """Keeps spare columns behind what it holds; `keys` and `values` are views without them."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

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

    def replace(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold these states instead."""
        self.keys, self.values, self._buffers = keys, values, None


@dataclass(frozen=True)
class Parked:
    """Rows set aside: their states per layer and their mask (B, T)."""

    states: list[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor


class RowCache:
    """Keys and values of a batch of contexts, with the mask of what is real.

    Attributes:
        states: what a transformers model takes as `past_key_values`.
        mask: (B, T) int64, 1 on real tokens; T columns are held by `states`.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.states = Cache(layer_class_to_replicate=_GrowingLayer)
        self.mask = torch.zeros(rows, 0, dtype=torch.long, device=device)

    @property
    def _layers(self) -> list[_GrowingLayer]:
        return cast("list[_GrowingLayer]", self.states.layers)

    def select(self, rows: Sequence[int]) -> None:
        """Keep `rows`, in that order; a row may be named more than once."""
        chosen = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[chosen]
        for layer in self._layers:
            layer.replace(layer.keys[chosen], layer.values[chosen])

    def squeeze(self) -> None:
        """Move the real tokens of every row to the left and drop the columns nobody needs."""
        width = int(self.mask.sum(1).max())
        if width == self.mask.shape[1]:
            return
        # Stable: real tokens stay in order, holes go to the end.
        order = self.mask.argsort(dim=1, descending=True, stable=True)[:, :width]
        self.mask = self.mask.gather(1, order)
        for layer in self._layers:
            index = order[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.replace(layer.keys.gather(2, index), layer.values.gather(2, index))

    def park(self, rows: Sequence[int]) -> Parked:
        """Return a copy of `rows`, to be merged back later."""
        chosen = torch.tensor(rows, device=self.mask.device)
        states = [(layer.keys[chosen], layer.values[chosen]) for layer in self._layers]
        return Parked(states, self.mask[chosen])

    def merge(self, parked: Sequence[Parked], order: Sequence[int]) -> None:
        """Append parked rows below the present ones, then put row `order[i]` at place i."""
        masks = [self.mask, *(part.mask for part in parked)]
        width = max(mask.shape[1] for mask in masks)
        chosen = torch.tensor(order, device=self.mask.device)

        def stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
            wide = [pad(part, (0, 0, 0, width - part.shape[-2])) for part in parts]
            return torch.cat(wide)[chosen]

        self.mask = stack([mask[..., None] for mask in masks])[..., 0]
        for number, layer in enumerate(self._layers):
            keys, values = zip(*(part.states[number] for part in parked), strict=True)
            layer.replace(stack([layer.keys, *keys]), stack([layer.values, *values]))
