"""Watches the processes of an attempt: one that was stopped is named, with the stacks of the others.

A rank that does not run any more (SIGSTOP, a job that was suspended in part) holds all others up in their
next collective. They would end at the stall time with a traceback that names nobody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

from lmcore.heartbeat import STACKS, Rank, read_ranks, seconds_since
from lmcore.launch import attempts
from lmcore.launch.supervisor import children

EVERY_SECONDS = 1.0
NOTICE_SECONDS = 2.0
STALL_SHARE = 0.8  # before the collectives of the others time out
STACK_SECONDS = 0.5
STOPPED = "T"


class Watch:
    """Looks after the processes below a supervisor; what it finds goes to the log.

    Args:
        run_dir: Of the attempt.
        supervisor: Its process id.
        stall_seconds: After most of it the attempt is ended if a rank is stopped; a stopped agent or
            supervisor is told to go on.
        log: The attempt's log.

    Attributes:
        verdict: Why the attempt was ended, or what was wrong with a rank when it ended; empty: nothing.
    """

    def __init__(self, run_dir: Path, supervisor: int, stall_seconds: float, log: Path) -> None:
        self._run_dir, self._supervisor, self._log = run_dir, supervisor, log
        self._limit = STALL_SHARE * stall_seconds
        self._stopped: dict[int, float] = {}  # seconds for which a process was seen stopped
        self._silent: set[int] = set()
        self._last = time.monotonic()
        self.verdict = ""

    def look(self) -> None:
        """Look at the processes, now and then; to be called often."""
        now = time.monotonic()
        if now - self._last < EVERY_SECONDS or self.verdict:
            return
        # This process may have been stopped itself, with all others: that is nobody's fault.
        passed, self._last = min(now - self._last, 2 * EVERY_SECONDS), now
        host = socket.gethostname()
        ranks = {rank.pid: rank for rank in read_ranks(self._run_dir) if rank.host == host}
        for pid, name in self._family(ranks).items():
            self._look_at(pid, name, ranks, passed)
        for rank in ranks.values():
            self._listen_to(rank, ranks)

    def _family(self, ranks: dict[int, Rank]) -> dict[int, str]:
        agents = children(self._supervisor)
        names = {pid: str(rank) for pid, rank in ranks.items()}
        names |= {pid: f"the agent (process {pid})" for pid in agents if pid not in ranks}
        return {**names, self._supervisor: f"the supervisor (process {self._supervisor})"}

    def _look_at(self, pid: int, name: str, ranks: dict[int, Rank], passed: float) -> None:
        if attempts.state(pid) != STOPPED:
            self._stopped.pop(pid, None)
            return
        before = self._stopped.get(pid, 0.0)
        seconds = self._stopped[pid] = before + passed
        limit = max(self._limit, NOTICE_SECONDS)
        if before < NOTICE_SECONDS <= seconds:
            self._say(f"warning: {name} is stopped (SIGSTOP): `kill -CONT {pid}` lets it go on")
        if seconds < limit:
            return
        if pid in ranks:
            self.verdict = f"{name} was stopped (SIGSTOP) for {seconds:.0f} s"
            self._say(f"error: {self.verdict}; stacks of the others follow, then all are ended")
            self._tell_stacks(ranks)
            attempts.kill_all(self._run_dir)
        else:
            self._say(f"warning: {name} was stopped (SIGSTOP) for {seconds:.0f} s and is told to go on")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _listen_to(self, rank: Rank, ranks: dict[int, Rank]) -> None:
        seconds = seconds_since(rank.beat)
        alive = attempts.state(rank.pid) not in "TXZ"
        if alive and seconds > max(self._limit, NOTICE_SECONDS) and rank.pid not in self._silent:
            self._silent.add(rank.pid)
            self._say(f"warning: {rank} has not said for {seconds:.0f} s that it lives; stacks follow")
            self._tell_stacks(ranks)

    def _tell_stacks(self, ranks: dict[int, Rank]) -> None:
        for rank in sorted(ranks.values(), key=lambda rank: rank.rank):
            if attempts.state(rank.pid) in "TXZ":
                self._say(f"{rank} gives no stacks")
                continue
            self._say(f"stacks of {rank}:")
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, STACKS)
                time.sleep(STACK_SECONDS)

    def _say(self, text: str) -> None:
        # Into the log itself, which is followed: so it stands between what the processes say.
        with contextlib.suppress(OSError), self._log.open("ab", buffering=0) as log:
            log.write(text.encode() + b"\n")
