"""What the gradients of a divided model need besides FSDP and DDP: sums over tp, a tied head, their norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lmcore.parallel.mesh import Layout
from lmcore.parallel.parts import local
from lmcore.parallel.stage import Stage


def is_divided_over_tp(parameter: Tensor) -> bool:
    """Whether tensor parallel has the parameter in its hands; its gradient is then whole or of our part."""
    return isinstance(parameter, DTensor) and "tp" in (parameter.device_mesh.mesh_dim_names or ())


def partial_over_tp(stage: Stage, layout: Layout) -> list[nn.Parameter]:
    """The parameters that every process of tp has whole and saw a part of the data with.

    Norms of queries and keys see the heads of a process; where the residual stream is divided along the
    sequence, all others see a part of the tokens.
    """
    if layout.parallel.tp == 1:
        return []
    return [
        parameter
        for name, parameter in stage.model.named_parameters()
        if not is_divided_over_tp(parameter)
        and (layout.divides_sequence or name.endswith(("q_norm.weight", "k_norm.weight")))
    ]


def add_up(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Replace the gradients of ``parameters`` by their sums over ``group``, in one collective."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=group)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def num_copies(parameter: Tensor, layout: Layout) -> int:
    """How many processes hold the same part of ``parameter``."""
    parts = 1
    if isinstance(parameter, DTensor):
        for size, placement in zip(parameter.device_mesh.shape, parameter.placements, strict=True):
            parts *= 1 if placement.is_replicate() else size
    return layout.stage_size // parts


class TiedHead:
    """The head of a tied model whose embedding is in another stage: it follows the embedding.

    Its gradient is added to the embedding's, which alone is optimized, and its weights are copied from there.

    Args:
        embedding, head: What this process has of the two, divided alike; at least one is None on most.
        layout: Of the processes.
        last: Place in the pipeline of the process that has the head.
    """

    def __init__(
        self, embedding: nn.Embedding | None, head: nn.Linear | None, layout: Layout, last: int
    ) -> None:
        self.embedding: Tensor | None = None if embedding is None else embedding.weight
        self.head: Tensor | None = None if head is None else head.weight
        self.layout, self.last = layout, last
        # The same coordinates at both ends have the same part.
        self.group = layout.group("pp")

    def give_gradient(self) -> None:
        """Add the head's gradient to the embedding's, and forget it: no optimizer does."""
        if self.head is not None and self.embedding is not None:
            _grad(self.embedding).add_(_grad(self.head))
        elif self.head is not None:
            dist.send(_grad(self.head).contiguous(), group=self.group, group_dst=0)
        elif self.embedding is not None:
            ours = _grad(self.embedding)
            theirs = torch.empty_like(ours, memory_format=torch.contiguous_format)
            dist.recv(theirs, group=self.group, group_src=self.last)
            ours.add_(theirs)
        if self.head is not None:
            self.head.grad = None

    @torch.no_grad()
    def follow(self) -> None:
        """Copy the embedding into the head."""
        if self.head is not None and self.embedding is not None:
            local(self.head).copy_(local(self.embedding))
        elif self.embedding is not None:
            dist.send(local(self.embedding).contiguous(), group=self.group, group_dst=self.last)
        elif self.head is not None:
            ours = local(self.head)
            theirs = torch.empty_like(ours, memory_format=torch.contiguous_format)
            dist.recv(theirs, group=self.group, group_src=0)
            ours.copy_(theirs)


def _grad(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("the embedding or the head of a tied model has no gradient")
    return local(parameter.grad)
