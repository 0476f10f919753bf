"""How long work tells how far it is."""

from __future__ import annotations

import time
from typing import Protocol

_SECONDS_BETWEEN = 0.3


class Progress(Protocol):
    """Called with work done so far; rarely enough that it costs nothing (a few times a second at most)."""

    def __call__(self, label: str, done: float, total: float, unit: str) -> None:
        """Report that ``done`` of ``total`` ``unit`` of the work called ``label`` is finished."""
        ...


def silent(label: str, done: float, total: float, unit: str) -> None:
    """Report nothing."""


class Paced:
    """Adds up work done and passes it on a few times a second at most.

    Args:
        progress: Told of the work.
        label: What the work is called.
        total: All of it.
        unit: What it is counted in.
    """

    def __init__(self, progress: Progress, label: str, total: float, unit: str) -> None:
        self._progress = progress
        self._label, self._total, self._unit = label, total, unit
        self._done = 0.0
        self._next = 0.0

    def advance(self, amount: float) -> None:
        """Count ``amount`` more as done."""
        self._done += amount
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SECONDS_BETWEEN
            self._progress(self._label, self._done, self._total, self._unit)

    def finish(self) -> None:
        """Report all of it as done."""
        self._progress(self._label, self._total, self._total, self._unit)
