"""Our settings of a model against those of others, and of families; without torch."""

from __future__ import annotations

import json
from typing import Any

from lmcore.config import ModelConfig, MoEConfig, RopeScalingConfig, identify
from lmcore.errors import ConfigError
from lmcore.model.hf.families import FAMILIES, Family

# Settings of a training: a model that is there has the same weights whatever they are.
OF_TRAINING: tuple[str, ...] = (
    "dropout",
    "init_std",
    "zero_init_projections",
    "moe.balance",
    "moe.bias_update_rate",
    "moe.auxiliary_loss_weight",
)


def resolved(config: ModelConfig) -> dict[str, Any]:
    """Every setting by its path: what follows from others worked out, what has no effect at its default."""
    worked_out: dict[str, Any] = {
        "num_kv_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
    }
    rotary = config.position == "rope"
    if not rotary or config.rope_scaling.factor == 1:
        worked_out["rope_scaling"] = RopeScalingConfig()
    if not rotary:
        worked_out["rope_theta"] = ModelConfig().rope_theta
    if config.moe.num_experts:
        worked_out["moe"] = config.moe.model_copy(update={"intermediate_size": config.expert_size})
    else:
        worked_out["moe"] = MoEConfig()
    return dict(identify(**{"": config.model_copy(update=worked_out)}).values)


def differences(theirs: ModelConfig, ours: ModelConfig) -> list[tuple[str, Any, Any]]:
    """Settings in which two models differ: name, theirs, ours.

    Rotary positions may be made for sequences of any length.
    """
    free = {*OF_TRAINING}
    if theirs.position == ours.position == "rope":
        free.add("max_seq_len")
    if all(map(theirs.moe.replaces_mlp, range(theirs.num_layers))):
        free.add("intermediate_size")  # of MLPs that are not there
    a, b = resolved(theirs), resolved(ours)
    return [(name, a[name], b[name]) for name in a if name not in free and a[name] != b[name]]


def family_of(config: ModelConfig) -> Family:
    """Return the family that says all of ``config``.

    Raises:
        ConfigError: none does; what the nearest would need is named.
    """
    misfits = {name: _misfits(family, config) for name, family in FAMILIES.items()}
    # Whether there are experts is more than any other setting.
    mixture = bool(config.moe.num_experts)
    nearest = min(misfits, key=lambda name: (FAMILIES[name].is_mixture != mixture, len(misfits[name])))
    if misfits[nearest]:
        expected, found = listed(misfits[nearest])
        raise ConfigError(
            f"no family of Hugging Face has such a model; the nearest is {nearest}",
            expected=expected,
            found=found,
            remedy="Train one with these settings, or use the model with gristmill alone.",
        )
    return FAMILIES[nearest]


def _misfits(family: Family, config: ModelConfig) -> list[tuple[str, Any, Any]]:
    """Settings that the family has otherwise: name, what it has, what was asked for."""
    ours = resolved(config)
    whole = config.hidden_size // config.num_heads  # width of a head, where heads divide the model's
    usual = {"num_kv_heads": config.num_heads, "head_dim": whole, "bias": False}
    wanted = {name: value for name, value in usual.items() if name not in family.keys} | dict(family.style)
    if family.width_is_heads:
        wanted["hidden_size"] = whole * config.num_heads
    if config.moe.num_experts and config.moe.balance == "bias" and family.is_mixture:
        wanted["moe.balance"] = "auxiliary"  # no family has a bias on the choice of experts
    return [(name, value, ours[name]) for name, value in wanted.items() if ours[name] != value]


def listed(different: list[tuple[str, Any, Any]]) -> tuple[str, str]:
    """What was expected and what was found, in words."""
    expected = ", ".join(f"model.{name} {json.dumps(value)}" for name, value, _ in different)
    return expected, ", ".join(f"model.{name} {json.dumps(value)}" for name, _, value in different)
