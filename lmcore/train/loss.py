"""The loss: summed over tokens here, divided once by whoever knows the global number of targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmcore.data.loader import IGNORE_INDEX
from lmcore.model.layers import is_plain

BLOCK_NUMBERS = 1 << 18  # 1 MiB in fp32


def token_loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats, a scalar in fp32.

    Args:
        logits: [B, T, V], of any float type.
        targets: [B, T]; ``IGNORE_INDEX`` does not count.
    """
    return F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def backward_token_loss(logits: Tensor, targets: Tensor, weight: float) -> Tensor:
    """Propagate the gradient of ``weight`` times the summed cross-entropy; return the sum, unweighted.

    The logits are used up: on a CPU their memory becomes that of their gradient.

    Args:
        logits: [B, T, V], of any float type.
        targets: [B, T]; ``IGNORE_INDEX`` does not count.
        weight: The loss scale over the number of targets of the whole global batch.
    """
    if is_plain(logits):
        gradient = logits.detach()
        loss_sum = _replace_by_gradient(gradient.flatten(0, 1), targets.flatten(), weight)
        logits.backward(gradient)
        return loss_sum
    loss_sum = token_loss_sum(logits, targets)
    (loss_sum * weight).backward()
    return loss_sum.detach()


def _replace_by_gradient(logits: Tensor, targets: Tensor, weight: float) -> Tensor:
    """Overwrite ``logits`` [N, V] by weight * (softmax - one-hot); return the summed loss.

    By blocks of rows that stay in a core's cache: the logits are the largest tensor of a small model, and
    going through them in memory takes longer than the arithmetic.
    """
    loss_sum = torch.zeros((), dtype=torch.float64)
    rows = max(1, BLOCK_NUMBERS // logits.shape[1])
    for block, labels in zip(logits.split(rows), targets.split(rows), strict=True):
        counted = labels != IGNORE_INDEX
        places = labels.where(counted, 0).unsqueeze(1)
        block.sub_(block.amax(dim=1, keepdim=True))
        chosen = block.gather(1, places)
        total = block.exp_().sum(dim=1, keepdim=True)
        loss_sum += ((total.log() - chosen).squeeze(1) * counted).sum()
        weights = (counted * weight).unsqueeze(1)
        block.mul_(weights / total).scatter_add_(1, places, -weights)
    return loss_sum.float()
