import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmcore.config import LaunchConfig, ParallelConfig
from lmcore.errors import ConfigError, LaunchError
from lmcore.parallel.mesh import World, choose_device, join_world, make_layout

ALONE = World(0, 1, torch.device("cpu"))


def test_alone_there_is_no_mesh():
    layout = make_layout(ParallelConfig(dp_replicate=1), ALONE)
    assert (layout.mesh, layout.dp_rank, layout.counts) == (None, 0, True)
    with join_world(LaunchConfig(device="cpu")) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert world.add_up([1.0, 2.0]) == [1.0, 2.0]


def test_another_number_of_processes_is_refused():
    with pytest.raises(ConfigError, match=r"expected 4 .*found 1.*dp_shard to 1"):
        make_layout(ParallelConfig(dp_replicate=2, dp_shard=2), ALONE)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(LaunchConfig(device="auto")) == torch.device("cpu")
    with pytest.raises(LaunchError, match="GPU"):
        choose_device(LaunchConfig(device="cuda"))


def test_more_processes_than_gpus_compute_on_the_cpu_or_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_device(LaunchConfig(device="auto")) == torch.device("cpu")
    assert "warning: 2 processes and 1 GPU" in capsys.readouterr().err
    with pytest.raises(LaunchError, match="a GPU for each process of this machine: 2, found 1"):
        choose_device(LaunchConfig(device="cuda"))


@pytest.mark.long
def test_no_group_of_a_layout_waits_for_longer_than_a_stall():
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    program = Path(__file__).with_name("layout_stalls.py")
    done = subprocess.run([*agent, program], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
