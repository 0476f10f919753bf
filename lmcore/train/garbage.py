"""Python's collector of garbage, which otherwise stops a process whenever it likes.

Where several processes wait for one another in each step, a pause of one is a pause of all; collected at the
same step, the pauses are one.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def collected_every(steps: int) -> Iterator[Callable[[int], None]]:
    """Collect when told the number of a step that ``steps`` divides, and at no other time.

    What is there by now is not looked at again: modules, the model, its optimizer.

    Args:
        steps: Between collections; 0: Python's own collector is left alone.

    Yields:
        To be called after each step with its number, on all processes.
    """
    if not steps:
        yield lambda step: None
        return
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield lambda step: None if step % steps else _collect()
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def _collect() -> None:
    gc.collect()
