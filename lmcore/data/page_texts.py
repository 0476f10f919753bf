"""Take the text of web pages: in this thread, or in processes of their own.

resiliparse holds the interpreter's lock, so threads would take turns. Batches of pages go to processes that
do nothing else, and come back in order: the text of a page depends on the page alone. A process is started
as a module of its own, not by ``multiprocessing``: that would import the main program, which takes seconds.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar

from lmcore.data.html import BadPageError, RawPage, text_of_page
from lmcore.errors import DataError

Q = TypeVar("Q")

_BATCH_BYTES = 1 << 20
_BATCH_PAGES = 256
_AHEAD = 2  # batches for each process
# Memory that was freed is kept: to get it anew, cleared, took a tenth of the time. NumPy multiplies nothing.
_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Unread:
    """A page whose text is yet to be taken.

    Attributes:
        index: Position in its file.
        id: As that of a record.
        page: What is fetched.
        raw: As it is kept if it cannot be read.
        offset: As that of a quarantined record.
        num_bytes: Its size as stored; None: that of ``raw``.
    """

    index: int
    id: str
    page: RawPage
    raw: str | bytes
    offset: int | None = None
    num_bytes: int | None = None


Text = str | BadPageError


def text_or_error(page: RawPage) -> Text:
    """Text of ``page``, or why there is none."""
    try:
        return text_of_page(page)
    except BadPageError as error:
        return error


def with_texts(records: Iterable[Unread | Q]) -> Iterator[tuple[Unread | Q, Text | None]]:
    """Yield ``records`` in order, each page with its text or why there is none, anything else with None."""
    pool = _shared
    if pool is None:
        for record in records:
            yield record, text_or_error(record.page) if isinstance(record, Unread) else None
        return
    waiting: collections.deque[tuple[list[Unread | Q], Future[list[Text]]]] = collections.deque()
    try:
        for batch, size in _batches(records):
            pages = [record.page for record in batch if isinstance(record, Unread)]
            waiting.append((batch, pool.submit(pages)))
            # Few wait where pages are large.
            while len(waiting) > max(1, pool.count * _AHEAD * _BATCH_BYTES // max(size, _BATCH_BYTES)):
                yield from _joined(*waiting.popleft())
        while waiting:
            yield from _joined(*waiting.popleft())
    finally:
        futures.wait([future for _, future in waiting if not future.cancel()])


def _batches(records: Iterable[Unread | Q]) -> Iterator[tuple[list[Unread | Q], int]]:
    batch: list[Unread | Q] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.page[0]) if isinstance(record, Unread) else 0
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_PAGES:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def _joined(batch: list[Unread | Q], future: Future[list[Text]]) -> Iterator[tuple[Unread | Q, Text | None]]:
    texts = iter(future.result())
    for record in batch:
        yield record, next(texts) if isinstance(record, Unread) else None


# --- processes -------------------------------------------------------------------------------------


class PagePool:
    """Processes that take texts of pages."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count)  # one waits for each process
        self._processes = [_Process() for _ in range(count)]
        for process in self._processes:
            self._idle.put(process)

    def submit(self, pages: list[RawPage]) -> Future[list[Text]]:
        """Begin to take the texts of ``pages``.

        The result raises DataError if a process died.
        """
        return self._threads.submit(self._work, pages)

    def _work(self, pages: list[RawPage]) -> list[Text]:
        if not pages:
            return []
        process = self._idle.get()
        try:
            return process.ask(pages)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.end()


class _Process:
    def __init__(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        environment = os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )

    def ask(self, pages: list[RawPage]) -> list[Text]:
        try:
            self._connection.send(pages)
            return self._connection.recv()
        except (EOFError, OSError):
            raise DataError(
                "a process that reads web pages died",
                found=f"no error of its own; it ended with {self._process.poll()}, often for want of memory",
                remedy="Run again: what was finished is kept. Use fewer data.workers, or 1 to use none.",
            ) from None

    def end(self) -> None:
        self._connection.close()
        self._process.wait()


_shared: PagePool | None = None
_users = 0  # of the pool: the last one closes it
_lock = threading.Lock()


@contextlib.contextmanager
def page_pool(count: int) -> Iterator[None]:
    """Meanwhile let ``count`` processes take all texts of pages that are read in this one; 1: none do.

    Those who ask while there is a pool share it.
    """
    global _shared, _users
    if count < 2:
        yield
        return
    with _lock:
        _shared = _shared or PagePool(count)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            pool, _shared = (None, _shared) if _users else (_shared, None)
        if pool:
            pool.close()


def _serve(descriptor: int) -> None:
    """Answer until the other end is closed, as it is when its process ends."""
    gc.freeze()  # what was imported stays, and need not be looked at again and again
    with Connection(descriptor) as connection:
        while True:
            try:
                pages = connection.recv()
            except EOFError:
                return
            connection.send([text_or_error(page) for page in pages])


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
