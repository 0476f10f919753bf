"""Joules that a run takes, by counters of the hardware: NVML's of its GPUs, RAPL's of its machines.

What cannot be read is not measured, and nothing takes its place, neither a nominal power nor a share of time.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
# What a package takes at most: a counter could wrap around twice in no shorter time.
_MAX_WATTS = 1_000.0
_KEEP_UP_SECONDS = 30.0


# --- GPUs ------------------------------------------------------------------------------------------


class GpuMeter:
    """The energy of one GPU, of all that uses it (nvmlDeviceGetTotalEnergyConsumption, Volta and newer).

    Args:
        read_millijoules: Returns the driver's count; raises OSError or RuntimeError where it cannot be read.
    """

    def __init__(self, read_millijoules: Callable[[], int]) -> None:
        self._read = read_millijoules
        self._first = self._last = read_millijoules()

    def joules(self) -> float | None:
        """Joules since it was opened; None once the driver was loaded anew, or does not answer."""
        try:
            now = self._read()
        except (OSError, RuntimeError):
            return None
        if now < self._last:
            return None
        self._last = now
        return (now - self._first) / 1000


def open_gpu(device: torch.device) -> GpuMeter | None:
    """Return the meter of a CUDA device; None where NVML is not there or does not count for it."""
    properties: Any = torch.cuda.get_device_properties(device)
    uuid = str(getattr(properties, "uuid", ""))
    if not uuid:
        return None
    try:
        # By its own name: NVML counts GPUs that CUDA_VISIBLE_DEVICES hides, too.
        return GpuMeter(_nvml_reader(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"))
    except (OSError, RuntimeError):
        return None


def _nvml_reader(uuid: str) -> Callable[[], int]:
    library = ctypes.CDLL("libnvidia-ml.so.1")
    handle, count = ctypes.c_void_p(), ctypes.c_ulonglong()

    def check(code: int) -> None:
        if code:
            raise RuntimeError(f"NVML answered {code}")

    check(library.nvmlInit_v2())
    check(library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)))

    def read() -> int:
        check(library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(count)))
        return count.value

    return read


# --- processors ------------------------------------------------------------------------------------


@dataclass
class _Zone:
    file: Path
    range_microjoules: int
    last: int
    total: int = 0

    def read(self) -> None:
        now = int(self.file.read_text())
        self.total += (now - self.last) % (self.range_microjoules + 1)
        self.last = now


class MachineMeter:
    """The energy of this machine's processor packages and memory, of all that runs on it (RAPL, by powercap).

    Its counters wrap around after minutes to hours: ``joules`` must be asked for more often than that.

    Args:
        root: Where the kernel shows its zones.
        clock: Seconds, to see whether it was asked often enough.

    Raises:
        OSError: there are none, or they cannot be read (which is root's alone on most machines).
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._zones = [_open_zone(zone) for zone in sorted(root.glob("intel-rapl:*")) if _counts(zone)]
        if not self._zones:
            raise FileNotFoundError(f"no package among the zones of {root}")
        self._clock, self._last = clock, clock()
        self._lost = False

    @property
    def seconds_to_wrap(self) -> float:
        """How long no counter can have wrapped around twice."""
        return min(zone.range_microjoules for zone in self._zones) / 1e6 / _MAX_WATTS

    def joules(self) -> float | None:
        """Joules since it was opened; None once a counter may have wrapped around unseen."""
        now = self._clock()
        try:
            for zone in self._zones:
                zone.read()
        except (OSError, ValueError):
            self._lost = True
        self._lost |= now - self._last > self.seconds_to_wrap
        self._last = now
        return None if self._lost else sum(zone.total for zone in self._zones) / 1e6

    def keep_up(self) -> None:
        """Read the counters if that was not done for a while, so that none wraps around unseen."""
        if self._clock() - self._last > _KEEP_UP_SECONDS:
            self.joules()


def _counts(zone: Path) -> bool:
    """Whether it is a package or its memory: cores are part of a package, and packages of psys."""
    try:
        name = (zone / "name").read_text().strip()
    except OSError:
        return False
    return name.startswith("package") or name == "dram"


def _open_zone(zone: Path) -> _Zone:
    file = zone / "energy_uj"
    return _Zone(file, int((zone / "max_energy_range_uj").read_text()), int(file.read_text()))


def open_machine(root: Path | None = None) -> MachineMeter | None:
    """Return this machine's meter to one of its processes; None to others, and where it cannot be read."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    try:
        return MachineMeter(root or POWERCAP)
    except (OSError, ValueError):
        return None


class Meters:
    """What this process reads of energy from now on: its GPU, and its machine if it speaks for it.

    Args:
        device: Where it computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = open_gpu(device) if device.type == "cuda" else None
        self._machine = open_machine()
        self._last = self._read()

    def since_last(self) -> list[float | None]:
        """Joules of the GPU and of the machine since this was asked last; None: not measured."""
        before, self._last = self._last, self._read()
        joules = [None if b is None or n is None else n - b for b, n in zip(before, self._last, strict=True)]
        if self._machine is not None and self._last[1] is None:
            # What was missed stays so; what comes can be measured.
            self._machine = open_machine()
            self._last = self._read()
        return joules

    def keep_up(self) -> None:
        """Read counters that may wrap around unseen, if that was not done for a while."""
        if self._machine is not None:
            self._machine.keep_up()

    def _read(self) -> list[float | None]:
        return [None if meter is None else meter.joules() for meter in (self._gpu, self._machine)]
