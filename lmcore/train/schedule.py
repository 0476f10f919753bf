"""Learning rate over steps, as a factor of its peak."""

from __future__ import annotations

import math

from lmcore.config import ScheduleConfig


def learning_rate_factor(step: int, steps: int, config: ScheduleConfig) -> float:
    """Return the factor of step ``step`` (from 0) of ``steps``.

    Linear warmup to 1; then one of these. The last step has ``min_ratio`` at its end, so that even it learns
    something.

    - cosine: half a cosine down to ``min_ratio`` (Loshchilov and Hutter 2017).
    - linear: a straight line down to ``min_ratio``.
    - wsd: 1 until the last ``decay_fraction`` of the steps, then a straight line down (Hu et al. 2024).
    - inverse_sqrt: the root of warmup over step, not below ``min_ratio`` (Vaswani et al. 2017).
    """
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.name == "inverse_sqrt":
        return max(config.min_ratio, math.sqrt(max(1, warmup) / (step + 1)))
    if config.name == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return 1 - (1 - config.min_ratio) * 0.5 * (1 - math.cos(math.pi * done))
    share = config.decay_fraction if config.name == "wsd" else 1.0
    decay_steps = min(steps - warmup, round(share * steps))
    left = steps - step
    if left >= decay_steps:
        return 1.0
    return 1 - (1 - config.min_ratio) * (1 - left / decay_steps)
