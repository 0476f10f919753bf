"""Two processes share a vocabulary that they cannot halve; the chunks of the loss are the default ones."""

import torch

from lmcore.config import LaunchConfig, ModelConfig, ParallelConfig
from lmcore.data.loader import Batch
from lmcore.model.transformer import initial_weight
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.head import LOGITS_AT_ONCE
from lmcore.parallel.mesh import World, join_world, make_layout
from lmcore.run_process import leave
from lmcore.train.loss import loss_sums

VOCAB, SHAPE = 257, (16, 512)
CONFIG = ModelConfig(
    num_layers=1, hidden_size=16, num_heads=2, max_seq_len=SHAPE[1], tie_embeddings=False, init_std=0.2
)
# Chunks are made for 129 logits of a token, and would not be for the 128 of the second process.
assert LOGITS_AT_ONCE["cpu"] // 129 < SHAPE[0] * SHAPE[1] <= LOGITS_AT_ONCE["cpu"] // 128


def compute(world, batch, **parallel):
    """Chunks, the loss of training, its gradient by a weight that all have, and the losses of validation."""
    layout = make_layout(ParallelConfig(dp_replicate=1, **parallel), world)
    model = DividedModel(
        CONFIG, VOCAB, layout, "fp32", lambda name, shape: initial_weight(name, shape, CONFIG, 0)
    )
    calls = []

    def criterion(logits, targets, shard):
        loss = loss_sums(logits, targets, shard, z_loss=False)[0]
        calls.append(loss.detach())
        return loss / targets.numel()

    model.forward_backward([batch], criterion)
    (weight,) = (p for name, p in model.named_parameters() if name == "blocks.0.attention_norm.weight")
    gradient = weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad
    return len(calls), torch.stack(calls).sum(), gradient, model.token_losses(batch)


with join_world(LaunchConfig(device="cpu", threads_per_process=1, stall_seconds=60)) as world:
    tokens = torch.randint(0, VOCAB, SHAPE, generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, tokens.roll(-1, 1))
    number, *found = compute(world, batch, tp=2)
    assert number == 2
    expected = compute(World(0, 1, torch.device("cpu")), batch)[1:]
    for mine, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)
    world.barrier()
leave(0)
