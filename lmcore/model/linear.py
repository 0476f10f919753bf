"""Linear layers in fp32 on a CPU, by the faster of the two libraries that torch has for them.

Torch multiplies matrices of fp32 with MKL, which on a processor of AMD's keeps to AVX2. oneDNN takes AVX-512
where it is there: a tenth faster on the way forward and for gradients by inputs, and not for those by weights
(decision 0018). Same precision; the order of the sums is another one, so the last bits differ.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

CPUINFO = Path("/proc/cpuinfo")
NARROW, SMALL = 128, 1 << 15  # sides and numbers of a matrix, below which there is nothing to win


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` is in fp32 on a CPU, where eager operations are bound by memory and worth merging.

    A compiler merges them by itself.
    """
    return x.dtype == torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling()


def are_plain(x: Tensor, *layers: nn.Linear) -> bool:
    """Whether ``layers`` are ours and compute ``x`` whole and in fp32 on a CPU, for gradients to come."""
    return torch.is_grad_enabled() and all(
        type(layer) is Linear and is_plain_product(x, layer.weight) for layer in layers
    )


def is_plain_product(x: Tensor, weight: Tensor) -> bool:
    """Whether ``x`` and ``weight`` are whole and in fp32 on a CPU, and are multiplied as such."""
    return (
        is_plain(x)
        and type(x) is Tensor
        and not isinstance(weight, DTensor)
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


class Linear(nn.Linear):
    """``torch.nn.Linear``, by oneDNN where that is faster."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name, by which callers may pass it
        """Map ``input`` [..., in] to [..., out]."""
        # In training alone, where shapes stay: oneDNN makes a kernel for each.
        if torch.is_grad_enabled() and by_onednn(input, self.weight):
            return _OneDNN.apply(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What ``Linear`` makes of ``x`` [..., in], by the faster; no gradient."""
    return _onednn(x, weight, bias) if by_onednn(x, weight) else F.linear(x, weight, bias)


def by_input(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return ``gradient`` [..., out] times ``weight`` [out, in], [..., in], by the faster; no gradient."""
    return _onednn(gradient, weight.t()) if by_onednn(gradient, weight.t()) else gradient @ weight


def go_back(
    gradient: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by the input ``x``, the weight and the bias of a layer, those alone that ``needs`` says."""
    return (
        by_input(gradient, weight) if needs[0] else None,
        _rows(gradient).t() @ _rows(x) if needs[1] else None,
        _rows(gradient).sum(0) if needs[2] else None,
    )


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies ``x`` [..., in] with ``weight`` [out, in] faster than torch by itself."""
    return (
        not torch.compiler.is_compiling()  # a compiler would stop at the next question
        and onednn_is_faster()
        and min(weight.shape) >= NARROW
        and weight.numel() >= SMALL
        and is_plain_product(x, weight)
    )


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is a processor that MKL gives less than its widest instructions."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and "AMD" in _vendor()
    )


def _vendor() -> str:
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), "")


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # What torch's own compiler calls.
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNN(torch.autograd.Function):
    """What is kept is known when it has been computed: a checkpoint does the last one of a block again, which
    torch's own layer is spared.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        return go_back(gradients[0].contiguous(), x, weight, ctx.needs_input_grad)
