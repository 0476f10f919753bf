"""Validation during training: the same tokens each time, at any number of processes."""

from __future__ import annotations

import torch
from torch import nn

from lmcore.config import TrainConfig
from lmcore.data.loader import IGNORE_INDEX, Windows, validation_batches
from lmcore.data.tokens import TokenDataset
from lmcore.parallel.mesh import World
from lmcore.train.loss import token_loss_sum
from lmcore.train.precision import autocast
from lmcore.units import bits_per_byte


@torch.no_grad()
def validate(model: nn.Module, held_out: TokenDataset, config: TrainConfig, world: World) -> dict[str, float]:
    """Return the loss (nats a token) and bits per byte of the first part of ``held_out``.

    All processes must call it together. Windows do not overlap, so it is a little worse than what the
    evaluation finds. Bytes are counted as the mean of the split: only tokens are at hand.
    """
    windows = Windows(held_out, config.seq_len, document_mask=config.document_mask)
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)  # summed loss, targets
    model.eval()
    for batch in validation_batches(
        windows,
        max_tokens=config.validation_tokens,
        batch_size=config.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
    ):
        batch = batch.to(world.device)
        with autocast(model, config.precision, world.device):
            logits = model(batch.tokens, batch.positions, batch.document_ids)
        totals[0] += token_loss_sum(logits, batch.targets)
        totals[1] += (batch.targets != IGNORE_INDEX).sum()
    model.train()
    loss_sum, num_targets = world.add_up(totals.tolist())
    values = {"eval/loss": loss_sum / max(1.0, num_targets)}
    if held_out.num_bytes and num_targets:
        num_bytes = num_targets * held_out.num_bytes / held_out.num_tokens
        values["eval/bits_per_byte"] = bits_per_byte(loss_sum, num_bytes)
    return values
