"""Two processes save a checkpoint and load it, of which the main one reads it for longer than a stall."""

import sys
import time
from pathlib import Path

import torch

from lmcore.config import LaunchConfig
from lmcore.parallel.mesh import join_world
from lmcore.run_process import leave
from lmcore.store import hash_files
from lmcore.train import checkpoint
from lmcore.train.checkpoint import Checkpoints, TrainingState

STALL_SECONDS = 3


def hash_slowly(path):
    time.sleep(STALL_SECONDS + 1)
    return hash_files(path)


checkpoint.hash_files = hash_slowly
with join_world(LaunchConfig(device="cpu", threads_per_process=1, stall_seconds=STALL_SECONDS)) as world:
    checkpoints = Checkpoints(Path(sys.argv[1]), world, keep=1, num_replicas=2)
    tensors = {"w": torch.ones(4)}
    checkpoints.save(tensors, TrainingState(step=1, loss_scale={}, belongs_to={}))
    state = checkpoints.load_newest(lambda: tensors, {}, print)
    assert state is not None
    assert state.step == 1
leave(0)
