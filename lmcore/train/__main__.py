"""``python -m lmcore.train RUN_DIR``: do the training job of a run directory, alone or under torchrun."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from lmcore.errors import GristmillError
from lmcore.parallel.mesh import join_world
from lmcore.run_directory import RESULT_FILE, write_result
from lmcore.train.job import TrainJob
from lmcore.train.trainer import Trainer


def main() -> int:
    """Run the job; return the exit code."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m lmcore.train RUN_DIR\n")
        return 2
    run_dir = Path(sys.argv[1])
    try:
        train(run_dir)
    except GristmillError as error:
        write_result(run_dir, {"status": "failed", "error": str(error), "kind": type(error).__name__})
        sys.stderr.write(f"error: {error}\n")
        return 1
    except Exception as error:
        traceback.print_exc()
        # A peer that failed first has the better story: keep it.
        if not (run_dir / RESULT_FILE).exists():
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            write_result(run_dir, {"status": "failed", "error": text, "kind": type(error).__name__})
        return 1
    return 0


@record
def train(run_dir: Path) -> None:
    """Do the job of ``run_dir`` and write its result."""
    stop = StopRequest()
    is_main = os.environ.get("RANK", "0") == "0"
    job = TrainJob.read(run_dir)
    if is_main:
        (run_dir / RESULT_FILE).unlink(missing_ok=True)
    with join_world(job.train.launch) as world:
        result = Trainer(job, run_dir, world, stop).run()
        if world.is_main:
            write_result(run_dir, result)
        world.barrier()


class StopRequest:
    """Remembers that the process was asked to stop, by SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def __call__(self) -> bool:
        """Whether the process was asked to stop."""
        return self._asked

    def _remember(self, number: int, frame: Any) -> None:
        self._asked = True


if __name__ == "__main__":
    sys.exit(main())
