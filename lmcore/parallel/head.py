"""The end of a model: what the head and the loss make of hidden states, a few tokens at a time.

Logits are the largest tensor of a model with a large vocabulary, [tokens, V], and the loss makes some more of
their size. Here they are made of a chunk of the tokens, with their gradient, and let go before the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate

from lmcore.model.linear import multiply

Losses = Callable[[Tensor, Tensor], Tensor]  # logits [1, n, V or a part] and targets [1, n] -> of them
# Logits of a chunk where nobody says otherwise, in numbers: on a CPU what stays in its caches, which is also
# faster than all at once (decision 0021); on a GPU enough to be busy with.
LOGITS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 27}
LEAST_TOKENS = 128


def chunk_size(num_tokens: int, vocab_share: int, wish: int | None, device: torch.device) -> int:
    """Tokens of a chunk, so that all are about as large; 0: all at once.

    Args:
        num_tokens: Of a micro-batch.
        vocab_share: Most logits of a token that a process makes; one number for all that share a vocabulary,
            since the loss of a chunk is a collective of theirs.
        wish: Most tokens of a chunk; 0: all; None: by the size of their logits.
        device: Where they are made.
    """
    if wish is None:
        wish = max(LEAST_TOKENS, LOGITS_AT_ONCE.get(device.type, 1 << 27) // vocab_share)
    if not wish or num_tokens <= wish:
        return 0
    return -(-num_tokens // -(-num_tokens // wish))


def summed_loss(
    head: nn.Linear,
    hidden: Tensor,
    targets: Tensor,
    losses: Losses,
    size: int,
    *,
    stream: Placement,
    once: bool = True,
) -> Tensor:
    """Return the sum of ``losses`` over chunks of ``size`` tokens, a scalar, and have its gradient ready.

    The gradient is computed on the way forward, where the logits are: no product is done twice. That of the
    head's weight is added up in fp32.

    Args:
        head: Of the model; FSDP2 has gathered it, tensor parallel may have divided it.
        hidden: [B, T, D], divided along the sequence as the residual stream is.
        targets: [B, T], of whole sequences.
        losses: Of some tokens, summed, a scalar in fp32.
        size: Tokens of a chunk; 0: all at once, by the usual operations.
        stream: How tensor parallel divides ``hidden``.
        once: Whether the backward pass goes through it once: then it lets go of what it gives.
    """
    if not size:
        logits = head(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return losses(logits, targets)
    dtype = computing_type(hidden, head.weight)
    hidden, weight = _undivided(head, hidden, stream)
    with torch.autocast(hidden.device.type, enabled=False):
        return _InChunks.apply(hidden.flatten(0, 1), weight, targets.flatten(), losses, size, dtype, once)


def each_loss(
    head: nn.Linear, hidden: Tensor, targets: Tensor, losses: Losses, size: int, *, stream: Placement
) -> Tensor:
    """Return what ``losses`` says of each target, [B, T], without a gradient; arguments as above."""
    if not size:
        return losses(head(hidden), targets)
    dtype = computing_type(hidden, head.weight)
    hidden, weight = _undivided(head, hidden, stream)
    weight = weight.to(dtype)
    parts = zip(hidden.flatten(0, 1).split(size), targets.flatten().split(size), strict=True)
    found = [losses(multiply(rows.to(dtype), weight)[None], wanted[None])[0] for rows, wanted in parts]
    return torch.cat(found).view_as(targets)


def computing_type(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The type of the product: that of autocast, or else of the weight, as FSDP2 gathered it."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _undivided(head: nn.Linear, hidden: Tensor, stream: Placement) -> tuple[Tensor, Tensor]:
    """Whole sequences of ``hidden``, and what this process has of the head's weight.

    Where the vocabulary is divided, each process finds a part of the gradient of ``hidden``: on the way back
    they are added up.
    """
    weight = head.weight
    if not isinstance(weight, DTensor):
        return hidden, weight
    mesh = weight.device_mesh
    whole = DTensor.from_local(hidden, mesh, [stream], run_check=False)
    whole = whole.redistribute(placements=[Replicate()])
    return whole.to_local(grad_placements=[Partial()]), weight.to_local()


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        losses: Losses,
        size: int,
        dtype: torch.dtype,
        once: bool,
    ) -> Tensor:
        matrix = weight.to(dtype)
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(matrix, dtype=torch.float32)
        total = torch.zeros((), device=hidden.device)
        for first in range(0, len(hidden), size):
            part = slice(first, first + size)
            rows = hidden[part].to(dtype)
            loss, gradient = _loss_and_gradient(multiply(rows, matrix), targets[part], losses)
            total += loss
            if by_hidden.dtype == dtype:
                torch.mm(gradient, matrix, out=by_hidden[part])
            else:
                by_hidden[part] = gradient @ matrix
            if dtype == torch.float32:
                by_weight.addmm_(gradient.t(), rows)
            else:
                by_weight += gradient.t() @ rows
            del gradient  # not while the next chunk's logits are there
        ctx.gradients, ctx.once, ctx.scaled = (by_hidden, by_weight.to(weight.dtype)), once, False
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        by_hidden, by_weight = ctx.gradients
        if not ctx.scaled:
            # In place: a copy of the weight's would be made when there is most to keep.
            by_hidden.mul_(gradients[0])
            by_weight.mul_(gradients[0])
            ctx.scaled = True
        if ctx.once:
            ctx.gradients = None, None
        return by_hidden, by_weight, None, None, None, None, None


def _loss_and_gradient(logits: Tensor, targets: Tensor, losses: Losses) -> tuple[Tensor, Tensor]:
    """Summed losses of some tokens, and their gradient by the logits [n, V]."""
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        loss = losses(logits[None], targets[None])
        (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient
