"""One optimizer step. What it finds out is read later, so that little in it waits for the device.

Forward, backward, one sum over all processes, clipping and the update are only told to the device, so that it
has the next step to do when it is done with this one. Some wait even so: fp16, where whether a step counts
is known no earlier than the norm of its gradient; experts that are divided over processes, in each layer, for
how many rows each process gets; and experts where no kernel computes all groups of rows (fp32, older GPUs).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lmcore.config import TrainConfig
from lmcore.data.prefetch import Prefetcher, StepData
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.vocabulary import VocabularyShard
from lmcore.train.average import WeightAverage
from lmcore.train.loss import loss_sums
from lmcore.train.optim import Optimizers
from lmcore.train.precision import LossScale
from lmcore.train.reading import Facts, Moment, Reading
from lmcore.train.schedule import learning_rate_factor


class TrainingStep:
    """What is done in each step.

    Args:
        config: The training's.
        model, optimizers: What moves.
        loader: The batches of each step.
        stop_requested: Asked after each backward pass.

    Attributes:
        numbers_are_here: Whether the host can look at a number without waiting: on a CPU.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: DividedModel,
        optimizers: Optimizers,
        loader: Prefetcher,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.config, self.model, self.optimizers, self.loader = config, model, optimizers, loader
        self.layout, self.world, self.clock = model.layout, model.layout.world, model.clock
        self.stop_requested = stop_requested
        self.numbers_are_here = self.world.device.type == "cpu"
        self.loss_scale = LossScale.of(config.precision, config.initial_loss_scale)
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay else None

    def launch(self, step: int) -> Reading:
        """Do step ``step`` (from 0).

        Raises:
            TrainingDiverged: fp16 overflows whatever the loss scale.
        """
        began = Moment(self.world.device)
        with self.clock.part("data"):
            data = self.loader.take(step)
        sums = self.forward_backward(data)
        stop = torch.full((1,), float(self.stop_requested()), dtype=torch.float64, device=self.world.device)
        with self.clock.part("optimizer"):
            squares = self.optimizers.sum_of_squares(self.world.device)
        found = self.world.sum_(torch.cat((sums, squares[None], stop)))
        grad_norm = found[2:3].sqrt() / self.loss_scale.scale
        with self.clock.part("optimizer"):
            # The one place here where the host waits for a device, and for fp16 alone.
            if not self.loss_scale.dynamic or math.isfinite(grad_norm.item()):
                self._update(grad_norm, step)
            else:
                self.loss_scale.skip(step + 1)
            self.optimizers.zero_grad(keep=self.model.keeps_gradients)
        # After a step that was skipped too: what was counted belongs to it.
        imbalance = self.model.balance_experts()
        numbers = [found[:2] / max(1, data.num_targets), grad_norm, found[3:]]
        numbers.append(torch.zeros_like(stop) if imbalance is None else imbalance[None])
        facts = Facts(
            step + 1,
            self._learning_rates(),
            self.loss_scale.scale,
            self.loss_scale.skipped_steps,
            imbalance is not None,
        )
        return Reading(facts, torch.cat(numbers), began)

    def forward_backward(self, data: StepData) -> Tensor:
        """Add up the gradient of (summed losses / global targets); return this process's summed losses.

        The cross-entropy and, if it has a weight, the z-loss: fp64 [2].
        """
        sums = torch.zeros(2, device=self.world.device, dtype=torch.float64)
        weight = self.loss_scale.scale / max(1, data.num_targets)

        def criterion(logits: Tensor, targets: Tensor, shard: VocabularyShard | None) -> Tensor:
            loss, z_loss = loss_sums(logits, targets, shard, z_loss=self.config.z_loss > 0)
            sums[0] += loss.detach()
            if z_loss is not None:
                sums[1] += z_loss.detach()
                loss = loss + self.config.z_loss * z_loss
            return loss * weight

        self.model.set_auxiliary_scale(weight)
        self.model.forward_backward(data.batches, criterion)
        return sums if self.layout.counts else torch.zeros_like(sums)

    def _update(self, grad_norm: Tensor, step: int) -> None:
        limit, scale = self.config.optimizer.max_grad_norm, self.loss_scale.scale
        if limit:
            # A norm of 0 makes the quotient infinite, and one that is no number spoils all: as it should,
            # since a run that diverged ends before its weights are saved.
            factor = (limit / grad_norm[0]).clamp(max=1.0) / scale
            # A pass over all gradients less, where the norm is low enough and looking costs nothing.
            if not (self.numbers_are_here and factor.item() == 1.0):
                self.optimizers.scale_gradients(factor)
        elif scale != 1.0:
            self.optimizers.scale_gradients(torch.full_like(grad_norm[0], 1 / scale))
        self.optimizers.step(learning_rate_factor(step, self.config.steps, self.config.schedule))
        self.model.weights_changed()
        self.loss_scale.keep()
        if self.average:
            self.average.update(step)

    def _learning_rates(self) -> dict[str, float]:
        """Those that the settings name: that of all, and Muon's where it has the matrices."""
        rates = self.optimizers.learning_rates()
        if self.config.optimizer.name != "muon":
            return {"train/learning_rate": rates.get("matrix", max(rates.values()))}
        muon = {"train/muon_learning_rate": rates.pop("matrix")} if "matrix" in rates else {}
        return {"train/learning_rate": rates.get("norm", max(rates.values(), default=0.0)), **muon}
