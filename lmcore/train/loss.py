"""The loss: summed over tokens here, divided once by whoever knows the global number of targets."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from lmcore.data.loader import IGNORE_INDEX
from lmcore.errors import DataError


def token_loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats, a scalar in fp32.

    Args:
        logits: [B, T, V], of any float type.
        targets: [B, T]; ``IGNORE_INDEX`` does not count.
    """
    return F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def bits_per_byte(loss_sum: float, num_bytes: float) -> float:
    """Convert summed token loss (nats) to bits per UTF-8 byte.

    Dividing by bytes, not tokens, keeps scores comparable across tokenizers.

    Raises:
        DataError: ``num_bytes`` is not positive.
    """
    if num_bytes <= 0:
        raise DataError(
            "bits per byte of no text", expected="a positive number of bytes", found=f"{num_bytes}"
        )
    return loss_sum / math.log(2) / num_bytes
