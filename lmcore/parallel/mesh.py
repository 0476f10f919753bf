"""The processes of a run: how many, which one this is, and the mesh they form."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lmcore.config import LaunchConfig, ParallelConfig
from lmcore.errors import ConfigError, LaunchError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank: From 0.
        size: Processes in all.
        device: Where this one computes.
        patient: All processes again, for collectives that no stall ends.
    """

    rank: int
    size: int
    device: torch.device
    patient: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all of them found."""
        return self.rank == 0

    def add_up(self, values: list[float]) -> list[float]:
        """Return the sum over all processes of each of ``values``, in fp64, the same bits on each."""
        if self.size == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return summed.tolist()

    def add_up_whole(self, counts: Tensor) -> Tensor:
        """Return the sum over all processes of ``counts``, which may be changed."""
        if self.size > 1:
            dist.all_reduce(counts)
        return counts

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
        yield World(rank, size, device, patient)
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
                remedy="Set train.parallel.dp_replicate and dp_shard to fit, or train.launch.device=auto, "
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


def make_mesh(parallel: ParallelConfig, world: World) -> DeviceMesh | None:
    """Lay the processes out as (dp_replicate, dp_shard); None for a single process.

    Raises:
        ConfigError: there are more or fewer processes than the settings divide the work over.
    """
    if parallel.num_processes != world.size:
        raise ConfigError(
            "the number of processes is not the one in the settings",
            expected=f"{parallel.num_processes} (dp_replicate {parallel.dp_replicate} x "
            f"dp_shard {parallel.dp_shard})",
            found=f"{world.size}",
            remedy=f"Start {parallel.num_processes} processes, or set train.parallel.dp_shard to "
            f"{world.size} and dp_replicate to 1.",
        )
    if world.size == 1:
        return None
    return init_device_mesh(
        world.device.type,
        (parallel.dp_replicate, parallel.dp_shard),
        mesh_dim_names=("dp_replicate", "dp_shard"),
    )
