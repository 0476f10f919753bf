"""Map a function over processes, in order."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from lmcore.errors import DataError

R = TypeVar("R")


def map_in_order(
    function: Callable[..., R], calls: Sequence[tuple[Any, ...]], num_workers: int
) -> Iterator[R]:
    """Yield the result of ``function`` for the arguments of each of ``calls``, in their order.

    Raises:
        DataError: a process died; errors of ``function`` arrive as they are.
    """
    # Forking a process that has threads (Prefect's, Arrow's) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_die_with_parent)
    try:
        for future in [pool.submit(function, *arguments) for arguments in calls]:
            yield future.result()
    except BrokenProcessPool:
        raise DataError(
            "a process that read documents died",
            found="no error of its own; often the machine had no memory left",
            remedy="Use fewer data.workers or smaller data.shard_bytes.",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """End this worker when its parent is gone; the pool's own pipes stay open among the workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
