"""One process of the pool: reads a line for each run that it is to take part in, and answers with one.

Each run is done by a child that has all imports behind it and none of the groups of another run: torch keeps
meshes of an ended world in its caches.
"""

import faulthandler
import gc
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import numpy.ctypeslib
import numpy.ma  # noqa: F401 - as others here, so that a run does not
import plants
import torch
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.tensor
import torch.utils.serialization.config

from lmcore.config import LaunchConfig
from lmcore.parallel.mesh import join_world
from lmcore.run_directory import write_result
from lmcore.train.job import TrainJob
from lmcore.train.trainer import Trainer


def train(order):
    os.environ |= {
        "RANK": str(order["rank"]),
        "WORLD_SIZE": str(order["size"]),
        "LOCAL_WORLD_SIZE": str(order["size"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(order["port"]),
    }
    run_dir = Path(order["run_dir"])
    launch = LaunchConfig(device="cpu", threads_per_process=1, stall_seconds=order["stall_seconds"])
    with join_world(launch) as world:
        result = Trainer(TrainJob.read(run_dir), run_dir, world, lambda: False).run()
        if world.is_main:
            write_result(run_dir, result)


def answer(order):
    """What went wrong, or nothing."""
    torch.set_num_threads(1)
    if order["plant"]:
        getattr(plants, order["plant"])()
    try:
        train(order)
    except BaseException:
        return traceback.format_exc()
    return ""


def main():
    faulthandler.enable()  # a process that aborts says where
    faulthandler.register(signal.SIGUSR1)
    answers = os.dup(1)
    os.dup2(2, 1)  # what is printed goes to the log
    gc.freeze()  # a child's collector leaves what was imported alone, and so its pages shared
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            tell(answers, answer(json.loads(line)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            tell(answers, f"ended with status {status}")


def tell(answers, error):
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = used.ru_utime + used.ru_stime
    os.write(answers, (json.dumps({"error": error, "cpu_seconds": cpu_seconds}) + "\n").encode())


if __name__ == "__main__":
    main()
