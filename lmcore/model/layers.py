"""Norms and rotary positions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcore.config import ModelConfig, RopeScalingConfig
from lmcore.model.linear import is_plain


class RMSNorm(nn.Module):
    """Scale vectors to unit root mean square (Zhang and Sennrich 2019), times a learned weight.

    Args:
        size: Width of the last dimension.
        eps: Added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x`` [..., size]."""
        if is_plain(x):
            return _RMSNormOnCPU.apply(x, self.weight, self.eps)
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class _RMSNormOnCPU(torch.autograd.Function):
    """RMS norm in as few passes over memory as eager operations allow; twice as fast as composed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        unit, inverse, weight = ctx.saved_tensors
        product = (gradient * unit).flatten(0, -2)  # [N, D]
        # What points along x is taken out: the norm does not change with the length of x.
        along = torch.mv(product, weight).view(inverse.shape).div_(-weight.shape[0])
        return (gradient * weight).addcmul_(unit, along).mul_(inverse), product.sum(0), None


def make_norm(config: ModelConfig) -> nn.Module:
    """Build the norm of the residual stream."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=config.bias)


def rotary_table(config: ModelConfig) -> Tensor:
    """Cosine and sine of every position (Su et al. 2021), [max_seq_len, head_dim / 2, 2] in fp32."""
    half = config.head_size // 2
    # In fp64, so that far positions keep their angle.
    frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    frequencies = _slowed(frequencies, config.rope_scaling)
    angles = torch.outer(torch.arange(config.max_seq_len, dtype=torch.float64), frequencies)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def _slowed(frequencies: Tensor, scaling: RopeScalingConfig) -> Tensor:
    """Divide slow ``frequencies`` by a factor, leave fast ones, and go over smoothly in between.

    Slow and fast by their turns within the sequences of the first training, as Llama 3.1 does it
    (Grattafiori et al. 2024).
    """
    if scaling.factor == 1:
        return frequencies
    turns = frequencies * scaling.original_max_seq_len / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of ``x`` [B, T, H, head_dim] by the angle of their position.

    Neighbours make a pair, as in the original Llama: so a pair is a complex number in memory. Hugging Face's
    layout pairs (i, i + head_dim / 2); going there is a permutation of the rows of the projections
    (``lmcore.model.hf``).

    Args:
        x: Queries or keys.
        table: [T, 1, head_dim / 2, 2] or [B, T, 1, head_dim / 2, 2].
    """
    pairs = x.unflatten(-1, (-1, 2))
    if is_plain(x):
        # One complex product instead of six real passes over memory.
        turned = torch.view_as_complex(pairs) * torch.view_as_complex(table)
        return torch.view_as_real(turned).flatten(-2)
    (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)
