"""Tensor parallel: matrices divided by rows or columns, and the vocabulary (Shoeybi et al. 2019)."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from lmcore.model.mlp import MLP
from lmcore.parallel.stage import Stage


def divide_matrices(stage: Stage, mesh: DeviceMesh, *, sequence: bool) -> None:
    """Make the matrices of ``stage`` parts of DTensors over ``mesh``.

    Heads, the MLP's width and the vocabulary are divided; what enters and leaves a branch is whole, or with
    ``sequence`` divided along the sequence (Korthikanti et al. 2022). Norms and routers stay whole: their
    gradients are added up by ``gradients``.

    Args:
        stage: On the meta device, or with the same weights on every process.
        mesh: One axis.
        sequence: Whether the residual stream is divided along the sequence.
    """
    model = stage.model
    stream: Placement = Shard(1) if sequence else Replicate()
    into, out_of = ColwiseParallel(input_layouts=stream), RowwiseParallel(output_layouts=stream)
    for block in stage.blocks:
        plan: dict[str, ParallelStyle] = {"attention.qkv": into, "attention.out": out_of}
        if isinstance(block.mlp, MLP):
            plan |= {"mlp.up": into, "mlp.down": out_of}
        parallelize_module(block, mesh, plan)
    if isinstance(model.embedding, nn.Module):
        by_token = RowwiseParallel(input_layouts=Replicate(), output_layouts=stream)
        parallelize_module(model.embedding, mesh, by_token)
    if isinstance(model.head, nn.Module):
        parallelize_module(model.head, mesh, ColwiseParallel(input_layouts=stream, output_layouts=Shard(-1)))
