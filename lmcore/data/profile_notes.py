"""Say when a quality profile drops most of a language: its thresholds were made for another.

A language is that of ``data.language`` if it is enabled, and else a script. Of each, documents are counted,
and those that rules of quality drop.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from lmcore.config import DataConfig
from lmcore.data.arrow import places
from lmcore.data.language import LANGUAGE_COLUMNS
from lmcore.data.quality import MADE_FOR, SCRIPT, measures_text, rules_of

# A language is worth a note if it has this share of the documents, and the profile drops this share of it.
NOTEWORTHY_SHARE, MOST = 0.01, 0.5
_LANGUAGE = LANGUAGE_COLUMNS[0]
_NO_LANGUAGE = ("und", "zxx", "none", "other")
# A script of many languages, English among them: of it only what these rules drop is a matter of language.
_MANY_LANGUAGES = "Latin"
_OF_ENGLISH = ("gopher.min_stop_words", "gopher.min_mean_word_chars", "gopher.max_mean_word_chars")
# Only what takes lines out leaves nothing of a text that is in a language.
_OF_NOTHING_LEFT = "c4_lines.min_line_words"

Counts = Counter[tuple[str, str]]  # documents by language and rule, which is empty where none drops them


def language_column(config: DataConfig) -> list[str]:
    """The column that tells the language of a document, if the profile is of a language and one is stored."""
    if not measures_text(config.quality):
        return []
    return [_LANGUAGE if config.language.enabled else SCRIPT]


def count_languages(config: DataConfig, table: pa.Table, broken: np.ndarray) -> Counts:
    """Count documents by language and rule of quality.

    Args:
        config: Its rules.
        table: Holds ``language_column``.
        broken: Number of the rule that drops each of its rows, or -1; int32 [rows].
    """
    found: Counts = Counter()
    for name in language_column(config):
        languages = sorted(set(table[name].unique().to_pylist()))
        rules = ["", *(rule.name for rule in rules_of(config.quality))]
        of_quality = np.where(broken + 1 < len(rules), broken + 1, 0)
        pairs = places(table[name], languages) * len(rules) + of_quality
        counts = np.bincount(pairs, minlength=len(languages) * len(rules)).tolist()
        for pair, number in zip(itertools.product(languages, rules), counts, strict=True):
            found[pair] += number
    return found


def language_notes(config: DataConfig, parts: Iterable[Counts]) -> list[str]:
    """A sentence about each language of which ``config.quality.profile`` drops most, largest first."""
    counts: Counts = Counter()
    for part in parts:
        counts.update(part)
    totals: Counter[str] = Counter()
    for (language, _), number in counts.items():
        totals[language] += number
    whole = totals.total()
    notes = [
        _note_of(config, language, {rule: n for (one, rule), n in counts.items() if one == language}, total)
        for language, total in totals.most_common()
        if total >= NOTEWORTHY_SHARE * whole and language not in (*_NO_LANGUAGE, "en")
    ]
    return [note for note in notes if note]


def _note_of(config: DataConfig, language: str, counts: dict[str, int], total: int) -> str:
    drops = Counter({rule: number for rule, number in counts.items() if rule})
    dropped = drops.total()
    if dropped <= MOST * total:
        return ""
    rule, number = drops.most_common(1)[0]
    rule = _OF_NOTHING_LEFT if rule == "empty" else rule
    if language == _MANY_LANGUAGES and rule not in _OF_ENGLISH:
        return ""
    profile = config.quality.profile
    kind, name = "language" if config.language.enabled else "script", f"data.quality.{rule}"
    made_for = MADE_FOR[rule.partition(".")[0].removesuffix("_lines")]
    return (
        f"profile {profile} drops most of a {kind}: {dropped:,} of {total:,} documents in {language}, "
        f"{number:,} of them by {rule}, whose threshold was made for {made_for}. Set {name} to what "
        f"suits {language}, or data.quality.profile to none; or, if it is not wanted, name those that are "
        "in data.language.keep."
    )
