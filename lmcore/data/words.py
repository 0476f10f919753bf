"""Cut text into words, as the published quality rules count them; compiled.

The rules of FineWeb and datatrove were tuned on the words of spaCy's English tokenizer: runs between spaces,
with marks taken off both ends, contractions and units cut, and some marks cut out of the middle. This makes
the same words in one pass over code points; the decision record says how often they differ. In scripts that
put no space between words, each word that ICU finds there is one (``lmcore.data.segments``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmcore.data.characters import (
    ALPHABETIC,
    BEFORE_DOT,
    CURRENCY,
    DIGIT,
    ELLIPSIS,
    HYPHEN,
    LETTER,
    LONG_DASH,
    LOWER,
    MARK,
    NAMES_HOST,
    OTHER_LETTERS,
    OTHER_SPACES,
    OTHERS,
    PREFIX,
    QUOTE,
    RIGHT_QUOTE,
    SENTENCE_END,
    SUFFIX,
    SYMBOL,
    UPPER,
    character_kinds,
    code_point,
    kind_flags,
)
from lmcore.data.compiled import compiled, inlined, uint32
from lmcore.data.lanes import LANES, copy64, count64, eight_at, folded, in_ranges, ones, trailing_zeros
from lmcore.data.lexicon import LONGEST_EXCEPTION, SIZE_FACTOR, WORD_FACTOR, english
from lmcore.data.segments import word_breaks

_DOT, _DOLLAR, _APOSTROPHE, _DASH = 46, 36, 39, 45
_NOTHING, _ALL = np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF)
_SPACE_CHARACTER = np.uint8(32)

_beyond_ascii = in_ranges((0x80, 0xFF))
_letters = in_ranges((65, 90), (97, 122), (OTHER_LETTERS, OTHER_SPACES - 1))
_spaces = in_ranges((9, 13), (28, 32), (OTHER_SPACES, OTHERS - 1))


class Page(NamedTuple):
    """One document, spread out; and what was found on it. Filled again for each.

    Behind its end it is space, for as far as any look at 64 characters goes.

    Attributes:
        raw: Its bytes; uint8.
        kind: Kind of each of its characters (``character_kinds``); uint8.
        offset: Where each character starts in ``raw``; int32.
        letters: Which are letters, as bits; uint64 [n / 64].
        spaces: Which are spaces, those behind its end too.
        cuts: At which a word begins or ends, whatever is beside it (``lmcore.data.segments``).
        mixed: Which are spaces behind a run that holds more than letters, and all cuts.
        run_start: First character of each run between spaces and cuts; int32 [num_runs].
        run_end: The one behind its last.
        start: First character of each word; int32 [num_words].
        end: The one behind its last.
        before: Characters in the words before each word, and in all; int32 [num_words + 1].
        digest: Hash of each word; uint64 [num_words].
        enders: Which words are one character that ends a sentence; int32.
        scratch: int32 [2 n].
        tally: What was counted of the words; int64 [len(Tally)].
        runs: How runs between spaces were cut, found by their hash; uint64 [a power of 2, 2]. The second of a
            row is, from its lowest byte: characters, words, and where all words but the last end.
        flags: Of each kind (``kind_flags``); uint32 [256].
        kinds: Of each code point (``character_kinds``); uint8 [0x110000].
    """

    raw: np.ndarray
    kind: np.ndarray
    offset: np.ndarray
    letters: np.ndarray
    spaces: np.ndarray
    cuts: np.ndarray
    mixed: np.ndarray
    run_start: np.ndarray
    run_end: np.ndarray
    start: np.ndarray
    end: np.ndarray
    before: np.ndarray
    digest: np.ndarray
    enders: np.ndarray
    scratch: np.ndarray
    tally: np.ndarray
    runs: np.ndarray
    flags: np.ndarray
    kinds: np.ndarray


# Of a page's words: how many are more than marks, their characters, how many hold a letter, which stop words
# there are, by their place in the lexicon, as bits, and how many end a sentence.
WORDS, CHARS, ALPHABETIC_WORDS, STOP_WORDS_FOUND, ENDERS = range(5)
_KEPT_RUNS, _KEPT_CHARS, _KEPT_WORDS = 4_096, 255, 7


def new_page(size: int) -> Page:
    """Room for documents of up to ``size`` bytes."""
    room, blocks = size + 3 * LANES, size // LANES + 4
    return Page(
        np.empty(room, np.uint8),
        np.empty(room, np.uint8),
        np.empty(room, np.int32),
        np.empty(blocks, np.uint64),
        np.empty(blocks, np.uint64),
        np.empty(blocks, np.uint64),
        np.empty(blocks, np.uint64),
        np.empty(size // 2 + 2 * LANES, np.int32),
        np.empty(size // 2 + 2 * LANES, np.int32),
        np.empty(size + 1, np.int32),
        np.empty(size + 1, np.int32),
        np.empty(size + 2, np.int32),
        np.empty(size + 1, np.uint64),
        np.empty(size + 1, np.int32),
        np.empty(2 * size + 2, np.int32),
        np.empty(5, np.int64),
        np.zeros((_KEPT_RUNS, 2), np.uint64),
        kind_flags(),
        character_kinds(),
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
def hash_bytes(raw, start, end):
    """Hash of the bytes [start, end), eight at a time (as wyhash does); there is room behind."""
    size = end - start
    if size <= 8:
        part = eight_at(raw, start) & (_ALL >> np.uint64(8 * (8 - size))) if size else _NOTHING
        return folded(part ^ WORD_FACTOR, SIZE_FACTOR ^ np.uint64(size))
    h = SIZE_FACTOR * np.uint64(size)
    while start + 8 <= end:
        h = folded(h ^ eight_at(raw, start), WORD_FACTOR)
        start += 8
    if start < end:  # what is left, with bytes before it
        h = folded(h ^ eight_at(raw, end - 8), WORD_FACTOR)
    return h


@inlined
def digest_of(page, start, end):
    """Hash of the characters [start, end)."""
    return hash_bytes(page.raw, page.offset[start], page.offset[end])


@inlined
def _is_listed(bits, h):
    """Whether ``h`` may be one of few: a no is certain, and a yes nearly so."""
    place = h >> np.uint64(48)
    return (bits[place >> np.uint64(6)] >> (place & np.uint64(63))) & np.uint64(1) != np.uint64(0)


@inlined
def _lookup(keys, h):
    mask = np.uint64(len(keys) - 1)
    place = h & mask
    while keys[place] != np.uint64(0):
        if keys[place] == h:
            return np.int64(place)
        place = (place + np.uint64(1)) & mask
    return np.int64(-1)


# --- text to characters ----------------------------------------------------------------------------


@inlined
def spread(data, start, end, page):
    """Spread the UTF-8 bytes [start, end) of ``data`` over ``page``; the number of characters."""
    raw, kind, offset = page.raw, page.kind, page.offset
    size = end - start
    for i in range(size):
        raw[i] = data[start + i]
    for i in range(size, size + 2 * LANES):
        raw[i] = _SPACE_CHARACTER
    n = i = 0
    while i < size:
        copy64(kind, n, raw, i)
        count64(offset, n, i)
        beyond = _beyond_ascii(raw, i)
        plain = np.int64(trailing_zeros(beyond)) if beyond else LANES
        n, i = n + plain, i + plain
        while raw[i] >= 0x80:
            c, length = code_point(raw, i)
            kind[n], offset[n] = page.kinds[c], i
            n, i = n + 1, i + length
    n -= i - size  # spaces behind the end
    for i in range(n, n + 2 * LANES):
        kind[i] = _SPACE_CHARACTER
    offset[n] = size
    for b in range((n >> 6) + 1):
        page.letters[b] = _letters(kind, b << 6)
        page.spaces[b] = _spaces(kind, b << 6)
        page.cuts[b] = _NOTHING
    return n


@inlined
def mark_breaks(page, n, breaks, first, last, start):
    """Mark ``breaks`` [first, last) on ``page``: ``n`` characters of a text that starts at byte ``start``."""
    i = 0
    for k in range(first, last):
        while i < n and page.offset[i] < breaks[k] - start:
            i += 1
        page.cuts[i >> 6] |= np.uint64(1) << np.uint64(i & 63)
        while i < n and _parts_words(page, i):
            page.spaces[i >> 6] |= np.uint64(1) << np.uint64(i & 63)
            i += 1


@inlined
def _parts_words(page, i):
    """Whether a zero-width space (U+200B) or a mark between syllables (U+0F0B, U+0F0C) is at ``i``."""
    k = np.int64(page.offset[i])
    a, b, c = page.raw[k], page.raw[k + 1], page.raw[k + 2]
    return (a == 0xE2 and b == 0x80 and c == 0x8B) or (a == 0xE0 and b == 0xBC and (c == 0x8B or c == 0x8C))


@inlined
def flags_at(page, i):
    """Flags of the character at ``i``."""
    return page.flags[page.kind[i]]


@inlined
def next_one(bits, i):
    """The first of ``bits`` from ``i`` on that is set; there is one."""
    block = i >> 6
    word = bits[block] >> np.uint64(i & 63)
    if word:
        return i + np.int64(trailing_zeros(word))
    block += 1
    while not bits[block]:
        block += 1
    return (block << 6) + np.int64(trailing_zeros(bits[block]))


@inlined
def next_zero(bits, i):
    """The first of ``bits`` from ``i`` on that is not set; there is one."""
    block = i >> 6
    word = ~bits[block] >> np.uint64(i & 63)
    if word:
        return i + np.int64(trailing_zeros(word))
    block += 1
    while bits[block] == _ALL:
        block += 1
    return (block << 6) + np.int64(trailing_zeros(~bits[block]))


@inlined
def note_ones(bits, first, places, count):
    """Add to ``places`` those of the 64 ``bits`` that are set, ``first`` being the place of the lowest."""
    after = count + np.int64(ones(bits))
    while bits:
        # Eight at a time, whether there are as many or not: the end of a loop is guessed wrong.
        for k in range(count, count + 8):
            places[k] = first + np.int64(trailing_zeros(bits))
            bits &= bits - np.uint64(1)
        count += 8
    return after


@inlined
def _find_runs(page, n):
    """Find the runs between spaces and cuts; how many there are."""
    count = behind = 0
    spaced, carry = np.uint64(1), np.uint64(0)
    for b in range((n >> 6) + 1):
        spaces = page.spaces[b]
        inside = ~spaces
        starts = inside & ((spaces << np.uint64(1)) | spaced)
        ends = spaces & ~((spaces << np.uint64(1)) | spaced)
        cuts = page.cuts[b] & inside & ~starts
        # Adding some bits of a run to all of its bits carries one to the space behind it.
        some = inside + (inside & ~page.letters[b])
        every = some + carry
        carry = np.uint64(some < inside) | np.uint64(every < some)
        page.mixed[b] = (every & ends) | cuts
        spaced = spaces >> np.uint64(63)
        count = note_ones(starts | cuts, b << 6, page.run_start, count)
        behind = note_ones(ends | cuts, b << 6, page.run_end, behind)
    return count


# --- words -----------------------------------------------------------------------------------------


@compiled
def split_words(page, n, lexicon):
    """Find the words among ``n`` characters of ``page``, and tally them; how many there are."""
    starts, ends, digests = page.start, page.end, page.digest
    for k in range(len(page.tally)):
        page.tally[k] = 0
    page.before[0] = 0
    count = chars = plain = 0
    stops = np.uint64(0)
    for run in range(_find_runs(page, n)):
        start, end = np.int64(page.run_start[run]), np.int64(page.run_end[run])
        is_plain = (page.mixed[end >> 6] >> np.uint64(end & 63)) & np.uint64(1) == np.uint64(0)
        core = end if is_plain else min(end, next_zero(page.letters, start))
        is_plain |= core == end  # another run may begin there
        h = digest_of(page, start, core)
        known = _is_listed(lexicon.known, h) and _lookup(lexicon.exceptions, h) >= 0
        # Three of four runs are letters alone, and most others are letters and one mark.
        if (
            not known
            and core > start
            and (is_plain or (core == end - 1 and _is_end(page, start, end, lexicon)))
        ):
            starts[count], ends[count], digests[count] = start, core, h
            page.before[count + 1] = page.before[count] + (core - start)
            count, chars, plain = count + 1, chars + core - start, plain + 1
            place = h & np.uint64(63)
            stops |= np.uint64(lexicon.stop_words[place] == h) << place
            if not is_plain:
                starts[count], ends[count] = core, end
                _tally(page, count, lexicon)
                count += 1
        else:
            first = count
            count = _split_again(page, start, end, count, lexicon)
            for w in range(first, count):
                _tally(page, w, lexicon)
    page.tally[WORDS] += plain
    page.tally[CHARS] += chars
    page.tally[ALPHABETIC_WORDS] += plain
    page.tally[STOP_WORDS_FOUND] |= np.int64(stops)
    return count


@inlined
def _tally(page, w, lexicon):
    """Count word ``w``, which may be anything, and fill in its hash."""
    start, end, tally = page.start[w], page.end[w], page.tally
    kinds, marks = uint32(0), uint32(MARK)
    if end - start == 1:  # most are
        kinds = flags_at(page, start)
        marks &= kinds
    else:
        for i in range(start, end):
            flags = flags_at(page, i)
            kinds |= flags
            marks &= flags
    h = digest_of(page, start, end)
    length = np.int64(end - start)
    page.digest[w] = h
    page.before[w + 1] = page.before[w] + length
    if not marks:
        tally[WORDS] += 1
        tally[CHARS] += length
    tally[ALPHABETIC_WORDS] += 1 if kinds & uint32(ALPHABETIC) else 0
    if length == 1 and kinds & uint32(SENTENCE_END):
        page.enders[tally[ENDERS]] = w
        tally[ENDERS] += 1
    place = h & np.uint64(63)
    tally[STOP_WORDS_FOUND] |= np.int64(lexicon.stop_words[place] == h) << np.int64(place)


@inlined
def _split_again(page, start, end, count, lexicon):
    """Cut a run as one like it was cut before, or find out how."""
    first, whole = count, digest_of(page, start, end)
    place = whole & np.uint64(_KEPT_RUNS - 1)
    if page.runs[place, 0] == whole and page.runs[place, 1] & np.uint64(255) == np.uint64(end - start):
        return _split_as_before(page, start, end, count, page.runs[place, 1])
    count = _split_run(page, start, end, count, lexicon)
    if end - start <= _KEPT_CHARS and count - first <= _KEPT_WORDS:
        page.runs[place, 0] = whole
        page.runs[place, 1] = _cuts(page, start, end, first, count)
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
    last = page.kind[end - 1]
    if last == _APOSTROPHE:
        return False
    if last == _DOT:
        return flags_at(page, end - 2) & uint32(BEFORE_DOT) != 0 and _exception(page, start, end, lexicon) < 0
    return flags_at(page, end - 1) & uint32(SUFFIX) != 0


@inlined
def _may_be_exception(page, start, end, lexicon):
    """Whether there is an exception of this length, with this first and this last character."""
    if end <= start or end - start > LONGEST_EXCEPTION:
        return False
    a, b = page.kind[start], page.kind[end - 1]
    lengths = lexicon.first[a if a < 128 else 0] & lexicon.last[b if b < 128 else 0]
    return (lengths >> uint32(end - start)) & uint32(1) != 0


@inlined
def _exception(page, start, end, lexicon):
    if not _may_be_exception(page, start, end, lexicon):
        return np.int64(-1)
    return _lookup(lexicon.exceptions, digest_of(page, start, end))


@inlined
def _split_run(page, start, end, count, lexicon):
    """Cut one run between spaces: marks off both ends, then the middle."""
    starts, ends, behind = page.start, page.end, page.scratch
    top, last = 0, -1
    while start < end and end - start != last:
        if _exception(page, start, end, lexicon) >= 0:
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


@inlined
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
            if flags_at(page, i) & uint32(LETTER | DIGIT):
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
    c = page.kind[start]
    if c == _DOT:
        dots = _count_dots(page.kind, start, end)
        return dots if dots >= 2 else 0
    if flags_at(page, start) & uint32(PREFIX):
        return 1
    if c == ord("+"):
        return 0 if start + 1 < end and flags_at(page, start + 1) & uint32(DIGIT) else 1
    if start + 1 < end and page.kind[start + 1] == _DOLLAR and (c == ord("C") or c == ord("A")):
        return 2
    if (
        start + 2 < end
        and page.kind[start + 2] == _DOLLAR
        and c == ord("U")
        and page.kind[start + 1] == ord("S")
    ):
        return 3
    return 0


@inlined
def _suffix_length(page, start, end, lexicon):
    if start >= end:
        return 0
    code = page.kind
    c = code[end - 1]
    if c == _DOT:
        return _closing_dots(page, start, end)
    apostrophe = end - start >= 2 and (code[end - 2] == _APOSTROPHE or code[end - 2] == RIGHT_QUOTE)
    if apostrophe and (c == ord("s") or c == ord("S")):
        return 2
    # What follows the last digit may be a unit.
    j = end
    while j > start and end - j <= 4 and not flags_at(page, j - 1) & uint32(DIGIT):
        j -= 1
    if start < j < end and flags_at(page, j - 1) & uint32(DIGIT):
        if _lookup(lexicon.units, digest_of(page, j, end)) >= 0:
            return end - j
        if end - j == 1 and (c == ord("+") or flags_at(page, j) & uint32(CURRENCY)):
            return 1
    return 1 if flags_at(page, end - 1) & uint32(SUFFIX) else 0


@inlined
def _closing_dots(page, start, end):
    dots = 1
    while end - dots - 1 >= start and page.kind[end - dots - 1] == _DOT:
        dots += 1
    if dots >= 2 or end - start < 2:
        return dots if dots >= 2 else 0
    before = flags_at(page, end - 2)
    initials = before & uint32(UPPER) and end - start >= 3 and flags_at(page, end - 3) & uint32(UPPER)
    return 1 if before & uint32(BEFORE_DOT) or initials else 0


@inlined
def _infix_length(page, i, start, end):
    """Length of the mark at ``i`` that cuts a word in two; 0: none."""
    code = page.kind
    c = code[i]
    if c == _DOT and _count_dots(code, i, end) >= 2:
        return _count_dots(code, i, end)
    if c == ELLIPSIS or flags_at(page, i) & uint32(SYMBOL):
        return 1
    if i == start or i + 1 >= end:
        return 0
    before, after = flags_at(page, i - 1), flags_at(page, i + 1)
    if c == _DOT:
        return 1 if before & uint32(LOWER | QUOTE) and after & uint32(UPPER | QUOTE) else 0
    if c == ord(","):
        return 1 if before & uint32(LETTER) and after & uint32(LETTER) else 0
    counts = before & uint32(DIGIT) and (after & uint32(DIGIT) or code[i + 1] == _DASH)
    if counts and (c == ord("+") or c == _DASH or c == ord("*") or c == ord("^")):
        return 1
    if not before & uint32(LETTER | DIGIT):
        return 0
    if flags_at(page, i) & uint32(HYPHEN):
        return _hyphen_length(page, i, end)
    cuts = c == ord(":") or c == ord("<") or c == ord(">") or c == ord("=") or c == ord("/")
    return 1 if cuts and after & uint32(LETTER) else 0


@inlined
def _hyphen_length(page, i, end):
    """One hyphen, two or three dashes, or two long ones, with a letter behind."""
    code, c = page.kind, page.kind[i]
    most = 3 if c == _DASH else 2 if c == LONG_DASH else 1
    for size in range(1, most + 1):
        if i + size >= end:
            return 0
        if flags_at(page, i + size) & uint32(LETTER):
            return size
        if code[i + size] != c:
            return 0
    return 0


# --- addresses -------------------------------------------------------------------------------------


@inlined
def _is_address(page, start, end):
    """Whether a run is a URL, a host name or an e-mail address."""
    code = page.kind
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
def _names_a_host(page, i):
    return flags_at(page, i) & uint32(NAMES_HOST) != 0


@compiled
def _is_host(page, start, end):
    """Whether [start, end) is a name or four numbers with dots between, perhaps with a port and a path."""
    code = page.kind
    i = label = start
    while i < end and (_names_a_host(page, i) or code[i] == _DOT or code[i] == ord("_") or code[i] == _DASH):
        if code[i] == _DOT:
            if i == label or i - label > 64 or not _names_a_host(page, i - 1):
                return False
            label = i + 1
        elif i == label and not _names_a_host(page, i):
            return False
        i += 1
    if label == start or i == label or not (_is_top_level(page, label, i) or _is_numeric(page, start, i)):
        return False
    if i < end and code[i] == ord(":"):
        port = i + 1
        i = port
        while i < end and flags_at(page, i) & uint32(DIGIT):
            i += 1
        if not 2 <= i - port <= 5:
            return False
    return i == end or code[i] == ord("/") or code[i] == ord("?") or code[i] == ord("#")


@inlined
def _is_top_level(page, start, end):
    if not 2 <= end - start <= 63:
        return False
    for i in range(start, end):
        if not flags_at(page, i) & uint32(LOWER):
            return False
    return True


@inlined
def _is_numeric(page, start, end):
    number, groups = 0, 1
    for i in range(start, end):
        if page.kind[i] == _DOT:
            number, groups = 0, groups + 1
        elif flags_at(page, i) & uint32(DIGIT):
            number = number * 10 + np.int64(page.kind[i]) - 48
        else:
            return False
        if number > 255:
            return False
    return groups == 4


@compiled
def _find_words(data, breaks, page, lexicon, count):
    num_chars = spread(data, 0, len(data), page)
    mark_breaks(page, num_chars, breaks, 0, len(breaks), 0)
    count[0] = split_words(page, num_chars, lexicon)


def words_of(text: str) -> list[tuple[str, int]]:
    """The words of ``text``, as the rules count them, each with its hash."""
    data, count = np.frombuffer(text.encode(), np.uint8), np.zeros(1, np.int64)
    page = new_page(len(data))
    _find_words(data, word_breaks(data, np.array([0, len(data)])), page, english(), count)
    starts, ends, digests = (column[: count[0]].tolist() for column in (page.start, page.end, page.digest))
    return [(text[start:end], h) for start, end, h in zip(starts, ends, digests, strict=True)]
