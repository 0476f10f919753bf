"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with work done so far; rarely enough that it costs nothing (a few times a second at most)."""

    def __call__(self, label: str, done: float, total: float, unit: str) -> None:
        """Report that ``done`` of ``total`` ``unit`` of the work called ``label`` is finished."""
        ...


def silent(label: str, done: float, total: float, unit: str) -> None:
    """Report nothing."""
