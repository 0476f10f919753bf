"""Micro-batches add up their gradients in place: more of them take no more memory."""

import gc

import pytest
import torch
import torch.distributed as dist

from lmcore.config import ModelConfig, OptimizerConfig, ParallelConfig
from lmcore.data.loader import Batch
from lmcore.model.transformer import initial_weight
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.mesh import World, make_layout
from lmcore.train.loss import loss_sums
from lmcore.train.memory import TensorBytes
from lmcore.train.optim import Optimizers

CPU = torch.device("cpu")
CONFIG = ModelConfig(num_layers=2, hidden_size=128, num_heads=2, max_seq_len=16, zero_init_projections=False)


@pytest.fixture
def alone_in_a_group(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(*, replicated):
    size = 2 if replicated else 1  # more than one has DDP wrap it; that there is one process is not seen
    layout = make_layout(ParallelConfig(dp_replicate=size), World(0, size, CPU))
    return DividedModel(
        CONFIG, 64, layout, "fp32", lambda name, shape: initial_weight(name, shape, CONFIG, 0)
    )


def step(model, batches):
    """The most bytes in a step, those of weights and gradients apart."""
    weights = [p for _, p in model.named_parameters()]
    before = [*weights, *(p.grad for p in weights if p.grad is not None)]
    gc.collect()
    with TensorBytes(CPU, before) as tensors:
        model.forward_backward(
            batches, lambda logits, targets, shard: loss_sums(logits, targets, shard, z_loss=False)[0]
        )
    return tensors.peak


@pytest.mark.parametrize("replicated", [False, True])
def test_more_micro_batches_take_no_more_memory(alone_in_a_group, replicated):
    model = make(replicated=replicated)
    optimizers = Optimizers(model.named_parameters(), OptimizerConfig(name="sgd"), torch.float32)
    tokens = torch.randint(0, 64, (1, 16), generator=torch.Generator().manual_seed(0))
    step(model, [Batch(tokens, tokens)])
    weights = [p for _, p in model.named_parameters()]
    places = [p.grad.data_ptr() for p in weights]
    largest = max(p.nbytes for p in weights)
    peaks = {}
    for count in (2, 8):
        optimizers.zero_grad(keep=model.keeps_gradients)
        peaks[count] = step(model, [Batch(tokens, tokens)] * count)
    assert peaks[8] <= peaks[2] + largest
    whole = sum(p.nbytes for p in weights)
    assert peaks[8] < 3 * whole  # weights, their gradient, and what a micro-batch needs
    if replicated:
        assert [p.grad.data_ptr() for p in weights] == places
