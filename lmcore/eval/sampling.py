"""Drawing the next token: temperature, top-k and top-p."""

from __future__ import annotations

import torch
from torch import Tensor

from lmcore.config import SamplingConfig
from lmcore.errors import CheckpointError


def keep_likeliest(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return ``logits`` [V] with those not to be drawn at -inf.

    Kept are the ``top_k`` largest (Fan et al. 2018; 0: all), and of these the fewest, largest first, that
    together hold ``top_p`` of their probability (Holtzman et al. 2019). Of equal ones the smaller id goes
    first. At least one is kept.
    """
    ordered, ids = logits.double().sort(descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        kept[top_k:] = False
    if top_p < 1:
        shares = ordered.masked_fill(~kept, -torch.inf).softmax(dim=0)
        # What the likelier ones hold already; the first always stays.
        kept &= shares.cumsum(dim=0) - shares < top_p
        kept[0] = True
    return logits.masked_fill(~torch.zeros_like(kept).scatter(0, ids, kept), -torch.inf)


def draw(logits: Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """Draw a token from ``logits`` [V]; at temperature 0 the likeliest, without touching ``generator``.

    Raises:
        CheckpointError: the logits are not numbers.
    """
    if not logits.max().isfinite():  # the maximum of a NaN and anything is NaN
        raise CheckpointError("the model's predictions are not numbers", remedy="Train it again.")
    if sampling.temperature == 0:
        return int(logits.argmax())
    # The largest becomes 0, so that a temperature near 0 cannot overflow.
    scaled = (logits.double() - logits.max().double()) / sampling.temperature
    shares = keep_likeliest(scaled, sampling.top_k, sampling.top_p).softmax(dim=0)
    return int(torch.multinomial(shares, 1, generator=generator))
