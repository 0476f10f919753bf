"""The type of the computation, and the loss scale that fp16 needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmcore.config import ModelConfig, ParallelConfig
from lmcore.errors import ConfigError, TrainingDiverged
from lmcore.model.float8 import MULTIPLE
from lmcore.parallel.apply import Precision

GROW_EVERY = 2_000
SMALLEST_SCALE = 2.0**-10
FP8_CAPABILITY = (8, 9)  # Ada Lovelace; Hopper is 9.0


def check_fp8(model: ModelConfig, parallel: ParallelConfig, device: torch.device) -> None:
    """Refuse fp8 where it cannot be: to be asked before a model is built.

    A CPU is taken where torch multiplies eight-bit floats on it, as a check of numbers: it is slower there.

    Raises:
        ConfigError: the GPU is too old, matrices are divided, or no matrix is a multiple of 16.
    """
    if parallel.tp > 1:
        raise ConfigError(
            "train.precision fp8 scales whole matrices, which train.parallel.tp divides",
            expected="tp 1",
            found=f"tp {parallel.tp}",
            remedy="Set train.parallel.tp=1 and dp_shard instead, or train.precision=bf16.",
        )
    if model.hidden_size % MULTIPLE:
        raise ConfigError(
            "train.precision fp8 has no matrix to multiply",
            expected=f"a model.hidden_size that is a multiple of {MULTIPLE}",
            found=f"{model.hidden_size}",
            remedy="Change it, or set train.precision=bf16.",
        )
    if device.type == "cuda":
        found, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        works = capability >= FP8_CAPABILITY
        found = f"{found} of {capability[0]}.{capability[1]}"
    else:
        works, found = (
            _multiplies_fp8(device),
            f"{device.type}, where torch {torch.__version__} has no such product",
        )
    if not works:
        raise ConfigError(
            "train.precision fp8 is not to be had on this device",
            expected=f"a GPU of compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or newer",
            found=found,
            remedy="Set train.precision=bf16.",
        )


def _multiplies_fp8(device: torch.device) -> bool:
    ones, one = torch.ones(MULTIPLE, MULTIPLE, device=device), torch.ones((), device=device)
    try:
        matrix = ones.to(torch.float8_e4m3fn)
        torch._scaled_mm(matrix, matrix.t(), scale_a=one, scale_b=one)  # pyright: ignore[reportPrivateImportUsage]
    except (RuntimeError, NotImplementedError):
        return False
    return True


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

    def require_steps(self, steps: int) -> None:
        """Check that not each of ``steps`` was skipped.

        Raises:
            TrainingDiverged: the weights are those that the run began with.
        """
        if 0 < steps <= self.skipped_steps:
            raise TrainingDiverged(
                "nothing was learned: every gradient overflowed fp16, and no step was taken",
                expected="steps whose gradient is finite",
                found=f"{steps} of {steps} steps skipped, the loss scale at {self.scale:g} by then",
                remedy=f"Set train.initial_loss_scale to {self.scale:g} or less, or train in bf16.",
            )

    def keep(self) -> None:
        """Take note of a finite gradient."""
        if self.dynamic:
            self.good_steps += 1
            if self.good_steps == GROW_EVERY:
                self.scale, self.good_steps = self.scale * 2, 0
