"""Run several evaluations one after the other in the same processes: ``run_jobs.py RUN_DIR ...``."""

import sys
from pathlib import Path

from lmcore.config import LaunchConfig
from lmcore.eval.evaluation import Evaluation
from lmcore.eval.job import EvaluationJob
from lmcore.parallel.mesh import join_world
from lmcore.run_directory import write_result
from lmcore.run_process import leave


def main(run_dirs):
    with join_world(LaunchConfig(device="cpu", threads_per_process=1)) as world:
        for run_dir in map(Path, run_dirs):
            result = Evaluation(EvaluationJob.read(run_dir), run_dir, world, lambda: False).run()
            if world.is_main:
                write_result(run_dir, result)
            world.barrier()


if __name__ == "__main__":
    main(sys.argv[1:])
    leave(0)
