"""``python -m lmcore.train RUN_DIR``: do the training job of a run directory, alone or under torchrun."""

from __future__ import annotations

import os
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from lmcore import BEGAN
from lmcore.parallel.mesh import join_world
from lmcore.run_directory import RESULT_FILE, write_result
from lmcore.run_process import StopRequest, leave, run_process
from lmcore.train.job import TrainJob
from lmcore.train.trainer import Trainer


@record
def train(run_dir: Path) -> None:
    """Do the job of ``run_dir`` and write its result."""
    is_main = os.environ.get("RANK", "0") == "0"
    job = TrainJob.read(run_dir)
    if is_main:
        (run_dir / RESULT_FILE).unlink(missing_ok=True)
    with join_world(job.train.launch) as world:
        # Not before: asked to stop while it waits for another that is gone, a process has nothing to save,
        # and would wait until it is killed.
        result = Trainer(job, run_dir, world, StopRequest(), began=BEGAN).run()
        if world.is_main:
            write_result(run_dir, result)
        world.barrier()


if __name__ == "__main__":
    leave(run_process("lmcore.train", train))
