"""Recipes as files: where they are, what they are for, and how one is written out with its reasons."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmcore.config import Recipe
from lmcore.errors import ConfigError
from lmcore.settings_yaml import dump_settings

RECIPES = Path(__file__).parent / "recipes"
WIDTH = 110


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
        known = descriptions()
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"there is no recipe {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            expected=f"one of {', '.join(known)}, or the path of a .yaml file (or of a model, to use one)",
            remedy="Copy one from flows/recipes and change it, or let `gristmill size` write one.",
        )
    return path


def descriptions() -> dict[str, str]:
    """What each recipe is: the first line of its file."""
    firsts = {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0] for path in RECIPES.glob("*.yaml")
    }
    return {name: first.removeprefix("#").strip(" .") for name, first in sorted(firsts.items())}


def write_out(recipe: Recipe, head: str, reasons: Mapping[str, str]) -> str:
    """Every setting of ``recipe`` as YAML, below ``head``, each with its reason above it if it has one.

    Args:
        recipe: What to write.
        head: Lines of text.
        reasons: By path, such as "train.steps".
    """
    comments = [f"# {line}" for line in head.splitlines()]
    return "\n".join([*comments, *_lines(recipe.model_dump(mode="json"), reasons, "")]) + "\n"


def _lines(values: dict[str, Any], reasons: Mapping[str, str], above: str) -> Iterator[str]:
    for name, value in values.items():
        path = f"{above}{name}"
        if path in reasons:
            yield from (f"# {line}" for line in textwrap.wrap(reasons[path], WIDTH - 2 * path.count(".") - 2))
        if isinstance(value, dict) and value:
            yield f"{name}:"
            for line in _lines(value, reasons, f"{path}."):
                yield f"  {line}" if line else ""
        else:
            yield from dump_settings({name: value}).splitlines()
