"""Each rank of a run says that it lives: who it is, and by a file's time when it last did.

A thread of its own touches the file, so that a rank that waits for another is alive, and one that was stopped
(SIGSTOP), hangs in the kernel or holds Python's lock is not. On SIGUSR1 a rank writes the stacks of its
threads to the log. ``lmcore.launch.watch`` reads both.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lmcore.disk import disk_errors

FOLDER = ".ranks"
BEAT_SECONDS = 1.0
STACKS = signal.SIGUSR1


@dataclass(frozen=True)
class Rank:
    """A process of a run.

    Attributes:
        rank: From 0.
        host: Name of its machine.
        pid: Its process id there.
        beat: When it last said that it lives, by the clock of the file system.
    """

    rank: int
    host: str
    pid: int
    beat: float = 0.0

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@contextlib.contextmanager
def heartbeat(run_dir: Path) -> Iterator[None]:
    """Say inside, by a file below ``run_dir``, that this process lives."""
    rank = Rank(int(os.environ.get("RANK", "0")), socket.gethostname(), os.getpid())
    path = run_dir / FOLDER / f"{rank.rank:05d}.json"
    # Before anybody knows of us: who asks for stacks would end a process that has none to give.
    with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error may be no file
        faulthandler.register(STACKS, file=sys.stderr, all_threads=True)
    with disk_errors(path, "a rank said that it lives"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(asdict(rank)), encoding="utf-8")
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, ended), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def read_ranks(run_dir: Path) -> list[Rank]:
    """The ranks that said that they live, in order."""
    found = []
    for path in sorted((run_dir / FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            values = json.loads(path.read_text(encoding="utf-8"))
            found.append(Rank(**{**values, "beat": path.stat().st_mtime}))
    return found


def forget_ranks(run_dir: Path) -> None:
    """Remove what ranks of an earlier attempt said."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


def seconds_since(beat: float) -> float:
    """Seconds since a beat."""
    return time.time() - beat
