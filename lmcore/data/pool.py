"""Do many pieces of work: on threads or processes of this machine, or wherever ``Workers`` is implemented.

What a piece makes depends on its arguments alone, so results are the same however many workers there are.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lmcore.config import DataConfig
from lmcore.data.arrow import keep_memory
from lmcore.errors import DataError
from lmcore.store import Artifact, Stage, Store

R = TypeVar("R")

# Starting a process costs a second of imports; what is compiled runs as fast on threads.
THREADS_UP_TO_BYTES = 400_000_000
# Presidio is Python's, and reads some 30 KB a second.
_PRESIDIO_THREADS_UP_TO_BYTES = 1_000_000
_AHEAD = 2


class Workers(Protocol):
    """Who does pieces of work."""

    @property
    def count(self) -> int:
        """How many do."""
        ...

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """Yield the result of ``function`` for the arguments of each of ``calls``, in their order.

        Calls are taken as workers become free, and results that nobody took yet are few.
        """
        ...


@dataclass(frozen=True)
class Threads:
    """Threads of this process: for work that is compiled, reads or writes."""

    count: int

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """See ``Workers``."""
        if self.count == 1:
            yield from (function(*arguments) for arguments in calls)
            return
        with _lent_threads(self.count) as pool:
            yield from in_order(pool, self.count, function, calls)


_idle: dict[int, list[ThreadPoolExecutor]] = {}


@contextlib.contextmanager
def _lent_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that nobody else uses meanwhile, and that worked before if any did.

    glibc keeps what a thread freed for that thread: new ones would have to be given memory of their own.
    """
    try:
        pool = _idle.setdefault(count, []).pop()
    except IndexError:
        pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        _idle[count].append(pool)


@dataclass(frozen=True)
class Processes:
    """Processes of this machine: for much work, and for work that is Python's."""

    count: int

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """See ``Workers``.

        Raises:
            DataError: a process died; errors of ``function`` arrive as they are.
        """
        # Forking a process that has threads (Prefect's, Arrow's) can deadlock.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_die_with_parent)
        try:
            yield from in_order(pool, self.count, function, calls)
        except BrokenProcessPool:
            raise DataError(
                "a process that prepared data died",
                found="no error of its own; often the machine had no memory left",
                remedy="Run again: what was finished is kept. Use fewer data.workers or smaller "
                "data.shard_bytes.",
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def local_workers(config: DataConfig, num_bytes: int) -> Workers:
    """Threads for little work, processes for much, if ``config`` does not say which.

    Args:
        config: ``workers``, ``executor``, and whether Presidio is asked for.
        num_bytes: Size of the work.
    """
    count = config.workers or os.cpu_count() or 1
    if config.executor == "processes" and count > 1:
        return Processes(count)
    masks = bool(config.privacy.presidio.entities)
    most = _PRESIDIO_THREADS_UP_TO_BYTES if masks else THREADS_UP_TO_BYTES
    if config.executor == "threads" or count == 1 or num_bytes <= most:
        # One more than there are cores works while others wait for the disk.
        return Threads(count if config.workers or count == 1 else count + 1)
    return Processes(count)


def in_order(
    pool: Executor, count: int, function: Callable[..., R], calls: Iterable[tuple[Any, ...]]
) -> Iterator[R]:
    """Yield what ``count`` of ``pool`` make of each of ``calls``, in their order; few wait to be taken."""
    waiting: collections.deque[Future[R]] = collections.deque()
    try:
        for arguments in calls:
            waiting.append(pool.submit(function, *arguments))
            if len(waiting) > count * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # What began before an error must not go on behind it.
        futures.wait([future for future in waiting if not future.cancel()])


def _die_with_parent() -> None:
    """End this worker when its parent is gone; the pool's own pipes stay open among the workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


# --- units -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """A piece of work whose result is an artifact of its own: made once, reused, made again alone.

    Attributes:
        stage: What is made, of what.
        build: Writes it into the directory that is its last argument; a function of a module.
        arguments: Those before the directory.
    """

    stage: Stage
    build: Callable[..., Mapping[str, Any]]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Workshop:
    """Where units are made and kept.

    Attributes:
        root: Of the store.
        workers: Who makes them.
    """

    root: Path
    workers: Workers

    def make(self, units: Iterable[Unit]) -> Iterator[Artifact]:
        """Yield the artifact of each of ``units``, in their order."""
        return self.workers.map(_ensure, ((self.root, unit) for unit in units))


def _ensure(root: Path, unit: Unit) -> Artifact:
    keep_memory()
    return Store(root).ensure(unit.stage, lambda out: unit.build(*unit.arguments, out), why=False)
