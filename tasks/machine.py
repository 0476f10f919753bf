"""What the machine of a run does meanwhile, under the names that MLflow's tab of system metrics shows.

A figure that cannot be read is left out; it takes no other along.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

FILE = "system.jsonl"
FIRST_SECONDS, MAX_SECONDS = 2.0, 10.0  # between samples: a short run has some, a long one not too many
MEGABYTE = 1_000_000
Reader = Callable[[], float | None]


class Machine:
    """Reads processors, memory, disk, network and GPUs.

    Args:
        folder: On the disk that is looked at.
    """

    def __init__(self, folder: Path) -> None:
        memory, disk = psutil.virtual_memory, lambda: psutil.disk_usage(str(folder))
        network = psutil.net_io_counters()
        sent, received = (network.bytes_sent, network.bytes_recv) if network else (0, 0)
        psutil.cpu_percent()  # of the time since the call before
        self._readers: dict[str, Reader] = {
            "cpu_utilization_percentage": psutil.cpu_percent,
            "system_memory_usage_megabytes": lambda: memory().used / MEGABYTE,
            "system_memory_usage_percentage": lambda: memory().percent,
            "disk_usage_megabytes": lambda: disk().used / MEGABYTE,
            "disk_usage_percentage": lambda: disk().percent,
            "disk_available_megabytes": lambda: disk().free / MEGABYTE,
            "network_transmit_megabytes": lambda: (psutil.net_io_counters().bytes_sent - sent) / MEGABYTE,
            "network_receive_megabytes": lambda: (psutil.net_io_counters().bytes_recv - received) / MEGABYTE,
            **_gpu_readers(),
        }

    def read(self) -> dict[str, float]:
        """Return what can be read now, as MLflow names it."""
        found = {}
        for name, reader in self._readers.items():
            with contextlib.suppress(Exception):  # drivers raise errors of their own kinds
                if (value := reader()) is not None:
                    found[f"system/{name}"] = float(value)
        return found


def _gpu_readers() -> dict[str, Reader]:
    """NVML's figures of each GPU; none where there is no driver or no library for it."""
    readers: dict[str, Reader] = {}
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        for place in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(Exception):
                readers |= _readers_of(pynvml, pynvml.nvmlDeviceGetHandleByIndex(place), f"gpu_{place}")
    return readers


def _readers_of(nvml: Any, gpu: Any, name: str) -> dict[str, Reader]:
    def memory() -> Any:
        return nvml.nvmlDeviceGetMemoryInfo(gpu)

    def watts() -> float:
        return nvml.nvmlDeviceGetPowerUsage(gpu) / 1000

    return {
        f"{name}_utilization_percentage": lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        f"{name}_memory_usage_megabytes": lambda: memory().used / MEGABYTE,
        f"{name}_memory_usage_percentage": lambda: 100 * memory().used / memory().total,
        f"{name}_power_usage_watts": watts,
        f"{name}_power_usage_percentage": lambda: (
            100 * watts() / (nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000)
        ),
    }


@contextlib.contextmanager
def sampled(run_dir: Path, started: float) -> Iterator[None]:
    """Append rows about the machine to ``system.jsonl`` of ``run_dir`` until the block ends.

    The step of a row is its second since ``started`` (of the run, not of this attempt at it).
    """
    stop = threading.Event()
    machine = Machine(run_dir)
    begun = time.monotonic()

    def follow() -> None:
        while not stop.wait(min(MAX_SECONDS, max(FIRST_SECONDS, (time.monotonic() - begun) / 10))):
            _append(run_dir, machine, started)

    thread = threading.Thread(target=follow, name="machine-sampler", daemon=True)
    _append(run_dir, machine, started)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _append(run_dir, machine, started)


def _append(run_dir: Path, machine: Machine, started: float) -> None:
    now = time.time()
    row = {"kind": "system", "step": max(0, int(now - started)), "time": now, "values": machine.read()}
    with contextlib.suppress(OSError), (run_dir / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
