"""The canonical form of a text: texts that differ by white space at the ends of lines alone share it.

Copies are found by it, and it decides on which side of a split a text falls. Its rule: no line has white
space at its end, there is no blank line, and the text begins with no white space. What stands inside a line
counts, its indentation too, but for the first line's. White space is ``WHITE_SPACE``.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lmcore.data.arrow import text_buffers
from lmcore.data.compiled import compiled, inlined
from lmcore.data.lanes import LANES, copy64, in_ranges, trailing_zeros

# What str.isspace takes for space (controls are gone by now), and characters without width that no word needs
# at its end: zero-width space, word joiner and byte order mark.
WHITE_SPACE = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
)

_new_lines = in_ranges((10, 10))


def canonical(text: str) -> str:
    """The canonical form of ``text``: what ``canonical_texts`` computes, in plain Python."""
    lines = (line.rstrip(WHITE_SPACE) for line in text.split("\n"))
    return "\n".join(line for line in lines if line).lstrip(WHITE_SPACE)


def canonical_texts(texts: pa.Array) -> pa.Array:
    """The canonical form of each of ``texts`` (``pa.large_string`` without nulls)."""
    data, offsets = text_buffers(texts)
    size = int(offsets[-1] - offsets[0]) if len(texts) else 0
    new, ends = np.empty(size + len(texts) + 2 * LANES, np.uint8), np.zeros(len(texts) + 1, np.int64)
    _copy_lines(data, offsets, new, ends)
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(new))


@compiled
def _copy_lines(data, offsets, new, ends):
    at = 0
    for d in range(len(offsets) - 1):
        i, end, first = offsets[d], offsets[d + 1], at
        i = _behind_spaces(data, i, end)
        while i < end:
            line_end = _line_end(data, i, end)
            last = _before_spaces(data, i, line_end)
            if last > i:
                if at > first:
                    new[at] = 10
                    at += 1
                at = _copy(data, i, last, new, at)
            i = line_end + 1
        ends[d + 1] = at


@inlined
def _line_end(data, i, end):
    """Where the line that holds ``i`` ends."""
    last = len(data) - LANES  # the last place from which on so many may be read
    while i < end:
        if i > last:
            if data[i] == 10:
                return i
            i += 1
            continue
        found = _new_lines(data, i)
        if found:
            return min(end, i + np.int64(trailing_zeros(found)))
        i += LANES
    return end


@inlined
def _copy(data, start, end, new, at):
    """Copy the bytes [start, end) to ``new``, which has room behind them; where they end there."""
    size, done = end - start, 0
    while done < size and start + done + LANES <= len(data):
        copy64(new, at + done, data, start + done)
        done += LANES
    while done < size:
        new[at + done] = data[start + done]
        done += 1
    return at + size


@inlined
def _is_wide_space(a, b, c):
    """Whether three bytes are white space."""
    if a == 0xE2 and b == 0x80:
        return c <= 0x8B or c == 0xA8 or c == 0xA9 or c == 0xAF
    if a == 0xE2 and b == 0x81:
        return c == 0x9F or c == 0xA0
    if a == 0xE3:
        return b == 0x80 and c == 0x80
    if a == 0xEF:
        return b == 0xBB and c == 0xBF
    return a == 0xE1 and b == 0x9A and c == 0x80


@inlined
def _before_spaces(data, start, end):
    """``end`` without the white space before it."""
    while end > start:
        c = data[end - 1]
        if c < 0x80:
            if c > 32 or not (9 <= c <= 13 or c >= 28):
                return end
            end -= 1
        elif end - start >= 2 and data[end - 2] == 0xC2 and (c == 0xA0 or c == 0x85):
            end -= 2
        elif end - start >= 3 and _is_wide_space(data[end - 3], data[end - 2], c):
            end -= 3
        else:
            return end
    return end


@inlined
def _behind_spaces(data, start, end):
    """``start`` without the white space behind it."""
    while start < end:
        c = data[start]
        if c < 0x80:
            if c > 32 or not (9 <= c <= 13 or c >= 28):
                return start
            start += 1
        elif c == 0xC2 and (data[start + 1] == 0xA0 or data[start + 1] == 0x85):
            start += 2
        elif 0xE0 <= c < 0xF0 and _is_wide_space(c, data[start + 1], data[start + 2]):
            start += 3
        else:
            return start
    return start
