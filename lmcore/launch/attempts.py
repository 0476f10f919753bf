"""One attempt at a run at a time: the processes of an earlier one are found, waited for, and ended.

A supervisor that is killed leaves its agent and its ranks behind, which may be saving, or hang. Each process
of an attempt carries the run directory in its environment, whatever session it moved to and whoever its
parent is now, so that a reused process id is never mistaken for one (Linux).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from lmcore.errors import LaunchError

VARIABLE = "GRISTMILL_RUN_DIRECTORY"
POLL_SECONDS = 0.1
KILL_SECONDS = 10.0


def mark(run_dir: Path) -> dict[str, str]:
    """The variable that every process of an attempt at the run carries."""
    return {VARIABLE: str(run_dir.resolve())}


def members(run_dir: Path) -> list[int]:
    """Process ids of the attempts at the run that are alive on this machine, this process left out."""
    entry = f"{VARIABLE}={run_dir.resolve()}".encode(errors="surrogateescape")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            if (
                entry in (folder / "environ").read_bytes().split(b"\0")
                and state(int(folder.name)) not in "ZX"
            ):
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def state(pid: int) -> str:
    """State of a process, as the letter of /proc: R, S, D, T (stopped), t (traced), Z; X: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def kill_all(run_dir: Path) -> list[int]:
    """Kill what is alive of the attempts at the run, until nothing is; return what would not end."""
    deadline = time.monotonic() + KILL_SECONDS
    while (left := members(run_dir)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return left


def end_earlier(run_dir: Path, patience_seconds: float) -> list[int]:
    """Wait for the processes of an earlier attempt, which may be saving, and kill those that do not end.

    Returns:
        The processes that had to be killed.

    Raises:
        LaunchError: one cannot be killed.
    """
    deadline = time.monotonic() + patience_seconds
    while (left := members(run_dir)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if left and (deaf := kill_all(run_dir)):
        raise LaunchError(
            f"processes of an earlier attempt at {run_dir} do not end",
            found=", ".join(map(str, deaf)),
            remedy="They hang in the kernel, perhaps for a disk or a device: restart the machine.",
        )
    return left
