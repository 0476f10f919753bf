"""Room to work in, kept for the next who needs it: making it anew costs as much as some of the work."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


def sparse_zeros(shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    """``np.zeros`` that takes memory only where it is written to.

    The other clears it all where it gets memory that was freed, and this is for large tables whose beginning
    alone is used but for a few documents.
    """
    size = math.prod(shape) * np.dtype(kind).itemsize
    return np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), kind).reshape(shape)


class Rooms(Generic[T]):
    """Rooms that are made of ``make(size)``, as many as were in use at a time.

    Args:
        make: Makes one for work of at most a size; what earlier work left in it must not matter.
    """

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._free: list[tuple[int, T]] = []

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[T]:
        """One for work of ``size``, nobody else's meanwhile."""
        try:
            held, room = self._free.pop()
        except IndexError:
            held, room = -1, None
        if room is None or held < size:
            held = size + size // 4
            room = self._make(held)
        yield room
        self._free.append((held, room))
