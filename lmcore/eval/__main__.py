"""``python -m lmcore.eval RUN_DIR``: do the evaluation job of a run directory, alone or under torchrun."""

from __future__ import annotations

import os
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from lmcore.eval.evaluation import Evaluation
from lmcore.eval.job import EvaluationJob
from lmcore.parallel.mesh import join_world
from lmcore.run_directory import RESULT_FILE, write_result
from lmcore.run_process import StopRequest, leave, run_process


@record
def evaluate(run_dir: Path) -> None:
    """Do the job of ``run_dir`` and write its result."""
    stop = StopRequest()
    job = EvaluationJob.read(run_dir)
    if os.environ.get("RANK", "0") == "0":
        (run_dir / RESULT_FILE).unlink(missing_ok=True)
    with join_world(job.launch) as world:
        result = Evaluation(job, run_dir, world, stop).run()
        if world.is_main:
            write_result(run_dir, result)
        world.barrier()


if __name__ == "__main__":
    leave(run_process("lmcore.eval", evaluate))
