"""Read the text of lines of JSON in one compiled pass, for lines that are plain.

Plain is an object of texts, short numbers and literals, with the wanted text once. Anything else is left to
those who can say what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lmcore.data.compiled import compiled, inlined, uint32
from lmcore.data.lanes import LANES, copy64, in_ranges, trailing_zeros

_LINES_AT_A_TIME = 1_024
_LONGEST_NUMBER = 15

_special = in_ranges((0, 31), (34, 34), (92, 92), (0x80, 0xFF))
_newline = in_ranges((10, 10))


class Line(NamedTuple):
    """A line of a block.

    Attributes:
        start: Where it starts in the block, in bytes.
        end: Where it ends, before its line end.
        text: The text that it holds, in UTF-8; None if it is not plain.
        num_chars: Code points of the text.
    """

    start: int
    end: int
    text: bytes | None
    num_chars: int


def read_block(block: bytes, field: str) -> Iterator[Line]:
    """Yield the lines of ``block``, each with its ``field``; the last one needs no line end."""
    size = len(block)
    data = np.empty(size + 2 * LANES, np.uint8)
    data[:size] = np.frombuffer(block, np.uint8)
    data[size:] = 10  # ends whatever the block leaves open
    texts = np.empty(size + 2 * LANES, np.uint8)
    found = np.empty((_LINES_AT_A_TIME, 5), np.int64)
    state = np.zeros(3, np.int64)  # where to go on in the block and in the texts; lines found
    key = np.frombuffer(field.encode("utf-8", "replace"), np.uint8)
    view = texts.data
    while state[0] < size:
        _read_lines(data, size, key, texts, found, state)
        for start, end, first, last, num_chars in found[: state[2]].tolist():
            yield Line(start, end, bytes(view[first:last]) if last >= 0 else None, num_chars)


@compiled
def _read_lines(data, size, key, texts, found, state):
    i, at, count = state[0], state[1], 0
    while i < size and count < len(found):
        end, behind, chars = _read_object(data, i, key, texts, at)
        if end < 0 or data[end] != 10:
            end, behind = _line_end(data, i), -1
        found[count, 0], found[count, 1] = i, end
        found[count, 2], found[count, 3], found[count, 4] = at, behind, chars
        i, at, count = end + 1, max(at, behind), count + 1
    state[0], state[1], state[2] = i, at, count


@inlined
def _line_end(data, i):
    while not _newline(data, i):
        i += LANES
    return i + np.int64(trailing_zeros(_newline(data, i)))


@inlined
def _skip_space(data, i):
    while data[i] == 32 or data[i] == 9 or data[i] == 13:
        i += 1
    return i


@inlined
def _read_object(data, i, key, texts, at):
    """Read an object; where it ends (-1: not plain), where its text ends in ``texts``, its characters."""
    behind, chars = -1, 0
    i = _skip_space(data, i)
    if data[i] != ord("{"):
        return -1, -1, 0
    while True:
        i = _skip_space(data, i + 1)
        if data[i] != ord('"'):
            return -1, -1, 0
        start, i = i + 1, i + 1
        while data[i] != ord('"'):
            if data[i] < 32 or data[i] >= 0x80 or data[i] == ord("\\"):
                return -1, -1, 0
            i += 1
        wanted = i - start == len(key)
        for k in range(len(key) if wanted else 0):
            wanted &= data[start + k] == key[k]
        i = _skip_space(data, i + 1)
        if data[i] != ord(":"):
            return -1, -1, 0
        i = _skip_space(data, i + 1)
        if data[i] == ord('"'):
            if wanted and behind >= 0:
                return -1, -1, 0
            # Others are read too, behind the wanted one, for whether they are as they should be.
            i, last, count = _read_text(data, i + 1, texts, max(at, behind))
            behind, chars = (last, count) if wanted else (behind, chars)
        else:
            i = -1 if wanted else _skip_literal(data, i)
        if i < 0:
            return -1, -1, 0
        i = _skip_space(data, i)
        if data[i] == ord("}"):
            break
        if data[i] != ord(","):
            return -1, -1, 0
    return (_skip_space(data, i + 1) if behind >= 0 else -1), behind, chars


@inlined
def _skip_literal(data, i):
    """Where a short number, or true, false or null, ends; -1: it is none of these."""
    start = i
    while 97 <= data[i] <= 122:
        i += 1
    if i > start:
        size, a, b = i - start, data[start], data[start + 1]
        true = (
            size == 4
            and a == ord("t")
            and b == ord("r")
            and data[i - 2] == ord("u")
            and data[i - 1] == ord("e")
        )
        null = (
            size == 4
            and a == ord("n")
            and b == ord("u")
            and data[i - 2] == ord("l")
            and data[i - 1] == ord("l")
        )
        false = size == 5 and a == ord("f") and b == ord("a") and data[i - 3] == ord("l")
        false = false and data[i - 2] == ord("s") and data[i - 1] == ord("e")
        return i if true or null or false else -1
    if data[i] == ord("-"):
        i += 1
    first = i
    while 48 <= data[i] <= 57:
        i += 1
    if i == first or (data[first] == 48 and i > first + 1):
        return -1
    if data[i] == ord("."):
        point = i
        i += 1
        while 48 <= data[i] <= 57:
            i += 1
        if i == point + 1:
            return -1
    return i if i - start <= _LONGEST_NUMBER else -1


@inlined
def _read_text(data, i, texts, at):
    """Copy a text to ``texts``, its escapes resolved.

    Returns:
        Where it ends in ``data``, behind its quote (-1: not plain), where in ``texts``, and its characters.
    """
    begin, extra = at, 0  # bytes that are no first one of a character
    while True:
        copy64(texts, at, data, i)
        special = _special(data, i)
        plain = np.int64(trailing_zeros(special)) if special else LANES
        i, at = i + plain, at + plain
        if not special:
            continue
        c = data[i]
        if c == ord('"'):
            return i + 1, at, at - begin - extra
        if c < 32:
            return -1, at, 0
        if c == ord("\\"):
            taken, made = _unescape(data, i, texts, at)
        else:
            taken = made = _copy_character(data, i, texts, at)
        if not taken:
            return -1, at, 0
        i, at, extra = i + taken, at + made, extra + made - 1


@inlined
def _unescape(data, i, texts, at):
    """Resolve the escape at ``i``; its bytes, and those that it stands for (0: it is not plain)."""
    c = data[i + 1]
    if c == ord("n"):
        texts[at] = 10
    elif c == ord('"') or c == ord("\\") or c == ord("/"):
        texts[at] = c
    elif c == ord("t"):
        texts[at] = 9
    elif c == ord("r"):
        texts[at] = 13
    elif c == ord("b"):
        texts[at] = 8
    elif c == ord("f"):
        texts[at] = 12
    elif c == ord("u"):
        return _unescape_code(data, i, texts, at)
    else:
        return 0, 0
    return 2, 1


@inlined
def _unescape_code(data, i, texts, at):
    code, taken = _hexadecimal(data, i + 2), 6
    if 0xD800 <= code < 0xDC00 and data[i + 6] == ord("\\") and data[i + 7] == ord("u"):
        low = _hexadecimal(data, i + 8)
        code = 0x10000 + ((code - 0xD800) << 10) + low - 0xDC00 if 0xDC00 <= low < 0xE000 else -1
        taken = 12
    if code < 0 or 0xD800 <= code < 0xE000:
        return 0, 0
    if code < 0x80:
        texts[at] = code
        return taken, 1
    if code < 0x800:
        texts[at], texts[at + 1] = 0xC0 | code >> 6, 0x80 | code & 63
        return taken, 2
    if code < 0x10000:
        texts[at], texts[at + 1], texts[at + 2] = 0xE0 | code >> 12, 0x80 | code >> 6 & 63, 0x80 | code & 63
        return taken, 3
    texts[at], texts[at + 1] = 0xF0 | code >> 18, 0x80 | code >> 12 & 63
    texts[at + 2], texts[at + 3] = 0x80 | code >> 6 & 63, 0x80 | code & 63
    return taken, 4


@compiled
def _hexadecimal(data, i):
    """The number that four digits are; -1: they are none."""
    number = 0
    for k in range(i, i + 4):
        c = np.int64(data[k])
        if 48 <= c <= 57:
            digit = c - 48
        elif 97 <= c | 32 <= 102:
            digit = (c | 32) - 87
        else:
            return -1
        number = number * 16 + digit
    return number


@inlined
def _copy_character(data, i, texts, at):
    """Copy the character of several bytes at ``i``; how many they are (0: they are not UTF-8)."""
    c = uint32(data[i])
    size = 2 if c < 0xE0 else 3 if c < 0xF0 else 4
    if c < 0xC2 or c > 0xF4:
        return 0
    code = c & uint32(0x7F >> size)
    texts[at] = data[i]
    for k in range(1, size):
        following = uint32(data[i + k])
        if following & uint32(0xC0) != uint32(0x80):
            return 0
        code = code << uint32(6) | following & uint32(63)
        texts[at + k] = data[i + k]
    # Too long a form of a lower code point, a surrogate, or beyond Unicode.
    if (size == 3 and (code < 0x800 or 0xD800 <= code < 0xE000)) or (
        size == 4 and (code < 0x10000 or code > 0x10FFFF)
    ):
        return 0
    return size
