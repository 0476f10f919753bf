"""Adafactor on any layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from lmcore.parallel.parts import local

_EPS = torch.finfo(torch.float32).eps
_LEAST_SCALE = 1e-3  # of a parameter's root mean square, so that zeros can move
_DECAY = -0.8  # of the memory: after n steps it takes in n ** _DECAY of what is new


class Adafactor(torch.optim.Optimizer):
    """Steps relative to each parameter's size, second moments by row and column (Shazeer and Stern 2018).

    The same rule as ``torch.optim.Adafactor``, which cannot run on parameters that are divided over
    processes. Weight decay is decoupled.

    Args:
        groups: With "lr" and "weight_decay".
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])

    def _move(self, parameter: Tensor, rate: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state.update(empty_state(parameter))
        state["step"] += 1
        step = state["step"]
        scale = _root_mean_square(parameter).clamp(min=_LEAST_SCALE)
        gradient = cast("Tensor", parameter.grad)
        variance = _variance(gradient, state, step**_DECAY)
        update = variance.clamp(min=_EPS * _EPS).rsqrt() * gradient
        if weight_decay:
            parameter.mul_(1 - rate * weight_decay)
        # All on the device, where nobody waits for it.
        length = scale * step.rsqrt().clamp(max=rate) / _root_mean_square(update).clamp(min=1.0)
        parameter.sub_(update * length)


def empty_state(parameter: Tensor) -> dict[str, Tensor]:
    """What is kept of ``parameter`` before its first step, divided as it is."""
    step = torch.zeros((), dtype=torch.float32, device=local(parameter).device)
    zeros = torch.zeros_like(parameter)
    if parameter.ndim == 1:
        return {"step": step, "variance": zeros}
    return {"step": step, "row_var": _mean(zeros, -1), "col_var": _mean(zeros, -2)}


def _variance(gradient: Tensor, state: dict[str, Tensor], share: Tensor) -> Tensor:
    """Take ``share`` of the new squares in; the estimate for each number of ``gradient``."""
    squares = gradient * gradient
    if gradient.ndim == 1:
        return state["variance"].lerp_(squares, share)
    rows = state["row_var"].lerp_(_mean(squares, -1), share)
    columns = state["col_var"].lerp_(_mean(squares, -2), share)
    return rows * columns / _mean(rows, -2).clamp(min=_EPS)


def _mean(tensor: Tensor, dim: int) -> Tensor:
    # A sum, as torch's mean of shards of unequal size is another.
    total = tensor.sum(dim, keepdim=True)
    if isinstance(total, DTensor):
        total = total.redistribute(
            placements=[Replicate() if p.is_partial() else p for p in total.placements]
        )
    return total / tensor.shape[dim]


def _root_mean_square(tensor: Tensor) -> Tensor:
    total = (tensor * tensor).sum()
    total = total.full_tensor() if isinstance(total, DTensor) else total
    return (total / tensor.numel()).sqrt()
