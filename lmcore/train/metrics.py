"""How fast a training run is, and what it says while it runs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

PROGRESS_EVERY_SECONDS = 3.0
SPEED = ("step_seconds", "tokens_per_second", "mfu")


class Speed:
    """Step time, tokens per second and MFU, which belong together: each is of the same step.

    In a step's row they are of that step. Of a run they are those of the row of its median step, over all
    attempts: a step that something else interrupted does not count, nor what is between steps, which
    ``costs`` tells of.
    MFU is that of Chowdhery et al. 2022, appendix B, and only where there is a peak. A step that is faster
    than the peak shows that the peak is wrong: it has no MFU, or that of the peak that ``on_faster`` returns.

    Args:
        tokens_per_step: Over all processes.
        flops_per_token: Of training.
        peak_flops: A second, of all devices that share the work; None: there is no MFU.
        on_faster: Given the operations a second of a step that did more than the peak, returns a better peak;
            None: there is none.
    """

    def __init__(
        self,
        tokens_per_step: int,
        flops_per_token: int,
        peak_flops: float | None,
        on_faster: Callable[[float], float | None] = lambda flops: None,
    ) -> None:
        self._tokens_per_step = tokens_per_step
        self._flops_per_step = flops_per_token * tokens_per_step
        self._peak_flops, self._on_faster = peak_flops, on_faster
        self._raised = False

    def values(self, seconds: float) -> dict[str, float]:
        """Values of the row of a step that took ``seconds``."""
        found = {"perf/step_seconds": seconds, "perf/tokens_per_second": self._tokens_per_step / seconds}
        flops = self._flops_per_step / seconds
        peak = self._peak_flops
        if peak is not None and flops > peak:
            peak = self._on_faster(flops)
            if peak is not None:
                self._peak_flops, self._raised = peak, True
        if peak is not None:
            found["perf/mfu"] = flops / peak
        return found

    def by_the_last_peak(self, figures: Mapping[str, float | None]) -> dict[str, float | None]:
        """Correct the MFU of a run whose peak was found to be higher in its course."""
        seconds, mfu = figures["step_seconds"], figures["mfu"]
        if not self._raised or not self._peak_flops or seconds is None or mfu is None:
            return dict(figures)
        return {**figures, "mfu": min(mfu, self._flops_per_step / seconds / self._peak_flops)}

    @staticmethod
    def of_run(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
        """``step_seconds``, ``tokens_per_second`` and ``mfu`` of the median step; None: not known.

        All three as its row has them: MFU is a share of the peak of the devices that did the step, of which
        another attempt may have had another number. Of two steps in the middle the faster one counts.

        Args:
            rows: Events of all attempts; of a step that was done again the last counts.
        """
        steps = {row["step"]: row["values"] for row in rows if row["kind"] == "step"}
        ordered = sorted(steps.values(), key=lambda values: values["perf/step_seconds"])
        median = ordered[(len(ordered) - 1) // 2] if ordered else {}
        return {name: median.get(f"perf/{name}") for name in SPEED}


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
