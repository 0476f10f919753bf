"""How fast a training run is, and what it says while it runs."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence

PROGRESS_EVERY_SECONDS = 3.0
WINDOW_STEPS = 20


class Speed:
    """Seconds of a step and tokens per second, robust to a step that was interrupted by something else.

    Args:
        tokens_per_step: Over all processes.
        flops_per_token: Of training.
        peak_flops: A second, of all devices that share the work; None: there is no MFU.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: int, peak_flops: float | None) -> None:
        self._tokens_per_step = tokens_per_step
        self._flops_per_step = flops_per_token * tokens_per_step
        self._peak_flops = peak_flops
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
        """Values of a step's row; MFU (Chowdhery et al. 2022, appendix B) only where there is a peak."""
        values = {
            "perf/tokens_per_second": self.tokens_per_second,
            "perf/step_seconds": self._window[-1],
        }
        if (mfu := self._mfu(self._window)) is not None:
            values["perf/mfu"] = mfu
        return values

    @property
    def overall_mfu(self) -> float | None:
        """Model FLOPs utilization by the median of all steps of this process; None without a peak."""
        return self._mfu(self._all)

    def _mfu(self, seconds: Sequence[float]) -> float | None:
        if self._peak_flops is None or not seconds:
            return None
        return self._flops_per_step / statistics.median(seconds) / self._peak_flops


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
