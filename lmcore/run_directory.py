"""A run's directory: what training and evaluation read there, and what they leave.

``config.json`` (the job), ``events.jsonl`` (rows while it runs) and ``result.json`` (how it ended).
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from lmcore.config import Config, parse
from lmcore.disk import disk_errors
from lmcore.errors import ConfigError, LaunchError
from lmcore.store import write_atomically

JOB_FILE = "config.json"
EVENTS_FILE = "events.jsonl"
RESULT_FILE = "result.json"
GOES_ON = "the same command goes on from the last checkpoint"
WRITER_FILE = ".writer.lock"
WRITER_SECONDS = 5.0  # for one that is just ending


class RunJob(Config):
    """What the processes of a run are told: the ``config.json`` of its directory."""

    def write(self, run_dir: Path) -> None:
        """Write ``config.json`` into ``run_dir``, which is created if missing."""
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / JOB_FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """Read the job of ``run_dir``.

        Raises:
            ConfigError: the file is missing, not JSON, or holds a wrong key or value.
        """
        path = run_dir / JOB_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} cannot be read",
                expected=f"the job that {cls.__name__}.write left there",
                found=str(error),
                remedy="Start the run again from its recipe.",
            ) from None
        return parse(cls, values, where=str(path))


class EventLog:
    """Appends rows to ``events.jsonl``, one write of one whole line each.

    Args:
        run_dir: The run directory.
        enabled: False on all processes but one.
    """

    def __init__(self, run_dir: Path, *, enabled: bool = True) -> None:
        self._file: io.FileIO | None = None
        self._path = path = run_dir / EVENTS_FILE
        if enabled:
            with disk_errors(path, "events were opened", GOES_ON):
                torn = path.exists() and path.stat().st_size > 0 and _last_byte(path) != b"\n"
                self._file = path.open("ab", buffering=0)
                if torn:
                    # A killed process may leave half a line; ours starts on its own.
                    self._file.write(b"\n")

    def write(self, kind: str, step: int | None = None, **fields: Any) -> None:
        """Append a row of ``kind``, with the time; at ``step`` where the run has steps.

        Raises:
            StorageError: the disk is full or broken.
        """
        if self._file is not None:
            place = {} if step is None else {"step": step}
            row = {"kind": kind, **place, "time": time.time(), **fields}
            line = json.dumps(row).encode() + b"\n"
            with disk_errors(self._path, "a row of events was written", GOES_ON):
                # On a disk that fills up, a part may be written: the rest says why.
                while line:
                    line = line[self._file.write(line) :]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


class AnotherAttempt(LaunchError):  # noqa: N818 - what is there, as ProcessDied
    """Another attempt at the run is alive, and owns its events and its result."""


@contextlib.contextmanager
def sole_writer(run_dir: Path) -> Iterator[None]:
    """Be the one main process of the run inside, however it was started; other ranks need not.

    Raises:
        AnotherAttempt: the main process of another attempt is alive.
    """
    if os.environ.get("RANK", "0") != "0" or not run_dir.is_dir():
        yield
        return
    with (run_dir / WRITER_FILE).open("a+") as file:
        deadline = time.monotonic() + WRITER_SECONDS
        while not _locked(file):
            if time.monotonic() > deadline:
                file.seek(0)
                raise AnotherAttempt(
                    f"run directory {run_dir} is in use",
                    found=f"another attempt, whose main process is {file.read().strip() or 'unknown'}",
                    remedy="Wait for it, or stop it.",
                )
            time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_rows(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``events.jsonl``, but for a line that a killed process left torn."""
    with contextlib.suppress(FileNotFoundError), (run_dir / EVENTS_FILE).open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                if isinstance(row := json.loads(line), dict):
                    yield row


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Write ``result.json``, if there is a run directory to write it to."""
    if run_dir.is_dir():
        write_atomically(run_dir / RESULT_FILE, json.dumps(result, indent=1) + "\n")
