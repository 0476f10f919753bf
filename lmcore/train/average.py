"""A moving average of the weights, which tends to predict better than the last of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from lmcore.parallel.divided import DividedModel
from lmcore.parallel.parts import local


class WeightAverage:
    """An exponential moving average of a model's weights (Polyak and Juditsky 1992), divided as they are.

    Args:
        model: Its parameters as they are optimized.
        decay: What each step leaves of the average; less in the first steps, so that it forgets the initial
            weights: after n steps at most (1 + n) / (10 + n).
    """

    def __init__(self, model: DividedModel, decay: float) -> None:
        self.decay = decay
        self.model = model
        self._parameters = dict(model.named_parameters())
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """The average by parameter; loading into it sets it."""
        return dict(self._average)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self._average.values(), self._parameters.values(), strict=True)
        averages, weights = zip(*((local(a), local(p)) for a, p in pairs), strict=True)
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the model compute with the average inside."""
        self._exchange()
        try:
            yield
        finally:
            self.model.release_weights()
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            mine, average = local(parameter), local(self._average[name])
            kept = mine.clone()
            mine.copy_(average)
            average.copy_(kept)
        self.model.weights_changed()
