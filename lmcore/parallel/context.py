"""Context parallel: each process has a part of every sequence, and asks the others for keys and values."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 warns of the older names.
_gather_single: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class SharedSequence:
    """The part of each sequence that this process has (Llama 3, Dubey et al. 2024, section 3.3.2).

    A sequence is cut into 2 ``size`` pieces; process i has piece i and its mirror image from the end, so that
    all have the same number of pairs to attend to. Keys and values are gathered, queries stay.

    Args:
        group: The processes that share our sequences.
        size, rank: How many, and our place.
    """

    def __init__(self, group: dist.ProcessGroup, size: int, rank: int) -> None:
        self.group, self.size, self.rank = group, size, rank
        self._orders: dict[tuple[int, torch.device], Tensor] = {}

    def places(self, length: int, device: torch.device) -> Tensor:
        """Places of our tokens in a sequence of ``length``, int64 [T / size]."""
        return self.all_places(length, device).view(self.size, -1)[self.rank]

    def all_places(self, length: int, device: torch.device) -> Tensor:
        """Places in the order in which keys and values are gathered, int64 [T]."""
        if (length, device) not in self._orders:  # a GPU is told once: each time it would be waited for
            order = [piece for rank in range(self.size) for piece in (rank, 2 * self.size - 1 - rank)]
            self._orders[length, device] = torch.arange(length).view(2 * self.size, -1)[order].flatten()
            self._orders[length, device] = self._orders[length, device].to(device)
        return self._orders[length, device]

    def mask(self, length: int, document_ids: Tensor | None, device: torch.device) -> Tensor:
        """Who of us may see whom: bool [T / size, T], or with ``document_ids`` [B, T] [B, 1, T / size, T]."""
        mine, others = self.places(length, device), self.all_places(length, device)
        mask = mine[:, None] >= others
        if document_ids is None:
            return mask
        return (mask & (document_ids[:, mine, None] == document_ids[:, None, others]))[:, None]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return all processes' ``keys`` and ``values`` [B, KV, T / size, .] as [B, KV, T, .]."""
        del layer
        gathered = _Gather.apply(torch.stack((keys, values)), self.group, self.size)
        both = gathered.movedim(0, 3).flatten(3, 4)  # [size, 2, B, KV, t, hd] -> [2, B, KV, T, hd]
        return both[0], both[1]

    def gather(self, mine: Tensor) -> Tensor:
        """Put together, without a gradient, what each process has a part of: [B, T / size] -> [B, T]."""
        gathered = (
            _all_gather(mine, self.group, self.size).movedim(0, 1).flatten(1)
        )  # [B, T] in the order of processes
        whole = torch.empty_like(gathered)
        whole[:, self.all_places(gathered.shape[1], mine.device)] = gathered
        return whole


class _Gather(torch.autograd.Function):
    """All processes' tensors, behind one another; going back, the sum of their gradients for ours."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: dist.ProcessGroup, size: int) -> Tensor:
        ctx.group = group
        return _all_gather(mine, group, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()  # [size, ...]
        mine = gradient.new_empty(gradient.shape[1:])
        _reduce_scatter(mine, gradient.flatten(0, 1), group=ctx.group)
        return mine, None, None


def _all_gather(mine: Tensor, group: dist.ProcessGroup, size: int) -> Tensor:
    """What each process has, stacked: [size, *mine.shape]."""
    stacked = mine.new_empty(size, *mine.shape)
    _gather_single(stacked.flatten(0, 1), mine.contiguous(), group=group)
    return stacked
