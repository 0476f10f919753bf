"""What the steps of a run cost: time by part, memory, joules and money, as rows of ``events.jsonl``."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lmcore.clock import PARTS, Clock, Lap
from lmcore.config import TrainConfig
from lmcore.parallel.mesh import World
from lmcore.run_directory import EventLog
from lmcore.train.bill import SHARE, Bill, Spent
from lmcore.train.energy import GpuMeter, MachineMeter, open_gpu, open_machine
from lmcore.train.profile import CommunicationSample, StepProfile


class Costs:
    """Follows the steps of a run; all processes do so alike.

    A row of kind ``costs`` tells of ``every_steps`` steps and of what came after each, such as a validation
    or a checkpoint. It is written when it is known everywhere, without anybody waiting: a little later.

    Args:
        train: What is measured and traced, and the prices.
        world: This process among its peers.
        clock: Whose parts they are.
        run_dir: The run directory.
        events: Where rows go.
        say: Tells people.
    """

    def __init__(
        self,
        train: TrainConfig,
        world: World,
        clock: Clock,
        run_dir: Path,
        events: EventLog,
        say: Callable[[str], object],
    ) -> None:
        self.config = config = train.costs
        self.world, self.clock, self._events = world, clock, events
        self._tokens_per_step = train.global_batch_tokens
        self._profile = StepProfile(train.profile, run_dir, world.rank, self.clock, world.device, say)
        self._sample = None
        if world.size > 1 and world.is_main and config.every_steps and config.sample_communication:
            self._sample = CommunicationSample(self.clock, world.device)
        self._gpu: GpuMeter | None = None
        self._machine: MachineMeter | None = None
        self._joules = self._read_meters()
        self._steps, self._last = 0, 0
        self._pending: list[_Interval] = []
        self._bill = Bill(self._tokens_per_step)

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Do step ``step`` (from 1) inside; what comes after it still belongs to it."""
        if self._last and self.config.every_steps and self._last % self.config.every_steps == 0:
            self._close_interval()
        elif not self._last:
            self._start()
        with self._profile.step(step), self._sampled():
            yield
        self._last, self._steps = step, self._steps + 1
        if self._machine is not None:
            self._machine.keep_up()

    def finish(self) -> None:
        """Tell of the steps since the last row; wait for all that is not known yet."""
        self._profile.close()
        if self.config.every_steps and self._steps:
            self._close_interval()
        self._write_known(wait=True)

    def result(self) -> dict[str, Any]:
        """What all steps of this process's attempt cost together, for ``result.json``."""
        return self._bill.told(self.config.currency)

    # --- an interval ---

    def _sampled(self) -> contextlib.AbstractContextManager[None]:
        # Torch takes one trace at a time.
        sample = self._sample if not self._profile.is_under_way else None
        return contextlib.nullcontext() if sample is None else sample.step()

    def _start(self) -> None:
        on_gpu = self.world.device.type == "cuda"
        if self.config.every_steps:
            self._machine = open_machine()
            self._gpu = open_gpu(self.world.device) if on_gpu else None
            self._joules = self._read_meters()
        self.clock.start()

    def _close_interval(self) -> None:
        sample = self._sample
        alone = {part: sample.alone(part) for part in PARTS} if sample and sample.parts else {}
        before, self._joules = self._joules, self._read_meters()
        joules = [
            None if b is None or n is None else n - b for b, n in zip(before, self._joules, strict=True)
        ]
        interval = _Interval(self._last, self._steps, self.clock.lap(), alone)
        interval.gather(self.world, peak_memory_bytes(self.world.device), *joules)
        self._steps = 0
        self._pending.append(interval)
        self._write_known()

    def _read_meters(self) -> list[float | None]:
        """Joules of our GPU and of our machine since the start."""
        return [None if meter is None else meter.joules() for meter in (self._gpu, self._machine)]

    def _write_known(self, *, wait: bool = False) -> None:
        while self._pending and (wait or self._pending[0].is_known):
            interval = self._pending.pop(0)
            memory, gpu_joules, cpu_joules = interval.gathered()
            seconds = interval.lap.seconds()
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
            self._bill.add(row)
            self._events.write("costs", interval.step, **row)


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
