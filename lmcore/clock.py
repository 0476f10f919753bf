"""Where the time of a step goes: each moment belongs to one named part.

On a CPU the process looks at its clock where a part begins and ends. On CUDA it puts an event into its stream
there, and reads it long after it happened, so that nothing waits: a part then lasts as long as the device was
busy with it, or idle because of it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from types import TracebackType
from typing import Any, Protocol

import torch

OTHER = "other"
PARTS: tuple[str, ...] = (
    "data",
    "forward",
    "backward",
    "optimizer",
    "checkpoint",
    "validation",
    "measuring",
    OTHER,
)
ANNOTATION = "gristmill."  # in a trace the names of parts begin with it
MAX_UNREAD = 512


class Lap(Protocol):
    """The seconds of each part between two moments."""

    @property
    def is_known(self) -> bool:
        """Whether ``seconds`` would not wait for the device."""
        ...

    def seconds(self) -> dict[str, float]:
        """Seconds by part."""
        ...


class Clock:
    """Divides the time of the thread that trains among parts; an inner part takes its time from the outer.

    Args:
        device: Where the parts are computed.

    Attributes:
        annotates: Whether parts stand in a trace that is being taken.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts = {name: _Part(self, name) for name in PARTS}
        self._open = [OTHER]
        self.annotates = False
        self.start()

    def part(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Have what happens inside belong to the part ``name``, one of ``PARTS``."""
        return self._parts[name]

    def start(self) -> None:
        """Count from now on."""
        self._line = _Stream() if self._device.type == "cuda" else _Host()

    def lap(self) -> Lap:
        """Return the parts since the last lap or the start, and count from now on."""
        self._line.mark(self._open[-1])
        return self._line.cut()

    def enter(self, name: str) -> None:
        """Begin a part."""
        self._line.mark(self._open[-1])
        self._open.append(name)

    def leave(self) -> None:
        """End the part that began last."""
        self._line.mark(self._open.pop())


class _Host:
    """Marks by this process's clock."""

    is_known = True

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """Give the time since the last mark to ``name``."""
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    def cut(self) -> _Host:
        """Return what was counted, and begin anew where it ended."""
        done = _Host()
        done._seconds, self._seconds = self._seconds, done._seconds
        return done

    def seconds(self) -> dict[str, float]:
        return self._seconds


class _Stream:
    """Marks in the current CUDA stream; what the device has passed is read when it is asked for."""

    def __init__(self, start: Any = None) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._start = _event() if start is None else start
        self._marks: deque[tuple[str, Any]] = deque()

    def mark(self, name: str) -> None:
        """Give the time since the last mark to ``name``."""
        # An event that is captured into a graph tells no time: a replay belongs to the part it is in.
        if torch.cuda.is_current_stream_capturing():
            return
        self._marks.append((name, _event()))
        if len(self._marks) > MAX_UNREAD and self._marks[MAX_UNREAD // 2][1].query():
            self._read(MAX_UNREAD // 2)

    def cut(self) -> _Stream:
        """Return what was counted, and begin anew where it ended."""
        done = _Stream(self._start)
        done._seconds, self._seconds = self._seconds, done._seconds
        done._marks, self._marks = self._marks, done._marks
        self._start = done._marks[-1][1] if done._marks else self._start
        return done

    @property
    def is_known(self) -> bool:
        return not self._marks or self._marks[-1][1].query()

    def seconds(self) -> dict[str, float]:
        if self._marks:
            self._marks[-1][1].synchronize()
        self._read(len(self._marks))
        return self._seconds

    def _read(self, number: int) -> None:
        for _ in range(number):
            name, event = self._marks.popleft()
            self._seconds[name] += self._start.elapsed_time(event) / 1000  # milliseconds
            self._start = event


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class _Part(contextlib.AbstractContextManager[None]):
    """Enters and leaves a part; made once and used again, for parts are many and short."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name
        self._annotations: list[Any] = []

    def __enter__(self) -> None:
        self._clock.enter(self._name)
        if self._clock.annotates:
            self._annotations.append(torch.profiler.record_function(ANNOTATION + self._name))
            self._annotations[-1].__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._annotations:
            self._annotations.pop().__exit__(kind, error, trace)
        self._clock.leave()
