"""Products of groups of rows, each group with a matrix of its own, in an order that never changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply the first ``counts[0]`` rows of ``x`` by ``weight[0]``, the next by ``weight[1]``, and so on.

    Args:
        x: [N, in].
        weight: [E, out, in]; its gradient is whole, with zeros for groups without rows.
        counts: [E], rows of each group; their sum is N.

    Returns:
        [N, out], of the type of autocast where that is on.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return _GroupedLinear.apply(x, weight, counts)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, counts)
        return _rows_by_group(x, weight.mT, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient = gradients[0].contiguous()
        x, weight, counts = ctx.saved_tensors
        return _rows_by_group(gradient, weight, counts), _outer_by_group(gradient, x, counts), None


def _rows_by_group(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """[N, in] by [E, in, out]: [N, out]."""
    if _has_kernel(x, matrices):
        return F.grouped_mm(x, matrices, offs=_ends(counts))
    y = x.new_empty(x.shape[0], matrices.shape[2])
    for group, rows in _groups(counts):
        torch.mm(x[rows], matrices[group], out=y[rows])
    return y


def _outer_by_group(y: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """[N, out] and [N, in]: the sum of each group's outer products, [E, out, in]."""
    if _has_kernel(y, x):
        product = F.grouped_mm(y.mT, x, offs=_ends(counts))
        # Not left to the kernel: a group without rows adds nothing, whatever was in memory.
        return product.masked_fill_((counts == 0)[:, None, None], 0)
    product = y.new_zeros(counts.shape[0], y.shape[1], x.shape[1])
    for group, rows in _groups(counts):
        torch.mm(y[rows].mT, x[rows], out=product[group])
    return product


def _has_kernel(a: Tensor, b: Tensor) -> bool:
    """Whether torch has one kernel for all groups: bf16 on CUDA from Ampere on, rows of whole 16 bytes."""
    if not a.is_cuda or a.dtype != torch.bfloat16 or torch.cuda.get_device_capability(a.device) < (8, 0):
        return False
    return a.shape[0] > 0 and a.shape[-1] % 8 == 0 and b.shape[-1] % 8 == 0


def _ends(counts: Tensor) -> Tensor:
    return counts.cumsum(0).to(torch.int32)


def _groups(counts: Tensor) -> Iterator[tuple[int, slice]]:
    """The groups that have rows, and these."""
    start = 0
    for group, count in enumerate(counts.tolist()):
        if count:
            yield group, slice(start, start + count)
        start += count


def spread(x: Tensor, order: Tensor, place: Tensor, copies: int) -> Tensor:
    """Copy each row of ``x`` [N, D] ``copies`` times and put the copies in ``order``: [N copies, D].

    Args:
        x: Rows.
        order: [N copies]; copy c of row n is number n copies + c.
        place: Where each copy came to lie: the inverse of ``order``.
        copies: Of each row.
    """
    return _Spread.apply(x, order, place, copies)


class _Spread(torch.autograd.Function):
    """Its gradient is gathered, and added up over the copies: indexing's own adds in any order on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.copies = copies
        return x.index_select(0, order // copies if copies > 1 else order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (place,) = ctx.saved_tensors
        gradient = gradients[0].index_select(0, place)
        if ctx.copies > 1:
            gradient = gradient.unflatten(0, (-1, ctx.copies)).sum(1)
        return gradient, None, None, None
