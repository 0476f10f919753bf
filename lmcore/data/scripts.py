"""The script that a document is written in: that of most bytes of its letters, in parts of long texts.

It tells languages without spaces from others, costs a fraction of finding the language, and needs no model.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa

from lmcore.config import QualityConfig
from lmcore.data.arrow import column, string_column, text_buffers
from lmcore.data.characters import code_point
from lmcore.data.compiled import compiled, kept_table
from lmcore.data.lanes import LANES, in_ranges, ones, trailing_zeros
from lmcore.data.quality import SCRIPT, measures_text

# By the first word of a letter's name in Unicode; the first is of what is no letter.
_NAMES = {
    "": "none",
    "LATIN": "Latin",
    "CYRILLIC": "Cyrillic",
    "GREEK": "Greek",
    "ARMENIAN": "Armenian",
    "GEORGIAN": "Georgian",
    "HEBREW": "Hebrew",
    "ARABIC": "Arabic",
    "DEVANAGARI": "Devanagari",
    "BENGALI": "Bengali",
    "GURMUKHI": "Gurmukhi",
    "GUJARATI": "Gujarati",
    "TAMIL": "Tamil",
    "TELUGU": "Telugu",
    "KANNADA": "Kannada",
    "MALAYALAM": "Malayalam",
    "SINHALA": "Sinhala",
    "ETHIOPIC": "Ethiopic",
    "HANGUL": "Korean",
    "CJK": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "THAI": "Thai",
    "LAO": "Lao",
    "KHMER": "Khmer",
    "MYANMAR": "Burmese",
    "TIBETAN": "Tibetan",
}
# The second is Latin, which ASCII is counted as.
SCRIPTS = (*dict.fromkeys(_NAMES.values()), "other")
_CHINESE, _JAPANESE = map(SCRIPTS.index, ("Chinese", "Japanese"))
# Of Japanese text about half is kana, of Chinese text none but in names.
_KANA_SHARE = 0.1
# Of a text of more bytes, each eighth part of 64 bytes is looked at: that tells the script as well.
_LONG = 4_096

_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_beginnings = in_ranges((0xC0, 0xFF))  # of characters beyond ASCII
_plain_letters = in_ranges((65, 90), (97, 122))


def script_fields(config: QualityConfig) -> list[pa.Field]:
    """The field of the column that is stored with each document, if rules look at its words."""
    return [pa.field(SCRIPT, pa.string(), nullable=False)] if measures_text(config) else []


def script_columns(texts: pa.Array, config: QualityConfig) -> list[pa.Array]:
    """The column of ``script_fields``."""
    return [scripts_of(texts)] if measures_text(config) else []


def scripts_of(texts: pa.Array) -> pa.Array:
    """Which of ``SCRIPTS`` each of ``texts`` (``pa.large_string`` without nulls) is in; ``pa.string`` [n]."""
    data, offsets = text_buffers(texts)
    sizes = np.zeros((len(texts), len(SCRIPTS)), np.int64)
    _count(data, offsets, _scripts(), sizes)
    sizes[:, 0] = 0
    chinese, kana = sizes[:, _CHINESE].copy(), sizes[:, _JAPANESE].copy()
    is_japanese = kana > _KANA_SHARE * (chinese + kana)
    sizes[:, _JAPANESE] = np.where(is_japanese, chinese + kana, 0)
    sizes[:, _CHINESE] = np.where(is_japanese, 0, chinese + kana)
    return string_column(SCRIPTS).take(column(sizes.argmax(axis=1)))


@kept_table
def _scripts() -> np.ndarray:
    """Number of the script of each code point that is a letter or a mark of one; uint8 [0x110000]."""
    found = np.zeros(0x110000, np.uint8)
    numbers = {name: SCRIPTS.index(script) for name, script in _NAMES.items()}
    for code in range(0x33480):
        if unicodedata.category(chr(code))[0] in "LM":
            first = unicodedata.name(chr(code), "").partition(" ")[0]
            found[code] = numbers.get(first, len(SCRIPTS) - 1)
    for first, last in ((0x300, 0x370), (0x2B0, 0x300), (0x1AB0, 0x1B00), (0x1DC0, 0x1E00), (0x20D0, 0x2100)):
        found[first:last] = 0  # modifiers and accents of any script
    found[[0x3005, 0x3007]] = _CHINESE
    return found


@compiled
def _count(data, offsets, scripts, sizes):
    """Count in ``sizes`` the bytes of letters of each script."""
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        latin = 0
        step = LANES if end - i <= _LONG else 8 * LANES
        while i < end:
            if i + LANES > len(data):  # the end of the last text
                c, size = data[i], 1
                if c >= 0xC0:
                    code, size = code_point(data, i)
                    sizes[d, scripts[code]] += size
                latin += 1 if 65 <= c <= 90 or 97 <= c <= 122 else 0
                i += size
                continue
            inside = _ALL if end - i >= LANES else (np.uint64(1) << np.uint64(end - i)) - np.uint64(1)
            latin += np.int64(ones(_plain_letters(data, i) & inside))
            begun = _beginnings(data, i) & inside
            while begun:
                code, size = code_point(data, i + np.int64(trailing_zeros(begun)))
                sizes[d, scripts[code]] += size
                begun &= begun - np.uint64(1)
            i += step
        sizes[d, 1] += latin
