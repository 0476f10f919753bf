"""Runs a command so that nothing of it outlives whoever asked for it.

    python -m lmcore.launch.supervisor GRACE_SECONDS COMMAND ...

Standard input is a pipe from the caller. When it closes (the caller died, however it died), or on SIGTERM or
SIGINT, the command is asked to stop by SIGTERM; after GRACE_SECONDS everything that it started is killed. The
same sweep follows its normal end. Linux makes orphans of descendants children of this process
(PR_SET_CHILD_SUBREAPER), so they are found whatever session they moved to. Only the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.05
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> int:
    """Run the command; return its exit code, or 128 + the signal that ended it."""
    grace_seconds, command = float(sys.argv[1]), sys.argv[2:]
    become_subreaper()
    stop = StopRequest()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=stop_with_parent,
        close_fds=False,  # the caller's lock is the command's too: it may still save when we are killed
    )
    while process.poll() is None and not stop.wait(POLL_SECONDS):
        reap_orphans(process.pid)
    if process.poll() is None:
        stop_in_order(process, grace_seconds)
    kill_descendants(process)
    code = process.wait()
    return code if code >= 0 else 128 - code


class StopRequest:
    """Knows whether the caller is gone or wants the command stopped."""

    def __init__(self) -> None:
        self._asked = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def wait(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for a request; return whether there was one."""
        if not self._asked:
            readable, _, _ = select.select([sys.stdin.fileno()], [], [], seconds)
            # The caller writes nothing: readable means that the pipe has closed.
            self._asked = (bool(readable) and os.read(sys.stdin.fileno(), 1) == b"") or self._asked
        return self._asked

    def _remember(self, number: int, frame: object) -> None:
        self._asked = True


def become_subreaper() -> None:
    """Let orphans of our descendants become our children (Linux)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def stop_with_parent() -> None:
    """Get SIGTERM when the supervisor is killed, which cannot do it then itself (Linux)."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def stop_in_order(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """Ask by SIGTERM, wait for ``grace_seconds``."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def kill_descendants(process: subprocess.Popen[bytes]) -> None:
    """Kill all that is left below this process, until nothing is; the exit code of ``process`` is kept."""
    while family := list(descendants(os.getpid())):
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        reap_orphans(process.pid)
        time.sleep(0.01)


def reap_orphans(keep: int) -> None:
    """Take the exit codes of children that have ended, but not that of ``keep``."""
    for pid in children(os.getpid()):
        if pid != keep:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def descendants(pid: int) -> Iterator[int]:
    """Process ids below ``pid``, children first."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def children(pid: int) -> list[int]:
    """Process ids of the children of ``pid``, zombies included."""
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


if __name__ == "__main__":
    sys.exit(main())
