"""The loss of logits of which each process has a part of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabularyPart:
    """Rows of the embedding and the head that are one process's.

    Attributes:
        first: The first of them.
        num_rows: How many; the last processes may have fewer than the others, or none.
        num_entries: Those of them that are entries of the tokenizer; the others were added.
        most_rows: Of any process: the same number on all.
    """

    first: int
    num_rows: int
    num_entries: int
    most_rows: int

    @classmethod
    def of(cls, rows: int, entries: int, size: int, rank: int) -> VocabularyPart:
        """The part of process ``rank`` of ``size``, of ``rows`` of which ``entries`` were not added."""
        most = -(-rows // size)
        first = most * rank
        return cls(first, max(0, min(rows - first, most)), max(0, min(entries - first, most)), most)


@dataclass(frozen=True)
class VocabularyShard:
    """The part of the vocabulary that this process has the logits of.

    Attributes:
        group: The processes that have the other parts.
        first: The first token of ours.
    """

    group: dist.ProcessGroup
    first: int


def token_losses(logits: Tensor, targets: Tensor, shard: VocabularyShard) -> tuple[Tensor, Tensor]:
    """Return each token's loss in nats and the logarithm of its softmax's denominator, both [N] in fp32.

    Three numbers a token go over the wire, and no logits (Shoeybi et al. 2019, section 3).

    Args:
        logits: [N, V / tp], of any float type.
        targets: [N], ids of the whole vocabulary; what is none of them has a loss without a meaning.
        shard: Whose logits these are.
    """
    return _TokenLosses.apply(logits, targets, shard)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, shard: VocabularyShard) -> tuple[Tensor, Tensor]:
        values = logits.float()
        largest = values.amax(dim=-1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=shard.group)
        exponents = (values - largest[:, None]).exp_()
        index = targets - shard.first
        ours = (index >= 0) & (index < logits.shape[-1])
        index = torch.where(ours, index, 0)
        picked = torch.where(ours, values.gather(-1, index[:, None])[:, 0], 0.0)
        sums = torch.stack((exponents.sum(-1), picked))  # [2, N]
        dist.all_reduce(sums, group=shard.group)
        log_denominator = largest + sums[0].log()
        ctx.save_for_backward(exponents.div_(sums[0][:, None]), index, ours)
        ctx.dtype = logits.dtype
        return log_denominator - sums[1], log_denominator

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        of_loss, of_denominator = gradients
        probabilities, index, ours = ctx.saved_tensors
        gradient = probabilities * (of_loss + of_denominator)[:, None]
        gradient.scatter_add_(-1, index[:, None], torch.where(ours, -of_loss, 0.0)[:, None])
        return gradient.to(ctx.dtype), None, None
