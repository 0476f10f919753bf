"""What kind of character each code point is: one set of flags for the compiled passes over text.

Kinds that depend on Unicode are those of the running Python (``unicodedata``).
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np

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
NOTED = 1 << 18  # begins something that C4 or Gopher look for

_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_CURRENCIES = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
_MARKS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
_SENTENCE_ENDS = "!.?։؟۔܀܁܂߹।॥၊။።፧፨᙮᜵᜶᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡。"
_CONTROLS = [chr(code) for code in (*range(9), *range(11, 13), *range(13, 32), *range(127, 160))]
_END_OF_SCRIPTS = 0x33480  # behind it are tags, variation selectors and private use


@functools.cache
def character_flags() -> np.ndarray:
    """Flags of every code point; uint32 [0x110000]."""
    flags = np.zeros(0x110000, np.uint32)
    for code in range(_END_OF_SCRIPTS):
        flags[code] = _of_unicode(chr(code))
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
        ("jJkKmMvV[{#.…", NOTED),
    ):
        flags[[ord(character) for character in characters]] |= np.uint32(flag)
    flags[(flags & LOWER) != 0] |= np.uint32(BEFORE_DOT)
    return flags


def _of_unicode(character: str) -> int:
    category = unicodedata.category(character)
    flags = SPACE if character.isspace() else 0
    if category[0] == "L":
        flags |= LETTER | ALPHABETIC
        flags |= {"Ll": LOWER, "Lu": UPPER, "Lt": UPPER}.get(category, LOWER | UPPER)
    elif category in ("Mn", "Mc") and not _joins_any_letter(ord(character)):
        flags |= LETTER | LOWER | UPPER
    elif category == "So":
        flags |= SYMBOL | PREFIX | SUFFIX
    elif category[0] == "P":
        flags |= PUNCTUATION
    return flags | (ALPHANUMERIC if character.isalnum() else 0)


def _joins_any_letter(code: int) -> bool:
    return code < 0x370 or 0x1AB0 <= code < 0x2000 or 0xFE00 <= code < 0xFE30
