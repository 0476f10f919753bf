"""Near duplicates: MinHash of word shingles, compared by bands (Broder 1997; Leskovec et al. 2020, ch. 3).

A word is a run of letters and digits in lower case, any number being 0, so that what a reader takes for the
same text has the same shingles. Two documents of Jaccard similarity J share a band of r values with chance
J^r, and at least one of b bands with 1 - (1 - J^r)^b: 0.92 at J = 0.8 for 14 bands of 8, which are FineWeb's.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lmcore.config import NearDedupConfig
from lmcore.data.arrow import text_buffers
from lmcore.data.characters import ALPHANUMERIC, DIGIT, character_flags, code_point
from lmcore.data.compiled import compiled, kept_table, uint32
from lmcore.data.lexicon import FNV_PRIME, FNV_START
from lmcore.data.words import mix

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ZERO = uint32(ord("0"))


def band_hashes(texts: pa.Array, config: NearDedupConfig) -> np.ndarray:
    """Hash of each band of each document's signature; uint64 [n, num_bands], 0 where a text has no word.

    Args:
        texts: ``pa.large_string`` without nulls.
        config: Words of a shingle, bands, rows and seed.
    """
    data, offsets = text_buffers(texts)
    draw = np.random.default_rng(config.seed)
    size = config.num_bands * config.band_rows
    factors, shifts = draw.integers(0, 2**64, (2, size), np.uint64)
    longest = int(np.diff(offsets).max(initial=0))
    bands = np.zeros((len(texts), config.num_bands), np.uint64)
    _fill(
        data,
        offsets,
        character_flags(),
        _lower_case(),
        config.shingle_words,
        factors,
        shifts,
        np.empty(longest + 1, np.uint64),
        np.empty(size, np.uint32),
        bands,
    )
    return bands


def ngram_hashes(texts: pa.Array, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the runs of ``size`` words of ``texts``, one text after another.

    Args:
        texts: ``pa.large_string`` without nulls.
        size: Words of a run.

    Returns:
        Hashes, uint64 [sum of counts], and how many each text has, int64 [n].
    """
    data, offsets = text_buffers(texts)
    longest = int(np.diff(offsets).max(initial=0))
    # A word and the space behind it are two bytes at least.
    hashes = np.empty(int(offsets[-1] - offsets[0]) // 2 + len(texts) + 1, np.uint64)
    counts = np.zeros(len(texts), np.int64)
    table, lower = character_flags(), _lower_case()
    _fill_ngrams(data, offsets, table, lower, size, np.empty(longest + 1, np.uint64), hashes, counts)
    total = int(counts.sum())
    return hashes[:total], counts


def unite(links: np.ndarray, first: np.ndarray) -> None:
    """Let ``first`` (int64 [n]: of each member the first of its cluster) know of ``links`` (int64 [m, 2])."""
    _unite(np.ascontiguousarray(links), first)
    _flatten(first)


@kept_table
def _lower_case() -> np.ndarray:
    """Lower case of each code point, where it is a single one; uint32."""
    lower = [character.lower() for character in map(chr, range(0x1E944))]
    return np.array([ord(text) if len(text) == 1 else i for i, text in enumerate(lower)], np.uint32)


@compiled
def _fill(data, offsets, table, lower, shingle_words, factors, shifts, words, least, bands):
    num_bands = bands.shape[1]
    rows = len(factors) // num_bands
    for d in range(len(offsets) - 1):
        count = _hash_words(data, offsets[d], offsets[d + 1], table, lower, words)
        if not count:
            continue
        for k in range(len(least)):
            least[k] = uint32(0xFFFFFFFF)
        size = min(shingle_words, count)
        for i in range(count - size + 1):
            h = FNV_START
            for j in range(i, i + size):
                h = (h ^ words[j]) * _GOLDEN
                h ^= h >> np.uint64(29)
            _lower_minima(uint32(mix(h) >> np.uint64(32)), factors, shifts, least)
        for band in range(num_bands):
            h = np.uint64(band) + np.uint64(1)
            for k in range(band * rows, (band + 1) * rows):
                h = mix(h ^ np.uint64(least[k])) + _GOLDEN
            bands[d, band] = max(h, np.uint64(1))


@compiled
def _fill_ngrams(data, offsets, table, lower, size, words, hashes, counts):
    total = 0
    for d in range(len(offsets) - 1):
        count = _hash_words(data, offsets[d], offsets[d + 1], table, lower, words)
        for i in range(count - size + 1):
            h = FNV_START
            for j in range(i, i + size):
                h = (h ^ words[j]) * _GOLDEN
                h ^= h >> np.uint64(29)
            hashes[total] = mix(h)
            total += 1
        counts[d] = max(0, count - size + 1)


@compiled
def _lower_minima(x, factors, shifts, least):
    # Multiply-shift (Dietzfelbinger 1996): the upper half of 64 bits. With 32-bit factors nothing would wrap
    # around, and the least word would be the same for all.
    for k in range(len(least)):
        value = uint32((factors[k] * np.uint64(x) + shifts[k]) >> np.uint64(32))
        least[k] = min(least[k], value)


@compiled
def _hash_words(data, start, end, table, lower, words):
    """Hashes of the words of the UTF-8 bytes [start, end); how many."""
    count, h = 0, FNV_START
    inside = number = False
    i = start
    while i < end:
        c, size = uint32(data[i]), 1
        if c >= 0x80:
            c, size = code_point(data, i)
        i += size
        flags = table[c]
        if flags & uint32(ALPHANUMERIC):
            digit = flags & uint32(DIGIT) != 0
            if digit and inside and number:
                continue
            number, inside = digit, True
            c = _ZERO if digit else lower[c] if c < len(lower) else c
            h = (h ^ np.uint64(c)) * FNV_PRIME
        elif inside:
            words[count] = mix(h)
            count += 1
            inside, h = False, FNV_START
    if inside:
        words[count] = mix(h)
        count += 1
    return count


@compiled
def _root(first, i):
    while first[i] != i:
        first[i] = first[first[i]]
        i = first[i]
    return i


@compiled
def _unite(links, first):
    for k in range(len(links)):
        a, b = _root(first, links[k, 0]), _root(first, links[k, 1])
        first[max(a, b)] = min(a, b)


@compiled
def _flatten(first):
    for i in range(len(first)):
        first[i] = first[first[i]]
