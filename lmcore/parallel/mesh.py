"""The processes of a run: how many, which one this is, and the layout they form."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from lmcore.config import LaunchConfig, ParallelConfig
from lmcore.errors import ConfigError, GristmillError, LaunchError

T = TypeVar("T")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank: From 0.
        size: Processes in all.
        device: Where this one computes.
        patient: All processes again, for collectives that no stall ends.
        stall_seconds: What other collectives may take.
    """

    rank: int
    size: int
    device: torch.device
    patient: dist.ProcessGroup | None = None
    stall_seconds: float = 600.0

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all of them found."""
        return self.rank == 0

    def add_up(self, values: list[float]) -> list[float]:
        """Return the sum over all processes of each of ``values``, in fp64, the same bits on each."""
        if self.size == 1:
            return values
        return self.sum_(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def sum_(self, values: Tensor) -> Tensor:
        """Replace ``values`` on the device by their sums over all processes, the same bits on each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_main(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns on the main process, or raise what it raises there, on all of them.

        It may take longer over it than a stall.
        """
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except GristmillError as error:
                outcome[1] = error
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0, group=self.patient)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def wait_for_main(self) -> None:
        """Wait for all processes, however long the main one works alone."""
        if self.size > 1:
            dist.barrier(group=self.patient)


@contextlib.contextmanager
def join_world(launch: LaunchConfig) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone.

    gloo on CPU, nccl on CUDA; a collective that takes longer than ``launch.stall_seconds`` is an error, but
    for ``World.wait_for_main``.

    Raises:
        LaunchError: CUDA was asked for and there are not enough GPUs.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = choose_device(launch)
    keep_freed_memory()
    if launch.threads_per_process:
        torch.set_num_threads(launch.threads_per_process)
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=datetime.timedelta(seconds=launch.stall_seconds),
        device_id=device if device.type == "cuda" else None,
    )
    patient: Any = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=365))
    try:
        yield World(rank, size, device, patient, launch.stall_seconds)
    finally:
        dist.destroy_process_group()


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, where it is glibc.

    It gives large tensors back to the system at once, which then hands out zeroed pages for the next.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def choose_device(launch: LaunchConfig) -> torch.device:
    """Return the device of this process; on CUDA the one of its local rank.

    ``auto`` is CUDA where each process of this machine has a GPU of its own, and else the CPU.

    Raises:
        LaunchError: CUDA was asked for and there are not enough GPUs.
    """
    if launch.device == "cpu":
        return torch.device("cpu")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpus < processes:
        if launch.device == "cuda":
            raise LaunchError(
                "train.launch.device is cuda",
                expected=f"a GPU for each process of this machine: {processes}",
                found=f"{gpus} that torch can use",
                remedy="Set the sizes in train.parallel to fit, or train.launch.device=auto, "
                "or install a torch built for this machine's GPU.",
            )
        if gpus and os.environ.get("RANK", "0") == "0":
            sys.stderr.write(
                f"warning: {processes} processes and {gpus} GPU(s): computing on the CPU; for the GPU set "
                "train.parallel.dp_replicate=1\n"
            )
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


@dataclass(frozen=True)
class Layout:
    """Which part of a run's work is this process's.

    Ranks count through the processes of tp first, then cp, dp_shard, dp_replicate and pp: who talks most is
    nearest.

    Attributes:
        parallel: The settings.
        world: This process among its peers.
        mesh: (pp, dp_replicate, shard, tp), where FSDP shards over dp_shard x cp; None where nothing is
            divided but the batch.
        expert_mesh: (pp, dp_replicate, shard, ep, tp): the same with the ranks of ep apart; None without.
        context_group: The processes that share our sequences; None if we hold whole ones.
        stage_group: Those at our place of the pipeline; None: all.
    """

    parallel: ParallelConfig
    world: World
    mesh: DeviceMesh | None = None
    expert_mesh: DeviceMesh | None = None
    context_group: dist.ProcessGroup | None = None
    stage_group: dist.ProcessGroup | None = None

    @property
    def tp_rank(self) -> int:
        """Our place among those that share our matrices."""
        return self.world.rank % self.parallel.tp

    @property
    def cp_rank(self) -> int:
        """Our place among those that share our sequences."""
        return self.world.rank // self.parallel.tp % self.parallel.cp

    @property
    def dp_rank(self) -> int:
        """Which of the ``parallel.dp`` shares of a batch is ours."""
        return self.world.rank // (self.parallel.tp * self.parallel.cp) % self.parallel.dp

    @property
    def pp_rank(self) -> int:
        """Our place in the pipeline."""
        return self.world.rank // (self.parallel.tp * self.parallel.cp * self.parallel.dp)

    @property
    def stage_size(self) -> int:
        """Processes at our place of the pipeline."""
        return self.world.size // self.parallel.pp

    @property
    def divides_sequence(self) -> bool:
        """Whether what lies between matrices is divided along the sequence over tp."""
        return self.parallel.tp > 1 and self.parallel.sequence_parallel

    @property
    def counts(self) -> bool:
        """Whether a loss of ours is to be counted: those of tp have the same."""
        return self.tp_rank == 0

    @property
    def sequence_groups(self) -> list[dist.ProcessGroup]:
        """The processes that see other tokens of the sequences that we see, axis by axis."""
        context = [] if self.context_group is None else [self.context_group]
        return context + ([self.group("tp")] if self.divides_sequence else [])

    def shard_mesh(self, mesh: DeviceMesh) -> DeviceMesh:
        """The axes of ``mesh`` over which FSDP shards, and before them those of replicas."""
        return mesh["dp_replicate", "shard"] if self.parallel.dp_replicate > 1 else mesh["shard"]

    def groups(self) -> Iterator[dist.ProcessGroup]:
        """Every group of processes that we are in, besides all of them."""
        for mesh in (self.mesh, self.expert_mesh):
            yield from () if mesh is None else mesh.get_all_groups()
        yield from (group for group in (self.context_group, self.stage_group) if group is not None)

    def group(self, axis: str) -> dist.ProcessGroup:
        """The processes along an axis of the mesh."""
        if self.mesh is None:
            raise ValueError(f"there is no mesh with an axis {axis}")
        return self.mesh.get_group(axis)


def make_layout(parallel: ParallelConfig, world: World) -> Layout:
    """Lay the processes out; all of them must call it together.

    Raises:
        ConfigError: there are more or fewer processes than the settings divide the work over.
    """
    if parallel.num_processes != world.size:
        axes = ("dp_replicate", "dp_shard", "tp", "pp", "cp")
        raise ConfigError(
            "the number of processes is not the one in the settings",
            expected=f"{parallel.num_processes} ("
            + " x ".join(f"{axis} {getattr(parallel, axis)}" for axis in axes)
            + ")",
            found=f"{world.size}",
            remedy=f"Start {parallel.num_processes} processes, or set train.parallel.dp_shard to "
            f"{world.size} and the others to 1.",
        )
    if not parallel.is_sharded:
        return Layout(parallel, world)
    kind, pp, tp = world.device.type, parallel.pp, parallel.tp
    shards = parallel.dp_shard * parallel.cp
    mesh = init_device_mesh(
        kind, (pp, parallel.dp_replicate, shards, tp), mesh_dim_names=("pp", "dp_replicate", "shard", "tp")
    )
    experts = context = None
    stage: Any = None
    if parallel.ep > 1:
        experts = init_device_mesh(
            kind,
            (pp, parallel.dp_replicate, shards // parallel.ep, parallel.ep, tp),
            mesh_dim_names=("pp", "dp_replicate", "shard", "ep", "tp"),
        )
    if parallel.cp > 1:
        sharing = init_device_mesh(
            kind, (pp * parallel.dp, parallel.cp, tp), mesh_dim_names=("dp", "cp", "tp")
        )
        context = sharing.get_group("cp")
    if pp > 1:
        size = world.size // pp
        groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world.size, size)]
        stage = groups[world.rank // size]
    layout = Layout(parallel, world, mesh, experts, context, stage)
    for group in layout.groups():
        # A new group waits as long as torch likes, 10 minutes on nccl and 30 on gloo.
        _set_pg_timeout(datetime.timedelta(seconds=world.stall_seconds), group)
    return layout
