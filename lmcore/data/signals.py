"""Measure documents: the figures that quality rules look at, in one compiled pass over their bytes.

The definitions are those of datatrove's filters for Gopher (Rae et al. 2021), C4 (Raffel et al. 2020) and
FineWeb (Penedo et al. 2024), and of StarCoder (Li et al. 2023) for code. C4 also takes lines out of a
document; FineWeb then looks at what is left.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lmcore.config import C4LineRules, QualityConfig
from lmcore.data.arrow import text_buffers
from lmcore.data.characters import (
    ALPHANUMERIC,
    BULLET,
    ELLIPSIS,
    OTHER_LINE_ENDS,
    OTHERS,
    PUNCTUATION,
    QUOTE,
    SENTENCE_END,
    SPACE,
    character_flags,
    code_point,
)
from lmcore.data.compiled import compiled, inlined, uint32
from lmcore.data.lanes import LANES, begins, copy64, in_ranges, ones
from lmcore.data.lexicon import STOP_WORDS, english
from lmcore.data.quality import CODE_SIGNALS, TEXT_SIGNALS, takes_lines_out
from lmcore.data.room import Rooms, sparse_zeros
from lmcore.data.segments import word_breaks
from lmcore.data.words import (
    ALPHABETIC_WORDS,
    CHARS,
    ENDERS,
    STOP_WORDS_FOUND,
    WORDS,
    Page,
    digest_of,
    flags_at,
    hash_bytes,
    mark_breaks,
    mix,
    new_page,
    next_one,
    split_words,
    spread,
)

__all__ = ["STOP_WORDS", "Measured", "measure", "measure_code", "measure_text"]

SHORT_LINE_CHARS = 30
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TIME, _TICK, _SEEN = np.uint64(0xFFFFFFFF00000000), np.uint64(1 << 32), np.uint64(0xFFFFFFFF)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_LINE, _PARAGRAPH, _KEPT = np.uint64(1), np.uint64(2), np.uint64(3)

_line_ends = in_ranges((10, 13), (28, 30), (OTHER_LINE_ENDS, OTHERS - 1))
_newlines = in_ranges((10, 10))
# Where something begins that C4 or Gopher look for: the rarest letters of phrases, and some marks.
_notable = begins(b"...", b"#", b"{", b"[", bytes([ELLIPSIS]), b"ja", b"va", b"ms", b"ki", b"em ")


class Counts(NamedTuple):
    """A hash table that is emptied by raising its clock.

    Attributes:
        slots: Each a key, and how often it was seen in the lower half of a word whose upper half is the
            time; uint64 [a power of 2, 2].
        clock: The present, in the upper half; uint64 [1].
    """

    slots: np.ndarray
    clock: np.ndarray


class Lines(NamedTuple):
    """Where lines of a page end and what is notable in them.

    Attributes:
        ends: Which characters end a line, as bits; that behind the last too; uint64 [n / 64].
        notable: At which something begins that is looked for; that behind the last too.
    """

    ends: np.ndarray
    notable: np.ndarray


class Grams(NamedTuple):
    """Runs of n words of a page, found by their hash.

    Attributes:
        hashes: Of the run that begins at each word, from 1 on; uint64 [num_words + 1].
        seen: How often it is there, where it is there first; int32 [num_words + 1].
        repeated: Whether it is there more than once, for each word; uint8 [num_words + 1].
        places: Words at which one begins that may be; int32 [num_words].
        runs: How many repeated runs begin one after another at each word; int32 [num_words].
        table: Where a run is there first, from 1 on, by its hash; int32 [a power of 2].
    """

    hashes: np.ndarray
    seen: np.ndarray
    repeated: np.ndarray
    places: np.ndarray
    runs: np.ndarray
    table: np.ndarray


def _new_grams(size: int) -> Grams:
    return Grams(
        np.empty(size + 2, np.uint64),
        np.empty(size + 2, np.int32),
        np.empty(size + 2, np.uint8),
        np.empty(size + 2, np.int32),
        np.empty(size + 2, np.int32),
        np.empty(_table_size(size), np.int32),
    )


def _table_size(size: int) -> int:
    return 1 << (4 * size + 64).bit_length()


class LineRules(NamedTuple):
    """What C4 takes out, as numbers; ``active`` 0: nothing."""

    active: int
    min_line_words: int
    max_word_chars: int
    require_end_mark: int


@inlined
def _place(counts, mask, h):
    """Where ``h`` is, or may be put; and whether it is there."""
    place = h & mask
    while counts.slots[place, 1] & _TIME == counts.clock[0]:
        if counts.slots[place, 0] == h:
            return place, True
        place = (place + np.uint64(1)) & mask
    return place, False


@inlined
def _is_repeated(counts, mask, h):
    """Whether ``h`` was asked for before at this time."""
    place, found = _place(counts, mask, h)
    if not found:
        counts.slots[place, 0], counts.slots[place, 1] = h, counts.clock[0]
    return found


@inlined
def _mask_for(size, most):
    mask = np.uint64(63)
    while np.int64(mask) < size and np.int64(mask) < most:
        mask = mask * np.uint64(2) + np.uint64(1)
    return mask


# --- words and n-grams -----------------------------------------------------------------------------


@inlined
def _measure_words(page, count, row):
    """Figures of words."""
    tally = page.tally
    row[13], row[14] = tally[WORDS], tally[CHARS] / max(tally[WORDS], 1)
    row[19], row[20] = tally[ALPHABETIC_WORDS] / max(count, 1), ones(np.uint64(tally[STOP_WORDS_FOUND]))


@compiled
def _measure_grams(page, count, num_chars, grams, counts, row):
    """Shares of the characters in the most frequent 2- to 4-grams, and in repeated 5- to 10-grams."""
    for i in range(count - 1):
        grams.hashes[i + 1] = _longer(page.digest[i], page.digest[i + 1])
    candidates, mask = count - 1, _mask_for(2 * count, len(grams.table) - 1)
    _clear(grams, count, mask)
    for i in range(candidates):
        grams.places[i] = i
        _count_gram(grams, i, mask)
    row[4] = _top_gram(page, grams, count, 2) / num_chars
    for n in range(3, 5):
        candidates = _candidates(page, grams, candidates, count, n)
        mask = _mask_for(2 * candidates, len(grams.table) - 1)
        _clear(grams, count, mask)
        for k in range(candidates):
            _count_gram(grams, np.int64(grams.places[k]), mask)
        row[2 + n] = _top_gram(page, grams, count, n) / num_chars
    # A longer one can only be repeated where every 4-gram in it is.
    longest = run = 0
    for i in range(count - 1, -1, -1):
        run = run + 1 if grams.repeated[i] else 0
        grams.runs[i] = run
        longest = max(longest, run)
    mask = _mask_for(2 * candidates, len(counts.slots) - 1)
    for n in range(5, min(10, longest + 3) + 1):
        row[2 + n] = _repeated_grams(page, grams, count, n, counts, mask) / num_chars


@inlined
def _longer(h, digest):
    return (h * _GOLDEN) ^ (digest + (h >> np.uint64(29)))


@inlined
def _candidates(page, grams, before, count, n):
    """Hash the n-grams both parts of which are repeated: no other can be; how many there are."""
    found = 0
    for k in range(before):
        i = np.int64(grams.places[k])
        if i + n > count:
            break
        grams.places[found] = i
        found += np.int64(grams.repeated[i] & grams.repeated[i + 1])
    for k in range(found):
        i = np.int64(grams.places[k])
        grams.hashes[i + 1] = _longer(grams.hashes[i + 1], page.digest[i + n - 1])
    return found


@inlined
def _clear(grams, count, mask):
    for i in range(np.int64(mask) + 1):
        grams.table[i] = 0
    for i in range(count + 1):
        grams.repeated[i] = 0
        grams.seen[i] = 0


@inlined
def _count_gram(grams, i, mask):
    """Count the n-gram at word ``i`` where it was first seen."""
    h = grams.hashes[i + 1]
    place = h & mask
    found = grams.table[place]
    while found and grams.hashes[found] != h:
        place = (place + np.uint64(1)) & mask
        found = grams.table[place]
    # Whether it was seen before is no branch: it would be guessed wrong too often.
    first = np.int64(found) if found else i + 1
    grams.table[place] = first
    grams.seen[first] += 1
    grams.repeated[i] = found != 0
    grams.repeated[first - 1] |= found != 0


@inlined
def _top_gram(page, grams, count, n):
    """Characters in the most frequent n-gram, of several the first, with spaces between its words."""
    if count < n:
        return np.int64(0)
    most, top = 1, 0
    for i in range(1, count + 1):
        most = max(most, np.int64(grams.seen[i]))
    if most > 1:
        while grams.seen[top + 1] != most:
            top += 1
    return np.int64(most * (page.before[top + n] - page.before[top] + n - 1))


@compiled
def _repeated_grams(page, grams, count, n, counts, mask):
    """Characters in n-grams that came before, none counted twice."""
    counts.clock[0] += _TICK
    chars = i = 0
    while i <= count - n:
        if grams.runs[i] < n - 3:
            i += 1
            continue
        h = grams.hashes[i + 1]  # of its first four
        for j in range(i + 4, i + n):
            h = (h ^ page.digest[j]) * _GOLDEN
            h ^= h >> np.uint64(31)
        if _is_repeated(counts, mask, h):
            chars += page.before[i + n] - page.before[i]
            i += n
        else:
            i += 1
    return chars


# --- lines -----------------------------------------------------------------------------------------


@inlined
def _find_lines(page, n, all_ends, lines):
    """Fill in ``lines``; without ``all_ends`` only new lines end one."""
    for b in range((n >> 6) + 1):
        lines.ends[b] = _line_ends(page.kind, b << 6) if all_ends else _newlines(page.kind, b << 6)
        lines.notable[b] = _notable(page.kind, b << 6)
    behind = np.uint64(1) << np.uint64(n & 63)
    lines.ends[n >> 6] |= behind
    lines.notable[n >> 6] |= behind


@compiled
def _contains_at(page, i, end, phrase):
    """Whether ``phrase`` (lower case) stands at ``i``, in any case of ASCII."""
    if i + len(phrase) > end:
        return False
    for j in range(len(phrase)):
        c = page.kind[i + j]
        if c != phrase[j] and not (65 <= c <= 90 and c + 32 == phrase[j]):
            return False
    return True


@compiled
def _citation(page, i, end):
    """Length of a mark like [12], [edit] or [citation needed] at ``i``; 0: none."""
    j = i + 1
    while j < end and 48 <= page.kind[j] <= 57:
        j += 1
    if j < end and page.kind[j] == ord("]"):
        return j + 1 - i
    if _contains_at(page, i, end, _EDIT):
        return len(_EDIT)
    return len(_CITATION_NEEDED) if _contains_at(page, i, end, _CITATION_NEEDED) else 0


@compiled
def _is_unwanted(page, i, start, end):
    """Whether ``i`` is the rarest letter of a phrase for which C4 takes a line out."""
    c = page.kind[i] | 32
    if c == ord("j"):
        return _contains_at(page, i, end, _JAVASCRIPT)
    if i - start < 3:
        return False
    if c == ord("v"):
        return _contains_at(page, i - 3, end, _PRIVACY)
    if c == ord("m"):
        return _contains_at(page, i - 3, end, _TERMS)
    if c != ord("k") or not _contains_at(page, i - 3, end, _COOKIE):
        return False
    if _contains_at(page, i - 3, end, _COOKIE_POLICY) or (
        i - start >= 7 and _contains_at(page, i - 7, end, _USE)
    ):
        return True
    uses = i - start >= 8 and _contains_at(page, i - 8, end, _USES)
    return uses or (i - start >= 10 and _contains_at(page, i - 10, end, _USE_OF))


@compiled
def _dots_from(page, i, end):
    """Dots one after another from ``i`` on."""
    j = i
    while j < end and page.kind[j] == ord("."):
        j += 1
    return j - i


@inlined
def _look_at_line(page, notable, i, start, end, n):
    """Look at what is notable in the line [start, end), the first of which is at ``i``.

    Returns:
        Hashes, ellipses, and whether it holds a citation, a curly bracket, lorem ipsum, an unwanted phrase.
    """
    hashes = ellipses = dotted = 0
    cited = curly = lorem = unwanted = False
    while i < end:
        c = page.kind[i]
        if c == ord("."):
            if i >= dotted:
                dots = _dots_from(page, i, end)
                ellipses, dotted = ellipses + dots // 3, i + dots
        elif c == ord("#"):
            hashes += 1
        elif c == ELLIPSIS:
            ellipses += 1
        elif c == ord("{"):
            curly = True
        elif c == ord("["):
            cited |= _citation(page, i, n) > 0
        elif c | 32 == ord("e"):
            lorem |= i - start >= 3 and _contains_at(page, i - 3, n, _LOREM)
        else:
            unwanted |= _is_unwanted(page, i, start, n)
        i = next_one(notable, i + 1)
    return hashes, ellipses, cited, curly, lorem, unwanted


@inlined
def _runs_in(page, start, end):
    """Runs between spaces of the line [start, end); in scripts without spaces, words."""
    if start == end:
        return 0
    runs, before = 0, np.uint64(1)
    for b in range(start >> 6, ((end - 1) >> 6) + 1):
        spaces, cuts = page.spaces[b], page.cuts[b] & page.letters[b]
        first, last = max(start - (b << 6), 0), min(end - (b << 6), 64)
        inside = (_ALL >> np.uint64(64 - (last - first))) << np.uint64(first)
        begins_run = ~spaces & ((spaces << np.uint64(1)) | (before << np.uint64(first)) | cuts) & inside
        runs += np.int64(ones(begins_run))
        before = spaces >> np.uint64(63)
    return runs


@inlined
def _longest_in(page, start, end):
    """Characters of the longest run between spaces, or cuts, of the line [start, end)."""
    longest, gap = 0, start - 1
    for i in range(start, end):
        cut = (page.cuts[i >> 6] >> np.uint64(i & 63)) & np.uint64(1) != np.uint64(0)
        if cut or flags_at(page, i) & uint32(SPACE):
            longest = max(longest, i - gap - 1)
            gap = i - 1 if cut else i
    return max(longest, end - gap - 1)


@inlined
def _count_sentences(page, first, last, end, cited, ender):
    """Sentences and words among the words [first, last) of a line; citations are skipped.

    ``ender`` is the first of ``page.enders`` that is not before ``first``.
    """
    sentences, words = 1, last - first
    if not cited:
        w = first
        while ender < page.tally[ENDERS] and page.enders[ender] < last:
            w = page.enders[ender] + 1
            ender += 1
            # Until the next one, or the end of the line, some word must be more than marks.
            until = page.enders[ender] if ender < page.tally[ENDERS] else last
            while w < min(until, last):
                if _is_more_than_marks(page, w):
                    sentences += 1
                    break
                w += 1
        return sentences, words
    after, skip_to = False, 0
    for w in range(first, last):
        start = page.start[w]
        size = _citation(page, start, end) if page.kind[start] == ord("[") and start >= skip_to else 0
        skip_to = max(skip_to, start + size)
        if start < skip_to:
            words -= 1
        elif page.end[w] - start == 1 and flags_at(page, start) & uint32(SENTENCE_END):
            after = True
        elif after and _is_more_than_marks(page, w):
            sentences, after = sentences + 1, False
    return sentences, words


@inlined
def _is_more_than_marks(page, w):
    for i in range(page.start[w], page.end[w]):
        if not flags_at(page, i) & uint32(PUNCTUATION):
            return True
    return False


@inlined
def _append(page, start, end, cleaned, at):
    """Copy the characters [start, end) to ``cleaned``; where they end there."""
    first, size = np.int64(page.offset[start]), np.int64(page.offset[end] - page.offset[start])
    for done in range(0, size, 64):
        copy64(cleaned, at + done, page.raw, first + done)
    return at + size


@compiled
def _copy_line(page, start, end, cleaned, at):
    """Copy a line without its citations to ``cleaned``.

    Returns:
        Where it ends there, its length in characters and the flags of its last one.
    """
    length, last, i = 0, uint32(0), start
    while i < end:
        size = _citation(page, i, end) if page.kind[i] == ord("[") else 0
        if size:
            i += size
            continue
        length, last = length + 1, flags_at(page, i)
        for byte in range(page.offset[i], page.offset[i + 1]):
            cleaned[at] = page.raw[byte]
            at += 1
        i += 1
    return at, length, last


@inlined
def _strip(page, start, end):
    while start < end and flags_at(page, start) & uint32(SPACE):
        start += 1
    while end > start and flags_at(page, end - 1) & uint32(SPACE):
        end -= 1
    return start, end


@inlined
def _ends_in_dots(page, start, end):
    dots = page.kind[end - 1] == page.kind[end - 2] == page.kind[end - 3] == ord(".")
    return end - start >= 3 and dots


@inlined
def _ends_in_ellipsis(page, start, end):
    if page.kind[end - 1] == ELLIPSIS:
        return True
    return _ends_in_dots(page, start, end)


@inlined
def _has_end_mark(page, start, end):
    c = page.kind[end - 1]
    if c >= 0x80:
        quoted = flags_at(page, end - 1) & uint32(QUOTE) and end - start >= 2
        return flags_at(page, end - 2 if quoted else end - 1) & uint32(SENTENCE_END) != 0
    ends = c == ord(".") or c == ord("?") or c == ord("!") or c == ord('"') or c == ord("'")
    return ends and not _ends_in_dots(page, start, end)


@compiled
def _measure_lines(page, n, count, rules, counts, lines, row, cleaned, at, base, moves, moved):
    """Figures of lines and paragraphs; with C4's rules, what they leave goes to ``cleaned`` from ``at``.

    Where ``moved[1]`` asks for it, ``moves`` gets the new and the old place of each line, and its bytes, of a
    text at ``base``; ``moved[0]`` counts them. ``moved[2]`` is set where that does not say all.
    """
    counts.clock[0] += _TICK
    active = rules.active != 0
    _find_lines(page, n, active, lines)
    ends = 0
    for b in range((n >> 6) + 1):
        ends += np.int64(ones(lines.ends[b]))
    mask = _mask_for(6 * ends + 6, len(counts.slots) - 1)  # a line, a paragraph and what is left of each
    num_chars, begin = max(n, 1), at
    num_lines = same_lines = same_line_chars = 0
    paragraphs = same_paragraphs = same_paragraph_chars = 0
    all_lines = bullets = trailing = hashes = ellipses = 0
    kept = ended = short = repeated = kept_chars = kept_words = sentences = 0
    paragraph, paragraph_start, paragraph_end = np.uint64(0), -1, 0
    low, high = _strip(page, 0, n)
    i = w = ender = 0
    noted = next_one(lines.notable, 0)
    while i < n:
        start, first = i, w
        end = next_one(lines.ends, i)
        i, h = end + 1, digest_of(page, start, end)
        marks = dots = 0
        cited = curly = lorem = unwanted = False
        if noted < end:
            found = _look_at_line(page, lines.notable, noted, start, end, n)
            marks, dots, cited, curly, lorem, unwanted = found
            noted = next_one(lines.notable, end)
        hashes, ellipses, all_lines = hashes + marks, ellipses + dots, all_lines + 1
        while w < count and page.start[w] < end:
            w += 1
        a, b = _strip(page, start, end)
        if a < b:
            bullets += 1 if page.kind[a] == BULLET or page.kind[a] == ord("-") else 0
            trailing += 1 if _ends_in_ellipsis(page, a, b) else 0
        if end > start or start == 0:
            num_lines += 1
            if _is_repeated(counts, mask, h ^ _LINE):
                same_lines, same_line_chars = same_lines + 1, same_line_chars + end - start
        inner_start, inner_end = max(start, low), min(end, high)
        if inner_end > inner_start:
            if paragraph_start < 0:
                paragraph_start = inner_start
            paragraph_end = inner_end
            whole = inner_start == start and inner_end == end
            paragraph = (paragraph ^ (h if whole else digest_of(page, inner_start, inner_end))) * _GOLDEN
        if paragraph_start >= 0 and (end == start or i >= high):
            paragraphs += 1
            length = paragraph_end - paragraph_start
            if _is_repeated(counts, mask, mix(paragraph ^ np.uint64(length)) ^ _PARAGRAPH):
                same_paragraphs, same_paragraph_chars = same_paragraphs + 1, same_paragraph_chars + length
            paragraph, paragraph_start = np.uint64(0), -1
        line_words, last, length = w - first, uint32(0), end - start
        if active:
            if a == b or _runs_in(page, start, end) < rules.min_line_words:
                continue
            if length > rules.max_word_chars and _longest_in(page, start, end) > rules.max_word_chars:
                continue
            if rules.require_end_mark and not _has_end_mark(page, a, b):
                continue
            row[21] += lorem
            if unwanted:
                continue
            row[22] += curly
            while ender < page.tally[ENDERS] and page.enders[ender] < first:
                ender += 1
            more, line_words = _count_sentences(page, first, w, b, cited, ender)
            sentences += more
            if at > begin:
                cleaned[at] = 10
                at += 1
            if cited or moved[0] == len(moves):
                moved[2] = 1
            elif moved[1]:
                k, begin_of_line = moved[0], np.int64(page.offset[a])
                moves[k, 0], moves[k, 1] = at, base + begin_of_line
                moves[k, 2] = np.int64(page.offset[b]) - begin_of_line
                moved[0] = k + 1
            if cited:
                copied = at
                at, length, last = _copy_line(page, a, b, cleaned, at)
                h = hash_bytes(cleaned, copied, at)
            else:
                if a > start or b < end:
                    h, length = digest_of(page, a, b), b - a
                last = flags_at(page, b - 1)
                at = _append(page, a, b, cleaned, at)
        elif a == b:
            continue
        else:
            last = flags_at(page, end - 1)
        kept, kept_chars, kept_words = kept + 1, kept_chars + length, kept_words + line_words
        repeated += length if _is_repeated(counts, mask, h ^ _KEPT) else 0
        ended += 1 if last & uint32(SENTENCE_END) else 0
        short += 1 if length <= SHORT_LINE_CHARS else 0
    if n and page.kind[n - 1] == 10:  # an empty line more, and again if the text begins with one
        num_lines, same_lines = num_lines + 1, same_lines + (1 if page.kind[0] == 10 else 0)
    row[0], row[1] = same_lines / max(num_lines, 1), same_paragraphs / max(paragraphs, 1)
    row[2], row[3] = same_line_chars / num_chars, same_paragraph_chars / num_chars
    row[15], row[16] = hashes / max(count, 1), ellipses / max(count, 1)
    row[17], row[18] = bullets / max(all_lines, 1), trailing / max(all_lines, 1)
    row[23] = sentences
    row[24], row[25] = ended / max(kept, 1), short / max(kept, 1)
    row[26], row[27] = repeated / max(kept_chars, 1), max(kept - 1, 0) / max(kept_words, 1)
    return at


# --- batches ---------------------------------------------------------------------------------------


@compiled
def _measure_texts(
    data,
    offsets,
    breaks,
    lexicon,
    rules,
    page,
    grams,
    counts,
    lines,
    rows,
    cleaned,
    ends,
    moves,
    moved,
    again,
):
    at = first = 0
    for d in range(len(offsets) - 1):
        n = spread(data, offsets[d], offsets[d + 1], page)
        last = first
        while last < len(breaks) and breaks[last] <= offsets[d + 1]:
            last += 1
        mark_breaks(page, n, breaks, first, last, offsets[d])
        moved[1], moved[2] = last - first, 0
        first = last
        count = split_words(page, n, lexicon)
        _measure_words(page, count, rows[d])
        _measure_grams(page, count, max(n, 1), grams, counts, rows[d])
        at = _measure_lines(
            page, n, count, rules, counts, lines, rows[d], cleaned, at, offsets[d], moves, moved
        )
        ends[d + 1] = at
        again[d] = moved[1] > 0 and moved[2] > 0


@compiled
def _measure_codes(data, offsets, table, rows):
    """Longest and mean line, and the share of letters and digits, of each document."""
    for d in range(len(offsets) - 1):
        longest = length = chars = alphanumeric = 0
        lines, i = 1, offsets[d]
        while i < offsets[d + 1]:
            c, size = uint32(data[i]), 1
            if c >= 0x80:
                c, size = code_point(data, i)
            i += size
            chars += 1
            if c == 10:
                lines, length = lines + 1, 0
            else:
                length += 1
                longest = max(longest, length)
                alphanumeric += 1 if table[c] & uint32(ALPHANUMERIC) else 0
        rows[d, 0], rows[d, 1] = longest, (chars - lines + 1) / lines
        rows[d, 2] = alphanumeric / max(chars, 1)
        rows[d, 5] = chars


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("ascii"), np.uint8)


_JAVASCRIPT, _LOREM, _TERMS = _codes("javascript"), _codes("lorem ipsum"), _codes("terms of use")
_PRIVACY, _COOKIE, _COOKIE_POLICY = _codes("privacy policy"), _codes("cookie"), _codes("cookie policy")
_USES, _USE_OF, _USE = _codes("uses cookies"), _codes("use of cookies"), _codes("use cookies")
_EDIT, _CITATION_NEEDED = _codes("[edit]"), _codes("[citation needed]")


@dataclass(frozen=True)
class Measured:
    """A batch of documents and their figures.

    Attributes:
        texts: What is left of each; ``pa.large_string`` [n].
        signals: By name; float64 [n].
        breaks: ``word_breaks`` of the texts, where they are known.
    """

    texts: pa.Array
    signals: dict[str, np.ndarray]
    breaks: np.ndarray | None = None

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        _, offsets = text_buffers(self.texts)
        return int(offsets[-1] - offsets[0])


def measure(texts: pa.Array, config: QualityConfig) -> Measured:
    """Measure ``texts`` (``pa.large_string`` without nulls) for the rules of ``config.profile``."""
    if config.profile == "none":
        return Measured(texts, {"chars": _chars(texts)})
    if config.profile == "code":
        return measure_code(texts)
    return measure_text(texts, config.c4_lines if takes_lines_out(config) else None)


def _new_room(size: int) -> tuple[Page, Grams, Counts, Lines]:
    """Room for documents of up to ``size`` bytes."""
    lines = Lines(np.empty(size // LANES + 4, np.uint64), np.empty(size // LANES + 4, np.uint64))
    counts = Counts(sparse_zeros((_table_size(size), 2), np.uint64), np.full(1, _TICK))
    return new_page(size), _new_grams(size), counts, lines


_rooms = Rooms(_new_room)


def measure_text(texts: pa.Array, rules: C4LineRules | None) -> Measured:
    """Measure prose (``chars`` and ``TEXT_SIGNALS``); with ``rules`` take out the lines that C4 would.

    Args:
        texts: ``pa.large_string`` without nulls.
        rules: C4's, or None to leave the text as it is.
    """
    data, offsets = text_buffers(texts)
    most = int(np.diff(offsets).max(initial=0))
    of_lines = LineRules(0, 0, 0, 0)
    if rules is not None:
        of_lines = LineRules(1, rules.min_line_words, rules.max_word_chars, int(rules.require_end_mark))
    rows = np.zeros((len(texts), len(TEXT_SIGNALS)))
    # One line end for each document, which a citation alone on its line may leave behind.
    cleaned = np.empty(len(data) + len(texts) + LANES if rules else 0, np.uint8)
    ends = np.zeros(len(texts) + 1, np.int64)
    with _rooms.take(most) as room:
        counts = room[2]
        if counts.clock[0] >> np.uint64(63):  # long before it is at its end
            counts.slots[:], counts.clock[:] = 0, _TICK
        breaks = word_breaks(data, offsets)
        many = np.count_nonzero(data == ord("\n")) + len(texts) if rules and len(breaks) else 0
        moves, moved, again = np.empty((many, 3), np.int64), np.zeros(3, np.int64), np.zeros(len(texts), bool)
        outputs = (rows, cleaned, ends, moves, moved, again.view(np.uint8))
        _measure_texts(data, offsets, breaks, english(), of_lines, *room, *outputs)
    signals = {name: rows[:, i].copy() for i, name in enumerate(TEXT_SIGNALS)}
    if rules is not None:
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(cleaned)]
        texts = pa.LargeStringArray.from_buffers(len(texts), buffers[1], buffers[2])
        if len(breaks):
            breaks = _moved(breaks, moves[: moved[0]], again, cleaned, ends)
    return Measured(texts, {"chars": _chars(texts), **signals}, breaks)


def _moved(
    breaks: np.ndarray, moves: np.ndarray, again: np.ndarray, cleaned: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """``breaks`` of texts, in what is left of them: ICU takes twice as long as all else that is measured.

    Args:
        breaks: Of the texts; int64.
        moves: New place, old place and bytes of each line that is left; int64 [lines, 3].
        again: Texts of which they do not say all; bool [n].
        cleaned: What is left; uint8.
        ends: Where each text ends in it; int64 [n + 1].
    """
    moves = moves[~again[np.searchsorted(ends, moves[:, 0], "right") - 1]]
    new, old, size = moves.T
    first = np.searchsorted(breaks, old, "left")
    count = np.searchsorted(breaks, old + size, "right") - first
    behind = np.cumsum(count)
    places = np.arange(behind[-1] if len(behind) else 0) + np.repeat(first - behind + count, count)
    moved = breaks[places] + np.repeat(new - old, count)
    parts = [word_breaks(cleaned, ends[d : d + 2]) for d in np.flatnonzero(again)]
    if parts:
        moved = np.concatenate([moved, *parts])
        moved.sort(kind="stable")
    return moved[np.diff(moved, prepend=-1) > 0]


def measure_code(texts: pa.Array) -> Measured:
    """Measure source code: ``chars`` and ``CODE_SIGNALS``."""
    data, offsets = text_buffers(texts)
    rows = np.zeros((len(texts), 6))
    _measure_codes(data, offsets, character_flags(), rows)
    heads = [
        data[start : min(end, start + _HEAD_BYTES)].tobytes()
        for start, end in itertools.pairwise(offsets.tolist())
    ]
    rows[:, 3] = [_GENERATED.search(head) is not None for head in heads]
    rows[:, 4] = [_licence_bytes(head) for head in heads] / np.maximum(np.diff(offsets), 1)
    signals = {name: rows[:, i].copy() for i, name in enumerate(CODE_SIGNALS)}
    return Measured(texts, {"chars": rows[:, 5].copy(), **signals})


# A mark counts where a person would look for it: near the top.
_HEAD_BYTES = 4_096
_GENERATED = re.compile(
    rb"@generated|auto-?generated|automatically generated|generated (automatically )?(by|from)\b"
    rb"|this file (is|was) generated|do not (edit|modify)",
    re.IGNORECASE,
)
_BLOCK_COMMENTS = ((b"/*", b"*/"), (b"<!--", b"-->"), (b'"""', b'"""'))
_LINE_COMMENTS = (b"#", b"//", b";", b"--", b"%")
_LICENCE = re.compile(rb"licen[cs]e|copyright|all rights reserved|spdx", re.IGNORECASE)


def _licence_bytes(head: bytes) -> int:
    """Length of the comment that ``head`` begins with, if it speaks of a licence."""
    comment = _top_comment(head)
    return len(comment) if _LICENCE.search(comment) else 0


def _top_comment(head: bytes) -> bytes:
    for opening, closing in _BLOCK_COMMENTS:
        if head.lstrip().startswith(opening):
            start = head.index(opening) + len(opening)
            end = head.find(closing, start)
            return head if end < 0 else head[: end + len(closing)]
    size = 0
    for line in head.splitlines(keepends=True):
        if line.strip() and not line.lstrip().startswith(_LINE_COMMENTS):
            break
        size += len(line)
    return head[:size]


def _chars(texts: pa.Array) -> np.ndarray:
    data, offsets = text_buffers(texts)
    chars = np.zeros(len(texts))
    _count_chars(data, offsets, chars)
    return chars


@compiled
def _count_chars(data, offsets, chars):
    for d in range(len(offsets) - 1):
        count = 0
        for i in range(offsets[d], offsets[d + 1]):
            count += 1 if data[i] & 0xC0 != 0x80 else 0
        chars[d] = count
