"""``python -m flows.worker start ...``: Prefect's worker, which also tells of runs that were killed.

A closed terminal (SIGHUP) stops it in order, as SIGTERM does.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time

from lmcore.home import Home
from tasks.abandoned import Abandoned

LOOK_EVERY_SECONDS = 10.0
MAX_SECONDS = 120.0


def watch(home: Home) -> None:
    """Look for runs whose process is gone, and have MLflow and Prefect told by a process of its own."""
    abandoned = Abandoned(home)
    while True:
        time.sleep(LOOK_EVERY_SECONDS)
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # it is tried again
            if abandoned.find():
                command = [sys.executable, "-m", "tasks.abandoned"]
                subprocess.run(command, check=False, timeout=MAX_SECONDS)


def main() -> None:
    """Start Prefect's worker with the arguments of the command line."""
    signal.signal(signal.SIGHUP, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    threading.Thread(target=watch, args=(Home.here(),), name="watch", daemon=True).start()
    sys.argv = ["prefect", "worker", *sys.argv[1:]]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
