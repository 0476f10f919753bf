"""The memory of one process of a layout, measured by torch's own tracker while it takes a real step.

The other processes are torch's fake ones: collectives return at once, with what is in memory. DDP, whose hook
needs a result, has real ones (``measure_replicas``).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from lmcore.config import ModelConfig, TrainConfig
from lmcore.data.loader import Batch
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.mesh import World, make_layout
from lmcore.train.loss import loss_sums
from lmcore.train.optim import Optimizers


class _OfGPUs(DividedModel):
    """Gives gradients away after each micro-batch."""

    _saves_memory = True


class _InTurn(list):
    """Micro-batches; the tracker keeps its account of modules for one forward pass at a time."""

    def __init__(self, batches, tracker):
        super().__init__(batches)
        self.tracker = tracker

    def __iter__(self):
        for batch in super().__iter__():
            self.tracker.reset_mod_stats()
            yield batch


def measured_peak(
    model: ModelConfig, vocab_size: int, train: TrainConfig, *, frees_early: bool = False
) -> int:
    """Bytes that the process has at most in a step, on the CPU.

    Args:
        model: Its settings.
        vocab_size: Entries of its vocabulary.
        train: Layout and batch.
        frees_early: Whether FSDP2 is told to let go of blocks and gradients, as it is on GPUs.
    """
    size = train.parallel.num_processes
    if size > 1:
        dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        return peak_of(model, vocab_size, train, World(0, size, torch.device("cpu")), frees_early)
    finally:
        if size > 1:
            dist.destroy_process_group()


def peak_of(
    model: ModelConfig, vocab_size: int, train: TrainConfig, world: World, frees_early: bool = False
) -> int:
    """The same in processes that are there."""
    shape = (train.micro_batch_size, train.seq_len)
    kind = _OfGPUs if frees_early else DividedModel
    divided = kind(
        model,
        vocab_size,
        make_layout(train.parallel, world),
        train.precision,
        lambda name, whole: torch.randn(whole) * 0.02,
        batch_shape=shape,
        num_micro_batches=train.grad_accum_steps,
        checkpointing=train.activation_checkpointing,
        loss_chunk_tokens=train.loss_chunk_tokens,
    )
    matrix_dtype = torch.float32 if train.precision == "fp32" else torch.bfloat16  # the trainer's
    optimizers = Optimizers(divided.named_parameters(), train.optimizer, matrix_dtype, divided.num_copies)
    for block in (block for stage in divided.stages for block in stage.blocks if frees_early):
        block.set_reshard_after_forward(True)
    tracker = MemTracker()
    tracker.track_external(*divided.stages)
    with tracker:
        state = optimizers.state()
        batches = [Batch(torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long))]
        divided.forward_backward(
            _InTurn(batches * train.grad_accum_steps, tracker),
            lambda logits, targets, shard: loss_sums(logits, targets, shard, z_loss=False)[0],
        )
        optimizers.step(1.0)
        del state
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return peak["Total"]
