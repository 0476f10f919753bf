"""Near duplicates: MinHash of word shingles, compared by bands (Broder 1997; Leskovec et al. 2020, ch. 3).

A word is a run of letters and digits in lower case; in scripts without spaces, what ``lmcore.data.segments``
finds. With ``numbers: fold`` any number is 0, so that texts of one template have the same shingles. Two
documents of Jaccard similarity J share a band of r values with chance J^r, and at least one of b bands with
1 - (1 - J^r)^b: 0.92 at J = 0.8 for 14 bands of 8, which are FineWeb's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lmcore.config import NearDedupConfig
from lmcore.data.arrow import text_buffers
from lmcore.data.characters import ALPHANUMERIC, DIGIT, character_flags, code_point
from lmcore.data.compiled import compiled, inlined, kept_table, uint32
from lmcore.data.lanes import LANES, MINIMA, NUMBERS, eight_at, in_ranges, lower_minima, trailing_zeros
from lmcore.data.lexicon import FNV_PRIME, FNV_START
from lmcore.data.room import Rooms
from lmcore.data.segments import spaced, unspaced_letters
from lmcore.data.words import mix, note_ones

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ALL, _ONE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(1)
_ZERO = uint32(ord("0"))
_LOWER_BITS = np.uint64(0x2020202020202020)
_KNOWN_BITS, _KNOWN_FACTOR = 13, np.uint64(0xC2B2AE3D27D4EB4F)
_SHINGLES = 1 << 10  # that are worked on at a time: they stay in the first cache

_beyond_ascii = in_ranges((0x80, 0xFF))
_digits = in_ranges((48, 57))
_alphanumeric = in_ranges((48, 57), (65, 90), (97, 122))


class Words(NamedTuple):
    """The words of one document. Filled again for each.

    Attributes:
        raw: Its bytes, with room behind them; uint8.
        inside: Which of them are of a word, as bits; uint64 [n / 64].
        odd: Which of them are no letters of ASCII.
        starts: First byte of each word; int32 [num_words].
        ends: The one behind its last.
        hashes: Of each word; uint64 [num_words].
        shingles: Of some runs of words; uint64.
        known: Words of up to 16 bytes, letters of ASCII in lower case, each with its hash; uint64 [3 n].
        table: Flags of each code point; uint32 [0x110000].
        lower: Lower case of each code point; uint32.
    """

    raw: np.ndarray
    inside: np.ndarray
    odd: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    shingles: np.ndarray
    known: np.ndarray
    table: np.ndarray
    lower: np.ndarray


def _new_words(size: int) -> Words:
    """Room for documents of up to ``size`` bytes."""
    blocks, most = size // LANES + 4, size // 2 + 2 * LANES
    return Words(
        np.empty(size + 3 * LANES, np.uint8),
        np.zeros(blocks, np.uint64),
        np.zeros(blocks, np.uint64),
        np.empty(most, np.int32),
        np.empty(most, np.int32),
        np.empty(most, np.uint64),
        np.empty(_SHINGLES + NUMBERS, np.uint64),
        np.zeros(3 << _KNOWN_BITS, np.uint64),
        _word_flags(),
        _lower_case(),
    )


# By whether any number is 0: the words that are known have other hashes then.
_rooms = (Rooms(_new_words), Rooms(_new_words))


def band_hashes(texts: pa.Array, config: NearDedupConfig, breaks: np.ndarray | None = None) -> np.ndarray:
    """Hash of each band of each document's signature; uint64 [n, num_bands], 0 where a text has no word.

    Args:
        texts: ``pa.large_string`` without nulls.
        config: Words of a shingle, bands, rows, seed and what numbers are.
        breaks: ``segments.word_breaks`` of ``texts``, if known.
    """
    data, offsets = text_buffers(spaced(texts, breaks))
    fold = int(config.numbers == "fold")
    draw = np.random.default_rng(config.seed)
    size = config.num_bands * config.band_rows
    # What is behind them fills up the last that are worked on together.
    factors, shifts = np.zeros((2, -(-size // MINIMA) * MINIMA), np.uint64)
    factors[:size], shifts[:size] = draw.integers(0, 2**64, (2, size), np.uint64)
    longest = int(np.diff(offsets).max(initial=0))
    bands = np.zeros((len(texts), config.num_bands), np.uint64)
    least = np.empty(len(factors), np.uint64)
    with _rooms[fold].take(longest) as words:
        _fill(
            data, offsets, config.shingle_words, config.band_rows, fold, factors, shifts, words, least, bands
        )
    return bands


def ngram_hashes(
    texts: pa.Array, size: int, breaks: np.ndarray | None = None, *, fold: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the runs of ``size`` words of ``texts``, one text after another.

    Args:
        texts: ``pa.large_string`` without nulls.
        size: Words of a run.
        breaks: ``segments.word_breaks`` of ``texts``, if known.
        fold: Whether any number is 0.

    Returns:
        Hashes, uint64 [sum of counts], and how many each text has, int64 [n].
    """
    data, offsets = text_buffers(spaced(texts, breaks))
    longest = int(np.diff(offsets).max(initial=0))
    # A word and the space behind it are two bytes at least.
    hashes = np.empty(int(offsets[-1] - offsets[0]) // 2 + len(texts) + 1, np.uint64)
    counts = np.zeros(len(texts), np.int64)
    with _rooms[fold].take(longest) as words:
        _fill_ngrams(data, offsets, size, int(fold), words, hashes, counts)
    total = int(counts.sum())
    return hashes[:total], counts


def unite(links: np.ndarray, first: np.ndarray) -> None:
    """Let ``first`` (int64 [n]: of each member the first of its cluster) know of ``links`` (int64 [m, 2])."""
    _unite(np.ascontiguousarray(links), first)
    _flatten(first)


@kept_table
def _word_flags() -> np.ndarray:
    """``character_flags``, in which vowel signs of scripts without spaces are of a word too."""
    flags = character_flags().copy()
    flags[unspaced_letters() != 0] |= np.uint32(ALPHANUMERIC)
    return flags


@kept_table
def _lower_case() -> np.ndarray:
    """Lower case of each code point, where it is a single one; uint32."""
    lower = [character.lower() for character in map(chr, range(0x1E944))]
    return np.array([ord(text) if len(text) == 1 else i for i, text in enumerate(lower)], np.uint32)


@compiled
def _fill(data, offsets, shingle_words, rows, fold, factors, shifts, words, least, bands):
    for d in range(len(offsets) - 1):
        count = _hash_words(data, offsets[d], offsets[d + 1], fold, words)
        if not count:
            continue
        for k in range(len(least)):
            least[k] = _ALL
        size = min(shingle_words, count)
        total = count - size + 1
        for first in range(0, total, _SHINGLES):
            some = min(_SHINGLES, total - first)
            _hash_shingles(words.hashes, first, some, size, words.shingles)
            for i in range(0, some, NUMBERS):
                for k in range(0, len(least), MINIMA):
                    # Multiply-shift (Dietzfelbinger 1996): the upper half of 64 bits, taken of the least of
                    # all. With 32-bit factors nothing would wrap around, and the least be the same for all.
                    lower_minima(least, k, factors, k, shifts, k, words.shingles, i)
        for band in range(bands.shape[1]):
            h = np.uint64(band) + _ONE
            for k in range(band * rows, (band + 1) * rows):
                h = mix(h ^ (least[k] >> np.uint64(32))) + _GOLDEN
            bands[d, band] = max(h, _ONE)


@inlined
def _hash_shingles(hashes, first, some, size, shingles):
    """Hash ``some`` runs of ``size`` words from ``first`` on, 32 bits each; the last one again behind."""
    for i in range(some):
        shingles[i] = FNV_START
    for j in range(first, first + size):
        for i in range(some):  # several at a time
            h = (shingles[i] ^ hashes[i + j]) * _GOLDEN
            shingles[i] = h ^ (h >> np.uint64(29))
    for i in range(some):
        shingles[i] = mix(shingles[i]) >> np.uint64(32)
    for i in range(some, some + NUMBERS):
        shingles[i] = shingles[some - 1]


@compiled
def _fill_ngrams(data, offsets, size, fold, words, hashes, counts):
    total = 0
    for d in range(len(offsets) - 1):
        count = _hash_words(data, offsets[d], offsets[d + 1], fold, words)
        for i in range(count - size + 1):
            h = FNV_START
            for j in range(i, i + size):
                h = (h ^ words.hashes[j]) * _GOLDEN
                h ^= h >> np.uint64(29)
            hashes[total] = mix(h)
            total += 1
        counts[d] = max(0, count - size + 1)


@compiled
def _hash_words(data, start, end, fold, words):
    """Hashes of the words of the UTF-8 bytes [start, end), with ``fold`` any number being 0; how many."""
    count = _find_words(data, start, end, words)
    for w in range(count):
        first, behind = np.int64(words.starts[w]), np.int64(words.ends[w])
        is_odd = (words.odd[behind >> 6] >> np.uint64(behind & 63)) & _ONE != np.uint64(0)
        size = behind - first
        if size > 16:
            words.hashes[w] = _hash_of(words, first, behind, fold)
            continue
        # Most are short and come again and again; letters of ASCII in either case.
        lower = np.uint64(0) if is_odd else _LOWER_BITS
        some, rest = min(size, 8), max(size, 8) - 8
        key = (eight_at(words.raw, first) | lower) & (_ALL >> np.uint64(8 * (8 - some)))
        more = (eight_at(words.raw, first + 8) | lower) & ((_ONE << np.uint64(8 * (rest & 7))) - _ONE)
        if rest == 8:
            more = eight_at(words.raw, first + 8) | lower
        place = 3 * np.int64(((key ^ (more * _KNOWN_FACTOR)) * _GOLDEN) >> np.uint64(64 - _KNOWN_BITS))
        if words.known[place] != key or words.known[place + 1] != more:
            words.known[place], words.known[place + 1] = key, more
            words.known[place + 2] = _hash_of(words, first, behind, fold)
        words.hashes[w] = words.known[place + 2]
    return count


@inlined
def _find_words(data, start, end, words):
    """Note where words start and end, and, as bits behind them, which are odd; how many there are."""
    size = end - start
    for i in range(size):
        words.raw[i] = data[start + i]
    for i in range(size, size + 2 * LANES):
        words.raw[i] = 32
    blocks = (size >> 6) + 1
    count = behind = 0
    before, carry, rest = np.uint64(0), np.uint64(0), np.uint64(0)
    covered = 0
    for b in range(blocks):
        base = b << 6
        inside, beyond = _alphanumeric(words.raw, base), _beyond_ascii(words.raw, base)
        odd = _digits(words.raw, base) | beyond
        inside |= rest
        odd |= rest
        rest = np.uint64(0)
        while beyond:
            i = base + np.int64(trailing_zeros(beyond))
            beyond &= beyond - _ONE
            if i < covered:
                continue
            c, length = code_point(words.raw, i)
            covered = i + length
            if words.table[c] & uint32(ALPHANUMERIC):
                every = (_ONE << np.uint64(length)) - _ONE
                inside |= every << np.uint64(i - base)
                if covered > base + 64:
                    rest = every >> np.uint64(base + 64 - i)
        odd &= inside
        starts = inside & ~((inside << _ONE) | before)
        ends = ~inside & ((inside << _ONE) | before)
        before = inside >> np.uint64(63)
        # Adding some bits of a word to all of its bits carries one to the byte behind it.
        some = inside + odd
        every = some + carry
        carry = np.uint64(some < inside) | np.uint64(every < some)
        words.odd[b] = every & ends
        count = note_ones(starts, base, words.starts, count)
        behind = note_ones(ends, base, words.ends, behind)
    return count


@inlined
def _hash_of(words, start, end, fold):
    """Hash of one word: in lower case, with ``fold`` each number in it 0 (FNV-1a, mixed)."""
    h, number, i = FNV_START, False, start
    while i < end:
        c, size = uint32(words.raw[i]), 1
        if c >= 0x80:
            c, size = code_point(words.raw, i)
        i += size
        digit = (fold != 0) and (words.table[c] & uint32(DIGIT) != 0)
        if digit and number:
            continue
        number = digit
        c = _ZERO if digit else words.lower[c] if c < len(words.lower) else c
        h = (h ^ np.uint64(c)) * FNV_PRIME
    return mix(h)


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
