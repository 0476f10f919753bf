"""The type of the computation, and the loss scale that fp16 needs."""

from __future__ import annotations

from dataclasses import dataclass

from lmcore.errors import TrainingDiverged
from lmcore.parallel.apply import Precision

GROW_EVERY = 2_000
SMALLEST_SCALE = 2.0**-10


@dataclass
class LossScale:
    """The factor that keeps small gradients inside fp16 (Micikevicius et al. 2018); 1 for other types.

    Halved when a gradient overflows, doubled after a long time without; the step that overflowed is skipped.

    Attributes:
        scale: The factor now.
        good_steps: Steps since it last changed.
        skipped_steps: Steps skipped so far.
    """

    scale: float
    dynamic: bool
    good_steps: int = 0
    skipped_steps: int = 0

    @classmethod
    def of(cls, precision: Precision, initial: float) -> LossScale:
        """Start with ``initial`` for fp16, and stay at 1 for the others."""
        return cls(initial, dynamic=True) if precision == "fp16" else cls(1.0, dynamic=False)

    def skip(self, step: int) -> None:
        """Take note of a gradient that was not finite.

        Raises:
            TrainingDiverged: smaller scales have not helped.
        """
        self.skipped_steps += 1
        self.good_steps = 0
        self.scale /= 2
        if self.scale < SMALLEST_SCALE:
            raise TrainingDiverged(
                f"the gradient overflows fp16 at step {step} whatever the loss scale",
                expected=f"a scale of at least {SMALLEST_SCALE}",
                remedy="Lower the learning rate, or train in bf16.",
            )

    def keep(self) -> None:
        """Take note of a finite gradient."""
        if self.dynamic:
            self.good_steps += 1
            if self.good_steps == GROW_EVERY:
                self.scale, self.good_steps = self.scale * 2, 0
