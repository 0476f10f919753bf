"""Two kinds of work in turn, their medians, and what is said of them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Times:
    """What repeated work took.

    Attributes:
        wall: Seconds by the clock, of each time.
        cpu: Seconds of all threads of this process, of each time: what a busy machine does not lengthen much.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, work: Callable[[], object]) -> None:
        """Do ``work`` and take note."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    @property
    def seconds(self) -> float:
        """Median by the clock."""
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Median of the threads' time."""
        return statistics.median(self.cpu)


def alternate(rounds: int, each: int, *kinds: Callable[[], object]) -> list[Times]:
    """Do ``each`` times the first kind of work, then the second, and so on, for ``rounds`` rounds."""
    times = [Times() for _ in kinds]
    for _ in range(rounds):
        for kind, taken in zip(kinds, times, strict=True):
            for _ in range(each):
                taken.add(kind)
    return times


def say(text: str) -> None:
    """Print a line now."""
    print(text, flush=True)


def verdict(number: int, target: str, found: float, limit: float, *, least: bool = False) -> bool:
    """Say whether target ``number`` is met: ``found`` at most ``limit``, or at least.

    Returns:
        Whether it is.
    """
    met = found >= limit if least else found <= limit
    word = "at least" if least else "at most"
    say(f"target {number}: {'met' if met else 'not met'}: {target}: {found:.4g}, {word} {limit:g}")
    return met


def not_measured(number: int, target: str, why: str) -> None:
    """Say that target ``number`` is not measured."""
    say(f"target {number}: not measured, {why}: {target}")


def machine() -> str:
    """This machine in words, and whether it is busy."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return f"{os.cpu_count()} cores, load {load:.1f} before"
