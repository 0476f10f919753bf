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
    ALPHABETIC,
    ALPHANUMERIC,
    LETTER,
    LINE_END,
    MARK,
    NOTED,
    PUNCTUATION,
    SENTENCE_END,
    SPACE,
    character_flags,
    code_point,
)
from lmcore.data.compiled import compiled, inlined, uint32
from lmcore.data.lexicon import FNV_PRIME, FNV_START, english, word_digest
from lmcore.data.quality import CODE_SIGNALS, TEXT_SIGNALS, takes_lines_out
from lmcore.data.words import (
    decode,
    digest_of,
    mix,
    new_page,
    split_words,
)

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
SHORT_LINE_CHARS = 30
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TIME, _TICK, _SEEN = np.uint64(0xFFFFFFFF00000000), np.uint64(1 << 32), np.uint64(0xFFFFFFFF)
_LINE, _PARAGRAPH, _KEPT = np.uint64(1), np.uint64(2), np.uint64(3)


class Counts(NamedTuple):
    """A hash table that is emptied by raising its clock.

    Attributes:
        slots: Each a key, and how often it was seen in the lower half of a word whose upper half is the
            time; uint64 [a power of 2, 2].
        clock: The present, in the upper half; uint64 [1].
    """

    slots: np.ndarray
    clock: np.ndarray


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


@compiled
def _measure_words(page, count, stop_words, sizes, row):
    """Figures of words; ``sizes`` gets the characters before each, and every digest is filled in."""
    words = chars = alphabetic = found = size = 0
    for w in range(count):
        sizes[w] = size
        length = page.end[w] - page.start[w]
        size += length
        h, kinds, all_marks = page.digest[w], uint32(ALPHABETIC | LETTER), uint32(0)
        if not h:
            kinds, all_marks = uint32(0), uint32(MARK)
            for i in range(page.start[w], page.end[w]):
                kinds |= page.flags[i]
                all_marks &= page.flags[i]
            h = digest_of(page.code, page.start[w], page.end[w])
            page.digest[w] = h
        if not all_marks:
            words += 1
            chars += length
        alphabetic += 1 if kinds & uint32(ALPHABETIC) else 0
        if length <= 4 and kinds & uint32(LETTER):
            for j in range(len(stop_words)):
                if stop_words[j] == h:
                    found |= 1 << j
    sizes[count] = size
    different = 0
    while found:
        different += found & 1
        found >>= 1
    row[13], row[14] = words, chars / max(words, 1)
    row[19], row[20] = alphabetic / max(count, 1), different


@compiled
def _measure_grams(page, count, num_chars, sizes, grams, counts, row):
    """Shares of the characters in the most frequent 2- to 4-grams, and in repeated 5- to 10-grams."""
    mask = _mask_for(2 * count, len(counts.slots) - 1)
    slots, runs = page.scratch[:count], page.scratch[count : 2 * count]
    for i in range(count):
        grams[i] = page.digest[i]
    for n in range(2, 5):
        for i in range(count - n + 1):
            grams[i] = (grams[i] * _GOLDEN) ^ (page.digest[i + n - 1] + (grams[i] >> np.uint64(29)))
        row[2 + n] = _top_gram(sizes, grams, count - n + 1, n, counts, mask, slots) / num_chars
    # An n-gram can only be repeated where every 4-gram in it is.
    longest = run = 0
    for i in range(count - 4, -1, -1):
        run = run + 1 if counts.slots[slots[i], 1] & _SEEN > np.uint64(1) else 0
        runs[i] = run
        longest = max(longest, run)
    for n in range(5, min(10, longest + 3) + 1):
        row[2 + n] = _repeated_grams(page, sizes, grams, count, n, counts, mask, runs) / num_chars


@inlined
def _top_gram(sizes, grams, num_grams, n, counts, mask, slots):
    """Characters in the most frequent n-gram, of several the first, with spaces between its words."""
    counts.clock[0] += _TICK
    most = np.uint64(0)
    for i in range(num_grams):
        place, found = _place(counts, mask, grams[i])
        seen = counts.slots[place, 1] & _SEEN if found else np.uint64(0)
        counts.slots[place, 0], counts.slots[place, 1] = grams[i], counts.clock[0] | (seen + np.uint64(1))
        slots[i] = place
        most = max(most, seen + np.uint64(1))
    for i in range(num_grams):
        if counts.slots[slots[i], 1] & _SEEN == most:
            return np.int64(most) * (sizes[i + n] - sizes[i] + n - 1)
    return 0


@compiled
def _repeated_grams(page, sizes, grams, count, n, counts, mask, runs):
    """Characters in n-grams that came before, none counted twice."""
    counts.clock[0] += _TICK
    chars = i = 0
    while i <= count - n:
        if runs[i] < n - 3:
            i += 1
            continue
        h = grams[i]  # of its first four
        for j in range(i + 4, i + n):
            h = (h ^ page.digest[j]) * _GOLDEN
            h ^= h >> np.uint64(31)
        if _is_repeated(counts, mask, h):
            chars += sizes[i + n] - sizes[i]
            i += n
        else:
            i += 1
    return chars


# --- lines -----------------------------------------------------------------------------------------


@compiled
def _contains_at(page, i, end, phrase):
    """Whether ``phrase`` (lower case) stands at ``i``, in any case of ASCII."""
    if i + len(phrase) > end:
        return False
    for j in range(len(phrase)):
        c = page.code[i + j]
        if 65 <= c <= 90:
            c |= uint32(32)
        if c != phrase[j]:
            return False
    return True


@compiled
def _citation(page, i, end):
    """Length of a mark like [12], [edit] or [citation needed] at ``i``; 0: none."""
    j = i + 1
    while j < end and 48 <= page.code[j] <= 57:
        j += 1
    if j < end and page.code[j] == ord("]"):
        return j + 1 - i
    if _contains_at(page, i, end, _EDIT):
        return len(_EDIT)
    return len(_CITATION_NEEDED) if _contains_at(page, i, end, _CITATION_NEEDED) else 0


@compiled
def _is_unwanted(page, i, start, end):
    """Whether ``i`` is the rarest letter of a phrase for which C4 takes a line out."""
    c = page.code[i] | uint32(32)
    if c == ord("j"):
        return _contains_at(page, i, end, _JAVASCRIPT)
    if i - start < 3:
        return False
    if c == ord("v"):
        return _contains_at(page, i - 3, end, _PRIVACY)
    if c == ord("m"):
        return _contains_at(page, i - 3, end, _TERMS)
    if not _contains_at(page, i - 3, end, _COOKIE):
        return False
    if _contains_at(page, i - 3, end, _COOKIE_POLICY) or (
        i - start >= 7 and _contains_at(page, i - 7, end, _USE)
    ):
        return True
    uses = i - start >= 8 and _contains_at(page, i - 8, end, _USES)
    return uses or (i - start >= 10 and _contains_at(page, i - 10, end, _USE_OF))


@inlined
def _scan_line(page, start, n, by_newline):
    """Look at each character of the line that starts at ``start``.

    Returns:
        Its end, its hash, runs between spaces, the longest of them, hashes, ellipses, and whether it holds a
        citation, a curly bracket, lorem ipsum, an unwanted phrase.
    """
    code, flags = page.code, page.flags
    h = FNV_START
    runs = longest = hashes = ellipses = dots = 0
    cited = curly = lorem = unwanted = False
    gap, i = start - 1, start
    while i < n:
        f, c = flags[i], code[i]
        if f & uint32(LINE_END | SPACE):
            if f & uint32(LINE_END) and (c == 10 or not by_newline):
                break
            longest = max(longest, i - gap - 1)
            runs += 1 if i - gap > 1 else 0
            gap = i
        h = (h ^ np.uint64(c)) * FNV_PRIME
        if f & uint32(NOTED):
            if c == ord("."):
                dots = dots + 1 if i > start and code[i - 1] == ord(".") else 1
                if dots == 3:
                    ellipses, dots = ellipses + 1, 0
            elif c == ord("#"):
                hashes += 1
            elif c == ord("…"):
                ellipses += 1
            elif c == ord("{"):
                curly = True
            elif c == ord("["):
                cited |= _citation(page, i, n) > 0
            else:
                unwanted |= _is_unwanted(page, i, start, n)
                lorem |= (
                    i - start >= 4
                    and code[i - 4] | uint32(32) == ord("l")
                    and _contains_at(page, i - 4, n, _LOREM)
                )
        i += 1
    longest = max(longest, i - gap - 1)
    runs += 1 if i - gap > 1 else 0
    return i, mix(h ^ np.uint64(i - start)), runs, longest, hashes, ellipses, cited, curly, lorem, unwanted


@inlined
def _line_digest(page, start, end):
    """Hash of [start, end), as ``_scan_line`` makes it."""
    h = FNV_START
    for i in range(start, end):
        h = (h ^ np.uint64(page.code[i])) * FNV_PRIME
    return mix(h ^ np.uint64(end - start))


@inlined
def _count_sentences(page, first, last, end, cited):
    """Sentences and words among the words [first, last) of a line; citations are skipped."""
    sentences, words = 1, last - first
    after, skip_to = False, 0
    for w in range(first, last):
        start = page.start[w]
        if cited:
            size = _citation(page, start, end) if page.code[start] == ord("[") and start >= skip_to else 0
            skip_to = max(skip_to, start + size)
            if start < skip_to:
                words -= 1
                continue
        one = page.end[w] - start == 1
        if one and page.flags[start] & uint32(SENTENCE_END):
            after = True
        elif after:
            for i in range(start, page.end[w]):
                if not page.flags[i] & uint32(PUNCTUATION):
                    sentences, after = sentences + 1, False
                    break
    return sentences, words


@compiled
def _copy_line(page, start, end, cited, data, cleaned, at):
    """Copy a line without its citations to ``cleaned``.

    Returns:
        Where it ends there, its hash, its length and the flags of its last character.
    """
    h = FNV_START
    length, last, i = 0, uint32(0), start
    while i < end:
        size = _citation(page, i, end) if cited and page.code[i] == ord("[") else 0
        if size:
            i += size
            continue
        h = (h ^ np.uint64(page.code[i])) * FNV_PRIME
        length, last = length + 1, page.flags[i]
        for byte in range(page.offset[i], page.offset[i + 1]):
            cleaned[at] = data[byte]
            at += 1
        i += 1
    return at, mix(h ^ np.uint64(length)), length, last


@inlined
def _strip(page, start, end):
    while start < end and page.flags[start] & uint32(SPACE):
        start += 1
    while end > start and page.flags[end - 1] & uint32(SPACE):
        end -= 1
    return start, end


@inlined
def _ends_in_dots(page, start, end):
    dot = uint32(46)
    return end - start >= 3 and page.code[end - 1] == page.code[end - 2] == page.code[end - 3] == dot


@inlined
def _ends_in_ellipsis(page, start, end):
    if page.code[end - 1] == ord("…"):
        return True
    return _ends_in_dots(page, start, end)


@inlined
def _has_end_mark(page, start, end):
    c = page.code[end - 1]
    ends = c == ord(".") or c == ord("?") or c == ord("!") or c == ord('"') or c == ord("'")
    return ends and not _ends_in_dots(page, start, end)


@compiled
def _measure_lines(page, n, count, rules, counts, row, data, cleaned, at):
    """Figures of lines and paragraphs; with C4's rules, what they leave goes to ``cleaned`` from ``at``."""
    counts.clock[0] += _TICK
    ends = 0
    for i in range(n):
        ends += 1 if page.flags[i] & uint32(LINE_END) else 0
    mask = _mask_for(6 * ends + 6, len(counts.slots) - 1)  # a line, a paragraph and what is left of each
    num_chars, begin, active = max(n, 1), at, rules.active != 0
    lines = same_lines = same_line_chars = 0
    paragraphs = same_paragraphs = same_paragraph_chars = 0
    all_lines = bullets = trailing = hashes = ellipses = 0
    kept = ended = short = repeated = kept_chars = kept_words = sentences = 0
    paragraph, paragraph_start, paragraph_end = np.uint64(0), -1, 0
    low, high = _strip(page, 0, n)
    i = w = 0
    while i < n:
        start, first = i, w
        end, h, runs, longest, marks, dots, cited, curly, lorem, unwanted = _scan_line(
            page, start, n, not active
        )
        i = end + 1
        hashes, ellipses, all_lines = hashes + marks, ellipses + dots, all_lines + 1
        while w < count and page.start[w] < end:
            w += 1
        a, b = _strip(page, start, end)
        if a < b:
            bullets += 1 if page.code[a] == ord("•") or page.code[a] == ord("-") else 0
            trailing += 1 if _ends_in_ellipsis(page, a, b) else 0
        if end > start or start == 0:
            lines += 1
            if _is_repeated(counts, mask, h ^ _LINE):
                same_lines, same_line_chars = same_lines + 1, same_line_chars + end - start
        inner_start, inner_end = max(start, low), min(end, high)
        if inner_end > inner_start:
            if paragraph_start < 0:
                paragraph_start = inner_start
            paragraph_end = inner_end
            whole = inner_start == start and inner_end == end
            paragraph = (paragraph ^ (h if whole else _line_digest(page, inner_start, inner_end))) * _GOLDEN
        if paragraph_start >= 0 and (end == start or i >= high):
            paragraphs += 1
            length = paragraph_end - paragraph_start
            if _is_repeated(counts, mask, mix(paragraph ^ np.uint64(length)) ^ _PARAGRAPH):
                same_paragraphs, same_paragraph_chars = same_paragraphs + 1, same_paragraph_chars + length
            paragraph, paragraph_start = np.uint64(0), -1
        line_words, last, length = w - first, uint32(0), end - start
        if active:
            if longest > rules.max_word_chars or runs < rules.min_line_words or a == b:
                continue
            if rules.require_end_mark and not _has_end_mark(page, a, b):
                continue
            row[21] += lorem
            if unwanted:
                continue
            row[22] += curly
            more, line_words = _count_sentences(page, first, w, b, cited)
            sentences += more
            if at > begin:
                cleaned[at] = 10
                at += 1
            if cited or a > start or b < end:
                at, h, length, last = _copy_line(page, a, b, cited, data, cleaned, at)
            else:
                last = page.flags[b - 1]
                for byte in range(page.offset[a], page.offset[b]):
                    cleaned[at] = data[byte]
                    at += 1
        elif a == b:
            continue
        else:
            last = page.flags[end - 1]
        kept, kept_chars, kept_words = kept + 1, kept_chars + length, kept_words + line_words
        repeated += length if _is_repeated(counts, mask, h ^ _KEPT) else 0
        ended += 1 if last & uint32(SENTENCE_END) else 0
        short += 1 if length <= SHORT_LINE_CHARS else 0
    if n and page.code[n - 1] == 10:  # an empty line more, and again if the text begins with one
        lines, same_lines = lines + 1, same_lines + (1 if page.code[0] == 10 else 0)
    row[0], row[1] = same_lines / max(lines, 1), same_paragraphs / max(paragraphs, 1)
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
    data, offsets, table, lexicon, stop_words, rules, page, sizes, grams, counts, rows, cleaned, ends
):
    at = 0
    for d in range(len(offsets) - 1):
        n = decode(data, offsets[d], offsets[d + 1], page, table)
        count = split_words(page, n, lexicon)
        _measure_words(page, count, stop_words, sizes, rows[d])
        _measure_grams(page, count, max(n, 1), sizes, grams, counts, rows[d])
        at = _measure_lines(page, n, count, rules, counts, rows[d], data, cleaned, at)
        ends[d + 1] = at


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
    return np.array([ord(character) for character in text], np.uint32)


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
    """

    texts: pa.Array
    signals: dict[str, np.ndarray]

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


def measure_text(texts: pa.Array, rules: C4LineRules | None) -> Measured:
    """Measure prose (``chars`` and ``TEXT_SIGNALS``); with ``rules`` take out the lines that C4 would.

    Args:
        texts: ``pa.large_string`` without nulls.
        rules: C4's, or None to leave the text as it is.
    """
    data, offsets = text_buffers(texts)
    most = int(np.diff(offsets).max(initial=0))
    table_size = 1 << (4 * most + 64).bit_length()
    counts = Counts(
        np.zeros((table_size, 2), np.uint64),
        np.full(1, _TICK),
    )
    lines = LineRules(0, 0, 0, 0)
    if rules is not None:
        lines = LineRules(1, rules.min_line_words, rules.max_word_chars, int(rules.require_end_mark))
    rows = np.zeros((len(texts), len(TEXT_SIGNALS)))
    # One line end for each document, which a citation alone on its line may leave behind.
    cleaned = np.empty(len(data) + len(texts) if rules else 0, np.uint8)
    ends = np.zeros(len(texts) + 1, np.int64)
    stop_words = np.array([word_digest(word) for word in STOP_WORDS], np.uint64)
    _measure_texts(
        data, offsets, character_flags(), english(), stop_words, lines, new_page(most + 1),
        np.empty(most + 2, np.int64), np.empty(most + 1, np.uint64), counts, rows, cleaned, ends,
    )  # fmt: skip
    signals = {name: rows[:, i].copy() for i, name in enumerate(TEXT_SIGNALS)}
    if rules is not None:
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(cleaned)]
        texts = pa.LargeStringArray.from_buffers(len(texts), buffers[1], buffers[2])
    return Measured(texts, {"chars": _chars(texts), **signals})


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
