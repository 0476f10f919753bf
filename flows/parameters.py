"""Parameters of the flows: a recipe by name, and the changes to it.

The recipe's file is the one source of every value. A form, a schedule and a call of the API name a recipe and
give changes alone, so no copy of its values can grow old in a deployment.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict

from flows.recipe_files import descriptions, find_recipe
from lmcore.config import Config, OptimizerConfig, Recipe, holds_secret, load_recipe, make_recipe, setting
from lmcore.errors import ConfigError

NOTHING: dict[str, Any] = {}
NO_SETS: list[dict[str, Any]] = []
RecipeName = Literal[tuple(descriptions())]  # type: ignore[valid-type]  # drawn as a menu
MAX_TITLE_CHARS = 80
MAX_VALUE_CHARS = 24
_SHORT = {
    "learning_rate": "lr",
    "muon_learning_rate": "muon_lr",
    "global_batch_tokens": "batch",
    "num_layers": "layers",
    "hidden_size": "width",
    "vocab_size": "vocab",
}
# Three parts of the names that Prefect's pages propose, such as psi312-vega-void; the last may be missing.
PROPOSED = Path(__file__).with_name("proposed_names.txt")


def _empty_is_no_type(schema: dict[str, Any]) -> None:
    """Draw a field that may be empty as one box: Prefect draws "or null" as two tabs, one without a box."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position
        kinds = [kind for kind in field.pop("anyOf", []) if kind.get("type") != "null"]
        for kind in kinds:
            field.update(kind)
        if field.get("default", "") is None:
            del field["default"]


class MainSettings(Config):
    """The settings that are changed most; an empty one keeps the recipe's value."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra=_empty_is_no_type)

    path: str = setting(
        "", "Files to learn from: a glob such as data/*.jsonl.zst, or an fsspec URL", title="Source files"
    )
    max_bytes: int | None = setting(
        None, "Text to take, in the order of the files; 0: all", unit="bytes", ge=0, title="Source bytes"
    )
    steps: int | None = setting(None, "Optimizer steps", unit="steps", ge=1, title="Steps")
    learning_rate: float | None = setting(
        None,
        "Peak learning rate of the recipe's optimizer; with muon, that of the matrices it moves",
        gt=0,
        title="Learning rate",
    )
    adamw_learning_rate: float | None = setting(
        None,
        "With muon: peak learning rate of what AdamW moves",
        gt=0,
        title="Learning rate (AdamW)",
    )
    global_batch_tokens: int | None = setting(
        None, "Tokens of one optimizer step", unit="tokens", ge=2, title="Batch"
    )
    num_layers: int | None = setting(None, "Layers of the model", unit="layers", ge=1, title="Layers")
    hidden_size: int | None = setting(
        None, "Width of the model; a multiple of its heads", unit="dimensions", ge=1, title="Width"
    )
    vocab_size: int | None = setting(
        None, "Entries of the tokenizer", unit="tokens", ge=257, title="Vocabulary"
    )


def read_recipe(
    name: str,
    recipe: str,
    recipe_file: str,
    settings: MainSettings,
    changes: str,
    **sections: Any,
) -> Recipe:
    """Return the recipe that the parameters of a flow describe.

    Args:
        name: Name of the result; empty: the recipe's.
        recipe: Name of a recipe.
        recipe_file: YAML file of another, in its place; empty: none.
        settings: The main settings.
        changes: Lines such as ``train.steps=100``; they win over ``settings``, and both over ``sections``.
        sections: Parts of sections, by name; when each is complete nothing else is read.

    Raises:
        ConfigError: there is no such recipe, or a change is wrong.
    """
    if _is_complete(sections):
        if (sets := sections.pop("evaluation_sets", None)) is not None:
            sections["evaluation"] = {"sets": sets}
        return make_recipe(name=name or recipe, **sections)
    given = [(path, value) for key in sections for path, value in _leaves(sections[key], key)]
    overrides = [f"{path}={json.dumps(value)}" for path, value in given]
    if name:
        overrides.append(f"name={name}")
    path = find_recipe(recipe_file or recipe)
    lines = _lines(changes)
    return load_recipe(path, [*overrides, *_chosen(settings, path, [*overrides, *lines]), *lines])


def title(
    name: str, recipe: str, recipe_file: str, settings: MainSettings, changes: str, **sections: Any
) -> str:
    """Name of a run: ``name``, or else the recipe's followed by what was changed of it."""
    if name:
        return name
    own = Path(recipe_file).stem if recipe_file else recipe
    given = {path: value for key in sections for path, value in _leaves(sections[key], key)}
    given |= settings.model_dump(exclude_defaults=True)
    return title_of(own, [*(f"{path}={_plain(value)}" for path, value in given.items()), *_lines(changes)])


def title_of(name: str, overrides: Iterable[str]) -> str:
    """``name`` and the short form of ``a.b=c`` overrides: ``quickstart lr=0.002 steps=500``."""
    words = [name]
    changed: dict[str, str] = {}
    for override in overrides:
        path, _, value = override.partition("=")
        changed[path.strip()] = value.strip()
    for path, value in changed.items():
        last = path.rpartition(".")[2]
        if path == "name" or holds_secret(value):
            continue
        short = value if len(value) <= MAX_VALUE_CHARS else f"…{value[1 - MAX_VALUE_CHARS :]}"
        words.append(f"{_SHORT.get(last, last)}={short}")
    many = len(words)
    while len(words) > 1 and len(" ".join(words)) > MAX_TITLE_CHARS:
        words.pop()
    left = many - len(words)
    return " ".join(words) + (f" and {left} more" if left else "")


def run_name() -> str:
    """Name of the flow run that starts: the one that a person typed, or else one that tells it apart."""
    from prefect.runtime import flow_run

    typed = flow_run.name
    if typed and not is_generated(typed):
        return typed
    known = dict(flow_run.parameters)
    settings = known.pop("settings", None) or MainSettings()
    if not isinstance(settings, MainSettings):
        settings = MainSettings.model_validate(settings)
    sections = {
        key: value for key, value in known.items() if key not in ("name", "recipe", "recipe_file", "changes")
    }
    if _is_complete(sections):
        return known.get("name") or known["recipe"]
    return title(known["name"], known["recipe"], known["recipe_file"], settings, known["changes"], **sections)


def is_generated(name: str) -> bool:
    """Whether Prefect made up ``name``: two words of its server's, or what its pages propose."""
    from coolname.data import config

    firsts, seconds, thirds = (line.split() for line in PROPOSED.read_text(encoding="utf-8").splitlines())
    # Some of the second have two words, so nothing is cut at hyphens.
    proposed = rf"({'|'.join(firsts)})\d*-({'|'.join(seconds)})(-({'|'.join(thirds)}))?"
    if re.fullmatch(proposed, name):
        return True
    words = {word for entry in config.values() for word in entry.get("words", ())}
    parts = name.split("-")
    return len(parts) >= 2 and all(part in words for part in parts)


def _is_complete(sections: Mapping[str, Any]) -> bool:
    """Whether each section holds every setting, as the command line gives them."""
    return bool(sections) and all(
        value.keys() == Recipe.model_fields[name].annotation.model_fields.keys()  # type: ignore[union-attr]
        for name, value in sections.items()
        if name in Recipe.model_fields and isinstance(value, Mapping)
    )


def _chosen(settings: MainSettings, path: Path, others: list[str]) -> Iterator[str]:
    """The main settings as overrides of the recipe at ``path``."""
    chosen = settings.model_dump(exclude_none=True, exclude_defaults=True)
    rate, rest = chosen.pop("learning_rate", None), chosen.pop("adamw_learning_rate", None)
    if rate is not None or rest is not None:
        yield from _rates(_optimizer(path, others), rate, rest)
    where = {
        "path": "data.sources.0.path",
        "max_bytes": "data.sources.0.max_bytes",
        "vocab_size": "data.tokenizer.vocab_size",
        "num_layers": "model.num_layers",
        "hidden_size": "model.hidden_size",
    }
    if "path" in chosen:
        yield "data.sources.0.kind=files"
    for name, value in chosen.items():
        yield f"{where.get(name, f'train.{name}')}={json.dumps(value)}"


def _optimizer(path: Path, overrides: list[str]) -> str:
    """Name of the optimizer of the recipe at ``path`` with ``overrides``."""
    named = [text.partition("=") for text in overrides]
    chosen = [value.strip().strip("\"'") for key, _, value in named if key.strip() == "train.optimizer.name"]
    if chosen:
        return chosen[-1]
    # What is wrong with the file is said when all of it is read.
    with contextlib.suppress(OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(written["train"]["optimizer"]["name"])
    return OptimizerConfig().name


def _rates(optimizer: str, rate: float | None, rest: float | None) -> Iterator[str]:
    if optimizer != "muon" and rest is not None:
        raise ConfigError(
            "settings.adamw_learning_rate is of muon alone",
            found=f"the optimizer {optimizer}",
            remedy="Set the learning rate instead, or choose muon.",
        )
    if rate is not None:
        yield f"train.optimizer.{'muon_' * (optimizer == 'muon')}learning_rate={rate!r}"
    if rest is not None:
        yield f"train.optimizer.learning_rate={rest!r}"


def _lines(changes: str) -> list[str]:
    return [
        line.strip() for line in changes.splitlines() if line.strip() and not line.strip().startswith("#")
    ]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from _leaves(below, f"{path}.{name}")
    elif path != "evaluation_sets":
        yield path, value
    elif value:
        yield "evaluation.sets", value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
