"""How fast a training run is, and what it says while it runs."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping

import torch

PROGRESS_EVERY_SECONDS = 3.0
WINDOW_STEPS = 20

# Dense matrix products in 16-bit types, FLOP/s, from the vendors' data sheets. What is not here has no MFU.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
}


class Speed:
    """Seconds of a step and tokens per second, robust to a step that was interrupted by something else.

    Args:
        tokens_per_step: Over all processes.
        flops_per_token: Of training.
        world_size: Devices that share the work.
        device: The kind of them.
    """

    def __init__(
        self, tokens_per_step: int, flops_per_token: int, world_size: int, device: torch.device
    ) -> None:
        self._tokens_per_step = tokens_per_step
        self._flops_per_step = flops_per_token * tokens_per_step
        self._peak = peak_flops(device)
        self._world_size = world_size
        self._device = device
        self._window: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._all: list[float] = []

    def add(self, seconds: float) -> None:
        """Take note of a step."""
        self._window.append(seconds)
        self._all.append(seconds)

    @property
    def tokens_per_second(self) -> float:
        """By the median of the last steps."""
        return self._tokens_per_step / statistics.median(self._window)

    @property
    def overall_tokens_per_second(self) -> float:
        """By the median of all steps of this process."""
        return self._tokens_per_step / statistics.median(self._all) if self._all else 0.0

    def values(self) -> dict[str, float]:
        """Values of a step's row; MFU only where the device's peak is known."""
        values = {
            "perf/tokens_per_second": self.tokens_per_second,
            "perf/step_seconds": self._window[-1],
        }
        if self._peak is not None:
            rate = self._flops_per_step / statistics.median(self._window)
            values["perf/mfu"] = rate / (self._peak * self._world_size)
        if self._device.type == "cuda":
            values["perf/peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(self._device))
        return values


def peak_flops(device: torch.device) -> float | None:
    """Return the 16-bit matrix peak of ``device`` in FLOP/s, or None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


class ProgressLine:
    """Prints a plain line every few seconds, for people and for the log."""

    def __init__(self, steps: int, *, enabled: bool = True) -> None:
        self._steps = steps
        self._enabled = enabled
        self._last = 0.0

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Print where the run is, unless it did a moment ago."""
        now = time.monotonic()
        if self._enabled and (now - self._last >= PROGRESS_EVERY_SECONDS or step == self._steps):
            self._last = now
            speed = values["perf/tokens_per_second"] / 1000
            loss = values.get("train/loss", math.nan)  # a skipped step has none
            self.say(f"step {step}/{self._steps} loss {loss:.3f} {speed:.1f}k tokens/s")

    def say(self, text: str) -> None:
        """Print ``text`` now."""
        if self._enabled:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
