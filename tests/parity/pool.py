"""A pool of processes that train one run directory after another, in worlds of any size."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

SIZE = 8  # processes of the largest world of the matrix
PORT_IS_TAKEN, STOOD_STILL = "EADDRINUSE", "Timed out waiting"
TRIES = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class PoolError(RuntimeError):
    """A worker is gone or stuck; all of them were ended."""


@dataclass
class Task:
    """One run in one world; after ``Pool.run`` ``error`` says what went wrong in it."""

    run_dir: Path
    world_size: int
    plant: str = ""
    error: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tries: int = 0
    before: Path | None = None
    left: set[int] = field(default_factory=set)


class Pool:
    """Workers that import torch once.

    Args:
        folder: For their logs.
        size: How many.
        patience: Seconds that a run may take.
        stall_seconds: What a process waits for another.
    """

    def __init__(
        self, folder: Path, size: int = SIZE, patience: float = 120.0, stall_seconds: float = 20.0
    ) -> None:
        self.folder, self.size, self.patience, self.stall_seconds = folder, size, patience, stall_seconds
        self.logs = [folder / f"worker-{number}.log" for number in range(size)]
        self.workers = []
        for log in self.logs:
            with log.open("wb") as file:
                self.workers.append(
                    subprocess.Popen(
                        [sys.executable, str(Path(__file__).with_name("pool_worker.py"))],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=file,
                        text=True,
                        # A session of its own: it is ended with the child that does the run.
                        start_new_session=True,
                        env={**os.environ, "OMP_NUM_THREADS": "1"},
                    )
                )
        for worker in self.workers:
            os.set_blocking(worker.stdout.fileno(), False)

    def run(self, tasks: list[Task]) -> None:
        """Finish all tasks, as many at a time as there are workers for; largest worlds first.

        Raises:
            PoolError: a worker is gone or stuck.
        """
        too_large = [str(task.run_dir) for task in tasks if task.world_size > self.size]
        assert not too_large, f"worlds of more than {self.size} processes: {too_large}"
        waiting = deque(sorted(tasks, key=lambda task: -task.world_size))
        free, running, since = set(range(self.size)), {}, {}
        try:
            while waiting or running:
                while waiting and waiting[0].world_size <= len(free):
                    self._start(waiting.popleft(), free, running, since)
                waiting.extendleft(self._collect(free, running, since))
                time.sleep(0.005)
        except BaseException:
            self.kill()
            raise

    def close(self) -> None:
        """Let the workers end, and end those that do not."""
        for worker in self.workers:
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            for worker in self.workers:
                worker.wait(30)
        self.kill()

    def kill(self) -> None:
        """End every worker, and the child that it has."""
        for worker in self.workers:
            # The child of a worker that is gone still has its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            worker.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()

    def _start(self, task, free, running, since):
        port = free_port()
        ranks = [free.pop() for _ in range(task.world_size)]
        task.left, task.tries = set(ranks), task.tries + 1
        if task.before is None:
            task.before = Path(tempfile.mkdtemp(dir=self.folder), "run")
            shutil.copytree(task.run_dir, task.before)
        for rank, number in enumerate(ranks):
            order = {"rank": rank, "size": task.world_size, "port": port}
            order |= {"run_dir": str(task.run_dir), "plant": task.plant, "stall_seconds": self.stall_seconds}
            running[number], since[number] = task, time.monotonic()
            try:
                self.workers[number].stdin.write(json.dumps(order) + "\n")
                self.workers[number].stdin.flush()
            except BrokenPipeError:
                raise PoolError(f"a worker died: {self._log(number)}") from None

    def _collect(self, free, running, since):
        """Take in the answers that are there; return what is to be tried again."""
        again = []
        for number, task in list(running.items()):
            line = self.workers[number].stdout.readline()
            if not line:
                if self.workers[number].poll() is not None:
                    raise PoolError(f"a worker died in {task.run_dir}: {self._log(number)}")
                if time.monotonic() - since[number] > self.patience:
                    raise PoolError(f"stuck for {self.patience:.0f} s: {task.run_dir}\n{self._log(number)}")
                continue
            answer = json.loads(line)
            task.error += answer["error"]
            if "ended with status" in answer["error"]:
                task.error += f"\n{self._log(number)}\n"
            task.cpu_seconds += answer["cpu_seconds"]
            task.left.discard(number)
            task.seconds = time.monotonic() - since[number]
            del running[number]
            free.add(number)
            if not task.left and self._is_worth_a_try(task):
                again.append(self._as_before(task))
        return again

    def _is_worth_a_try(self, task):
        # Between our looking for a port and its use another process took it.
        if PORT_IS_TAKEN in task.error:
            return task.tries < TRIES
        # Seen once, all processes in the same collective. A layout that is wrong does it each time.
        stood_still = STOOD_STILL in task.error and task.tries == 1
        if stood_still:
            warnings.warn(f"{task.run_dir} stood still, and is tried again:\n{task.error}", stacklevel=1)
        return stood_still

    def _as_before(self, task):
        """``task``, its run directory as it was given to us."""
        shutil.rmtree(task.run_dir)
        shutil.copytree(task.before, task.run_dir)
        task.error = ""
        return task

    def _log(self, number):
        return self.logs[number].read_text()[-3000:]
