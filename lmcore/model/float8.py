"""Linear layers that multiply in eight bits (Micikevicius et al. 2022).

A number of eight bits is e4m3 on the way forward (three bits of fraction, up to 448) and e5m2 for gradients
(two bits, up to 57,344). Each tensor is scaled by one number, found from its largest magnitude each time, and
the sums are of higher precision. The weights themselves stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcore.model.linear import Linear

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # cuBLAS multiplies matrices of eight bits in pieces of so many
# The products of a block. Routers are left out: few numbers that decide much (DeepSeek-V3 2024, section 3.3).
LAYERS = ("qkv", "out", "up", "down")


class Float8Linear(Linear):
    """A linear layer that multiplies in eight bits; its weight and its place in the state are as before."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Map ``input`` [..., in] to [..., out] in bf16."""
        rows = _ScaledProduct.apply(input.flatten(0, -2), self.weight)
        if self.bias is not None:
            rows = rows + self.bias.to(rows.dtype)
        return rows.unflatten(0, input.shape[:-1])


@dataclass(frozen=True)
class Converted:
    """What multiplies in eight bits.

    Attributes:
        layers: Names of those that do.
        kept: Names of those that could not, and stay in bf16.
    """

    layers: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        text = f"fp8: {len(self.layers)} layers"
        if self.kept:
            text += f"; bf16, as not both sizes are multiples of {MULTIPLE}: {', '.join(self.kept)}"
        return text


def use_float8(blocks: nn.Module) -> Converted:
    """Have the products of ``blocks`` multiply in eight bits, where a layer's sizes are multiples of 16.

    Parameters, their names and their values are left alone, so it may come before or after they are there.
    """
    layers, kept = [], []
    for name, module in blocks.named_modules():
        if type(module) is not Linear or name.rpartition(".")[2] not in LAYERS:
            continue
        if module.in_features % MULTIPLE or module.out_features % MULTIPLE:
            kept.append(name)
            continue
        module.__class__ = Float8Linear
        layers.append(name)
    return Converted(tuple(layers), tuple(kept))


def quantize(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return ``tensor`` in eight bits, and the fp32 number that it must be multiplied by.

    That number is a power of two, so that rounding keeps the same steps whatever else is in the tensor: a
    token hardly feels the batch it is in, nor the layout.
    """
    largest = tensor.abs().amax().float()
    scale = torch.exp2(torch.ceil(torch.log2(largest / torch.finfo(dtype).max)).clamp(min=-126.0))
    return _rounded(tensor, scale, dtype), scale


def _rounded(tensor: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    # What is above the limit would become nan, and what was infinite or nan does: training must see it.
    limit = torch.finfo(dtype).max
    return (tensor.float() / scale).clamp(-limit, limit).to(dtype).contiguous()


class _ScaledProduct(torch.autograd.Function):
    """x w', its gradient by x and by w, each a product of two matrices of eight bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_scale = quantize(x, FORWARD)
        w8, w_scale = quantize(weight, FORWARD)
        # The weight itself is kept, not its eight bits: with FSDP those would stay when it is let go.
        ctx.save_for_backward(x8, x_scale, weight, w_scale)
        ctx.input_dtype = x.dtype
        return _multiply(x8, w8.t(), x_scale, w_scale, torch.bfloat16, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, weight, w_scale = ctx.saved_tensors
        g8, g_scale = quantize(gradients[0], BACKWARD)
        w8 = _rounded(weight, w_scale, FORWARD)
        by_input = _multiply(g8, _columns(w8), g_scale, w_scale, ctx.input_dtype)
        missing = -x8.shape[0] % MULTIPLE  # zeros add nothing to the sum over tokens
        turned, x8 = _padded(g8, missing).t().contiguous(), _columns(_padded(x8, missing))
        return by_input, _multiply(turned, x8, g_scale, x_scale, weight.dtype)


def _multiply(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, *, fast: bool = False
) -> Tensor:
    """The product of ``a`` (rows in memory) and ``b`` (columns in memory), scaled back.

    ``fast`` sums with fewer bits, which the way forward bears and gradients do not.
    """
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast
    )


def _columns(matrix: Tensor) -> Tensor:
    """The same matrix, its columns one behind another in memory."""
    return matrix.t().contiguous().t()


def _padded(matrix: Tensor, rows: int) -> Tensor:
    # torch has no padding of eight-bit floats; their bits are bytes, and zero is zero.
    return F.pad(matrix.view(torch.uint8), (0, 0, 0, rows)).view(matrix.dtype) if rows else matrix
