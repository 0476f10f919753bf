"""Named rules that drop documents; each answers with its own name.

``code`` has the rules of StarCoder's filters (Li et al. 2023, section 3.2), ``prose`` those of Gopher that
look at words (Rae et al. 2021, appendix A1.1). A rule is named after its setting, so that a report says
which number to change.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from lmcore.config import QualityConfig

Rule = Callable[[str], str | None]

_ASCII = re.compile(r"[\x00-\x7f]+")
_ASCII_ALPHANUMERIC = (string.ascii_letters + string.digits).encode()


def first_broken_rule(text: str, config: QualityConfig) -> str | None:
    """Return the name of the first rule of ``config.profile`` that ``text`` breaks, or None to keep it."""
    if config.profile == "none":
        return None
    if len(text) < config.min_chars:
        return "min_chars"
    return _code(text, config) if config.profile == "code" else _prose(text, config)


def _code(text: str, config: QualityConfig) -> str | None:
    lines = text.split("\n")
    if max(map(len, lines)) > config.max_line_chars:
        return "max_line_chars"
    if (len(text) - len(lines) + 1) / len(lines) > config.max_mean_line_chars:
        return "max_mean_line_chars"
    if text and _count_alphanumeric(text) / len(text) < config.min_alphanumeric:
        return "min_alphanumeric"
    return None


def _prose(text: str, config: QualityConfig) -> str | None:
    words = text.split()
    if len(words) < config.min_words:
        return "min_words"
    if len(words) > config.max_words:
        return "max_words"
    if not words:
        return None
    mean = sum(map(len, words)) / len(words)
    if mean < config.min_mean_word_chars:
        return "min_mean_word_chars"
    if mean > config.max_mean_word_chars:
        return "max_mean_word_chars"
    alphabetic = sum(any(map(str.isalpha, word)) for word in words)
    if alphabetic / len(words) < config.min_alphabetic_words:
        return "min_alphabetic_words"
    return None


def _count_alphanumeric(text: str) -> int:
    raw = text.encode("utf-8")
    count = len(raw) - len(raw.translate(None, _ASCII_ALPHANUMERIC))
    if not text.isascii():
        # Asking each character is slow, so only those are asked that bytes cannot tell.
        count += sum(map(str.isalnum, _ASCII.sub("", text)))
    return count
