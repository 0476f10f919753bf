"""The loss: summed over tokens here, divided once by whoever knows the global number of targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmcore.data.loader import IGNORE_INDEX
from lmcore.parallel.vocabulary import VocabularyShard, token_losses


def loss_sums(
    logits: Tensor, targets: Tensor, shard: VocabularyShard | None, *, z_loss: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the summed cross-entropy in nats and, if asked for, the summed z-loss, scalars in fp32.

    Args:
        logits: [B, T, V], of any float type, or the part of V that is ``shard``'s.
        targets: [B, T]; ``IGNORE_INDEX`` does not count.
        shard: Which part of the vocabulary the logits are of; None: they are whole.
        z_loss: Whether it is asked for.
    """
    if shard is None:
        return token_loss_sum(logits, targets), z_loss_sum(logits, targets) if z_loss else None
    flat = targets.flatten()
    counted = flat != IGNORE_INDEX
    losses, log_denominators = token_losses(logits.flatten(0, 1), torch.where(counted, flat, 0), shard)
    squares = (log_denominators.square() * counted).sum() if z_loss else None
    return (losses * counted).sum(), squares


def token_loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats, a scalar in fp32.

    Args:
        logits: [B, T, V], of any float type.
        targets: [B, T]; ``IGNORE_INDEX`` does not count.
    """
    return F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def z_loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed squares of the logarithm of the softmax's denominator (Chowdhery et al. 2022).

    Args:
        logits: [B, T, V], of any float type.
        targets: [B, T]; places of ``IGNORE_INDEX`` do not count.
    """
    counted = targets != IGNORE_INDEX
    return (torch.logsumexp(logits.float(), dim=-1).square() * counted).sum()
