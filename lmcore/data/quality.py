"""Rules that drop documents: each compares one stored figure of ``signals`` with one setting.

A rule is named after its setting, so that a report says which number to change. Thresholds were made for a
language (``MADE_FOR``): one that says nothing about a script decides nothing about documents in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lmcore.config import Config, DataConfig, QualityConfig
from lmcore.data.arrow import column, places, string_column, to_numbers

# What is measured, in the order of the rows of ``lmcore.data.signals``.
CODE_SIGNALS = ("line_chars", "mean_line_chars", "alphanumeric_share", "generated", "licence_share")
TEXT_SIGNALS = (
    "duplicate_line_share",
    "duplicate_paragraph_share",
    "duplicate_line_char_share",
    "duplicate_paragraph_char_share",
    "top_2_gram_char_share",
    "top_3_gram_char_share",
    "top_4_gram_char_share",
    "duplicate_5_gram_char_share",
    "duplicate_6_gram_char_share",
    "duplicate_7_gram_char_share",
    "duplicate_8_gram_char_share",
    "duplicate_9_gram_char_share",
    "duplicate_10_gram_char_share",
    "words",
    "mean_word_chars",
    "hashes_per_word",
    "ellipses_per_word",
    "bullet_line_share",
    "ellipsis_line_share",
    "alphabetic_word_share",
    "stop_words",
    "lorem_ipsum",
    "curly_brackets",
    "sentences",
    "ended_line_share",
    "short_line_share",
    "repeated_line_char_share",
    "line_ends_per_word",
)
CONTAMINATED_SIGNAL = "evaluation_ngrams"
CONTAMINATED = "decontamination.max_ngrams"
PROFILES: dict[str, tuple[str, ...]] = {
    "code": ("code",),
    "prose": ("gopher",),
    "gopher": ("repetition", "gopher"),
    "c4": ("c4",),
    "fineweb": ("fineweb",),
    "web": ("repetition", "gopher", "c4", "fineweb"),
    "none": (),
}
# What thresholds of each group were tuned on by their authors.
MADE_FOR = {
    "code": "source code",
    "repetition": "English and languages whose words can be told",
    "gopher": "English",
    "c4": "English and languages with sentence marks",
    "fineweb": "English",
    "unspaced": "software documentation in Chinese and Japanese",
}
SCRIPT = "script"  # column of the documents
UNSPACED = frozenset({"Chinese", "Japanese", "Thai", "Lao", "Khmer", "Burmese", "Tibetan"})
_WITHOUT_END_MARKS = frozenset({"Thai", "Lao"})  # where a space ends a sentence
# Scripts about which a threshold says nothing: words of English, their lengths, how long a line of them is.
_EXEMPT = {
    "gopher.min_mean_word_chars": UNSPACED,
    "gopher.min_alphabetic_word_share": UNSPACED,
    "gopher.min_stop_words": UNSPACED,
    "c4.min_sentences": _WITHOUT_END_MARKS,
    "fineweb.min_ended_line_share": _WITHOUT_END_MARKS,
    "fineweb.max_short_line_share": UNSPACED,
}


class Scripts:
    """The scripts that documents are written in.

    Args:
        values: Name of the script of each; ``pa.string`` [n].
    """

    def __init__(self, values: pa.Array | pa.ChunkedArray) -> None:
        self._names = values.unique().to_pylist()
        self._codes = places(values, self._names)

    def among(self, scripts: frozenset[str]) -> np.ndarray:
        """Which documents are in one of ``scripts``; bool [n]."""
        return np.array([*(name in scripts for name in self._names), False])[self._codes]


@dataclass(frozen=True)
class Rule:
    """One threshold.

    Attributes:
        name: Its setting, below ``data.quality``.
        signal: The figure that it looks at.
        limit: What the figure is compared with.
        below: Whether smaller figures are dropped, or larger ones.
        exempt: Scripts about documents of which it decides nothing.
        only: Scripts about documents of which alone it decides; None: all.
    """

    name: str
    signal: str
    limit: float
    below: bool
    exempt: frozenset[str] = frozenset()
    only: frozenset[str] | None = None

    def breaks(self, values: np.ndarray, scripts: Scripts | None = None) -> np.ndarray:
        """Which of ``values`` are dropped, of documents in ``scripts`` (None: of no script's own); bool."""
        found = values < self.limit if self.below else values > self.limit
        if self.exempt and scripts is not None:
            found = found & ~scripts.among(self.exempt)
        if self.only is not None:
            found = found & (scripts is not None and scripts.among(self.only))
        return found


def rules_of(config: QualityConfig) -> list[Rule]:
    """The rules of ``config.profile``, in the order in which they decide; the first drops what is empty."""
    rules = [Rule("empty", "chars", 1.0, below=True)]
    for group in PROFILES[config.profile]:
        rules += rules_in(group, getattr(config, group))
        if group == "gopher":
            rules += rules_in("unspaced", config.unspaced)
    return rules


def rules_in(group: str, section: Config) -> list[Rule]:
    """One rule for each threshold of ``section``."""
    rules = []
    for field, value in section:
        kind, _, signal = field.partition("_")
        if kind == "drop":
            # Such figures count what must not be there.
            if value:
                rules.append(Rule(f"{group}.{field}", signal, 0.0, below=False))
            continue
        name, only = f"{group}.{field}", UNSPACED if group == "unspaced" else None
        exempt = _EXEMPT.get(name, frozenset())
        rules.append(Rule(name, signal, float(value), kind == "min", exempt, only))
    return rules


def decision_rules(config: DataConfig) -> list[Rule]:
    """All rules that decide about a document before duplicates are looked for, in their order."""
    rules = rules_of(config.quality)
    if config.decontamination.sources:
        limit = float(config.decontamination.max_ngrams)
        rules.append(Rule(CONTAMINATED, CONTAMINATED_SIGNAL, limit, below=False))
    return rules


def first_broken_rules(
    config: QualityConfig,
    signals: Mapping[str, np.ndarray],
    num_documents: int,
    scripts: Scripts | None = None,
) -> pa.Array:
    """Name of the first rule of quality that each document breaks, or null; ``pa.string`` [n]."""
    return broken_rule_of(rules_of(config), signals, num_documents, scripts)


def broken_rule_of(
    rules: Sequence[Rule],
    signals: Mapping[str, np.ndarray],
    num_documents: int,
    scripts: Scripts | None = None,
) -> pa.Array:
    """Name of the first of ``rules`` that each document breaks, or null; ``pa.string`` [num_documents]."""
    broken = _first_broken(rules, signals, num_documents, scripts)
    names = string_column([rule.name for rule in rules])
    return names.take(column(broken, broken < 0))


def broken_rules(rules: Sequence[Rule], table: pa.Table) -> np.ndarray:
    """Number of the first of ``rules`` that each row of ``table``, with its figures, breaks, or -1; int32."""
    signals = {rule.signal: to_numbers(table[rule.signal]) for rule in rules}
    return _first_broken(rules, signals, len(table), scripts_in(table))


def script_column(config: DataConfig) -> list[str]:
    """The column of the scripts of documents, if it is stored."""
    return [SCRIPT] if measures_text(config.quality) else []


def scripts_in(table: pa.Table) -> Scripts | None:
    """The scripts of the documents of ``table``, where they are stored."""
    return Scripts(table[SCRIPT]) if SCRIPT in table.column_names else None


def _first_broken(
    rules: Sequence[Rule], signals: Mapping[str, np.ndarray], num_documents: int, scripts: Scripts | None
) -> np.ndarray:
    broken = np.full(num_documents, -1, np.int32)
    for number, rule in enumerate(rules):
        broken[(broken < 0) & rule.breaks(signals[rule.signal], scripts)] = number
    return broken


def takes_lines_out(config: QualityConfig) -> bool:
    """Whether C4's line rules change the text."""
    return "c4" in PROFILES[config.profile]


def measures_text(config: QualityConfig) -> bool:
    """Whether the rules of ``config.profile`` look at words and lines of prose."""
    return bool({"repetition", "gopher", "c4", "fineweb"} & {*PROFILES[config.profile]})


def stored_signals(config: DataConfig) -> tuple[str, ...]:
    """Names of all figures that are stored with a document."""
    return (*signals_of(config.quality), *([CONTAMINATED_SIGNAL] if config.decontamination.sources else []))


def signals_of(config: QualityConfig) -> tuple[str, ...]:
    """Names of the figures that are stored for ``config.profile``."""
    if config.profile == "none":
        return ("chars",)
    return ("chars", *(CODE_SIGNALS if config.profile == "code" else TEXT_SIGNALS))
