"""Turns a job's ``events.jsonl`` into a progress bar while it runs."""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmcore.progress import Progress
from tasks.runs import read_events

POLL_SECONDS = 0.5


class EventTail:
    """A context manager that reports the newest step or progress row a few times a second.

    ``say`` gets a line when the run goes on from a checkpoint.
    """

    def __init__(
        self,
        events: Path,
        progress: Progress,
        total_steps: int,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._events = events
        self._progress = progress
        self._total_steps = total_steps
        self._say = say
        self._offset = events.stat().st_size if events.exists() else 0
        self._stop = threading.Event()
        # Prefect's artifacts need to know which task run they belong to, in this thread too.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._tail), daemon=True)

    def __enter__(self) -> EventTail:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _tail(self) -> None:
        while True:
            last = self._stop.wait(POLL_SECONDS)
            rows, self._offset = read_events(self._events, self._offset)
            for row in rows:
                if row["kind"] == "resume":
                    self._say(f"goes on from the checkpoint of step {row['step']}")
            for row in reversed(rows):
                if self._report(row):
                    break
            if last:
                return

    def _report(self, row: dict[str, Any]) -> bool:
        if row["kind"] == "step":
            values = row["values"]
            label = f"loss {values.get('train/loss', math.nan):.3f}"  # a skipped step has none
            if speed := values.get("perf/tokens_per_second"):
                label += f", {speed:,.0f} tokens/s"
            self._progress(label, row["step"], self._total_steps, "steps")
            return True
        if row["kind"] == "progress":
            self._progress(row.get("label", ""), row["done"], row["total"], row["unit"])
            return True
        return False
