"""Lines and paragraphs of a batch of texts, each with its hash and its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lmcore.config import RepeatedLinesConfig
from lmcore.data.arrow import text_buffers
from lmcore.data.compiled import compiled, inlined
from lmcore.data.lexicon import FNV_PRIME, FNV_START
from lmcore.data.words import mix


@dataclass(frozen=True)
class Units:
    """Lines or paragraphs of some texts, those that are long enough.

    Attributes:
        hashes: Of what is between their first and last character that is no white space; uint64 [n].
        texts: Number of the text of each, ascending; int64 [n].
        starts: First byte of each in its text; int64 [n].
        ends: The byte behind its last, with the line ends behind it; int64 [n].
    """

    hashes: np.ndarray
    texts: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def units_of(texts: pa.Array, config: RepeatedLinesConfig) -> Units:
    """Find the lines or paragraphs of ``texts`` (``pa.large_string`` without nulls)."""
    data, offsets = text_buffers(texts)
    most = int(np.count_nonzero(data[offsets[0] : offsets[-1]] == ord("\n"))) + len(texts)
    hashes, found = np.empty(most, np.uint64), np.empty((most, 3), np.int64)
    count = np.zeros(1, np.int64)
    _find(data, offsets, int(config.unit == "paragraph"), config.min_chars, hashes, found, count)
    found = found[: count[0]]
    return Units(hashes[: count[0]], found[:, 0].copy(), found[:, 1].copy(), found[:, 2].copy())


@compiled
def _find(data, offsets, paragraphs, min_chars, hashes, found, count):
    n = 0
    for d in range(len(offsets) - 1):
        i, end = offsets[d], offsets[d + 1]
        while i < end:
            first, h, chars, blank = i, FNV_START, 0, False
            held, held_chars = h, 0
            while i < end and not blank:
                h, chars, held, held_chars, i, blank = _read_line(data, i, end, h, chars, held, held_chars)
                if not paragraphs:
                    break
                if chars > 0:
                    h, chars = (h ^ np.uint64(10)) * FNV_PRIME, chars + 1
            if paragraphs:
                i = _behind_blank_lines(data, i, end)
            if held_chars >= min_chars:
                hashes[n] = mix(held)
                found[n, 0], found[n, 1], found[n, 2] = d, first - offsets[d], i - offsets[d]
                n += 1
    count[0] = n


@inlined
def _read_line(data, i, end, h, chars, held, held_chars):
    """Go on hashing; ``held`` is the hash up to the last character that is no white space."""
    blank = True
    while i < end and data[i] != 10:
        dark = data[i] > 32
        if dark or chars > 0:
            h = (h ^ np.uint64(data[i])) * FNV_PRIME
            chars += 1 if data[i] & 0xC0 != 0x80 else 0
        if dark:
            blank, held, held_chars = False, h, chars
        i += 1
    return h, chars, held, held_chars, min(i + 1, end), blank


@inlined
def _behind_blank_lines(data, i, end):
    j = i
    while j < end and data[j] <= 32:
        j += 1
        if data[j - 1] == 10:
            i = j
    return end if j == end else i
