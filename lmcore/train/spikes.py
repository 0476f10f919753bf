"""Losses that jump: found by a robust z-score, told with the samples of their step.

What a loss is like is the median of the last few steps; how far losses lie apart, the median absolute
difference of one step to the next, which a loss that falls does not widen. A spike itself moves neither.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from lmcore.data.loader import TrainLoader

WINDOW = 128  # steps
NEAR = 16  # of these the median
LEAST = 5  # steps before the first verdict
NORMAL = 1.4826 / math.sqrt(2)  # standard deviations of a normal distribution in such differences
FLOOR = 0.02  # of the median: a spread below it is that of a window that is too quiet to tell
FEW, FEW_FLOOR = 20, 0.05  # of fewer steps than these the spread is not known as well
KIND = "loss_spike"
MOST_SAMPLES, MOST_NAMED = 1024, 8
MOST_EXPLAINED = 20  # spikes whose documents are looked up, which reads files


class Spikes:
    """Looks at the loss of each step.

    Args:
        least_z: Robust z-score from which a loss is a spike; 0: none is.
        loader: Knows the samples of a step.
    """

    def __init__(self, least_z: float, loader: TrainLoader) -> None:
        self._least_z = least_z
        self._loader = loader
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._explained = 0

    def recall(self, rows: Iterable[Mapping[str, Any]], last_step: int) -> None:
        """Take the losses up to ``last_step`` from the events of earlier attempts, as if they were ours."""
        losses = {
            row["step"]: row["values"]["train/loss"]
            for row in rows
            if row["kind"] == "step" and row["step"] <= last_step and "train/loss" in row["values"]
        }
        self._losses.extend(losses[step] for step in sorted(losses))

    def look(self, step: int, loss: float) -> dict[str, Any] | None:
        """Take the loss of ``step`` (from 1); return what is to be told if it is a spike."""
        if not self._least_z or not math.isfinite(loss):
            return None
        # Most losses are near the least of the last: these are none, and cost nothing.
        least = min(itertools.islice(reversed(self._losses), NEAR), default=math.inf)
        if loss < least * (1 + self._least_z * FLOOR):
            self._losses.append(loss)
            return None
        z, median = score(loss, self._losses)
        self._losses.append(loss)
        if z < self._least_z:
            return None
        return {
            "values": {"train/loss_spike": z},
            "loss": loss,
            "median": median,
            "samples": self._loader.samples_of_step(step - 1)[:MOST_SAMPLES].tolist(),
        }

    def explain(self, step: int, told: Mapping[str, Any]) -> str:
        """A line on a spike: step, loss, what is usual, samples."""
        self._explained += 1
        samples = name_samples(self._loader, step, documents=self._explained <= MOST_EXPLAINED)
        return (
            f"warning: loss spike at step {step}: {told['loss']:.4g}, where the median of the last steps is "
            f"{told['median']:.4g} (robust z-score {told['values']['train/loss_spike']:.1f}); {samples}"
        )


def score(loss: float, before: Iterable[float]) -> tuple[float, float]:
    """Robust z-score of ``loss`` among the losses ``before``, and their median; (0, nan) of too few."""
    known = list(before)
    if len(known) < LEAST:
        return 0.0, math.nan
    median = statistics.median(known[-NEAR:])
    spread = NORMAL * statistics.median(abs(b - a) for a, b in itertools.pairwise(known))
    floor = FLOOR if len(known) >= FEW else FEW_FLOOR
    return (loss - median) / max(spread, floor * abs(median), 1e-12), median


def name_samples(loader: TrainLoader, step: int, *, documents: bool = True) -> str:
    """Name the samples of ``step`` (from 1), and the documents they are of."""
    samples = loader.samples_of_step(step - 1).tolist()
    text = f"samples {_listed(samples)}"
    if documents:
        names = loader.documents_of_step(step - 1, at_most=MOST_NAMED + 1)
        text += f" of documents {_listed(names)}"
    return text


def _listed(values: list[Any]) -> str:
    shown = ", ".join(map(str, values[:MOST_NAMED]))
    return shown + (" ..." if len(values) > MOST_NAMED else "")


def count_spikes(rows: Iterable[Mapping[str, Any]]) -> int:
    """Steps whose loss was a spike, over all attempts."""
    return len({row["step"] for row in rows if row["kind"] == KIND})
