"""Causal attention by plain products of matrices: for short sequences in fp32 on a CPU.

Torch's fused kernel is there for long ones; at 64 tokens the products are faster (decision 0018).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmcore.model.linear import by_input, go_back, multiply


def attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from ``q`` to ``k`` and ``v``, each [B, T, H, head_dim]; return [B, T, H * head_dim]."""
    return _Attend.apply(q, k, v)


def attention_by_products(
    x: Tensor, qkv: Tensor, qkv_bias: Tensor | None, out: Tensor, out_bias: Tensor | None, num_heads: int
) -> Tensor:
    """Do all that attention without norms of heads and rotations does, as one operation to autograd.

    Args:
        x: [B, T, D].
        qkv: Of each head its query, key and value in turn, [H * 3 * head_dim, D].
        qkv_bias: [H * 3 * head_dim].
        out: [D, H * head_dim].
        out_bias: [D].
        num_heads: H.

    Returns:
        [B, T, D].
    """
    return _Attention.apply(x, qkv, qkv_bias, out, out_bias, num_heads)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.shape = q.shape
        q, k, v = _by_head(q), _by_head(k), _by_head(v)
        result, p = _attend(q, k, v)
        ctx.save_for_backward(q, k, v, p)
        return _by_token(result, ctx.shape).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, p = ctx.saved_tensors
        gradient = _by_head(gradients[0].view(ctx.shape))
        by_heads = q.new_empty(3, *q.shape)
        _attend_back(gradient, q, k, v, p, by_heads)
        return tuple(_by_token(part, ctx.shape) for part in by_heads)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        qkv: Tensor,
        qkv_bias: Tensor | None,
        out: Tensor,
        out_bias: Tensor | None,
        num_heads: int,
    ) -> Tensor:
        (batch, length, _), size = x.shape, qkv.shape[0] // (3 * num_heads)
        ctx.shape = torch.Size((batch, length, num_heads, size))
        heads = multiply(x, qkv, qkv_bias).view(batch, length, num_heads, 3, size)
        heads = heads.permute(3, 0, 2, 1, 4).reshape(3, batch * num_heads, length, size)
        q, k, v = heads.unbind()
        result, p = _attend(q, k, v)
        joined = _by_token(result, ctx.shape).flatten(2)
        ctx.save_for_backward(x, heads, p, joined, qkv, out)
        return multiply(joined, out, out_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, heads, p, joined, qkv, out = ctx.saved_tensors
        gradient, needs = gradients[0].contiguous(), ctx.needs_input_grad
        by_first: tuple[Tensor | None, ...] = (None,) * 3
        if any(needs[:3]):
            by_joined = by_input(gradient, out)
            by_heads, (q, k, v) = torch.empty_like(heads), heads.unbind()
            _attend_back(_by_head(by_joined.view(ctx.shape)), q, k, v, p, by_heads)
            batch, length, num_heads, size = ctx.shape
            by_heads = by_heads.view(3, batch, num_heads, length, size)
            by_qkv = by_heads.permute(1, 3, 2, 0, 4).reshape(batch, length, qkv.shape[0])
            by_first = go_back(by_qkv, x, qkv, needs[:3])
        _, *by_last = go_back(gradient, joined, out, (False, *needs[3:5]))
        return *by_first, *by_last, None


def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Of [B * H, T, head_dim] each: the result, of their shape, and the probabilities [B * H, T, T]."""
    length, size = q.shape[1:]
    later = torch.full((length, length), -math.inf).triu_(1)
    p = torch.softmax(torch.baddbmm(later, q, k.mT, alpha=1 / math.sqrt(size)), -1)
    return torch.bmm(p, v), p


def _attend_back(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, into: Tensor) -> None:
    """Put the gradients by ``q``, ``k`` and ``v`` ``into`` [3, B * H, T, head_dim]."""
    scale = 1 / math.sqrt(q.shape[2])
    by_p = torch.bmm(gradient, v.mT)
    by_scores = torch._softmax_backward_data(by_p, p, -1, p.dtype)  # pyright: ignore[reportPrivateImportUsage]
    torch.baddbmm(q, by_scores, k, beta=0, alpha=scale, out=into[0])
    torch.baddbmm(k, by_scores.mT, q, beta=0, alpha=scale, out=into[1])
    torch.bmm(p.mT, gradient, out=into[2])


def _by_head(x: Tensor) -> Tensor:
    """[B, T, H, head_dim] -> [B * H, T, head_dim]."""
    batch, length, heads, size = x.shape
    return x.transpose(1, 2).reshape(batch * heads, length, size)


def _by_token(x: Tensor, shape: torch.Size) -> Tensor:
    """[B * H, T, head_dim] -> ``shape`` [B, T, H, head_dim], not copied."""
    batch, length, heads, size = shape
    return x.view(batch, heads, length, size).transpose(1, 2)
