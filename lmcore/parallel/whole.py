"""The tensors of a divided model, whole again, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lmcore.parallel.mesh import Layout


def whole_tensors(ours: Sequence[tuple[str, Tensor]], layout: Layout) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the tensors of all stages whole; on the main process on the CPU, on the others None.

    All processes must go through it together, and none holds more than one of them.

    Args:
        ours: What this process has, by name: the same names on all of its stage, in the same order.
        layout: Of the processes.
    """
    rank = layout.world.rank
    for place in range(layout.parallel.pp):
        mine = ours if place == layout.pp_rank else []
        source = place * layout.stage_size
        for index in range(_agree(len(mine), source, layout)):
            name, tensor = mine[index] if mine else ("", None)
            whole = None if tensor is None else _whole(tensor.data, keep=rank in (0, source))
            yield from _to_main(name, whole, source, layout)


def _whole(tensor: Tensor, *, keep: bool) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.cpu() if keep else whole


def _agree(number: int, source: int, layout: Layout) -> int:
    if layout.parallel.pp == 1:
        return number
    box = torch.tensor(number, device=layout.world.device)
    dist.broadcast(box, source)
    return int(box.item())


def _to_main(
    name: str, whole: Tensor | None, source: int, layout: Layout
) -> Iterator[tuple[str, Tensor | None]]:
    """Bring what ``source`` holds whole to the main process."""
    is_main = layout.world.is_main
    if layout.parallel.pp == 1:
        yield name, whole if is_main else None
        return
    about = [(name, whole.shape, whole.dtype) if layout.world.rank == source and whole is not None else None]
    dist.broadcast_object_list(about, source)
    if about[0] is None:
        raise RuntimeError("a stage did not say what it sends")
    name, shape, dtype = about[0]
    if source and is_main:
        whole = torch.empty(shape, dtype=dtype)
        dist.recv(whole, source, group=layout.world.patient)
    elif source and layout.world.rank == source and whole is not None:
        dist.send(whole.contiguous(), 0, group=layout.world.patient)
    yield name, whole if is_main else None
