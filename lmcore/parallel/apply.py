"""The order in which a model is divided, in one view."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lmcore.model.float8 import use_float8
from lmcore.model.moe import routers
from lmcore.parallel.checkpointing import Checkpointing, checkpoint_blocks
from lmcore.parallel.compile import compile_block
from lmcore.parallel.experts import DividedExperts, divide_experts, sum_counts_over
from lmcore.parallel.materialize import Draw, materialize
from lmcore.parallel.mesh import Layout
from lmcore.parallel.pipeline import SPLIT_BACKWARD
from lmcore.parallel.stage import Stage
from lmcore.parallel.tensor import divide_matrices

Precision = Literal["fp32", "bf16", "fp16", "fp8"]

# torch 2.13 warns of the older name.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_WITHOUT_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}

# fp8 is of some products (lmcore/model/float8.py); what is around them is bf16.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}


def wrap(
    stage: Stage,
    layout: Layout,
    precision: Precision,
    draw: Draw,
    *,
    checkpointing: Checkpointing,
    compiled: bool = False,
    cuda_graphs: bool = False,
) -> nn.Module:
    """Divide ``stage`` over the processes of ``layout``; its gradients become sums over them.

    The weights that the optimizer sees stay fp32, as do reductions. No process ever holds more whole weights
    than a block has, or what is left without them.

    Args:
        stage: On the meta device.
        layout: Of the processes; all of them at this place of the pipeline call it together.
        precision: Type of the computation.
        draw: Makes the whole of a parameter, of which each process keeps its part.
        checkpointing: What blocks compute again in the backward pass.
        compiled: Whether blocks are compiled.
        cuda_graphs: Whether what they compile to is replayed from graphs.
    """
    parallel, device = layout.parallel, layout.world.device
    # FSDP2 fears that somebody changes its output in place; nobody does.
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    if layout.mesh is not None and parallel.tp > 1:
        divide_matrices(stage, layout.mesh["tp"], sequence=layout.divides_sequence)
    if layout.expert_mesh is not None:
        divide_experts(stage.model, layout.expert_mesh["ep"])
    sum_counts_over(stage.model, layout.sequence_groups)
    if precision == "fp8":
        use_float8(stage.model.blocks)
    # Inside of what shards the blocks: their weights are gathered once for both.
    checkpoint_blocks(stage, checkpointing)
    if parallel.pp > 1 and parallel.pipeline_schedule in SPLIT_BACKWARD:
        stage.take_apart()
    for block in stage.blocks if compiled else ():
        block.forward = compile_block(block.forward, cuda_graphs=cuda_graphs)
    if layout.mesh is None:
        materialize(stage, device, draw)
        return _replicate(stage, device, compiled=compiled) if layout.world.size > 1 else stage
    # GPUs free a block's weights until its backward pass; where memory is cheap, gathering twice is not.
    reshard = device.type == "cuda" and parallel.pp == 1
    policy = MixedPrecisionPolicy(
        param_dtype=None if precision == "fp32" else DTYPES[precision], reduce_dtype=torch.float32
    )
    shard = functools.partial(fully_shard, mp_policy=policy)
    for block in stage.blocks:
        materialize(stage, device, draw, block)
        for module in block.modules():
            if isinstance(module, DividedExperts) and layout.expert_mesh is not None:
                shard(module, mesh=layout.shard_mesh(layout.expert_mesh), reshard_after_forward=reshard)
        shard(block, mesh=layout.shard_mesh(layout.mesh), reshard_after_forward=reshard)
    materialize(stage, device, draw)
    # The embedding, the head and the last norm are gathered together, once.
    shard(stage, mesh=layout.shard_mesh(layout.mesh), reshard_after_forward=False)
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            # Sums, not means: the loss is divided once, by the global number of targets. gloo has no
            # scaled sum, which a divide factor alone would ask for.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return stage


def _replicate(stage: Stage, device: torch.device, *, compiled: bool) -> DistributedDataParallel:
    # Buffers are the same on every process: tables of positions, biases of experts.
    replicated = DistributedDataParallel(stage, gradient_as_bucket_view=True, **_WITHOUT_BUFFERS)
    replicated.register_comm_hook(None, lambda state, bucket: _sum(bucket))
    # DDP groups gradients into buckets anew after its first backward pass. Have that behind us, so that a
    # resumed run adds up in the same order as one that was never stopped.
    # Not compiled for these two tokens.
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        replicated(torch.zeros(1, 2, dtype=torch.long, device=device)).sum().backward()
    replicated.zero_grad(set_to_none=False)  # so that they stay views of the buckets
    for router in routers(stage):
        router.counts.zero_()  # those two tokens' visits
    return replicated


def _sum(bucket: GradBucket) -> torch.futures.Future[Tensor]:
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


@contextlib.contextmanager
def reduce_gradients(wrapped: nn.Module, *, last: bool, save_memory: bool) -> Iterator[None]:
    """Reduce gradients over processes in the backward pass inside, or only add them up locally.

    Args:
        wrapped: A stage.
        last: Whether it is the last micro-batch of a step; the others wait.
        save_memory: Whether shards give their parts away after each micro-batch all the same: else each
            process holds the gradient of all weights until the last. Replicas wait for it.
    """
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last or save_memory)
        wrapped.set_requires_all_reduce(last)
        yield
    elif isinstance(wrapped, DistributedDataParallel) and not last:
        with wrapped.no_sync():
            yield
    else:
        yield


def release_weights(model: nn.Module) -> None:
    """Let go of gathered weights: after a forward pass without a backward one, FSDP2 keeps them.

    They are of the type of computing, and the model's parameters until then.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def autocast(
    wrapped: nn.Module, precision: Precision, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    """Compute in ``precision`` with fp32 weights; a sharded model casts its own as it gathers them."""
    if precision == "fp32" or isinstance(wrapped, FSDPModule):
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])
