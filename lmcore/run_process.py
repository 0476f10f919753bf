"""A process of a run: what ``python -m lmcore.train`` and ``python -m lmcore.eval`` do alike."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lmcore.disk import FAULTS, storage_error
from lmcore.errors import GristmillError, StorageError
from lmcore.heartbeat import heartbeat
from lmcore.run_directory import GOES_ON, RESULT_FILE, AnotherAttempt, sole_writer, write_result


def run_process(module: str, work: Callable[[Path], object]) -> int:
    """Do ``work`` on the run directory of the command line; return the exit code.

    What it fails with goes to ``result.json``: an error of ours as one line, another as its traceback too.
    """
    if len(sys.argv) != 2:
        sys.stderr.write(f"usage: python -m {module} RUN_DIR\n")
        return 2
    run_dir = Path(sys.argv[1])
    try:
        # Without a directory there is nothing to own, and the work says what is missing.
        alive = heartbeat(run_dir) if run_dir.is_dir() else contextlib.nullcontext()
        with sole_writer(run_dir), alive:
            work(run_dir)
    except AnotherAttempt as error:  # it owns the result
        sys.stderr.write(f"error: {error}\n")
        return 1
    except GristmillError as error:
        _write_failure(run_dir, str(error), type(error).__name__)
        sys.stderr.write(f"error: {error}\n")
        return 1
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, OSError) and error.errno in FAULTS:
            failure = storage_error(run_dir, f"{module} was done", error, GOES_ON)
            _write_failure(run_dir, str(failure), type(failure).__name__)
            return 1
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        # A peer that failed first has the better story: keep it.
        if not (run_dir / RESULT_FILE).exists():
            _write_failure(run_dir, text, type(error).__name__)
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """End this process at once with ``code``.

    All is written by now, and torch's threads do not always survive the end of the interpreter: in about one
    of some hundred runs on a busy machine a process of two aborted there ("terminate called without an active
    exception"), so that a finished job looked like one that had died.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _write_failure(run_dir: Path, text: str, kind: str) -> None:
    try:
        write_result(run_dir, {"status": "failed", "error": text, "kind": kind})
    except (OSError, StorageError) as error:  # whoever started us sees by the exit code that we failed
        sys.stderr.write(f"{run_dir / RESULT_FILE} could not be written: {error}\n")


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
