"""The order in which a model is wrapped, in one view."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lmcore.model.transformer import Transformer

Precision = Literal["fp32", "bf16", "fp16", "fp8"]

# torch 2.13 warns of the older name.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_WITHOUT_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}

# fp8 is of some products (lmcore/model/float8.py); what is around them is bf16.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}


def parallelize(model: Transformer, mesh: DeviceMesh | None, precision: Precision) -> nn.Module:
    """Wrap ``model`` for the processes of ``mesh``; its gradients become sums over all of them.

    The weights that the optimizer sees stay fp32, as do reductions. ``model`` itself is changed or kept
    inside the wrapper: its parameters are the ones to optimize.

    Args:
        model: On its device, with the same weights on every process.
        mesh: (dp_replicate, dp_shard); None: a single process, nothing to wrap.
        precision: Type of the computation.
    """
    if mesh is None:
        return model
    replicas, shards = mesh.shape
    if shards == 1:
        return _replicate(model)
    policy = MixedPrecisionPolicy(
        param_dtype=None if precision == "fp32" else DTYPES[precision], reduce_dtype=torch.float32
    )
    fsdp_mesh = mesh if replicas > 1 else mesh["dp_shard"]
    # GPUs free each block's weights until its backward pass; where memory is cheap, gathering twice is not.
    reshard = mesh.device_type == "cuda"
    for block in model.blocks:
        fully_shard(block, mesh=fsdp_mesh, mp_policy=policy, reshard_after_forward=reshard)
    # The embedding, the head and the last norm are gathered together, once.
    fully_shard(model, mesh=fsdp_mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sums, not means: the loss is divided once, by the global number of targets. gloo has no
            # scaled sum, which a divide factor alone would ask for.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def _replicate(model: Transformer) -> DistributedDataParallel:
    # The only buffers are tables of positions, the same on every process.
    replicated = DistributedDataParallel(model, gradient_as_bucket_view=True, **_WITHOUT_BUFFERS)
    replicated.register_comm_hook(None, lambda state, bucket: _sum(bucket))
    # DDP groups gradients into buckets anew after its first backward pass. Have that behind us, so that a
    # resumed run adds up in the same order as one that was never stopped.
    device = next(model.parameters()).device
    replicated(torch.zeros(1, 2, dtype=torch.long, device=device)).sum().backward()
    replicated.zero_grad()
    return replicated


def _sum(bucket: GradBucket) -> torch.futures.Future[Tensor]:
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


@contextlib.contextmanager
def reduce_gradients(wrapped: nn.Module, now: bool) -> Iterator[None]:
    """Reduce gradients over processes in the backward pass inside, or only add them up locally.

    All but the last micro-batch of a step wait.
    """
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(now)
        yield
    elif isinstance(wrapped, DistributedDataParallel) and not now:
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


def local(tensor: Tensor) -> Tensor:
    """Return the part of ``tensor`` that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Return all weights on the CPU, by name, where ``keep`` is set; every process must ask."""
    state = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.data
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if keep:
            state[name] = tensor.cpu()
    return state
