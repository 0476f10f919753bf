"""Blocks compiled by torch, or not: where it pays and whether it can be done."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from lmcore.config import ModelConfig, TrainConfig
from lmcore.errors import ConfigError

Compile = Literal["auto", "blocks", "off"]
FEW_STEPS = 200  # that compiling, about a minute, may not pay for
_MAX_VARIANTS = 256


def choose_compile(model: ModelConfig, train: TrainConfig, device: torch.device) -> tuple[bool, str]:
    """Whether blocks are to be compiled, and why.

    Raises:
        ConfigError: they are to be, and what torch compiles with is missing.
    """
    missing = _missing(device)
    if train.compile == "off":
        return False, "asked not to"
    if train.compile == "blocks":
        if missing:
            raise ConfigError(
                "train.compile is blocks, and torch cannot compile here",
                expected=missing,
                found="none",
                remedy="Install it, or set train.compile=off.",
            )
        return True, "asked to"
    reasons = {
        "a CPU gains little and waits for the compiler": device.type != "cuda",
        "experts make it stop in the middle": model.moe.num_experts > 0,
        "matrices divided over tp were not tried": train.parallel.tp > 1,
        f"{train.steps} steps are too few": train.steps < FEW_STEPS,
        f"{missing} is missing": bool(missing),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), "")
    return not reason, reason or "a GPU and a dense model"


def compile_block(forward: Callable[..., Tensor]) -> Any:
    """Compile the forward pass of a block, for the shapes it is called with alone.

    Hooks of the block stay outside, and so do its parameters and their names. Blocks that are alike share
    what was compiled; each differing one, such as a mixture among plain ones, takes a variant of its own.
    """
    config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
    # Beyond the limit torch would go on without compiling, and say so in a warning alone.
    config.recompile_limit = max(config.recompile_limit, _MAX_VARIANTS)
    return torch.compile(forward, dynamic=False)


def _missing(device: torch.device) -> str:
    """What torch would compile with and is not there."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton"
    variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++", "clang++"))
    candidates = (os.environ[variable],) if os.environ.get(variable) else names
    if not any(shutil.which(name) for name in candidates):
        return f"a compiler ({' or '.join(candidates)}) on the PATH"
    return ""
