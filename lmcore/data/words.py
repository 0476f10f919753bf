"""Cut text into words, as the published quality rules count them; compiled.

The rules of FineWeb and datatrove were tuned on the words of spaCy's English tokenizer: runs between spaces,
with marks taken off both ends, contractions and units cut, and some marks cut out of the middle. This makes
the same words in one pass over code points; the decision record says how often they differ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmcore.data.characters import (
    BEFORE_DOT,
    CURRENCY,
    DIGIT,
    HYPHEN,
    LETTER,
    LOWER,
    PREFIX,
    QUOTE,
    SPACE,
    SUFFIX,
    SYMBOL,
    UPPER,
    character_flags,
)
from lmcore.data.compiled import compiled, inlined, uint32
from lmcore.data.lexicon import FNV_PRIME, FNV_START, LONGEST_EXCEPTION, english

_DOT, _DOLLAR, _APOSTROPHE, _RIGHT_QUOTE, _DASH, _LONG_DASH = 46, 36, 39, 0x2019, 45, 0x2014


class Page(NamedTuple):
    """One document, spread out; and what was found on it. Filled again for each.

    Attributes:
        code: Code points; uint32 [n].
        offset: Where each starts, in bytes of the batch; int64 [n + 1].
        flags: ``characters`` of each; uint32 [n].
        start: First code point of each word; int32 [num_words].
        end: The one behind its last.
        digest: Hash of each word; uint64 [num_words].
        scratch: int32 [2 n].
        runs: How runs between spaces were cut, found by their hash; uint64 [a power of 2, 2]. The second of a
            row is, from its lowest byte: characters, words, and where all words but the last end.
    """

    code: np.ndarray
    offset: np.ndarray
    flags: np.ndarray
    start: np.ndarray
    end: np.ndarray
    digest: np.ndarray
    scratch: np.ndarray
    runs: np.ndarray


_KEPT_RUNS, _KEPT_CHARS, _KEPT_WORDS = 4_096, 255, 7


def new_page(size: int) -> Page:
    """Room for documents of up to ``size`` bytes."""
    return Page(
        np.empty(size, np.uint32),
        np.empty(size + 1, np.int64),
        np.empty(size, np.uint32),
        np.empty(size + 1, np.int32),
        np.empty(size + 1, np.int32),
        np.empty(size + 1, np.uint64),
        np.empty(2 * size + 2, np.int32),
        np.zeros((_KEPT_RUNS, 2), np.uint64),
    )


# --- hashes ----------------------------------------------------------------------------------------


@inlined
def mix(h):
    """Spread the bits of ``h`` (murmur3's finalizer)."""
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


@inlined
def digest_of(code, start, end):
    """Hash of the code points in [start, end) (FNV-1a, mixed)."""
    h = FNV_START
    for i in range(start, end):
        h = (h ^ np.uint64(code[i])) * FNV_PRIME
    return mix(h)


@inlined
def _lookup(keys, h):
    mask = np.uint64(len(keys) - 1)
    place = h & mask
    while keys[place] != np.uint64(0):
        if keys[place] == h:
            return np.int64(place)
        place = (place + np.uint64(1)) & mask
    return np.int64(-1)


# --- text to code points ---------------------------------------------------------------------------


@inlined
def decode(data, start, end, page, table):
    """Spread the UTF-8 bytes [start, end) of ``data`` over ``page``; the number of code points."""
    code, offset, flags = page.code, page.offset, page.flags
    n, i = 0, start
    while i < end:
        c = uint32(data[i])
        offset[n] = i
        if c < 0x80:
            i += 1
        elif c < 0xE0:
            c = ((c & 0x1F) << 6) | (uint32(data[i + 1]) & 0x3F)
            i += 2
        elif c < 0xF0:
            c = ((c & 0x0F) << 12) | ((uint32(data[i + 1]) & 0x3F) << 6) | (uint32(data[i + 2]) & 0x3F)
            i += 3
        else:
            c = ((c & 0x07) << 18) | ((uint32(data[i + 1]) & 0x3F) << 12)
            c |= ((uint32(data[i + 2]) & 0x3F) << 6) | (uint32(data[i + 3]) & 0x3F)
            i += 4
        code[n] = c
        flags[n] = table[c]
        n += 1
    offset[n] = end
    return n


# --- words -----------------------------------------------------------------------------------------


@compiled
def split_words(page, n, lexicon):
    """Find the words among ``n`` code points of ``page``; how many there are.

    ``page.digest`` is set for those of letters alone, and 0 for all others.
    """
    code, flags, starts, ends, digests = page.code, page.flags, page.start, page.end, page.digest
    letter, space = uint32(LETTER), uint32(SPACE)
    count, i = 0, 0
    while i < n:
        if flags[i] & space:
            i += 1
            continue
        start, h = i, FNV_START
        while i < n and flags[i] & letter:
            h = (h ^ np.uint64(code[i])) * FNV_PRIME
            i += 1
        core, whole, h = i, h, mix(h)
        while i < n and not flags[i] & space:
            whole = (whole ^ np.uint64(code[i])) * FNV_PRIME
            i += 1
        # Three of four runs are letters alone, and most others are letters and one mark.
        known = _may_be_exception(page, start, core, lexicon) and _lookup(lexicon.exceptions, h) >= 0
        if not known and core > start and (core == i or (core == i - 1 and _is_end(page, start, i, lexicon))):
            starts[count], ends[count], digests[count] = start, core, h
            count += 1
            if core < i:
                starts[count], ends[count], digests[count] = core, i, np.uint64(0)
                count += 1
            continue
        first, place = count, mix(whole) & np.uint64(_KEPT_RUNS - 1)
        if page.runs[place, 0] == whole and page.runs[place, 1] & np.uint64(255) == np.uint64(i - start):
            count = _split_as_before(page, start, i, count, page.runs[place, 1])
        else:
            count = _split_run(page, start, i, count, lexicon)
            if i - start <= _KEPT_CHARS and count - first <= _KEPT_WORDS:
                page.runs[place, 0] = whole
                page.runs[place, 1] = _cuts(page, start, i, first, count)
        for w in range(first, count):
            digests[w] = np.uint64(0)
    return count


@inlined
def _cuts(page, start, end, first, count):
    """How the run was cut into the words [first, count), as ``Page.runs`` keeps it."""
    cuts = np.uint64(end - start) | np.uint64(count - first) << np.uint64(8)
    for w in range(first, count - 1):
        cuts |= np.uint64(page.end[w] - start) << np.uint64(8 * (w - first + 2))
    return cuts


@inlined
def _split_as_before(page, start, end, count, cuts):
    words, at = np.int64(cuts >> np.uint64(8)) & 255, start
    for w in range(words - 1):
        page.start[count] = at
        at = start + (np.int64(cuts >> np.uint64(8 * (w + 2))) & 255)
        page.end[count] = at
        count += 1
    page.start[count], page.end[count] = at, end
    return count + 1


@inlined
def _is_end(page, start, end, lexicon):
    """Whether the last character of a run of letters and that one is a word of its own."""
    last = page.code[end - 1]
    if last == _APOSTROPHE:
        return False
    if last == _DOT:
        return page.flags[end - 2] & uint32(BEFORE_DOT) != 0 and _exception(page, start, end, lexicon) < 0
    return page.flags[end - 1] & uint32(SUFFIX) != 0


@inlined
def _may_be_exception(page, start, end, lexicon):
    """Whether there is an exception of this length, with this first and this last character."""
    if end <= start or end - start > LONGEST_EXCEPTION:
        return False
    a, b = page.code[start], page.code[end - 1]
    lengths = lexicon.first[a if a < 128 else 0] & lexicon.last[b if b < 128 else 0]
    return (lengths >> uint32(end - start)) & uint32(1) != 0


@inlined
def _exception(page, start, end, lexicon):
    if not _may_be_exception(page, start, end, lexicon):
        return np.int64(-1)
    return _lookup(lexicon.exceptions, digest_of(page.code, start, end))


@compiled
def _split_run(page, start, end, count, lexicon):
    """Cut one run between spaces: marks off both ends, then the middle."""
    if _exception(page, start, end, lexicon) >= 0:
        return _split_middle(page, start, end, count, lexicon)
    starts, ends, behind = page.start, page.end, page.scratch
    top, last = 0, -1
    while start < end and end - start != last:
        if last >= 0 and _exception(page, start, end, lexicon) >= 0:
            break
        last = end - start
        prefix = _prefix_length(page, start, end)
        if prefix and end - start > prefix and _exception(page, start + prefix, end, lexicon) >= 0:
            suffix, done = 0, True
        else:
            suffix = _suffix_length(page, start + prefix, end, lexicon)
            done = 0 < suffix < end - start and _exception(page, start, end - suffix, lexicon) >= 0
            if done:
                prefix = 0
            elif prefix + suffix > end - start:
                suffix = 0
        if prefix:
            starts[count], ends[count] = start, start + prefix
            count += 1
            start += prefix
        if suffix:
            behind[top], behind[top + 1] = end - suffix, end
            top += 2
            end -= suffix
        if done:
            break
    if start < end:
        count = _split_middle(page, start, end, count, lexicon)
    while top:
        top -= 2
        starts[count], ends[count] = behind[top], behind[top + 1]
        count += 1
    return count


@compiled
def _split_middle(page, start, end, count, lexicon):
    """Cut what is left of a run: an exception, an address as a whole, or at marks between letters."""
    starts, ends = page.start, page.end
    k = _exception(page, start, end, lexicon)
    if k >= 0:
        first = start
        for j in range(lexicon.cuts.shape[1]):
            if lexicon.cuts[k, j]:
                starts[count], ends[count] = start, first + lexicon.cuts[k, j]
                start = ends[count]
                count += 1
    elif not _is_address(page, start, end):
        i = first = start
        while i < end:
            if page.flags[i] & uint32(LETTER | DIGIT):
                i += 1
                continue
            size = _infix_length(page, i, first, end)
            if size and i > first:
                if i > start:
                    starts[count], ends[count] = start, i
                    count += 1
                starts[count], ends[count] = i, i + size
                count += 1
                start = i + size
            i += max(size, 1)
    if start < end:
        starts[count], ends[count] = start, end
        count += 1
    return count


@inlined
def _count_dots(code, i, end):
    j = i
    while j < end and code[j] == _DOT:
        j += 1
    return j - i


@inlined
def _prefix_length(page, start, end):
    c = page.code[start]
    if c == _DOT:
        dots = _count_dots(page.code, start, end)
        return dots if dots >= 2 else 0
    if page.flags[start] & uint32(PREFIX):
        return 1
    if c == ord("+"):
        return 0 if start + 1 < end and page.flags[start + 1] & uint32(DIGIT) else 1
    if start + 1 < end and page.code[start + 1] == _DOLLAR and (c == ord("C") or c == ord("A")):
        return 2
    if (
        start + 2 < end
        and page.code[start + 2] == _DOLLAR
        and c == ord("U")
        and page.code[start + 1] == ord("S")
    ):
        return 3
    return 0


@inlined
def _suffix_length(page, start, end, lexicon):
    if start >= end:
        return 0
    code, flags = page.code, page.flags
    c = code[end - 1]
    if c == _DOT:
        return _closing_dots(page, start, end)
    apostrophe = end - start >= 2 and (code[end - 2] == _APOSTROPHE or code[end - 2] == _RIGHT_QUOTE)
    if apostrophe and (c == ord("s") or c == ord("S")):
        return 2
    # What follows the last digit may be a unit.
    j = end
    while j > start and end - j <= 4 and not flags[j - 1] & uint32(DIGIT):
        j -= 1
    if start < j < end and flags[j - 1] & uint32(DIGIT):
        if _lookup(lexicon.units, digest_of(code, j, end)) >= 0:
            return end - j
        if end - j == 1 and (c == ord("+") or flags[j] & uint32(CURRENCY)):
            return 1
    return 1 if flags[end - 1] & uint32(SUFFIX) else 0


@inlined
def _closing_dots(page, start, end):
    dots = 1
    while end - dots - 1 >= start and page.code[end - dots - 1] == _DOT:
        dots += 1
    if dots >= 2 or end - start < 2:
        return dots if dots >= 2 else 0
    before = page.flags[end - 2]
    initials = before & uint32(UPPER) and end - start >= 3 and page.flags[end - 3] & uint32(UPPER)
    return 1 if before & uint32(BEFORE_DOT) or initials else 0


@inlined
def _infix_length(page, i, start, end):
    """Length of the mark at ``i`` that cuts a word in two; 0: none."""
    code, flags = page.code, page.flags
    c = code[i]
    if c == _DOT and _count_dots(code, i, end) >= 2:
        return _count_dots(code, i, end)
    if c == ord("…") or flags[i] & uint32(SYMBOL):
        return 1
    if i == start or i + 1 >= end:
        return 0
    before, after = flags[i - 1], flags[i + 1]
    if c == _DOT:
        return 1 if before & uint32(LOWER | QUOTE) and after & uint32(UPPER | QUOTE) else 0
    if c == ord(","):
        return 1 if before & uint32(LETTER) and after & uint32(LETTER) else 0
    counts = before & uint32(DIGIT) and (after & uint32(DIGIT) or code[i + 1] == _DASH)
    if counts and (c == ord("+") or c == _DASH or c == ord("*") or c == ord("^")):
        return 1
    if not before & uint32(LETTER | DIGIT):
        return 0
    if flags[i] & uint32(HYPHEN):
        return _hyphen_length(page, i, end)
    cuts = c == ord(":") or c == ord("<") or c == ord(">") or c == ord("=") or c == ord("/")
    return 1 if cuts and after & uint32(LETTER) else 0


@inlined
def _hyphen_length(page, i, end):
    """One hyphen, two or three dashes, or two long ones, with a letter behind."""
    code, c = page.code, page.code[i]
    most = 3 if c == _DASH else 2 if c == _LONG_DASH else 1
    for size in range(1, most + 1):
        if i + size >= end:
            return 0
        if page.flags[i + size] & uint32(LETTER):
            return size
        if code[i + size] != c:
            return 0
    return 0


# --- addresses -------------------------------------------------------------------------------------


@inlined
def _is_address(page, start, end):
    """Whether a run is a URL, a host name or an e-mail address."""
    code = page.code
    dotted = False
    for i in range(start, end):
        dotted |= code[i] == _DOT
    if not dotted:
        return False
    host = start
    for i in range(start + 2, end - 2):
        if code[i] == ord(":") and code[i + 1] == ord("/") and code[i + 2] == ord("/"):
            host = i + 3
            break
    if _is_host(page, host, end):
        return True
    for i in range(host + 1, end - 1):
        if code[i] == ord("@") and _is_host(page, i + 1, end):
            return True
    return False


@inlined
def _names_a_host(c):
    digit, letter = 48 <= c <= 57, 65 <= c <= 90 or 97 <= c <= 122
    return digit or letter or 0xA1 <= c <= 0xFFFF


@compiled
def _is_host(page, start, end):
    """Whether [start, end) is a name or four numbers with dots between, perhaps with a port and a path."""
    code = page.code
    i = label = start
    while i < end and (_names_a_host(code[i]) or code[i] == _DOT or code[i] == ord("_") or code[i] == _DASH):
        if code[i] == _DOT:
            if i == label or i - label > 64 or not _names_a_host(code[i - 1]):
                return False
            label = i + 1
        elif i == label and not _names_a_host(code[i]):
            return False
        i += 1
    if label == start or i == label or not (_is_top_level(page, label, i) or _is_numeric(page, start, i)):
        return False
    if i < end and code[i] == ord(":"):
        port = i + 1
        i = port
        while i < end and page.flags[i] & uint32(DIGIT):
            i += 1
        if not 2 <= i - port <= 5:
            return False
    return i == end or code[i] == ord("/") or code[i] == ord("?") or code[i] == ord("#")


@inlined
def _is_top_level(page, start, end):
    if not 2 <= end - start <= 63:
        return False
    for i in range(start, end):
        if not page.flags[i] & uint32(LOWER):
            return False
    return True


@inlined
def _is_numeric(page, start, end):
    number, groups = 0, 1
    for i in range(start, end):
        if page.code[i] == _DOT:
            number, groups = 0, groups + 1
        elif page.flags[i] & uint32(DIGIT):
            number = number * 10 + np.int64(page.code[i]) - 48
        else:
            return False
        if number > 255:
            return False
    return groups == 4


@compiled
def _find_words(data, page, table, lexicon, count):
    num_chars = decode(data, 0, len(data), page, table)
    count[0] = split_words(page, num_chars, lexicon)
    for w in range(count[0]):
        page.digest[w] = digest_of(page.code, page.start[w], page.end[w])


def words_of(text: str) -> list[tuple[str, int]]:
    """The words of ``text``, as the rules count them, each with its hash."""
    data, count = np.frombuffer(text.encode(), np.uint8), np.zeros(1, np.int64)
    page = new_page(len(data) + 1)
    _find_words(data, page, character_flags(), english(), count)
    starts, ends, digests = (column[: count[0]].tolist() for column in (page.start, page.end, page.digest))
    return [(text[start:end], h) for start, end, h in zip(starts, ends, digests, strict=True)]
