"""Batches of the steps to come, read on a side thread while this one computes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from lmcore.data.loader import Batch

DEPTH = 2  # for GPUs; on a CPU the thread would take from who computes what it takes itself, and more
LOOK_SECONDS = 1.0  # who waits for a batch looks this often whether the thread is still there


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
    raised where the step is asked for that it happened to, and not before. Nobody waits for a thread that is
    no more.

    Args:
        loader: Read by one thread at a time.
        num_steps: Steps of the run: nothing behind them is read.
        depth: Steps that may lie ready; 0: each is read when it is asked for. None: 2 for CUDA, else 0.
        device: Where they are computed; for CUDA they are put into pinned memory, from which copies go on
            while the host does other things. Without a number it is the current one of who takes.
    """

    def __init__(self, loader: StepBatches, num_steps: int, depth: int | None, device: torch.device) -> None:
        self.loader, self.num_steps, self.device = loader, num_steps, device
        self.depth = (DEPTH if device.type == "cuda" else 0) if depth is None else depth
        self._changed = threading.Condition()
        self._ready: deque[StepData | BaseException] = deque()
        self._thread: threading.Thread | None = None
        self._next = 0  # the step that will be handed out
        self._closed = False

    def take(self, step: int) -> StepData:
        """Return the data of ``step`` (from 0); quickest for one step after another.

        Raises:
            DataError: the tokens are damaged, or not of the model's tokenizer.
            RuntimeError: the thread ended and left nothing.
        """
        if not self.depth or step >= self.num_steps:  # no thread goes beyond the end
            return self._read(step)
        thread = self._thread
        if thread is None or step != self._next:
            thread = self._start(step)
        with self._changed:
            while not self._changed.wait_for(lambda: self._ready, LOOK_SECONDS):
                if not thread.is_alive() and not self._ready:
                    raise RuntimeError(f"the thread that reads batches ended before it had read step {step}")
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

    def _start(self, step: int) -> threading.Thread:
        self.close()
        self._next, self._closed = step, False
        device = self.device
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        # A daemon: whatever ends the process need not wait for it.
        thread = threading.Thread(target=self._work, args=(step, device), name="prefetch", daemon=True)
        self._thread = thread
        thread.start()
        return thread

    def _work(self, first: int, device: torch.device) -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # a thread begins with the first GPU, which is another's
            for step in range(first, self.num_steps):
                if not self._lay_ready(self._read(step)):
                    return
        except BaseException as error:  # raised again where the step is taken
            self._lay_ready(error)

    def _lay_ready(self, found: StepData | BaseException) -> bool:
        """Wait for room, and return whether anybody still wants it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self.depth)
            if not self._closed:
                self._ready.append(found)
                self._changed.notify_all()
            return not self._closed

    def _read(self, step: int) -> StepData:
        batches = list(self.loader.micro_batches(step))
        if self.device.type == "cuda":
            batches = [batch.pinned() for batch in batches]
        return StepData(step, self.loader.num_targets(step), batches)
