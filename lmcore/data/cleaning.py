"""Clean many texts at once: a compiled glance at each finds those few that ``lmcore.data.text`` must look at.

The others are as they should be, and stay the bytes they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa

from lmcore.config import TextConfig
from lmcore.data.arrow import bytes_array, text_buffers
from lmcore.data.characters import code_point
from lmcore.data.compiled import compiled, inlined, kept_table, uint32
from lmcore.data.lanes import LANES, in_ranges, trailing_zeros
from lmcore.data.text import NO_WIDTH, changed_by_nfc, clean, fix_encoding, may_be_mojibake, mojibake_marks

# Marks of a character: that its text is to be looked at; that it may be mojibake if one of the next follows,
# and such a one, each for four kinds of mojibake; that it may stand between the two; that it may be mojibake
# alone; and that it may be another in NFC, or make another of the one before.
_ALWAYS, _FIRST, _NEXT, _BETWEEN, _ALONE, _COMPOSE = 1, 2, 32, 512, 1024, 2048
# What is suspected of a text: that it is not normalised, and that it holds mojibake.
_NORMALISE, _REPAIR = 1, 2
_LINES = 16_384  # that are noted; a text with more is looked at whole
# What a repaired line may hold for which its whole text is looked at.
_UNUSUAL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff" + NO_WIDTH + "]")

_to_look_at = in_ranges((0, 8), (11, 31), (0x7F, 0xFF))


def clean_texts(texts: Sequence[str | bytes], config: TextConfig) -> pa.Array:
    """``clean`` of each of ``texts`` (bytes are UTF-8), as ``pa.large_string``."""
    raw = [text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass") for text in texts]
    array = bytes_array(raw, room=2 * LANES)
    data, offsets = text_buffers(array)
    suspects, lines = np.zeros(len(raw), np.uint8), np.zeros((_LINES, 3), np.int64)
    _glance(data, offsets, _marks(config.repair_mojibake, config.drop_zero_width), suspects, lines)
    changed = _change_lines(data, offsets, lines, suspects, config.repair_mojibake)
    repaired = config.model_copy(update={"repair_mojibake": False})
    for i in np.flatnonzero(suspects).tolist():
        text = texts[i]
        if suspects[i] & _REPAIR:
            changed[i] = clean(text if isinstance(text, str) else text.decode(), config).encode("utf-8")
        else:
            before = changed.get(i, raw[i]).decode("utf-8", "surrogatepass")
            changed[i] = clean(before, repaired).encode("utf-8")
    for i, new in changed.items():
        raw[i] = new
    return bytes_array(raw) if changed else array


def _change_lines(
    data: np.ndarray, offsets: np.ndarray, lines: np.ndarray, suspects: np.ndarray, repair_mojibake: bool
) -> dict[int, bytes]:
    """Texts with ``lines`` (text, start, end; none where they end at 0) repaired and in NFC.

    What mojibake stood for may need more than that: then the text is suspected. Texts that are get their NFC
    later, since what joins them is looked at before.
    """
    done: dict[int, list[bytes]] = {}
    behind: dict[int, int] = {}
    for number, start, end in lines[lines[:, 2] > 0].tolist():
        line = changed = data[start:end].tobytes().decode("utf-8", "surrogatepass")
        if repair_mojibake and may_be_mojibake(line):
            changed = fix_encoding(line)
            if _UNUSUAL.search(changed):
                suspects[number] |= _NORMALISE
        if not suspects[number]:
            changed = unicodedata.normalize("NFC", changed)
        if changed != line:
            before = data[behind.get(number, int(offsets[number])) : start].tobytes()
            done.setdefault(number, []).extend((before, changed.encode("utf-8", "surrogatepass")))
            behind[number] = end
    return {
        number: b"".join((*parts, data[behind[number] : offsets[number + 1]].tobytes()))
        for number, parts in done.items()
    }


@cache
def _marks(repair_mojibake: bool, drop_zero_width: bool) -> np.ndarray:
    """What is suspected of each code point; uint16 [0x110000]."""
    marks = _all_marks()
    if not repair_mojibake:
        marks = marks & np.uint16(_ALWAYS | _COMPOSE)
    if drop_zero_width:
        marks = marks.copy()
        marks[list(map(ord, NO_WIDTH))] |= np.uint16(_ALWAYS)
    return marks


@kept_table
def _all_marks() -> np.ndarray:
    """``_marks`` where mojibake is repaired and characters without width stay."""
    marks = np.zeros(0x110000, np.uint16)
    marks[list(changed_by_nfc())] = marks[0x10000:] = _COMPOSE
    marks[[*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0xFEFF]] = marks[0xD800:0xE000] = _ALWAYS
    for kind, characters in enumerate(mojibake_marks()):
        for some, mark in zip(characters, (_FIRST, _NEXT), strict=True):
            marks[list(map(ord, set(some)))] |= np.uint16(mark << kind)
    marks[list(map(ord, " ?"))] |= np.uint16(_BETWEEN)
    marks[0x80:0xA0] |= np.uint16(_ALONE)
    return marks


@compiled
def _glance(data, offsets, marks, suspects, lines):
    """Say in ``suspects`` what is suspected of each text; note ``lines`` that may be mojibake or not NFC."""
    noted = 0
    for d in range(len(offsets) - 1):
        start, end = offsets[d], offsets[d + 1]
        behind = line_end = start  # what was looked at before, and the end of the last line that was noted
        for base in range(start, end, LANES):
            found = _to_look_at(data, base)
            if end - base < LANES:
                found &= (np.uint64(1) << np.uint64(end - base)) - np.uint64(1)
            while found:
                i = base + np.int64(trailing_zeros(found))
                found &= found - np.uint64(1)
                if i < behind:
                    continue
                c, size = _character(data, i)
                behind = i + size
                mark = uint32(marks[c])
                if mark & uint32(_ALWAYS):
                    suspects[d] |= _NORMALISE
                if mark & uint32(_ALONE):
                    suspects[d] |= _REPAIR
                elif i >= line_end and (
                    mark & uint32(_COMPOSE)
                    or (mark & uint32(15 * _FIRST) and _is_followed(data, behind, end, marks, mark))
                ):
                    if noted == len(lines):
                        suspects[d] |= _REPAIR
                    else:
                        line_end = _note_line(data, start, end, i, lines[noted])
                        lines[noted, 0] = d
                        noted += 1


@inlined
def _character(data, i):
    c = uint32(data[i])
    if c < 0x80:
        return c, 1
    return code_point(data, i)


@inlined
def _is_followed(data, i, end, marks, first):
    """Whether one of those that make mojibake of ``first`` is at ``i``, or behind what may be between."""
    while i < end:
        c, size = _character(data, i)
        mark = uint32(marks[c])
        if first & (mark >> uint32(4)) & uint32(15 * _FIRST):
            return True
        if not mark & uint32(_BETWEEN):
            return False
        i += size
    return False


@inlined
def _note_line(data, start, end, i, line):
    """Note where the line that holds ``i`` starts and ends; the latter."""
    first = last = i
    while first > start and data[first - 1] != 10:
        first -= 1
    while last < end and data[last] != 10:
        last += 1
    line[1], line[2] = first, last
    return last
