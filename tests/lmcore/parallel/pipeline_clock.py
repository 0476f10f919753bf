"""Two stages of a pipeline: what the clock says of a step, and of validation."""

import torch

from lmcore.config import LaunchConfig, ModelConfig, ParallelConfig
from lmcore.data.loader import Batch
from lmcore.model.transformer import initial_weight
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.mesh import join_world, make_layout
from lmcore.run_process import leave
from lmcore.train.loss import loss_sums

CONFIG = ModelConfig(num_layers=2, hidden_size=16, num_heads=2, max_seq_len=8, tie_embeddings=False)


def criterion(logits, targets, shard):
    return loss_sums(logits, targets, shard, z_loss=False)[0]


with join_world(LaunchConfig(device="cpu", threads_per_process=1, stall_seconds=60)) as world:
    layout = make_layout(ParallelConfig(dp_replicate=1, pp=2), world)
    model = DividedModel(
        CONFIG,
        11,
        layout,
        "fp32",
        lambda name, shape: initial_weight(name, shape, CONFIG, 0),
        batch_shape=(1, 8),
        num_micro_batches=2,
    )
    tokens = torch.arange(8)[None]
    batch = Batch(tokens, tokens)
    model.clock.start()
    model.forward_backward([batch, batch], criterion)
    step = model.clock.lap().seconds()
    assert step["forward"] > 0 < step["backward"]
    with model.clock.part("validation"):
        model.token_losses(batch)
        model.next_logits([1, 2, 3])
    validation = model.clock.lap().seconds()
    assert validation["validation"] > 0 == validation["forward"]
    model.forward_backward([batch, batch], criterion)
    assert model.clock.lap().seconds()["forward"] > 0
    world.barrier()
leave(0)
