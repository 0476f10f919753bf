"""A pool of processes that train one run directory after another, in worlds of any size."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

SIZE = 8  # processes of the largest world


@dataclass
class Task:
    """One run in one world; after ``wait`` ``error`` says what went wrong."""

    run_dir: Path
    world_size: int
    plant: str = ""
    error: str = ""
    seconds: float = 0.0
    left: set[int] = field(default_factory=set)


class Pool:
    """Workers that import torch once."""

    def __init__(self, folder: Path) -> None:
        self.logs = [folder / f"worker-{number}.log" for number in range(SIZE)]
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
                        env={**os.environ, "OMP_NUM_THREADS": "1"},
                    )
                )
        for worker in self.workers:
            os.set_blocking(worker.stdout.fileno(), False)

    def run(self, tasks: list[Task]) -> None:
        """Finish all tasks, as many at a time as there are workers for; largest worlds first."""
        waiting = deque(sorted(tasks, key=lambda task: -task.world_size))
        free, running, since = set(range(SIZE)), {}, {}
        while waiting or running:
            while waiting and waiting[0].world_size <= len(free):
                self._start(waiting.popleft(), free, running, since)
            self._collect(free, running, since)
            time.sleep(0.005)

    def close(self) -> None:
        for worker in self.workers:
            worker.stdin.close()
        for worker in self.workers:
            worker.wait(30)

    def _start(self, task, free, running, since):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = [free.pop() for _ in range(task.world_size)]
        task.left = set(ranks)
        for rank, number in enumerate(ranks):
            order = {"rank": rank, "size": task.world_size, "port": port}
            order |= {"run_dir": str(task.run_dir), "plant": task.plant}
            self.workers[number].stdin.write(json.dumps(order) + "\n")
            self.workers[number].stdin.flush()
            running[number], since[number] = task, time.monotonic()

    def _collect(self, free, running, since):
        for number, task in list(running.items()):
            line = self.workers[number].stdout.readline()
            if not line and self.workers[number].poll() is None:
                assert time.monotonic() - since[number] < 120, f"stuck: {task.run_dir}\n{self._log(number)}"
                continue
            assert line, f"a worker died: {self._log(number)}"
            error = json.loads(line)["error"]
            task.error = task.error or error
            task.left.discard(number)
            task.seconds = time.monotonic() - since[number]
            del running[number]
            free.add(number)

    def _log(self, number):
        return self.logs[number].read_text()[-3000:]
