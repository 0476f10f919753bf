"""Tell which language a document is in, by py3langid: a naive Bayes classifier over bytes, 139 languages.

Its model comes with the package. A score is the probability of the language among all of them, softened for
length (Lui and Baldwin 2012, langid.py). Text in which nothing tells is ``und``; code and numbers, ``zxx``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from lmcore.config import LanguageConfig
from lmcore.data.arrow import places, to_numbers
from lmcore.data.quality import Rule, broken_rule_of
from lmcore.errors import ConfigError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LANGUAGE_COLUMNS = ("language", "language_score")
LANGUAGE_RULES = ("language.keep", "language.min_score")

# Where nothing tells, every language has the same share: below 2 of 140.
_NOTHING_TELLS = 0.02
# Sums of many small numbers differ in their last bits from one processor to the next.
_SCORE_DECIMALS = 4


def identify(texts: Sequence[str], config: LanguageConfig) -> tuple[list[str], list[float]]:
    """Code (ISO 639) and score of the language of each text, by its first ``config.max_chars``.

    Raises:
        ConfigError: ``config.keep`` names a language that cannot be told.
    """
    identifier = _identifier()
    _check_codes(config, identifier.labels)
    found = [identifier.classify(text[: config.max_chars]) for text in texts]
    return [code for code, _ in found], [round(score, _SCORE_DECIMALS) for _, score in found]


def language_fields(config: LanguageConfig) -> list[pa.Field]:
    """Fields of the columns that are stored with each document, if any."""
    kinds = (pa.string(), pa.float64())
    fields = [
        pa.field(name, kind, nullable=False) for name, kind in zip(LANGUAGE_COLUMNS, kinds, strict=True)
    ]
    return fields if config.enabled else []


def language_columns(texts: pa.Array, config: LanguageConfig) -> list[pa.Array]:
    """The columns of ``language_fields``."""
    if not config.enabled:
        return []
    starts = pc.call_function("utf8_slice_codeunits", [texts], pc.SliceOptions(0, config.max_chars))
    codes, scores = identify(starts.to_pylist(), config)
    return [pa.array(codes, pa.string()), pa.array(scores, pa.float64())]


def broken_language_rules(table: pa.Table, config: LanguageConfig) -> pa.Array:
    """Name of the rule of ``data.language`` that drops each row, or null; ``pa.string`` [rows]."""
    _check_codes(config, _identifier().labels)
    signals: dict[str, Any] = {
        "kept": (places(table["language"], config.keep) >= 0) | (not config.keep),
        "language_score": to_numbers(table["language_score"]),
    }
    keep, min_score = LANGUAGE_RULES
    rules = [
        Rule(keep, "kept", 1.0, below=True),
        Rule(min_score, "language_score", config.min_score, below=True),
    ]
    return broken_rule_of(rules, signals, len(table))


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE  # half a second, with its model

    from lmcore.data.langid_walk import CompiledIdentifier

    return CompiledIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_NOTHING_TELLS)


def _check_codes(config: LanguageConfig, known: list[str]) -> None:
    for code in config.keep:
        if code not in (*known, "und"):
            near = difflib.get_close_matches(code.lower(), known, n=3, cutoff=0.4)
            raise ConfigError(
                "data.language.keep names a language that cannot be told",
                expected="codes of ISO 639, such as " + ", ".join(near or ["en", "de", "zh"]),
                found=repr(code),
                remedy="Write one of: " + ", ".join(known) + ".",
            )
