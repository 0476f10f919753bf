"""A recipe from one number, written out with the rule behind each setting."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path

from flows.recipe_files import WIDTH, write_out
from lmcore.config import Recipe
from lmcore.data.amount import TEXT_BYTES_PER_TOKEN, too_little_text
from lmcore.data.sources import text_there
from lmcore.errors import ConfigError
from lmcore.sizing import RULES, recipe_of, size_of_depth, size_of_parameters

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def write_size(
    depth: int | None,
    parameters: str,
    path: str,
    processes: int,
    precision: str,
    warn: Callable[[str], object] = lambda text: None,
) -> str:
    """A complete recipe (YAML) for ``depth`` layers, or for as many ``parameters`` as "124M" says.

    ``warn`` is told where the text that it would learn from is too little.

    Raises:
        ConfigError: not exactly one of the two is given, or there is no rule for it.
    """
    if (depth is None) == (not parameters):
        raise ConfigError(
            "one number makes a recipe",
            expected="--depth or --parameters",
            found="neither" if depth is None else "both",
            remedy="For example --depth 12, or --parameters 124M.",
        )
    if depth is not None:
        name, size = f"depth-{depth}", size_of_depth(depth)
    else:
        name = "size-" + re.sub(r"[\s,_]", "", parameters.lower())
        size = size_of_parameters(parse_count(parameters))
    recipe = recipe_of(size, name, path, processes, precision or _fast_precision())
    train, tokens = recipe.train, recipe.train.steps * recipe.train.global_batch_tokens
    model, text_gb = size.model, tokens * TEXT_BYTES_PER_TOKEN / 1e9
    head = (
        f"{model.num_layers} layers of width {model.hidden_size}: {size.num_parameters:,} parameters.\n"
        f"They learn from {tokens:,} tokens, of {text_gb:.2g} GB of text or so, in {train.steps:,} steps.\n"
        "With less text it is read several times; up to four are nearly as good (Muennighoff et al. 2023).\n"
        "Written by `gristmill size`; the rules are in lmcore/sizing.py, their sources above each setting."
    )
    if warning := foreseen(recipe):
        warn(warning)
        head += "\n" + textwrap.fill(warning, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return write_out(recipe, head, RULES)


def foreseen(recipe: Recipe) -> str:
    """That the text of ``recipe`` is too little, by the sizes of its files; empty if that is not known."""
    there = text_there(recipe.data.sources)
    return "" if there is None else too_little_text(recipe.train, there)


def _fast_precision() -> str:
    """bf16 where the driver of an NVIDIA GPU is; CPUs are several times slower in it than in fp32."""
    return "bf16" if Path("/dev/nvidiactl").exists() else "fp32"


def parse_count(text: str) -> int:
    """A number as people write it: 124M, 1.5b, 300_000.

    Raises:
        ConfigError: it is none.
    """
    # Commas stand between thousands: where they mean a point, 1,5B would be ten times what was asked for.
    number = r"(?:[0-9]{1,3}(?:[,_][0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
    found = re.fullmatch(rf"({number})\s*([kmb]?)", text.strip().lower())
    if not found:
        raise ConfigError(
            f"{text!r} is no number of parameters",
            expected="a number, with k, M or B behind it if you like",
            remedy="For example 124M.",
        )
    return round(float(re.sub("[_,]", "", found[1])) * _UNITS[found[2]])
