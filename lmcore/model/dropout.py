"""Dropout that is a function of the place of a number in the run, so that no layout changes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Odd constants of splitmix64 (Steele et al. 2014) as signed numbers.
_STEP = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


@dataclass(frozen=True)
class DropoutKey:
    """Which draws a forward pass takes.

    Attributes:
        sequences: A number for each sequence of each step of the run, int64 [B].
        places: Of the tokens at hand in their sequence, int64 [T].
    """

    sequences: Tensor
    places: Tensor


class Dropout(nn.Module):
    """Zero numbers at random while training and scale up the rest (Srivastava et al. 2014).

    A draw is the hash of the sequence, the place of the token in it, the number's own place in the vector and
    the place of this module in the model. Attention's probabilities are left alone: a fused kernel does not
    tell its draws.

    Args:
        rate: Share that is zeroed.
        site: Place of this module in the model.

    Attributes:
        at: The site, as a tensor: one for the compiler to read, which would compile each block anew for a
            number. It is no part of the state.
    """

    at: Tensor

    def __init__(self, rate: float, site: int) -> None:
        super().__init__()
        self.rate, self.site = rate, site
        self.restore_site()

    def restore_site(self, device: torch.device | str | None = None) -> None:
        """Put the site where the model is."""
        at = torch.tensor(self.site, dtype=torch.int64, device=device)
        self.register_buffer("at", at, persistent=False)

    def forward(self, x: Tensor, key: DropoutKey | None) -> Tensor:
        """Map ``x`` [B, T, D] to the same shape; without a key nothing is dropped."""
        if not self.training or not self.rate or key is None:
            return x
        tokens = key.sequences[:, None] * _MIX_1 + key.places * _STEP + self.at  # [B, T]
        numbers = torch.arange(x.shape[-1], device=x.device) * _STEP  # [D]
        draws = _mix(_mix(tokens)[:, :, None] + numbers) & 0xFFFFFFFF  # [B, T, D], uniform in 32 bits
        kept = draws >= int(self.rate * 2**32)
        return x * kept / (1 - self.rate)


def _mix(x: Tensor) -> Tensor:
    """Spread each bit of int64 ``x`` over all of them (splitmix64's last steps)."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ (x >> 31 & 0x1FFFFFFFF)
