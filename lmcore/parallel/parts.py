"""The part of a divided tensor that a process holds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local(tensor: Tensor) -> Tensor:
    """Return the part of ``tensor`` that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(parameter: Tensor, whole: Tensor, device: torch.device) -> Tensor:
    """Return on ``device`` what this process holds of ``parameter``, out of ``whole``, divided like it."""
    if not isinstance(parameter, DTensor):
        return whole.to(device)
    mine = part_of(parameter, whole).contiguous().to(device)
    if mine.untyped_storage().nbytes() != mine.nbytes:
        mine = mine.clone()  # so that the rest can go
    return DTensor.from_local(
        mine,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def part_of(parameter: DTensor, whole: Tensor) -> Tensor:
    """Return a view of what this process holds of ``parameter`` in ``whole``, a tensor of its whole shape."""
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return whole[tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))]
