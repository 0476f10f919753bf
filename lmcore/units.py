"""Conversions between the units a language model is measured in."""

from __future__ import annotations

import math

from lmcore.errors import DataError


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
