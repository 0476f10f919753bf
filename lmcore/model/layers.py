"""The parts of a block that are not attention: norms, rotary positions, the MLP."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcore.config import ModelConfig, RopeScalingConfig, swiglu_block
from lmcore.model.linear import Linear, is_plain


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


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2 (So et al. 2021), keeping one tensor for the backward pass and making two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (positive * gradients[0]).mul_(2)


class _GELU(torch.autograd.Function):
    """GELU by a sigmoid (Hendrycks and Gimpel 2016), whose vector instructions are faster than tanh's.

    x / 2 (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3). Its slope is found on the way
    forward and alone is kept: one tensor, as torch's keeps one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = 2 * math.sqrt(2 / math.pi)
        # In place where it can be: new memory takes several times as long as what is in a cache.
        twice_u = x.square().mul_(0.044715 * scale).add_(scale).mul_(x)
        gate = twice_u.sigmoid()
        if x.requires_grad:
            # d/dx = gate + x gate (1 - gate) 2u', and x 2u' = 3 (2u) - 2 scale x.
            slope = twice_u.mul_(3).sub_(x, alpha=2 * scale)
            ctx.save_for_backward(slope.addcmul_(slope, gate, value=-1).add_(1).mul_(gate))
        return gate.mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return slope.mul_(gradients[0])  # a second pass through it is refused by autograd


def activate(h: Tensor, activation: str, block: int) -> Tensor:
    """Apply the nonlinearity of an MLP to ``h`` [..., M], or for SwiGLU [..., 2M]; return [..., M].

    SwiGLU's gate and up are one matrix: one product instead of two. Its rows are blocks (``swiglu_block``) of
    the gate and of up in turn, so that a part of the rows is a part of both.
    """
    if activation == "swiglu":
        gate, up = h.unflatten(-1, (-1, 2, block)).unbind(-2)
        return (F.silu(gate) * up).flatten(-2)
    if activation == "relu2":
        return _SquaredReLU.apply(h) if is_plain(h) else F.relu(h).square()
    if activation == "gelu_erf":
        return F.gelu(h)
    # GPT-2's.
    return _GELU.apply(h) if is_plain(h) else F.gelu(h, approximate="tanh")


class MLP(nn.Module):
    """Two linear layers around GELU or squared ReLU; or SwiGLU's three (Shazeer 2020).

    Args:
        config: The model's.
        size: Width of what lies between; None: the model's.
    """

    def __init__(self, config: ModelConfig, size: int | None = None) -> None:
        super().__init__()
        size = size or config.mlp_size
        self.activation = config.activation
        self.block = swiglu_block(size)
        rows = size * (2 if config.activation == "swiglu" else 1)
        self.up = Linear(config.hidden_size, rows, bias=config.bias)
        self.down = Linear(size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, T, D] to [B, T, D]."""
        return self.down(activate(self.up(x), self.activation, self.block))
