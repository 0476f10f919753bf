"""What a step found out, on its way from the device to the host: nobody waits for it in between."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

NAMES = ("loss", "z_loss", "grad_norm", "stops", "imbalance")


@dataclass(frozen=True)
class Facts:
    """What the host knows of a step as soon as it is under way.

    Attributes:
        step: From 1.
        learning_rates: By the names they are reported by.
        loss_scale: The factor after it.
        skipped_steps: Steps skipped so far.
        has_experts: Whether its imbalance means something.
    """

    step: int
    learning_rates: dict[str, float]
    loss_scale: float = 1.0
    skipped_steps: int = 0
    has_experts: bool = False


class Moment:
    """A point on the time line of ``device``: now, or once it has done all that it was told so far."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        self._time = time.perf_counter()

    def wait(self) -> None:
        """Wait until the device has come to it."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: Moment) -> float:
        """Seconds from ``earlier`` to this one; both must have passed."""
        if self._event is not None and earlier._event is not None:
            return earlier._event.elapsed_time(self._event) / 1e3
        return self._time - earlier._time


@dataclass
class Reading:
    """The numbers of a step: begun to be copied when it is made, to be had from ``values``.

    Args:
        facts: What is known already.
        numbers: Those of ``NAMES``, fp64 on the device; nobody changes them any more.
        began: When the step did.
    """

    facts: Facts
    numbers: Tensor
    began: Moment
    ended: Moment = field(init=False)

    def __post_init__(self) -> None:
        device = self.numbers.device
        if device.type == "cuda":
            # Only from memory that is pinned does a copy go on by itself.
            host = torch.empty(self.numbers.shape, dtype=self.numbers.dtype, pin_memory=True)
            self.numbers = host.copy_(self.numbers, non_blocking=True)
        self.ended = Moment(device)

    def values(self) -> dict[str, float]:
        """Wait for the device to have come so far; the numbers by name."""
        self.ended.wait()
        return dict(zip(NAMES, self.numbers.tolist(), strict=True))

    @property
    def seconds(self) -> float:
        """What the step took; to be asked after ``values``."""
        return self.ended.seconds_since(self.began)
