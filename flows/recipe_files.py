"""Recipes as files: where they are, what they are for, and how one is written out with its reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lmcore.config import Recipe
from lmcore.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(name: str) -> Path:
    """The file of the recipe ``name``, or ``name`` itself where it is the path of one.

    Raises:
        ConfigError: there is no recipe of this name.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(
            f"there is no recipe {name!r}",
            expected=f"one of {', '.join(descriptions())}, or the path of a .yaml file",
            remedy="Copy one from flows/recipes and change it, or let `gristmill size` write one.",
        )
    return path


def descriptions() -> dict[str, str]:
    """What each recipe is, in the first sentence of its file."""
    found = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        head = [line.removeprefix("#").strip() for line in lines[: _length_of_head(lines)]]
        found[path.stem] = " ".join(head).partition(". ")[0].removesuffix(".")
    return found


def _length_of_head(lines: list[str]) -> int:
    return next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))


def write_out(recipe: Recipe, head: str, reasons: Mapping[str, str]) -> str:
    """Every setting of ``recipe`` as YAML, below ``head``, each with its reason above it if it has one.

    Args:
        recipe: What to write.
        head: Lines of text.
        reasons: By path, such as "train.steps".
    """
    comments = [f"# {line}".rstrip() for line in head.splitlines()]
    return "\n".join([*comments, *_lines(recipe.model_dump(mode="json"), reasons, "")]) + "\n"


def _lines(values: dict[str, Any], reasons: Mapping[str, str], above: str) -> Iterator[str]:
    for name, value in values.items():
        path = f"{above}{name}"
        if path in reasons:
            yield f"# {reasons[path]}"
        if isinstance(value, dict) and value:
            yield f"{name}:"
            for line in _lines(value, reasons, f"{path}."):
                yield f"  {line}" if line else ""
        else:
            yield from yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True).splitlines()
