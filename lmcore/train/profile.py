"""Traces by torch's profiler: of some steps by a setting, and of single ones for their communication."""

from __future__ import annotations

import contextlib
import gzip
import os
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from lmcore.clock import PARTS, Clock
from lmcore.config import ProfileConfig
from lmcore.errors import StorageError
from lmcore.store import write_atomically
from lmcore.train.trace import STEP, Event, PartTimes, exposed_communication, largest_operators, read_trace

FOLDER = "profile"
LARGEST_OPERATORS = 25
MAX_NAME_CHARS = 100
# Of the time of a run, what samples may take: a costly one is taken the more rarely.
MAX_SAMPLE_SHARE = 0.005
_FIRST_SAMPLED_STEP = 3  # the ones before compile, choose kernels and make buffers


def _activities(device: torch.device) -> list[ProfilerActivity]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells the log of every start and stop
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]


class StepProfile:
    """The trace that ``train.profile`` asks for.

    ``profile/rank0-steps10-12.json.gz`` in the run directory is for https://ui.perfetto.dev or
    chrome://tracing; the ``.txt`` beside it lists the largest operators. Both appear whole or not at all.

    Args:
        config: Which steps, of which processes.
        run_dir: The run directory.
        rank: Of this process.
        clock: Its parts stand in the trace.
        device: Where it computes.
        say: Told where the trace is.
    """

    def __init__(
        self,
        config: ProfileConfig,
        run_dir: Path,
        rank: int,
        clock: Clock,
        device: torch.device,
        say: Callable[[str], object],
    ) -> None:
        self._config, self._rank, self._clock, self._device = config, rank, clock, device
        self._folder, self._say = run_dir / FOLDER, say
        self._profile: Any = None
        self._first = self._done = config.start_step
        self._wanted = config.start_step > 0 and rank in config.ranks

    @property
    def is_under_way(self) -> bool:
        """Whether a trace is being taken."""
        return self._profile is not None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Do a step (from 1) inside: traced if it is one of those."""
        if self._wanted and self._profile is None and self._config.start_step - 1 <= step <= self._last:
            with self._clock.part("measuring"):
                self._start(step)
            self._clock.annotates = True
        if self._profile is None:
            yield
            return
        try:
            with record_function(STEP):
                yield
        except BaseException:
            self._profile = None
            self._clock.annotates = False
            raise
        self._done = step
        self._clock.annotates = step < self._last
        with self._clock.part("measuring"):
            self._profile.step()
        if step >= self._last:
            self.close()

    def close(self) -> None:
        """Write what there is, if a trace is being taken: the run ends before the last of its steps."""
        if self._profile is not None:
            self._clock.annotates = False
            with self._clock.part("measuring"):
                self._profile.stop()
            self._profile, self._wanted = None, False

    @property
    def _last(self) -> int:
        return self._config.start_step + self._config.steps - 1

    def _start(self, step: int) -> None:
        warmup = int(step < self._config.start_step)
        self._first = step + warmup
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")
            order = schedule(wait=0, warmup=warmup, active=self._last - self._first + 1, repeat=1)
            self._profile = profile(
                activities=_activities(self._device), schedule=order, on_trace_ready=self._write
            )
        self._profile.start()

    def _write(self, done: Any) -> None:
        if self._done < self._first:
            return  # the run ended as the profiler warmed up
        self._folder.mkdir(exist_ok=True)
        name = f"rank{self._rank}-steps{self._first}-{self._done}"
        build = self._folder / f".{uuid.uuid4().hex[:8]}.json"
        try:
            done.export_chrome_trace(str(build))
            summary = self._summary(read_trace(build))
            packed = gzip.compress(build.read_bytes(), compresslevel=4)
            write_atomically(self._folder / f"{name}.json.gz", packed)
            write_atomically(self._folder / f"{name}.txt", summary)
        except (OSError, StorageError) as error:  # a trace is no reason to lose a run
            self._say(f"warning: the trace of steps {self._first} to {self._done} was not written: {error}")
            return
        finally:
            build.unlink(missing_ok=True)
        self._say(f"a trace of steps {self._first} to {self._done} is at {self._folder / name}.json.gz")

    def _summary(self, events: list[Event]) -> str:
        # Not by torch's own tables: they take seconds for a thousand operators, while the others wait.
        parts, operators = exposed_communication(events), largest_operators(events, LARGEST_OPERATORS)
        whole = sum(part.seconds for part in parts.values())
        lines = [f"Process {self._rank}, steps {self._first} to {self._done}: {whole:.3f} s", ""]
        for name in (name for name in PARTS if name in parts):
            part = parts[name]
            alone = f", {part.exposed / whole:6.1%} communication alone" if part.exposed else ""
            lines.append(f"{name:>12} {part.seconds * 1e3:10.1f} ms {part.seconds / whole:6.1%}{alone}")
        lines += ["", "Largest operators, without those inside of them", ""]
        lines += [
            f"{seconds * 1e3:12.1f} ms {seconds / whole:6.1%} {calls:7,} x {name[:MAX_NAME_CHARS]}"
            for name, seconds, calls in operators
        ]
        return "\n".join([*lines, ""])


class CommunicationSample:
    """Profiles a step now and then, for what of its parts is communication alone.

    Args:
        clock: Its parts stand in the trace.
        device: Where they are computed.
    """

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self._clock, self._device = clock, device
        self._steps = 0
        self._next = 0.0
        self.parts: dict[str, PartTimes] = {}

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Do a step inside: sampled if it is time again."""
        self._steps += 1
        if self._steps < _FIRST_SAMPLED_STEP or time.monotonic() < self._next:
            yield
            return
        began = time.monotonic()
        with self._clock.part("measuring"):
            trace = profile(activities=_activities(self._device))
            self._settle()
            trace.start()
        self._clock.annotates = True
        inside = time.monotonic()
        try:
            with record_function(STEP):
                yield
                self._settle()
        finally:
            inside = time.monotonic() - inside
            self._clock.annotates = False
            with self._clock.part("measuring"):
                trace.stop()
        with self._clock.part("measuring"):
            self._read(trace)
        now = time.monotonic()
        self._next = now + (now - began - inside) / MAX_SAMPLE_SHARE

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _read(self, trace: Any) -> None:
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            trace.export_chrome_trace(str(path))
            self.parts = exposed_communication(read_trace(path))

    def alone(self, part: str) -> float:
        """Share of a part that was communication alone in the step that was sampled last."""
        found = self.parts.get(part)
        return min(1.0, found.exposed / found.seconds) if found and found.seconds else 0.0
