"""Expert parallel: each process holds some of the experts, and tokens travel to them and back.

One all-to-all tells how many rows go where, a second brings them, a third takes the results back (Lepikhin et
al. 2021); no capacity limits them, so no token is dropped. Routers stay whole on every process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from lmcore.errors import ConfigError
from lmcore.model.grouped import spread
from lmcore.model.moe import Experts, MoE
from lmcore.parallel.parts import local


def divide_experts(model: nn.Module, mesh: DeviceMesh) -> None:
    """Give each process of ``mesh`` an equal run of each mixture's experts.

    The weights become DTensors that are divided over their first dimension; their gradients hold what the
    tokens of all processes of ``mesh`` give, and are to be added up over the other dimensions alone. Names in
    the state stay.

    Args:
        model: With whole weights, the same on every process, or on the meta device. Changed in place.
        mesh: Of one dimension.

    Raises:
        ConfigError: the processes do not divide the experts.
    """
    for module in model.modules():
        if isinstance(module, MoE):
            module.experts = DividedExperts(module.experts, mesh)


class DividedExperts(Experts):
    """Some of the experts of ``whole``, called as if they were all of them.

    Args:
        whole: Its weights are taken apart.
        mesh: The processes that share them.
    """

    def __init__(self, whole: Experts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.activation, self.block = whole.activation, whole.block
        self.mesh = mesh
        self.up = nn.Parameter(_own_part(whole.up, mesh))
        self.down = nn.Parameter(_own_part(whole.down, mesh))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Map this process's rows ``x`` [N, D], in the order of all experts, to [N, D].

        Args:
            x: Rows for expert 0, wherever it is, then those for expert 1, and so on.
            counts: Rows for each of all experts, [E].
        """
        group = self.mesh.get_group()
        going = counts.view(self.mesh.size(), -1)  # [processes, own experts of each]
        coming = torch.empty_like(going)  # rows that each process sends to each of the experts here
        dist.all_to_all_single(coming, going, group=group)
        sizes = torch.stack((going.sum(1), coming.sum(1))).tolist()  # one wait for the device, not two
        rows = _Exchange.apply(x, *sizes, group)
        order, place = _by_expert(coming, sum(sizes[1]))
        y = self.compute(spread(rows, order, place, 1), coming.sum(0), local(self.up), local(self.down))
        return _Exchange.apply(spread(y, place, order, 1), *reversed(sizes), group)


def _own_part(weight: Tensor, mesh: DeviceMesh) -> DTensor:
    experts, size = weight.shape[0], mesh.size()
    if experts % size:
        raise ConfigError(
            "the experts cannot be divided over the processes",
            expected=f"train.parallel.ep that divides model.moe.num_experts {experts}",
            found=f"{size}",
        )
    part = weight.detach().chunk(size)[mesh.get_local_rank()].clone()
    return DTensor.from_local(part, mesh, [Shard(0)], run_check=False)


def _by_expert(coming: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Order by expert of ``rows`` that came by process and expert, [processes, experts]; and its inverse."""
    processes, experts = coming.shape
    expert = torch.arange(experts, device=coming.device).repeat(processes)
    order = expert.repeat_interleave(coming.flatten(), output_size=rows).argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return order, place


class _Exchange(torch.autograd.Function):
    """Send runs of rows to each process, take runs from each; gradients go the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, going: list[int], coming: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = (going, coming), group
        return _exchange(x, going, coming, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        going, coming = ctx.sizes
        return _exchange(gradients[0], coming, going, ctx.group), None, None, None


def _exchange(x: Tensor, going: list[int], coming: list[int], group: dist.ProcessGroup) -> Tensor:
    y = x.new_empty(sum(coming), *x.shape[1:])
    dist.all_to_all_single(y, x.contiguous(), coming, going, group=group)
    return y


def sum_counts_over(model: nn.Module, groups: list[dist.ProcessGroup]) -> None:
    """Have the auxiliary loss count whole sequences, divided over each of ``groups``."""

    def add_up(counts: Tensor) -> Tensor:
        counts = counts.clone()  # the part's own counts go on to its experts
        for group in groups:
            dist.all_reduce(counts, group=group)
        return counts

    for module in model.modules():
        if isinstance(module, MoE):
            module.sum_counts = add_up
