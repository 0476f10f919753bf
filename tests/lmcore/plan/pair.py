"""Two processes that really send to each other, and what the first of them finds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from lmcore.parallel.mesh import World

SIZE = 2


def run_pair(find: Callable[[World], Any]) -> Any:
    """Call ``find``, a function of a module, in both processes; return the first one's result."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_run, (find, folder), SIZE)
        return torch.load(Path(folder, "found"))


def _run(rank: int, find: Callable[[World], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)
    try:
        found = find(World(rank, SIZE, torch.device("cpu")))
        if rank == 0:
            torch.save(found, Path(folder, "found"))
    finally:
        dist.destroy_process_group()
