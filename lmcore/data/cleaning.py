"""Clean many texts at once: a compiled glance at each finds those few that ``lmcore.data.text`` must look at.

The others are as they should be, and stay the bytes they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa

from lmcore.config import TextConfig
from lmcore.data.arrow import bytes_array, text_buffers
from lmcore.data.characters import code_point
from lmcore.data.compiled import compiled, uint32
from lmcore.data.text import NO_WIDTH, changed_by_nfc, clean, mojibake_marks

# Marks of a character: that its text is to be looked at; that it is so if one of the next follows, and such a
# one, each for four kinds of mojibake; and that it may stand between the two.
_ALWAYS, _FIRST, _NEXT, _BETWEEN = 1, 2, 32, 512


def clean_texts(texts: Sequence[str], config: TextConfig) -> pa.Array:
    """``clean`` of each of ``texts``, as ``pa.large_string``."""
    raw = [text.encode("utf-8", "surrogatepass") for text in texts]
    array = bytes_array(raw)
    data, offsets = text_buffers(array)
    suspects = np.zeros(len(raw), np.uint8)
    _glance(data, offsets, _marks(config.repair_mojibake, config.drop_zero_width), suspects)
    found = np.flatnonzero(suspects).tolist()
    for i in found:
        raw[i] = clean(texts[i], config).encode("utf-8")
    return bytes_array(raw) if found else array


@cache
def _marks(repair_mojibake: bool, drop_zero_width: bool) -> np.ndarray:
    """What is suspected of each code point; uint16 [0x110000]."""
    marks = np.zeros(0x110000, np.uint16)
    marks[[*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), *changed_by_nfc(), 0xFEFF]] = _ALWAYS
    marks[0xD800:0xE000] = marks[0x10000:] = _ALWAYS
    if drop_zero_width:
        marks[list(map(ord, NO_WIDTH))] = _ALWAYS
    if repair_mojibake:
        for kind, characters in enumerate(mojibake_marks()):
            for some, mark in zip(characters, (_FIRST, _NEXT), strict=True):
                marks[list(map(ord, set(some)))] |= np.uint16(mark << kind)
        marks[list(map(ord, " ?"))] |= np.uint16(_BETWEEN)
    return marks


@compiled
def _glance(data, offsets, marks, suspects):
    """Set ``suspects`` for each of the texts that holds something suspicious."""
    for d in range(len(offsets) - 1):
        start, end = offsets[d], offsets[d + 1]
        every, odd = np.uint8(0), False
        for i in range(start, end):
            c = data[i]
            every |= c
            odd |= (c < 0x20) & (c != 0x09) & (c != 0x0A) | (c == 0x7F)
        if odd:
            suspects[d] = 1
        elif every >= 0x80:
            before, i = uint32(0), start
            while i < end:
                c, size = uint32(data[i]), 1
                if c >= 0x80:
                    c, size = code_point(data, i)
                i += size
                mark = uint32(marks[c])
                if mark & uint32(_ALWAYS) or before & (mark >> uint32(4)) & uint32(15 * _FIRST):
                    suspects[d] = 1
                    break
                before = before if mark & uint32(_BETWEEN) else mark
