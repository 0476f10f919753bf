"""The MLP of a block, and its nonlinearities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmcore.config import Activation, ModelConfig, swiglu_block
from lmcore.model.linear import Linear, are_plain, by_input, go_back, is_plain, multiply

_GELU_SCALE = 2 * math.sqrt(2 / math.pi)


def activate(h: Tensor, activation: Activation, block: int) -> Tensor:
    """Apply the nonlinearity of an MLP to ``h`` [..., M], or for SwiGLU [..., 2M]; return [..., M].

    SwiGLU's gate and up are one matrix: one product instead of two. Its rows are blocks (``swiglu_block``) of
    the gate and of up in turn, so that a part of the rows is a part of both.
    """
    if is_plain(h) and activation != "gelu_erf":  # that is one kernel of torch's already
        if torch.is_grad_enabled() and h.requires_grad:
            return _Nonlinear.apply(h, activation, block)
        if activation == "gelu":
            return _twice_u(h).sigmoid_().mul_(h)
    if activation == "swiglu":
        gate, up = _gate_and_up(h, block)
        return (F.silu(gate) * up).flatten(-2)
    if activation == "relu2":
        return F.relu(h).square()
    # The first is GPT-2's.
    return F.gelu(h, approximate="tanh" if activation == "gelu" else "none")


class MLP(nn.Module):
    """Two linear layers around GELU or squared ReLU; or SwiGLU's three (Shazeer 2020).

    Args:
        config: The model's.
        size: Width of what lies between; None: the model's.

    Attributes:
        merged: Whether it may be one operation to autograd, where that is faster. To a checkpoint it should
            be several: of those it does the last again only if somebody needs its result.
    """

    def __init__(self, config: ModelConfig, size: int | None = None) -> None:
        super().__init__()
        self.merged = True
        size = size or config.mlp_size
        self.activation: Activation = config.activation
        self.block = swiglu_block(size)
        rows = size * (2 if config.activation == "swiglu" else 1)
        self.up = Linear(config.hidden_size, rows, bias=config.bias)
        self.down = Linear(size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, T, D] to [B, T, D]."""
        if self.merged and are_plain(x, self.up, self.down):
            up, down = self.up, self.down
            return _MLPOnCPU.apply(x, up.weight, up.bias, down.weight, down.bias, self.activation, self.block)
        return self.down(activate(self.up(x), self.activation, self.block))


# --- fp32 on a CPU ---------------------------------------------------------------------------------
#
# Eager operations there are bound by memory: what is new takes several times as long to write as what is
# still in a cache. So each nonlinearity has a way back that is told where its result may lie.


@dataclass(frozen=True)
class _Nonlinearity:
    """One of them, and its way back.

    Attributes:
        forward: What it makes of ``h``, which it leaves alone, and one tensor that is kept of it.
        backward: Multiplies a gradient by the slope, which the kept tensor tells of, into a third, which for
            a result of the same shape may be the gradient.
    """

    forward: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor, int], Tensor]


def _squared_relu(h: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """relu(h)^2 (So et al. 2021)."""
    del block
    positive = F.relu(h)
    return positive * positive, positive


def _by_squared_relu(gradient: Tensor, positive: Tensor, into: Tensor, block: int) -> Tensor:
    del block
    return torch.mul(gradient, positive, out=into).mul_(2)


def _gelu(h: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """GELU by a sigmoid (Hendrycks and Gimpel 2016), whose vector instructions are faster than tanh's.

    h / 2 (1 + tanh(u)) = h sigmoid(2u), u = sqrt(2 / pi) (h + 0.044715 h^3). Its slope is kept.
    """
    del block
    twice_u = _twice_u(h)
    gate = twice_u.sigmoid()
    # d/dh = gate + h gate (1 - gate) 2u', and h 2u' = 3 (2u) - 2 scale h.
    slope = twice_u.mul_(3).sub_(h, alpha=2 * _GELU_SCALE)
    slope = slope.addcmul_(slope, gate, value=-1).add_(1).mul_(gate)
    return gate.mul_(h), slope


def _twice_u(h: Tensor) -> Tensor:
    return h.square().mul_(0.044715 * _GELU_SCALE).add_(_GELU_SCALE).mul_(h)


def _by_gelu(gradient: Tensor, slope: Tensor, into: Tensor, block: int) -> Tensor:
    del block
    return torch.mul(gradient, slope, out=into)


def _gelu_erf(h: Tensor, block: int) -> tuple[Tensor, Tensor]:
    del block
    return F.gelu(h), h


def _by_gelu_erf(gradient: Tensor, h: Tensor, into: Tensor, block: int) -> Tensor:
    del block
    return torch.ops.aten.gelu_backward.grad_input(gradient, h, grad_input=into)


def _swiglu(h: Tensor, block: int) -> tuple[Tensor, Tensor]:
    gate, up = _gate_and_up(h, block)
    return F.silu(gate).mul_(up).flatten(-2), h


def _by_swiglu(gradient: Tensor, h: Tensor, into: Tensor, block: int) -> Tensor:
    (gate, up), (by_gate, by_up) = _gate_and_up(h, block), _gate_and_up(into, block)
    gradient = gradient.unflatten(-1, (-1, block))
    torch.ops.aten.silu.out(gate, out=by_up).mul_(gradient)
    torch.mul(gradient, up, out=by_gate)
    torch.ops.aten.silu_backward.grad_input(by_gate, gate, grad_input=by_gate)
    return into


def _gate_and_up(h: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Views of ``h`` [..., 2M], each [..., M / block, block]."""
    gate, up = h.unflatten(-1, (-1, 2, block)).unbind(-2)
    return gate, up


_NONLINEARITIES: dict[Activation, _Nonlinearity] = {
    "relu2": _Nonlinearity(_squared_relu, _by_squared_relu),
    "gelu": _Nonlinearity(_gelu, _by_gelu),
    "gelu_erf": _Nonlinearity(_gelu_erf, _by_gelu_erf),
    "swiglu": _Nonlinearity(_swiglu, _by_swiglu),
}


class _Nonlinear(torch.autograd.Function):
    """A nonlinearity by itself, as experts have it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, name: Activation, block: int) -> Tensor:
        result, kept = _NONLINEARITIES[name].forward(h, block)
        ctx.save_for_backward(kept)
        ctx.name, ctx.block = name, block
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (kept,) = ctx.saved_tensors
        back = _NONLINEARITIES[ctx.name].backward
        return back(gradients[0], kept, torch.empty_like(kept), ctx.block), None, None


class _MLPOnCPU(torch.autograd.Function):
    """The whole of it: gradients between the two matrices are changed where they lie, in a cache."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
        name: Activation,
        block: int,
    ) -> Tensor:
        between, kept = _NONLINEARITIES[name].forward(multiply(x, up, up_bias), block)
        ctx.save_for_backward(x, kept, between, up, down)
        ctx.name, ctx.block = name, block
        return multiply(between, down, down_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, kept, between, up, down = ctx.saved_tensors
        gradient, needs = gradients[0].contiguous(), ctx.needs_input_grad
        by_first: tuple[Tensor | None, ...] = (None,) * 3
        if any(needs[:3]):
            by_between = by_input(gradient, down)
            into = by_between if kept.shape == by_between.shape else torch.empty_like(kept)
            by_h = _NONLINEARITIES[ctx.name].backward(by_between, kept, into, ctx.block)
            del by_between, into
            by_first = go_back(by_h, x, up, needs[:3])
        _, *by_last = go_back(gradient, between, down, (False, *needs[3:5]))
        return *by_first, *by_last, None, None
