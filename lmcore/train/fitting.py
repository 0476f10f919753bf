"""The largest micro-batch that fits, found by trial; and what to do where a step does not fit."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lmcore.config import TrainConfig
from lmcore.errors import OutOfMemory
from lmcore.parallel.mesh import World
from lmcore.parallel.parts import local
from lmcore.train.memory import TensorBytes

# Shares of the free memory that are left alone: for fragments and the buffers of libraries on a GPU, and for
# all that is no tensor, and others, on a CPU.
MARGIN = {"cuda": 0.10, "cpu": 0.25}


@dataclass(frozen=True)
class Trial:
    """What a micro-batch was found to take, as shares of the memory that may be taken: 1 just fits.

    Attributes:
        peak: The most, of the process that needs most; infinite where it did not fit at all.
        held: What is there between steps: weights, gradients, optimizer state.
    """

    peak: float
    held: float


def find_largest(sizes: Sequence[int], measure: Callable[[int], Trial]) -> tuple[int, dict[int, Trial]]:
    """Return the largest of ``sizes`` (ascending) that fits, and what was tried.

    Memory grows with the size along a straight line, or less where the loss is by chunks. So the line through
    two trials says which others fit, and none is tried that is not expected to: on several processes one
    that ran out of memory would leave the others waiting.

    Raises:
        OutOfMemory: not even the least fits.
    """
    trials = {sizes[0]: measure(sizes[0])}
    best = sizes[0]
    if trials[best].peak > 1:
        raise OutOfMemory(
            f"not even a micro-batch of {best} sequence(s) fits into memory",
            expected="at most 100% of what may be taken",
            found=f"{trials[best].peak:.0%}",
            remedy=REMEDY,
        )
    line, ceiling = ((0, trials[best].held), (best, trials[best].peak)), math.inf
    while candidates := [size for size in sizes if best < size < ceiling and _on(line, size) <= 1]:
        # The first step on a line through one trial alone is a short one.
        size = candidates[-1] if len(trials) > 1 else candidates[0]
        trials[size] = measure(size)
        if trials[size].peak > 1:
            ceiling = size
        else:
            line, best = (line[1], (size, trials[size].peak)), size
    return best, trials


def _on(line: tuple[tuple[int, float], tuple[int, float]], size: int) -> float:
    (x, y), (u, v) = line
    return v + max(0.0, v - y) / (u - x) * (size - u)


def free_memory(device: torch.device) -> float:
    """Bytes of ``device`` that tensors of this process may take beside those that it has, margin left off."""
    margin = 1 - MARGIN.get(device.type, 0.1)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + unused) * margin
    return _available() * margin / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _available() -> float:
    """Bytes of the machine that nobody uses, at most those that this container may still take."""
    found = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (float((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Pages of files that were read count as used until somebody wants them. No limit is no number.
        found.append(limit - used + float(stat.get("inactive_file", 0)))
    return max(0.0, min(found))


class Trials:
    """Measures what computing takes; all processes do it together.

    Args:
        world: The processes.
        held: What is there between steps, in this process.
        compute: Goes forward and backward with micro-batches of a size; leaves gradients behind.
    """

    def __init__(
        self, world: World, held: Callable[[], Iterable[Tensor]], compute: Callable[[int], None]
    ) -> None:
        self.world, self.held, self.compute = world, held, compute
        self.limit = free_memory(world.device)
        if world.device.type == "cuda":
            self.limit += torch.cuda.memory_allocated(world.device)
        else:
            self.limit += sum(local(tensor).nbytes for tensor in held())

    def __call__(self, size: int) -> Trial:
        """Try micro-batches of ``size``.

        Raises:
            RuntimeError: there was no memory, and others of this run wait for us.
        """
        try:
            peak, after = self._on_gpu(size) if self.world.device.type == "cuda" else self._on_cpu(size)
        except RuntimeError as error:
            if self.world.size > 1 or not is_out_of_memory(error):
                raise
            peak = after = math.inf
        shares = torch.tensor([peak, after], dtype=torch.float64, device=self.world.device) / self.limit
        if self.world.size > 1:
            dist.all_reduce(shares, dist.ReduceOp.MAX)
        return Trial(*shares.tolist())

    def _on_gpu(self, size: int) -> tuple[float, float]:
        device = self.world.device
        torch.cuda.reset_peak_memory_stats(device)
        self.compute(size)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)

    def _on_cpu(self, size: int) -> tuple[float, float]:
        with TensorBytes(self.world.device, self.held()) as tensors:
            self.compute(size)
        return tensors.peak, tensors.now


REMEDY = (
    "Set train.activation_checkpointing=selective or full, a smaller train.micro_batch_size (0: found by "
    "trial), train.optimizer.offload=true, a smaller train.loss_chunk_tokens, or divide over more processes "
    "(train.parallel.dp_shard)."
)


@contextlib.contextmanager
def out_of_memory_explained(settings: Callable[[], TrainConfig], device: torch.device) -> Iterator[None]:
    """Say which settings a step had that ran out of memory.

    Raises:
        OutOfMemory: instead of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        config = settings()
        found = (
            f"train.micro_batch_size {config.micro_batch_size} of {config.seq_len} tokens, "
            f"activation_checkpointing {config.activation_checkpointing}, precision {config.precision}"
        )
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
            total = torch.cuda.get_device_properties(device).total_memory
            found += f", {peak / 1e9:.1f} GB of {total / 1e9:.1f} GB taken at the most"
        problem = f"a step does not fit into the memory of {device}"
        raise OutOfMemory(problem, found=found, remedy=REMEDY) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch had no memory: of a GPU it has an error of its own, of a CPU a text."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
