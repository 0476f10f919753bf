"""What kind of character each code point is: one set of flags for the compiled passes over text.

Kinds that depend on Unicode are those of the running Python (``unicodedata``).
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Sequence

import numpy as np

from lmcore.data.compiled import compiled, inlined, kept_table, uint32
from lmcore.data.lanes import LANES, equal64, in_ranges, trailing_zeros

SPACE = 1 << 0  # str.isspace
ALPHABETIC = 1 << 1  # str.isalpha
ALPHANUMERIC = 1 << 2  # str.isalnum
DIGIT = 1 << 3  # 0 to 9
LETTER = 1 << 4  # part of a word: letters, and the vowel signs of scripts that write them apart
LOWER = 1 << 5  # lower case, or of a script without cases
UPPER = 1 << 6  # upper case, or of a script without cases
PREFIX = 1 << 7  # a word of its own where it begins a run between spaces
SUFFIX = 1 << 8  # a word of its own where it ends one
SYMBOL = 1 << 9  # pictures, arrows, boxes: a word of its own anywhere
QUOTE = 1 << 10
CURRENCY = 1 << 11
BEFORE_DOT = 1 << 12  # a dot behind it, at the end of a run, is a word of its own
HYPHEN = 1 << 13
MARK = 1 << 14  # what a word must hold more of than this to count as one
PUNCTUATION = 1 << 15  # Unicode's category P
SENTENCE_END = 1 << 16
LINE_END = 1 << 17  # str.splitlines
NAMES_HOST = 1 << 18  # may stand in the name of a host

# Kinds of characters beyond ASCII: letters, spaces, of which some end lines, and others.
OTHER_LETTERS, OTHER_SPACES, OTHER_LINE_ENDS, OTHERS = 0x80, 0xA0, 0xA8, 0xB0

_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_CURRENCIES = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
_MARKS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
_SENTENCE_ENDS = "!.?։؟۔܀܁܂߹।॥།༎༏༐༑༔၊။។៕៖៙៚።፧፨᙮᜵᜶᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡。"
_CONTROLS = [chr(code) for code in (*range(9), *range(11, 13), *range(13, 32), *range(127, 160))]
_END_OF_SCRIPTS = 0x33480  # behind it are tags, variation selectors and private use


@kept_table
def character_flags() -> np.ndarray:
    """Flags of every code point; uint32 [0x110000]."""
    flags = np.zeros(0x110000, np.uint32)
    flags[:_END_OF_SCRIPTS] = _of_unicode([chr(code) for code in range(_END_OF_SCRIPTS)])
    for characters, flag in (
        ("0123456789", DIGIT),
        (_PUNCTUATION + _QUOTES, PREFIX | SUFFIX),
        ("§%=—–" + _CURRENCIES, PREFIX),
        ("—–", SUFFIX),
        (_QUOTES, QUOTE),
        (_CURRENCIES, CURRENCY),
        ("-–—~", HYPHEN),
        ("%²-+0123456789" + _PUNCTUATION + _QUOTES, BEFORE_DOT),
        (_MARKS + _SENTENCE_ENDS, MARK),
        (_CONTROLS, MARK),
        (_SENTENCE_ENDS, SENTENCE_END),
        ("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", LINE_END),
        ("0123456789", NAMES_HOST),
    ):
        flags[[ord(character) for character in characters]] |= np.uint32(flag)
    flags[(flags & LOWER) != 0] |= np.uint32(BEFORE_DOT)
    flags[:0x80][(flags[:0x80] & LETTER) != 0] |= np.uint32(NAMES_HOST)
    flags[0xA1:0x10000] |= np.uint32(NAMES_HOST)
    return flags


@kept_table
def character_kinds() -> np.ndarray:
    """One byte for each code point: those of ASCII as they are, others by their flags; uint8 [0x110000].

    A text of kinds is one byte a character, and looked at as fast as if it were ASCII.
    """
    return _kinds()[0]


@kept_table
def kind_flags() -> np.ndarray:
    """Flags of each kind; uint32 [256]."""
    return _kinds()[1]


@functools.cache
def _kinds() -> tuple[np.ndarray, np.ndarray]:
    flags = character_flags()
    kinds, of_kind = np.arange(0x110000).astype(np.uint8), np.zeros(256, np.uint32)
    of_kind[:0x80] = flags[:0x80]
    free = {start: start for start in (OTHER_LETTERS, OTHER_SPACES, OTHER_LINE_ENDS, OTHERS)}
    found, group = np.unique(flags[0x80:], return_inverse=True)
    numbers = np.zeros(len(found), np.uint8)
    for number, value in enumerate(found.tolist()):
        start = next((s for flag, s in _STARTS if value & flag), OTHERS)
        numbers[number], of_kind[free[start]] = free[start], value
        free[start] += 1
    kinds[0x80:] = numbers[group]
    for kind, character in enumerate(SINGLED_OUT, 0x100 - len(SINGLED_OUT)):
        kinds[ord(character)], of_kind[kind] = kind, flags[ord(character)]
    return kinds, of_kind


_STARTS = ((LETTER, OTHER_LETTERS), (LINE_END, OTHER_LINE_ENDS), (SPACE, OTHER_SPACES))
SINGLED_OUT = "…•’—"  # have kinds of their own, the last ones
ELLIPSIS, BULLET, RIGHT_QUOTE, LONG_DASH = range(0x100 - len(SINGLED_OUT), 0x100)


_OF_CATEGORY = {
    **dict.fromkeys(("Lm", "Lo"), LETTER | ALPHABETIC | LOWER | UPPER),
    **dict.fromkeys(("Lu", "Lt"), LETTER | ALPHABETIC | UPPER),
    "Ll": LETTER | ALPHABETIC | LOWER,
    **dict.fromkeys(("Mn", "Mc"), LETTER | LOWER | UPPER),
    "So": SYMBOL | PREFIX | SUFFIX,
    **dict.fromkeys(("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"), PUNCTUATION),
}
_JOIN_ANY_LETTER = (slice(0x370), slice(0x1AB0, 0x2000), slice(0xFE00, 0xFE30))


def _of_unicode(characters: Sequence[str]) -> np.ndarray:
    """Flags that follow from the properties of ``characters``, which begin with U+0000."""
    kinds = (_OF_CATEGORY.get(category, 0) for category in map(unicodedata.category, characters))
    flags = np.fromiter(kinds, np.uint32, len(characters))
    for codes in _JOIN_ANY_LETTER:
        of_no_script = flags[codes] & (LETTER | ALPHABETIC) == LETTER
        flags[codes][of_no_script] = 0
    flags[np.fromiter(map(str.isspace, characters), bool, len(characters))] |= np.uint32(SPACE)
    flags[np.fromiter(map(str.isalnum, characters), bool, len(characters))] |= np.uint32(ALPHANUMERIC)
    return flags


def texts_with(marks: np.ndarray, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Which texts hold a character beyond ASCII that ``marks`` has; bool [n].

    Args:
        marks: Of each code point, not 0 for those looked for; uint8 [0x110000].
        data: UTF-8 bytes of the texts; uint8.
        offsets: Where each starts and ends; int64 [n + 1].
    """
    found = np.zeros(len(offsets) - 1, np.uint8)
    _look_for(marks, data, offsets, found)
    return found.astype(bool)


def texts_holding(phrases: Sequence[bytes], data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Which texts hold one of ``phrases``; bool [n].

    Args:
        phrases: None of them empty.
        data: UTF-8 bytes of the texts; uint8.
        offsets: Where each starts and ends; int64 [n + 1].
    """
    found = np.zeros(len(offsets) - 1, np.uint8)
    # Those that begin with the same two bytes are looked for together, as most specials of a tokenizer do.
    for _, alike in itertools.groupby(sorted(phrases), key=lambda phrase: phrase[:2]):
        some = list(alike)
        ends = np.cumsum([0, *map(len, some)])
        _look_for_phrases(np.frombuffer(b"".join(some), np.uint8), ends, data, offsets, found)
    return found.astype(bool)


@compiled
def _look_for_phrases(phrases, ends, data, offsets, found):
    """Mark in ``found`` the texts that hold one of ``phrases``, the first two bytes of which are the same."""
    two = ends[1] > 1
    first, second = np.int64(phrases[0]), np.int64(phrases[1] if two else 0)
    last = len(data) - LANES - 1  # the last place from which on so many, and one, may be read
    for d in range(len(found)):
        i, end = offsets[d], offsets[d + 1]
        while i < end and not found[d]:
            if i > last:
                found[d] |= _stands(phrases, ends, data, i, end)
                i += 1
                continue
            begun = equal64(data, i, first)
            if two:
                begun &= equal64(data, i + 1, second)
            while begun:
                found[d] |= _stands(phrases, ends, data, i + np.int64(trailing_zeros(begun)), end)
                begun &= begun - np.uint64(1)
            i += LANES


@inlined
def _stands(phrases, ends, data, i, end):
    """Whether one of ``phrases`` is at ``i``, whole before ``end``."""
    for p in range(len(ends) - 1):
        start, size = ends[p], ends[p + 1] - ends[p]
        k = 0
        while k < size and i + size <= end and data[i + k] == phrases[start + k]:
            k += 1
        if k == size:
            return np.uint8(1)
    return np.uint8(0)


def middles_beyond_ascii(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Where each text holds its first byte beyond ASCII from its middle on, or from its start if there.

    It is the middle of a text that is ASCII.

    Args:
        data: UTF-8 bytes of the texts; uint8.
        offsets: Where each starts and ends; int64 [n + 1].

    Returns:
        Places in ``data``; int64 [n].
    """
    found = np.zeros(len(offsets) - 1, np.int64)
    _find_beyond_ascii(data, offsets, found)
    return found


_beyond_ascii = in_ranges((0x80, 0xFF))


@compiled
def _find_beyond_ascii(data, offsets, found):
    for d in range(len(found)):
        start, end = offsets[d], offsets[d + 1]
        middle = start + (end - start) // 2
        place = _first_beyond_ascii(data, middle, end)
        if place == end:
            place = _first_beyond_ascii(data, start, middle)
        found[d] = place


@inlined
def _first_beyond_ascii(data, i, end):
    """Place of the first byte beyond ASCII from ``i`` on; ``end`` if there is none before."""
    last = len(data) - LANES  # the last place from which on so many may be read
    while i < end:
        if i > last:
            if data[i] >= 0x80:
                return i
            i += 1
            continue
        bits = _beyond_ascii(data, i)
        if bits:
            return min(end, i + np.int64(trailing_zeros(bits)))
        i += LANES
    return end


_beginnings = in_ranges((0xC0, 0xFF))  # of characters beyond ASCII


@compiled
def _look_for(marks, data, offsets, found):
    last = len(data) - LANES  # the last place from which on so many may be read
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        while i < end and not found[d]:
            if i > last:
                if data[i] >= 0xC0 and marks[code_point(data, i)[0]]:
                    found[d] = 1
                i += 1
                continue
            begun = _beginnings(data, i)
            if end - i < LANES:
                begun &= (np.uint64(1) << np.uint64(end - i)) - np.uint64(1)
            while begun:
                if marks[code_point(data, i + np.int64(trailing_zeros(begun)))[0]]:
                    found[d] = 1
                begun &= begun - np.uint64(1)
            i += LANES


@inlined
def code_point(data, i):
    """The code point of several bytes at ``i``, and how many."""
    c = uint32(data[i])
    if c < 0xE0:
        return ((c & 0x1F) << 6) | (uint32(data[i + 1]) & 0x3F), 2
    if c < 0xF0:
        return ((c & 0x0F) << 12) | ((uint32(data[i + 1]) & 0x3F) << 6) | (uint32(data[i + 2]) & 0x3F), 3
    c = ((c & 0x07) << 18) | ((uint32(data[i + 1]) & 0x3F) << 12)
    return c | ((uint32(data[i + 2]) & 0x3F) << 6) | (uint32(data[i + 3]) & 0x3F), 4
