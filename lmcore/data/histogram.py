"""Histograms whose edges are known beforehand, so that shards are counted one after another.

Every threshold of a figure is an edge: a bar is dropped or kept as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lmcore.data.quality import Rule

BARS = 40
# Figures that count or have a long tail; all others are shares, or a few of something for each word.
COUNTS = frozenset(
    {
        "chars",
        "line_chars",
        "mean_line_chars",
        "generated",
        "words",
        "stop_words",
        "lorem_ipsum",
        "curly_brackets",
        "sentences",
        "evaluation_ngrams",
    }
)
# A tail is shown to this many times its threshold; the last bar holds what is beyond.
_TAIL = 5.0
_NOTHING = 1e-9


def edges_of(name: str, largest: float, rules: Sequence[Rule] = ()) -> np.ndarray:
    """Edges of the bars for the figure ``name``; float64 [bars + 1], ascending from 0.

    Args:
        name: Of the figure: counts get bars that widen, the others equal ones.
        largest: Largest value there is.
        rules: Those that look at the figure.
    """
    limits = [_edge(name, rule) for rule in rules]
    if name in COUNTS:
        last = max(largest + 1, *(1.25 * limit for limit in limits), 2.0)
        steps = np.ceil(np.geomspace(1, last, BARS).round(6))
        exact = [rule.limit for rule in rules]
        return np.unique([0.0, *steps[~np.isin(steps, exact)], *limits])
    tails = [_TAIL * rule.limit for rule in rules if not rule.below and rule.limit > 0]
    last = max(min([largest, *tails]), *(1.2 * limit for limit in limits), 0.0)
    last = last if last > _NOTHING else 1.0
    if name.endswith("_share") and max(limits, default=0.0) < 1.0:
        last = min(last, 1.0)
    steps = _steps(last, limits)
    near = {int(np.abs(steps - limit).argmin()) for limit in limits} - {0, len(steps) - 1}
    return np.unique([*np.delete(steps, list(near)), *limits])


def _steps(last: float, limits: Sequence[float]) -> np.ndarray:
    """About ``BARS`` equal steps from 0 to ``last``; one of them ends at the first limit."""
    width = last / BARS
    if not limits or limits[0] < width:
        return np.linspace(0.0, last, BARS + 1)
    width = limits[0] / round(limits[0] / width)
    return np.append(width * np.arange(math.ceil(round(last / width, 6))), last)


def count(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many of ``values`` each bar holds, the last those beyond it too; int64 [bars]."""
    places = np.searchsorted(edges, values, side="right") - 1
    return np.bincount(np.clip(places, 0, len(edges) - 2), minlength=len(edges) - 1)


def _edge(name: str, rule: Rule) -> float:
    """Where the bars that ``rule`` drops meet those that it leaves."""
    if rule.below:
        return rule.limit
    if name in COUNTS and rule.limit == int(rule.limit) and name != "mean_line_chars":
        return rule.limit + 1
    return math.nextafter(rule.limit, math.inf)
