"""Four processes: the main one waits alone in each group of a layout, which is an error after a stall."""

import pytest
import torch
import torch.distributed as dist

from lmcore.config import LaunchConfig, ParallelConfig
from lmcore.parallel.mesh import join_world, make_layout
from lmcore.run_process import leave

STALL_SECONDS = 2

with join_world(LaunchConfig(device="cpu", threads_per_process=1, stall_seconds=STALL_SECONDS)) as world:
    layout = make_layout(ParallelConfig(dp_replicate=1, pp=2, cp=2), world)
    for group in layout.groups():
        if group.size() > 1 and world.is_main:
            with pytest.raises(RuntimeError, match="Timed out"):
                dist.all_reduce(torch.ones(1), group=group)
    world.wait_for_main()
leave(0)
