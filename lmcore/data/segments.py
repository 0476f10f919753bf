"""Words of scripts that put no space between them: Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan.

ICU finds them by its dictionaries, and Tibetan's syllables by their marks, in runs of letters of these
scripts alone, so a text needs no language, and one without such a script costs a glance. Both ends of a run
are ends of words too: a word of another script that touches it is one of its own.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lmcore.data.arrow import text_buffers
from lmcore.data.characters import code_point
from lmcore.data.compiled import compiled, inlined, kept_table
from lmcore.data.lanes import LANES, in_ranges, trailing_zeros

_BLOCKS = (
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Burmese, and two blocks more
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # Han: radicals, and the signs of repetition
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3038, 0x303B),
    (0x3041, 0x30FF),  # Hiragana and Katakana
    (0x31F0, 0x31FF),
    (0xFF66, 0xFF9F),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x323AF),
)
# Of a text that ICU looks at at a time: it holds the interpreter's lock meanwhile.
_BYTES_AT_A_TIME = 1 << 18

_beyond_ascii = in_ranges((0x80, 0xFF))
_may_begin = in_ranges((0xE0, 0xF0))  # first bytes of the letters of these scripts


@kept_table
def unspaced_letters() -> np.ndarray:
    """Which code points are letters, or marks on letters, of scripts without spaces; uint8 [0x110000]."""
    letters = np.zeros(0x110000, np.uint8)
    for first, last in _BLOCKS:
        for code in range(first, last + 1):
            letters[code] = unicodedata.category(chr(code)) in ("Lo", "Lm", "Mn", "Mc", "Nl", "So")
    return letters


def spaced(texts: pa.Array, breaks: np.ndarray | None = None) -> pa.Array:
    """``texts`` with a space at both ends of each word that has none.

    Args:
        texts: ``pa.large_string`` without nulls.
        breaks: ``word_breaks`` of them, if known.
    """
    data, offsets = text_buffers(texts)
    breaks = word_breaks(data, offsets) if breaks is None else breaks
    if not len(breaks):
        return texts
    first, last = int(offsets[0]), int(offsets[-1])
    new = np.insert(data[first:last], breaks - first, ord(" "))
    ends = offsets - first + np.searchsorted(breaks, offsets)
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(new))


def word_breaks(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Places in ``data`` at which a word of a script without spaces begins or ends; int64, ascending.

    Args:
        data: UTF-8 bytes of texts; uint8.
        offsets: Where each starts and ends; int64 [n + 1].
    """
    letters = unspaced_letters()
    wanted = np.zeros(len(offsets) - 1, np.uint8)
    _look_for(letters, data, offsets, wanted)
    if not wanted.any():
        return np.empty(0, np.int64)
    # A run and what parts it from the next are four bytes at least.
    most = int((np.diff(offsets)[wanted > 0] // 4 + 1).sum())
    runs, count = np.empty((most, 2), np.int64), np.zeros(1, np.int64)
    _find_runs(data, offsets, wanted, letters, runs, count)
    parts = [_breaks_in(data, some) for some in _in_parts(runs[: count[0]])]
    breaks = np.concatenate(parts)
    return breaks[np.r_[True, np.diff(breaks) > 0]]  # a text may begin where the one before ended


def _in_parts(runs: np.ndarray) -> Iterator[np.ndarray]:
    """Cut ``runs`` (int64 [n, 2]) into parts of about as many bytes as are looked at at a time."""
    part = (runs[:, 1] - runs[:, 0]).cumsum() // _BYTES_AT_A_TIME
    edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(runs)]
    return (runs[start:end] for start, end in itertools.pairwise(edges))


def _breaks_in(data: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Ends of words in ``runs`` of ``data``, their first and last bytes included; int64."""
    from icu4py.breakers import WordBreaker  # 40 MB of dictionaries, for nothing in most corpora

    # Between two runs is a new line, at both ends of which ICU breaks.
    text = np.empty(int((runs[:, 1] - runs[:, 0] + 1).sum()), np.uint8)
    _join(data, runs, text)
    # Any locale: the rules and dictionaries for words are the same for all.
    segments = WordBreaker(text.tobytes().decode("utf-8"), "en").segments()
    edges = np.fromiter(itertools.chain.from_iterable(segments), np.int64)
    breaks, count = np.empty(len(edges) // 2 + 1, np.int64), np.zeros(1, np.int64)
    _place(text, runs, edges, breaks, count)
    return breaks[: count[0]]


@compiled
def _look_for(letters, data, offsets, found):
    """Mark in ``found`` the texts that hold one of ``letters``."""
    for d in range(len(found)):
        i, end = offsets[d], offsets[d + 1]
        while i < end and not found[d]:
            if i + LANES > len(data):  # the end of the last text
                if 0xE0 <= data[i] <= 0xF0 and letters[code_point(data, i)[0]]:
                    found[d] = 1
                i += 1
                continue
            begun = _may_begin(data, i)
            if end - i < LANES:
                begun &= (np.uint64(1) << np.uint64(end - i)) - np.uint64(1)
            while begun:
                if letters[code_point(data, i + np.int64(trailing_zeros(begun)))[0]]:
                    found[d] = 1
                begun &= begun - np.uint64(1)
            i += LANES


@compiled
def _place(text, runs, edges, breaks, count):
    """Note the places of ``edges`` of words, which ICU counts in UTF-16, of what ``_join`` made of ``runs``.

    Of ``edges`` each second is the end of a word, and the start of the next.
    """
    n = i = units = k = 0
    last = np.int64(-1)
    for r in range(len(runs)):
        start = i
        size = runs[r, 1] - runs[r, 0]
        while i <= start + size:
            while k < len(edges) and edges[k] < units:
                k += 1
            if i == start or (k < len(edges) and edges[k] == units):
                place = runs[r, 0] + i - start
                if place != last:
                    breaks[n] = last = place
                    n += 1
            c = text[i]
            i += 1 if c < 0x80 else 2 if c < 0xE0 else 3 if c < 0xF0 else 4
            units += 2 if c >= 0xF0 else 1
    count[0] = n


@compiled
def _join(data, runs, text):
    """Write ``runs`` of ``data`` to ``text``, with a new line behind each."""
    at = 0
    for r in range(len(runs)):
        for i in range(runs[r, 0], runs[r, 1]):
            text[at] = data[i]
            at += 1
        text[at] = 10
        at += 1


@compiled
def _find_runs(data, offsets, wanted, letters, runs, count):
    """Note the runs of ``letters`` in texts that are ``wanted``: first byte and the one behind the last."""
    n = 0
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        while wanted[d] and i < end:
            if data[i] < 0x80:
                i = _behind_ascii(data, i, end)
                continue
            c, size = code_point(data, i)
            if not letters[c]:
                i += size
                continue
            runs[n, 0] = i
            while i < end and data[i] >= 0x80:
                c, size = code_point(data, i)
                # Characters without width are of the run: Khmer writes U+200B between words.
                if not letters[c] and not 0x200B <= c <= 0x200D and c != 0x2060:
                    break
                i += size
            runs[n, 1] = i
            n += 1
    count[0] = n


@inlined
def _behind_ascii(data, i, end):
    """The first byte beyond ASCII from ``i`` on, or a byte before it that is near ``end``."""
    if i + LANES > len(data):
        return i + 1
    found = _beyond_ascii(data, i)
    return min(end, i + (np.int64(trailing_zeros(found)) if found else LANES))
