"""Whether a tokenizer is that of a model; without torch."""

from __future__ import annotations

import json
from pathlib import Path

from lmcore.errors import ConfigError, DataError

TOKENIZER = "tokenizer.json"


def check_tokenizer(directory: Path, vocab_size: int, tokenizer: str | Path) -> None:
    """Check that ``tokenizer`` is that of the model in ``directory``.

    A model may have more rows than its tokenizer has entries, for the sake of alignment.

    Args:
        directory: Of the model; if it holds a ``tokenizer.json``, entries must be the same.
        vocab_size: Rows of its embedding.
        tokenizer: A ``tokenizer.json``, or its folder.

    Raises:
        ConfigError: it is another.
        DataError: it cannot be read.
    """
    entries = _entries(tokenizer)
    size = max(entries.values(), default=0) + 1
    other = (directory / TOKENIZER).is_file() and _entries(directory) != entries
    if other or size > vocab_size:
        raise ConfigError(
            f"the tokenizer is not that of the model in {directory}",
            expected=f"its own, of at most {vocab_size} entries",
            found=f"another, of {size}",
            remedy=f"Set data.tokenizer.path to {directory}.",
        )


def _entries(tokenizer: str | Path) -> dict[str, int]:
    """Every entry of a tokenizer and its id, special ones included."""
    path = Path(tokenizer).expanduser()
    path = path if path.name == TOKENIZER else path / TOKENIZER
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        added = {entry["content"]: int(entry["id"]) for entry in description.get("added_tokens", [])}
        return {**description["model"]["vocab"], **added}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"tokenizer {path} cannot be read",
            expected="a tokenizer.json with a vocabulary of BPE",
            found=" ".join(str(error).split())[:200],
            remedy="Correct data.tokenizer.path.",
        ) from None
