"""``config.json`` of Hugging Face and our settings of a model, each from the other; without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.config import ModelConfig, parse
from lmcore.errors import CheckpointError, ConfigError, nearest
from lmcore.model.hf.families import FAMILIES, Family
from lmcore.model.hf.settings import differences, family_of, listed, resolved

CONFIG = "config.json"
_SCALING_KEYS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_seq_len": "original_max_position_embeddings",
}


@dataclass(frozen=True)
class Description:
    """What ``config.json`` says of a model.

    Attributes:
        family: Its family.
        config: Its shape.
        vocab_size: Rows of its embedding.
    """

    family: Family
    config: ModelConfig
    vocab_size: int


# --- reading ---------------------------------------------------------------------------------------


def read_config(directory: Path) -> Description:
    """Read the ``config.json`` of a Hugging Face model.

    Raises:
        CheckpointError: there is none, or it is no whole one.
        ConfigError: the model is of a family that we lack, or computes what we do not.
    """
    path = Path(directory).expanduser() / CONFIG
    values = _read_table(path)
    family = _family_named(path, values)
    _check_fixed(path, values, family)
    settings = {**family.style, "zero_init_projections": False}
    if family.is_mixture:
        settings["moe.balance"] = "auxiliary"
    for name, keys in family.keys.items():
        said = {key: _value(path, values, key, family) for key in keys}
        if len(set(said.values())) > 1:
            raise ConfigError(
                f"{path} asks for what a model of ours cannot have",
                expected=f"the same for {' and '.join(keys)} (model.{name})",
                found=", ".join(f"{key} {json.dumps(value)}" for key, value in said.items()),
            )
        settings[name] = next(iter(said.values()))
    if family.rope_theta is not None:
        settings |= _rotary(path, values, family)
    config = parse(ModelConfig, _nested(settings), where=str(path))
    vocab_size = _value(path, values, "vocab_size", family)
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise CheckpointError(f"{path} is no description of a model", found=f"vocab_size {vocab_size!r}")
    return Description(family, config, vocab_size)


def _read_table(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = (error.strerror or str(error)) if isinstance(error, OSError) else f"no JSON ({error})"
        if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            found = nearest(path.parent)
        raise CheckpointError(
            f"{path.parent} holds no Hugging Face model",
            expected=f"a {CONFIG}",
            found=found,
            remedy="Name the directory that `save_pretrained`, a download or `gristmill export` wrote.",
        ) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no description of a model", found=repr(values)[:80])
    return values


def _family_named(path: Path, values: Mapping[str, Any]) -> Family:
    family = FAMILIES.get(str(values.get("model_type")))
    if family is None:
        hint = "It is a model of ours already: `gristmill export` makes a Hugging Face one of it."
        raise ConfigError(
            f"{path} is of a family that we lack",
            expected=f"model_type {', '.join(FAMILIES)}",
            found=str(values.get("model_type") or "none"),
            remedy=hint if "format" in values and "model" in values else "",
        )
    architectures = values.get("architectures") or [family.architecture]
    if family.architecture not in architectures:
        raise ConfigError(
            f"{path} is no language model",
            expected=f"architectures {family.architecture}",
            found=", ".join(map(str, architectures)),
        )
    return family


def _check_fixed(path: Path, values: Mapping[str, Any], family: Family) -> None:
    wrong = [
        (f"{key} {' or '.join(json.dumps(value) for value in allowed)}", f"{key} {json.dumps(values[key])}")
        for key, allowed in {**family.fixed, "quantization_config": (None,)}.items()
        if values.get(key, allowed[0]) not in allowed
    ]
    layers = values.get("layer_types") or []
    if other := sorted(set(layers) - {"full_attention"}):
        wrong.append(("layer_types full_attention", f"layer_types {', '.join(other)}"))
    if wrong:
        raise ConfigError(
            f"{path} asks for what a {family.model_type} of ours does not compute",
            expected=", ".join(expected for expected, _ in wrong),
            found=", ".join(found for _, found in wrong),
        )


def _value(path: Path, values: Mapping[str, Any], key: str, family: Family) -> Any:
    value = values.get(key, values.get(family.aliases.get(key, key), family.absent.get(key)))
    if value is None and key not in family.absent:
        raise CheckpointError(f"{path} is no whole description of a {family.model_type}", expected=key)
    return value


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted paths as tables in tables."""
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, leaf = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    return nested


def _rotary(path: Path, values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Settings of rotary positions: ``rope_scaling`` of transformers 4, ``rope_parameters`` of 5."""
    said = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    kind = said.get("rope_type", said.get("type", "default"))
    share = said.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    if kind not in ("default", "llama3") or share != 1.0 or any(isinstance(v, dict) for v in said.values()):
        raise ConfigError(
            f"{path} has rotary positions that we do not compute",
            expected='rope_type "default" or "llama3", for all of each head',
            found=json.dumps(said)[:200],
        )
    theta = said.get("rope_theta", values.get("rope_theta"))
    settings: dict[str, Any] = {"rope_theta": family.rope_theta if theta is None else theta}
    if kind == "llama3":
        said.setdefault("original_max_position_embeddings", values.get("max_position_embeddings"))
        scaling = {ours: said.get(theirs) for ours, theirs in _SCALING_KEYS.items()}
        settings["rope_scaling"] = scaling
    return settings


def check_settings(directory: str | Path, wanted: ModelConfig) -> Description:
    """Return what the model in ``directory`` is if ``wanted`` has its shape, as those need who go on from it.

    Rotary positions may be made for shorter or longer sequences than the model was.

    Raises:
        CheckpointError: there is no model.
        ConfigError: the settings are not those of the model; each that differs is named.
    """
    found = read_config(Path(directory))
    if different := differences(found.config, wanted.unpadded):
        expected, instead = listed(different)
        raise ConfigError(
            f"the settings are not those of the model in {directory}",
            expected=expected,
            found=instead,
            remedy=f"`gristmill import {directory}` prints the sections that a recipe needs.",
        )
    return found


# --- writing ---------------------------------------------------------------------------------------


def to_config(config: ModelConfig, vocab_size: int, dtype: str, eos_id: int | None) -> dict[str, Any]:
    """Return the ``config.json`` of a model, for old and new versions of transformers.

    Args:
        config: Its shape.
        vocab_size: Rows of its embedding.
        dtype: Type of its weights, as torch names it.
        eos_id: Token that ends a document, behind which the next begins; None: not known.

    Raises:
        ConfigError: no family has such a model.
    """
    family = family_of(config)
    ours = resolved(config)
    values: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": vocab_size,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "use_cache": True,
        # The names of transformers 5 and 4.
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    for name, keys in family.keys.items():
        values |= dict.fromkeys(keys, ours[name])
    values |= {key: allowed[0] for key, allowed in family.fixed.items()} | dict(family.written)
    if family.rope_theta is not None:
        values |= _rotary_keys(config)
    return values


def _rotary_keys(config: ModelConfig) -> dict[str, Any]:
    scaling: dict[str, Any] = {}
    if config.rope_scaling.factor != 1:
        settings = config.rope_scaling.model_dump()
        scaling = {"rope_type": "llama3"} | {theirs: settings[ours] for ours, theirs in _SCALING_KEYS.items()}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling or None,
        "rope_parameters": {"rope_type": "default", **scaling, "rope_theta": config.rope_theta},
    }
