"""Replicas that are to be equal, and are compared: a bit that one of them lost is found before it is saved.

Data-parallel replicas hold the same bits: they began with them, add up the same gradients and do the same
update. Bad memory, a bad device or a bad kernel on one of them shows nowhere: its gradients are averaged with
the others'. So checksums of what each holds are compared now and then, and before every checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lmcore.errors import ReplicasDiffer
from lmcore.parallel.mesh import Layout
from lmcore.parallel.parts import local

ROW_WORDS = 1024
MOST_NAMED = 3


class Replicas:
    """The processes that hold the same part of the model as this one.

    Args:
        layout: Of all processes.
    """

    def __init__(self, layout: Layout) -> None:
        self.world = layout.world
        self.size = layout.parallel.dp_replicate
        self.group: dist.ProcessGroup | None = None
        if self.size > 1:
            self.group = dist.group.WORLD if layout.mesh is None else layout.group("dp_replicate")

    def check(self, tensors: Mapping[str, Tensor], step: int, last_good: str) -> None:
        """Compare the bits of ``tensors`` with those of the other replicas; all processes call it together.

        Args:
            tensors: By name, the same names in the same order on all replicas.
            step: Steps done.
            last_good: Name of the newest checkpoint, or empty.

        Raises:
            ReplicasDiffer: one of them holds something else.
        """
        if self.size == 1:
            return
        sums = checksums(list(tensors.values()), self.world.device)
        # Where the largest and the smallest are equal, all are; ~ turns the order around.
        bounds = torch.stack((sums, ~sums))
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=self.group)
        differing = (bounds[0] != ~bounds[1]).any(dim=1).nonzero().flatten().tolist()
        (found,) = self.world.add_up([float(len(differing))])
        if found:
            names = [list(tensors)[number] for number in differing]
            problem = self._whose(names, sums[differing])
            raise ReplicasDiffer(
                f"replicas of the model were no longer equal after step {step}",
                expected=f"the same bits on {self.size} replicas",
                found=self._first(problem),
                remedy="Memory or a device of that process fails: check it. The last checkpoint of replicas "
                f"found equal is {last_good or 'none'}; the same command goes on from it.",
            )

    def _whose(self, names: Sequence[str], sums: Tensor) -> str:
        """Say which ranks of our replicas hold something else than most, in which tensors."""
        if not names:
            return ""
        everyone = [torch.empty_like(sums) for _ in range(self.size)]
        dist.all_gather(everyone, sums, group=self.group)
        ranks = dist.get_process_group_ranks(self.group)
        held = {rank: tuple(map(tuple, each.tolist())) for rank, each in zip(ranks, everyone, strict=True)}
        (common, count), *others = Counter(held.values()).most_common()
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        shown = ", ".join(names[:MOST_NAMED]) + more
        odd = [str(rank) for rank, each in held.items() if each != common]
        if others and others[0][1] == count:  # no majority tells which of them is right
            return f"ranks {', '.join(map(str, held))} differ from one another in {shown}"
        return f"rank {', '.join(odd)} differs from the other {count} in {shown}"

    def _first(self, problem: str) -> str:
        problems = [""] * self.world.size
        dist.all_gather_object(problems, problem, group=self.world.patient)
        return next(text for text in problems if text)


def checksums(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Two sums of the bits of each tensor's part that is ours; int64 [len(tensors), 2] on ``device``.

    Words of eight bytes are added up modulo 2^64, once as they are and once by rows with odd weights: any
    single change moves both, and content that changes its place moves the second.
    """
    found = [_checksum(local(tensor.detach())) for tensor in tensors]
    return torch.stack(found).to(device) if found else torch.zeros((0, 2), dtype=torch.int64, device=device)


def _checksum(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().view(-1)
    if flat.storage_offset() * flat.element_size() % 8 or flat.data_ptr() % 8:
        flat = flat.clone()
    data = flat.view(torch.uint8)
    whole = data.numel() // (8 * ROW_WORDS) * (8 * ROW_WORDS)
    rows = data[:whole].view(torch.int64).view(-1, ROW_WORDS).sum(dim=1)
    words = data.numel() // 8 * 8
    tail = data[whole:words].view(torch.int64)
    rest = data[words:].to(torch.int64)
    # The words of the tail and the bytes of the rest are rows of their own.
    rows = torch.cat((rows, tail, rest))
    weights = torch.arange(rows.numel(), device=rows.device) * 2 + 1
    return torch.stack((rows.sum(), (rows * weights).sum()))
