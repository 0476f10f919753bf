"""What the steps of a run cost: time by part, memory, joules and money, as rows of ``events.jsonl``."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lmcore.clock import PARTS, Clock, Lap
from lmcore.config import TrainConfig
from lmcore.parallel.mesh import World
from lmcore.run_directory import EventLog, read_rows
from lmcore.train.bill import SHARE, START, Spent, bill_of
from lmcore.train.energy import Meters
from lmcore.train.profile import CommunicationSample, StepProfile


class Costs:
    """Follows the steps of a run; all processes do so alike.

    A row of kind ``costs`` tells of ``every_steps`` steps and of what came after each, such as a validation
    or a checkpoint. One with no steps tells of all that came before the first. They are written when they are
    known everywhere, without anybody waiting: a little later.

    Args:
        train: What is measured and traced, and the prices.
        world: This process among its peers.
        clock: Whose parts they are.
        run_dir: The run directory.
        events: Where rows go.
        say: Tells people.
        began: By ``time.monotonic``, since when this process has been there for the run.
        meters: Of energy; None: nothing is measured.
    """

    def __init__(
        self,
        train: TrainConfig,
        world: World,
        clock: Clock,
        run_dir: Path,
        events: EventLog,
        say: Callable[[str], object],
        began: float,
        meters: Meters | None,
    ) -> None:
        self.config = config = train.costs
        self.world, self.clock, self._events = world, clock, events
        self._run_dir, self._began, self._meters = run_dir, began, meters
        self._tokens_per_step = train.global_batch_tokens
        self._profile = StepProfile(train.profile, run_dir, world.rank, self.clock, world.device, say)
        self._sample = None
        if world.size > 1 and world.is_main and config.every_steps and config.sample_communication:
            self._sample = CommunicationSample(self.clock, world.device)
        self._steps, self._last = 0, 0
        self._pending: list[_Interval] = []
        self.keep_up()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Do step ``step`` (from 1) inside; what comes after it still belongs to it."""
        if self._last and self.config.every_steps and self._last % self.config.every_steps == 0:
            self._close_interval()
        elif not self._last:
            self._start(step - 1)
        with self._profile.step(step), self._sampled():
            yield
        self._last, self._steps = step, self._steps + 1
        self.keep_up()
        self._write_known()  # at once: what a killed process has not written is lost

    def keep_up(self) -> None:
        """Have no counter of energy wrap around unseen; for what takes long."""
        if self._meters is not None:
            self._meters.keep_up()

    def finish(self, step: int) -> None:
        """Tell of what came since the last row, up to ``step``; wait for all that is not known yet."""
        self._profile.close()
        if not self._last:
            self._start(step)  # no step was left to do
        elif self.config.every_steps and self._steps:
            self._close_interval()
        self._write_known(wait=True)

    def result(self) -> dict[str, Any]:
        """What all attempts at the run cost together, for ``result.json``; empty but on the main process."""
        if not self.world.is_main:
            return {}
        return bill_of(read_rows(self._run_dir), self._tokens_per_step, self.config.currency)

    # --- an interval ---

    def _sampled(self) -> contextlib.AbstractContextManager[None]:
        # Torch takes one trace at a time.
        sample = self._sample if not self._profile.is_under_way else None
        return contextlib.nullcontext() if sample is None else sample.step()

    def _start(self, step: int) -> None:
        if self.config.every_steps:
            self._tell(_Interval(step, 0, _Start(time.monotonic() - self._began), {}))
        self.clock.start()

    def _close_interval(self) -> None:
        sample = self._sample
        alone = {part: sample.alone(part) for part in PARTS} if sample and sample.parts else {}
        self._tell(_Interval(self._last, self._steps, self.clock.lap(), alone))
        self._steps = 0

    def _tell(self, interval: _Interval) -> None:
        joules = self._meters.since_last() if self._meters is not None else [None, None]
        interval.gather(self.world, peak_memory_bytes(self.world.device), *joules)
        self._pending.append(interval)
        self._write_known()

    def _write_known(self, *, wait: bool = False) -> None:
        while self._pending and (wait or self._pending[0].is_known):
            interval = self._pending.pop(0)
            memory, gpu_joules, cpu_joules = interval.gathered()
            # Later rows say that none of theirs was the start: what is shown of a metric is its last value.
            seconds = {START: 0.0, **interval.lap.seconds()}
            spent = Spent(
                tokens=interval.steps * self._tokens_per_step,
                seconds=sum(seconds.values()),
                num_devices=self.world.size,
                gpu_joules=gpu_joules,
                cpu_joules=cpu_joules,
                on_gpus=self.world.device.type == "cuda",
            )
            values = {
                **shares(seconds, interval.alone, is_alone=self.world.size == 1),
                "perf/peak_memory_bytes": memory,
                **spent.values(self.config),
            }
            row = {"steps": interval.steps, "seconds": spent.seconds, "energy": spent.energy}
            if isinstance(cost := spent.cost(self.config), str):
                row["cost"] = cost
            row |= {"tokens": interval.step * self._tokens_per_step, "values": values}
            self._events.write("costs", interval.step, **row)


class _Start:
    """What came before the first step, as a lap."""

    is_known = True

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def seconds(self) -> dict[str, float]:
        return {START: self._seconds}


class _Interval:
    """Some steps, and what all processes say of them."""

    def __init__(self, step: int, steps: int, lap: Lap, alone: dict[str, float]) -> None:
        self.step, self.steps, self.lap, self.alone = step, steps, lap, alone
        self._works: list[Any] = []

    def gather(self, world: World, memory: float, gpu: float | None, machine: float | None) -> None:
        """Begin to bring together what this process knows with what the others do."""
        # Of a machine one process reads the meter.
        speaks = os.environ.get("LOCAL_RANK", "0") == "0"
        sums = [gpu or 0.0, float(gpu is None), machine or 0.0, float(machine is None and speaks)]
        self._sums = torch.tensor(sums, dtype=torch.float64)
        self._memory = torch.tensor(memory, dtype=torch.float64)
        if world.size > 1:
            # By the group whose collectives are of the CPU: no device waits, and neither do we.
            self._works = [
                dist.all_reduce(self._sums, group=world.patient, async_op=True),
                dist.all_reduce(self._memory, dist.ReduceOp.MAX, group=world.patient, async_op=True),
            ]

    @property
    def is_known(self) -> bool:
        """Whether the device and the other processes have come to its end."""
        return self.lap.is_known and all(work.is_completed() for work in self._works)

    def gathered(self) -> tuple[float, float | None, float | None]:
        """Return the largest memory of a process, and the joules of all GPUs and of all machines."""
        for work in self._works:
            work.wait()
        gpus, no_gpu, machines, no_machine = self._sums.tolist()
        return self._memory.item(), None if no_gpu else gpus, None if no_machine else machines


def shares(seconds: Mapping[str, float], alone: Mapping[str, float], *, is_alone: bool) -> dict[str, float]:
    """Return the shares of time of the parts as metrics; they add up to 1.

    Args:
        seconds: By part.
        alone: What share of a part was communication alone in a step that was sampled; empty: none was.
        is_alone: Whether there is one process, which has nobody to communicate with.
    """
    whole = sum(seconds.values()) or 1.0
    found = {part: value * (1 - alone.get(part, 0.0)) / whole for part, value in seconds.items()}
    if is_alone:
        found["communication"] = 0.0
    elif alone:
        found["communication_sampled"] = sum(
            value * alone.get(part, 0.0) / whole for part, value in seconds.items()
        )
    return {SHARE + part: value for part, value in found.items()}


def peak_memory_bytes(device: torch.device) -> float:
    """Return the most memory that this process had: on CUDA of tensors, on CPU in all (resident set)."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError, StopIteration, ValueError):
        # What getrusage says begins with the memory of whoever started us.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
