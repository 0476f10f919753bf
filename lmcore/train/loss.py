"""The loss: summed over tokens here, divided once by whoever knows the global number of targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmcore.data.loader import IGNORE_INDEX


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
