"""Validation during training: the same tokens each time, on any layout."""

from __future__ import annotations

import torch

from lmcore.config import TrainConfig
from lmcore.data.loader import IGNORE_INDEX, Windows, validation_batches
from lmcore.data.tokens import TokenDataset
from lmcore.parallel.divided import DividedModel
from lmcore.units import bits_per_byte


def validate(model: DividedModel, held_out: TokenDataset, config: TrainConfig) -> dict[str, float]:
    """Return the loss (nats a token) and bits per byte of the first part of ``held_out``.

    All processes must call it together. Windows do not overlap, so it is a little worse than what the
    evaluation finds: another measure, of another name. Bytes are counted as the mean of the split: only
    tokens are at hand.
    """
    layout = model.layout
    windows = Windows(held_out, config.seq_len, document_mask=config.document_mask)
    totals = torch.zeros(2, dtype=torch.float64, device=layout.world.device)  # summed loss, targets
    model.train(False)
    for batch in validation_batches(
        windows,
        max_tokens=config.validation_tokens,
        batch_size=config.micro_batch_size,
        rank=layout.dp_rank,
        world_size=layout.parallel.dp,
    ):
        losses = model.token_losses(batch)
        counted = batch.targets.to(losses.device) != IGNORE_INDEX
        totals[0] += (losses * counted).sum(dtype=torch.float64)
        totals[1] += counted.sum()
    model.train()
    # Those that share a batch have the same losses of it.
    sharing = layout.world.size // layout.parallel.dp
    loss_sum, num_targets = (total / sharing for total in layout.world.add_up(totals.tolist()))
    values = {"train/validation_loss": loss_sum / max(1.0, num_targets)}
    if held_out.num_bytes and num_targets:
        num_bytes = num_targets * held_out.num_bytes / held_out.num_tokens
        values["train/validation_bits_per_byte"] = bits_per_byte(loss_sum, num_bytes)
    return values
