"""Processes on this machine: started under the supervisor, watched, and always stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from lmcore import errors
from lmcore.config import LaunchConfig
from lmcore.disk import disk_errors
from lmcore.errors import GristmillError, LaunchError, ProcessDied, StorageError
from lmcore.heartbeat import forget_ranks
from lmcore.launch.attempts import end_earlier
from lmcore.launch.job import Job
from lmcore.launch.watch import Watch

RESULT = "result.json"
LOG = "log.txt"
LAST_LINES = 15
LOCK_SPARE_SECONDS = 5.0
POLL_SECONDS = 0.1
FULL_BYTES = 1_000_000


def run(
    module: str,
    run_dir: Path,
    num_processes: int,
    launch: LaunchConfig,
    on_line: Callable[[str], object] = lambda line: None,
    on_stop: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Run ``module`` on ``run_dir`` in ``num_processes`` processes and return its ``result.json``.

    All that the processes print goes to ``log.txt``, and to ``on_line`` line by line. However the caller
    ends, the processes are stopped; ``on_stop`` is called when an interrupt makes them save first.

    Raises:
        LaunchError: the run directory is in use, or there are far more processes than cores.
        ProcessDied: the processes died without a word, or of an error that is none of ours.
        StorageError: they could not even write their result, and the disk is full.
        GristmillError: the kind that the job failed with.
    """
    job = Job.local(module, run_dir, num_processes, launch)
    with disk_errors(run_dir, "the run directory was made"):
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / ".lock").touch()
    with _sole_user(run_dir, launch.grace_seconds + LOCK_SPARE_SECONDS) as lock:
        restarts_left = launch.max_restarts
        while True:
            try:
                return _attempt(job, lock, on_line, on_stop)
            except ProcessDied as error:
                if not restarts_left:
                    raise
                restarts_left -= 1
                on_line(f"warning: {error} It is started again; restarts left: {restarts_left}")


def _attempt(
    job: Job, lock: IO[str], on_line: Callable[[str], object], on_stop: Callable[[], object]
) -> dict[str, Any]:
    # Killed, a supervisor leaves processes behind that may still save: two attempts would mix their events.
    if killed := end_earlier(job.run_dir, job.grace_seconds + LOCK_SPARE_SECONDS):
        on_line(f"warning: processes of the attempt before did not end and were killed: {killed}")
    for stale in (RESULT, "error.json"):
        (job.run_dir / stale).unlink(missing_ok=True)
    forget_ranks(job.run_dir)
    log = job.run_dir / LOG
    begin = log.stat().st_size if log.exists() else 0
    last_lines: deque[str] = deque(maxlen=LAST_LINES)
    with _supervised(job, lock, on_stop) as process:
        watch = Watch(job.run_dir, process.pid, job.stall_seconds, log)
        for line in _lines(process, log, begin, watch.look):
            last_lines.append(line)
            on_line(line)
    if watch.verdict:
        raise ProcessDied(
            f"{job.module} was ended",
            found=watch.verdict,
            remedy="Look at that machine. The same command goes on from the last checkpoint; stacks of the "
            f"other ranks are in {log}.",
        )
    return _read_result(job, process.returncode, last_lines)


@contextlib.contextmanager
def _sole_user(run_dir: Path, patience_seconds: float) -> Iterator[IO[str]]:
    with (run_dir / ".lock").open("a+") as lock:
        # An attempt whose caller died may still be saving: it holds the lock until it is done.
        deadline = time.monotonic() + patience_seconds
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                lock.seek(0)
                raise LaunchError(
                    f"run directory {run_dir} is in use",
                    found=f"a run of process {lock.read().strip() or 'unknown'}",
                    remedy="Wait for it, or stop it.",
                )
            time.sleep(0.1)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _supervised(job: Job, lock: IO[str], on_stop: Callable[[], object]) -> Iterator[subprocess.Popen[bytes]]:
    supervisor = [sys.executable, "-m", "lmcore.launch.supervisor", str(job.grace_seconds)]
    # The processes write to the file itself: through a pipe of ours they could not say a word, nor save,
    # once we are gone.
    with (job.run_dir / LOG).open("ab") as log:
        process = subprocess.Popen(
            [*supervisor, *job.command()],
            env={**os.environ, **job.environment},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Its own session: a signal to our group must not reach it before we say so.
            start_new_session=True,
            # The run directory stays locked until the last of its processes is gone, even if we are killed.
            pass_fds=[lock.fileno()],
        )
    try:
        yield process
    except KeyboardInterrupt:
        on_stop()
        raise
    finally:
        # Closing the pipe is the request to stop; it means nothing to one that has ended.
        if process.stdin:
            process.stdin.close()
        process.wait()


def _lines(
    process: subprocess.Popen[bytes], path: Path, begin: int, on_poll: Callable[[], object]
) -> Iterator[str]:
    """Yield the lines behind byte ``begin`` of the log, as they come, until ``process`` has ended."""
    with path.open("rb") as log:
        log.seek(begin)
        rest = b""
        ended = False
        while not ended:
            ended = process.poll() is not None  # asked before reading: what came until then is read
            *whole, rest = (rest + log.read()).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
            if not ended:
                on_poll()
                time.sleep(POLL_SECONDS)
        if rest:
            yield rest.decode(errors="replace")


def _read_result(job: Job, code: int, last_lines: deque[str]) -> dict[str, Any]:
    try:
        result = json.loads((job.run_dir / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        free = shutil.disk_usage(job.run_dir).free
        if free < FULL_BYTES:
            raise StorageError(
                f"the disk of {job.run_dir} is full",
                expected="room for checkpoints and results",
                found=f"{free / 1e6:.1f} MB free",
                remedy="Free room there; the same command goes on from the last checkpoint.",
            ) from None
        raise ProcessDied(
            f"{job.module} died (exit code {code}) without a result",
            found=_root_cause(job.run_dir) or " / ".join(list(last_lines)[-3:]) or "no output",
            remedy=f"The same command goes on from the last checkpoint; its output is {job.run_dir / LOG}.",
        ) from None
    if result["status"] == "failed":
        raise _failure(job, result)
    if code < 0 and result["status"] != "completed":
        # Nobody asked for a stop: the processes saved because their supervisor was gone.
        raise ProcessDied(
            f"the supervisor of {job.module} was killed (signal {-code})",
            found=f"its processes stopped at step {result.get('step', 0)}",
            remedy="The same command goes on from the last checkpoint.",
        )
    return result


def _failure(job: Job, result: dict[str, Any]) -> GristmillError:
    message = result.get("error", "no reason given")
    kind = getattr(errors, str(result.get("kind")), None)
    if isinstance(kind, type) and issubclass(kind, GristmillError):
        return kind(message)
    return ProcessDied(
        f"{job.module} failed", found=message, remedy=f"The whole output is in {job.run_dir / LOG}."
    )


def _root_cause(run_dir: Path) -> str:
    """What torchrun's workers left in the error file: the first failure, without its traceback."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        message = json.loads((run_dir / "error.json").read_text(encoding="utf-8"))["message"]
        return str(message["message"] if isinstance(message, dict) else message).strip()[:500]
    return ""
