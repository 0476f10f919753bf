"""Runs whose process is gone without a word: MLflow and Prefect are told that they were killed.

A process that is killed (SIGKILL, the kernel for want of memory, a power cut) tells nobody. Its run directory
names it, so that another process of this machine can see that it is gone. That is looked for when a run
begins, by ``gristmill up`` and ``down``, and every few seconds by the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from lmcore.errors import GristmillError, ServiceRefused
from lmcore.home import Home
from lmcore.store import write_atomically
from tasks.runs import RECORD, RunRecord
from tasks.tracking import Tracker

SETTLED = "settled.json"
MESSAGE = "Its process was killed. The same run again goes on from what was finished."
ACTIVE = ("RUNNING", "PENDING", "CANCELLING")


class Abandoned:
    """Looks for run directories of ``home`` whose process is gone; each that has ended is read once."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._ended: set[tuple[Path, int]] = set()

    def find(self) -> list[Path]:
        """Run directories that say "running", of processes that are gone, of which nobody was told yet."""
        found = []
        for path in sorted(self._home.runs.glob(f"*/{RECORD}")):
            with contextlib.suppress(OSError, ValueError):  # one that is being written, or tidied away
                state = (path, path.stat().st_mtime_ns)
                if state in self._ended:
                    continue
                record = RunRecord.read(path.parent)
                if record.status != "running" or _is_settled(path.parent, record):
                    self._ended.add(state)
                elif record.abandoned and record.host in ("", socket.gethostname()):
                    found.append(path.parent)
        return found


def settle(home: Home, run_dirs: Iterable[Path]) -> list[str]:
    """Tell MLflow and Prefect of ``run_dirs``; return the names of those of which both know now.

    A server that is away is told another time.
    """
    done = []
    for run_dir in run_dirs:
        with contextlib.suppress(OSError):
            record = RunRecord.read(run_dir)
            if _tell_prefect(record) and _tell_mlflow(home, run_dir, record):
                write_atomically(run_dir / SETTLED, json.dumps(_attempt(record)))
                done.append(record.name)
    return done


def _attempt(record: RunRecord) -> list[float]:
    return [record.pid, record.pid_started]


def _is_settled(run_dir: Path, record: RunRecord) -> bool:
    try:
        return json.loads((run_dir / SETTLED).read_text(encoding="utf-8")) == _attempt(record)
    except (OSError, ValueError):
        return False


def _tell_mlflow(home: Home, run_dir: Path, record: RunRecord) -> bool:
    uri = record.place or os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        tracker = Tracker(uri, home)
        if tracker.place != record.place:  # another MLflow is set than that of the home
            tracker = Tracker("", home)
        tracker.sync(run_dir)
    except ServiceRefused:
        return True  # deleted by a person, who need not be told
    except GristmillError:
        return False
    return True


def _tell_prefect(record: RunRecord) -> bool:
    """Mark the flow run as crashed, if it is still at the attempt of ``record``."""
    run_id, url = record.tags.get("prefect.flow_run_id"), os.environ.get("PREFECT_API_URL")
    if not run_id or not url:
        return True
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    try:
        with SyncPrefectClient(api=url) as client:
            state = client.read_flow_run(UUID(run_id)).state
            if state is None or state.type.value not in ACTIVE:
                return True
            # "Running" was said just before the record was made; later, it is of a retry in another process.
            if state.type.value == "CANCELLING" or state.timestamp.timestamp() <= record.attempted:
                client.set_flow_run_state(UUID(run_id), Crashed(message=MESSAGE), force=True)
    except ObjectNotFound:
        return True
    except Exception:  # a server that is away, in whatever way it says so
        return False
    return True


def main() -> None:
    """Settle what is abandoned in ``GRISTMILL_HOME``, at the servers of the environment."""
    home = Home.here()
    settle(home, Abandoned(home).find())


if __name__ == "__main__":
    main()
