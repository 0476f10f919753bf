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


def make(*, replicated, cuda_graphs=False):
    size = 2 if replicated else 1  # more than one has DDP wrap it; that there is one process is not seen
    layout = make_layout(ParallelConfig(dp_replicate=size), World(0, size, CPU))
    return DividedModel(
        CONFIG,
        64,
        layout,
        "fp32",
        lambda name, shape: initial_weight(name, shape, CONFIG, 0),
        cuda_graphs=cuda_graphs,
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


@pytest.mark.parametrize("replicated", [False, True])
def test_with_cuda_graphs_gradients_are_added_to_memory_outside_of_them(alone_in_a_group, replicated):
    plain, model = make(replicated=replicated), make(replicated=replicated, cuda_graphs=True)
    optimizers = Optimizers(model.named_parameters(), OptimizerConfig(name="sgd"), torch.float32)
    weights = [p for _, p in model.named_parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in weights)  # before any pass
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    first, second = (Batch(row[None], row[None]) for row in tokens)
    if replicated:
        step(model, [first])  # after which DDP makes its buckets anew
    places = None if replicated else [p.grad.data_ptr() for p in weights]
    for batches in ([first], [first, second], [second]):
        optimizers.zero_grad(keep=model.keeps_gradients)
        for _, parameter in plain.named_parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        step(plain, batches)
        step(model, batches)
        places = places or [p.grad.data_ptr() for p in weights]
        assert [p.grad.data_ptr() for p in weights] == places
        for (name, expected), found in zip(plain.named_parameters(), weights, strict=True):
            assert torch.equal(found.grad, expected.grad), name
