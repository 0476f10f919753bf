"""Batches of the steps to come, read on a side thread while this one computes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from lmcore.data.loader import Batch


class StepBatches(Protocol):
    """Where they come from; ``lmcore.data.loader.TrainLoader`` is one."""

    def num_targets(self, step: int) -> int:
        """Targets that count in step ``step``, over all ranks."""
        ...

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Batches of this rank in step ``step``."""
        ...


@dataclass(frozen=True)
class StepData:
    """What a step computes.

    Attributes:
        step: Its number, from 0.
        num_targets: Targets that count, over all ranks.
        batches: Of this rank.
    """

    step: int
    num_targets: int
    batches: list[Batch]


class Prefetcher:
    """Hands out the data of one step after another, read ahead where there is time.

    What a step gets is a function of its number alone, read ahead or not. What goes wrong on the thread is
    raised where the step is asked for that it happened to, and not before.

    Args:
        loader: Read by one thread at a time.
        num_steps: Steps of the run: nothing behind them is read.
        depth: Steps that may lie ready; 0: each is read when it is asked for.
        device: Where they are computed; for CUDA they are put into pinned memory, from which copies go on
            while the host does other things.
    """

    def __init__(self, loader: StepBatches, num_steps: int, depth: int, device: torch.device) -> None:
        self.loader, self.num_steps, self.depth, self.device = loader, num_steps, depth, device
        self._changed = threading.Condition()
        self._ready: deque[StepData | BaseException] = deque()
        self._thread: threading.Thread | None = None
        self._next = 0  # the step that will be handed out
        self._closed = False

    def take(self, step: int) -> StepData:
        """Return the data of ``step`` (from 0); quickest for one step after another.

        Raises:
            DataError: the tokens are damaged, or not of the model's tokenizer.
        """
        if not self.depth or step >= self.num_steps:  # no thread goes beyond the end
            return self._read(step)
        if self._thread is None or step != self._next:
            self._start(step)
        with self._changed:
            self._changed.wait_for(lambda: self._ready)
            found = self._ready.popleft()
            self._changed.notify_all()
        self._next = step + 1
        if isinstance(found, BaseException):
            self.close()
            raise found
        return found

    def close(self) -> None:
        """End the thread, and forget what lies ready."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        self._ready.clear()

    def _start(self, step: int) -> None:
        self.close()
        self._next, self._closed = step, False
        # A daemon: whatever ends the process need not wait for it.
        self._thread = threading.Thread(target=self._work, args=(step,), name="prefetch", daemon=True)
        self._thread.start()

    def _work(self, first: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a thread begins with the first GPU, which is another's
        for step in range(first, self.num_steps):
            try:
                found = self._read(step)
            except BaseException as error:  # raised again where the step is taken
                found = error
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._ready) < self.depth)
                if self._closed:
                    return
                self._ready.append(found)
                self._changed.notify_all()
            if isinstance(found, BaseException):
                return

    def _read(self, step: int) -> StepData:
        batches = list(self.loader.micro_batches(step))
        if self.device.type == "cuda":
            batches = [batch.pinned() for batch in batches]
        return StepData(step, self.loader.num_targets(step), batches)
