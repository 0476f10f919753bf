"""Lines that may hold an address, a number or a key, found in one compiled pass over many texts.

Each mark is a condition that every match of its kind in ``lmcore.data.privacy`` meets, so that the exact
patterns need to look at the marked lines alone.
"""

from __future__ import annotations

import numpy as np

from lmcore.data.compiled import compiled, inlined

EMAIL, IPV4, IPV6, CARD, PHONE, SECRET, PRIVATE_KEY = (1 << i for i in range(7))
_DIGIT, _HEX, _GAP, _DOT, _COLON, _LOCAL, _WORD = (1 << i for i in range(7))
_LINES = 4_096  # room for marked lines, to begin with


def _classes() -> np.ndarray:
    classes = np.zeros(256, np.uint8)
    for characters, kind in (
        (b"0123456789", _DIGIT),
        (b"0123456789abcdefABCDEF", _HEX),
        (b" ()-.", _GAP),
        (b".", _DOT),
        (b":", _COLON),
        (b"._%+-", _LOCAL),
        (b"_-", _WORD),
    ):
        classes[list(characters)] |= kind
    letters = [*range(48, 58), *range(65, 91), *range(97, 123)]
    classes[letters] |= _LOCAL | _WORD
    return classes


_CLASSES = _classes()


def marked_lines(data: np.ndarray, offsets: np.ndarray, wanted: int) -> np.ndarray:
    """Lines of texts that may hold something of the kinds in ``wanted``.

    Args:
        data: UTF-8 of all texts; uint8.
        offsets: Where each text starts in it, and the end of the last; int64 [n + 1].
        wanted: Marks of the kinds, added up.

    Returns:
        Text, start, end (in ``data``, the line end left out) and marks of each such line; int64 [lines, 4].
    """
    room = _LINES
    while True:
        lines, count = np.empty((room, 4), np.int64), np.zeros(1, np.int64)
        _mark_lines(data, offsets, _CLASSES, wanted, lines, count)
        if count[0] <= room:
            return lines[: count[0]]
        room = int(count[0])


@compiled
def _mark_lines(data, offsets, classes, wanted, lines, count):
    """Write as many marked lines as there is room for, and count them all."""
    noted = 0
    for d in range(len(offsets) - 1):
        start, end = offsets[d], offsets[d + 1]
        marks, line = 0, start
        digits, dots, hexes, colons, plus = 0, 0, 0, 0, 0
        for i in range(start, end + 1):
            c = np.int64(data[i]) if i < end else np.int64(10)
            kind = classes[c]
            if kind & _DIGIT:
                digits += 1
                if digits >= 13:
                    marks |= CARD | PHONE
                elif digits >= 10 or (plus and digits >= 8):
                    marks |= PHONE
            elif kind & _DOT and i > start and classes[data[i - 1]] & _DIGIT:
                dots += 1
                if dots >= 3:
                    marks |= IPV4
            else:
                dots = 0
                if not kind & _GAP:
                    digits = 0
                    plus = c == 43
            if kind & _HEX:
                hexes += 1
            elif kind & _COLON:
                colons += 1
                if colons >= 2 and hexes >= 4:
                    marks |= IPV6
            else:
                hexes, colons = 0, 0
            if c == 64:
                if i > start and classes[data[i - 1]] & _LOCAL:
                    marks |= EMAIL
            elif 45 <= c <= 120:
                marks |= _mark_of_key(data, i, start, end, classes, c)
            elif c == 10:
                if marks & wanted:
                    if noted < len(lines):
                        lines[noted, 0], lines[noted, 1], lines[noted, 2] = d, line, i
                        lines[noted, 3] = marks & wanted
                    noted += 1
                marks, line = 0, i + 1
                digits, dots, hexes, colons, plus = 0, 0, 0, 0, 0
    count[0] = noted


@inlined
def _mark_of_key(data, i, start, end, classes, c):
    """Marks of a key that may begin at ``i``: its first characters, with no letter or digit before."""
    if i + 4 > end:
        return 0
    if c == 45:  # -
        return PRIVATE_KEY if data[i + 1] == 45 and data[i + 2] == 45 and data[i + 3] == 45 else 0
    if not (c == 65 or c == 101 or c == 103 or c == 104 or c == 110 or c == 115 or c == 120):
        return 0
    if i > start and classes[data[i - 1]] & _WORD:
        return 0
    a, b, e = data[i + 1], data[i + 2], data[i + 3]
    found = False
    if c == 65:  # AKIA, ASIA, AIza
        found = (b == 73 and e == 65 and (a == 75 or a == 83)) or (a == 73 and b == 122 and e == 97)
    elif c == 101:  # eyJ
        found = a == 121 and b == 74
    elif c == 103:  # ghp_ and the like, github_pat_, glpat-
        found = (a == 104 and e == 95) or (a == 105 and b == 116 and e == 104) or (a == 108 and b == 112)
    elif c == 104:  # hf_
        found = a == 102 and b == 95
    elif c == 110:  # npm_
        found = a == 112 and b == 109 and e == 95
    elif c == 115:  # sk-
        found = a == 107 and b == 45
    else:  # xox
        found = a == 111 and b == 120
    return SECRET if found else 0
