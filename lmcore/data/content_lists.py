"""Keep what an extractor of main text takes away by its tag alone: lists, and dates inside of sentences.

resiliparse drops each ``<ul>`` that is less than four elements below the body, and each one with more than a
fifth of its text in links; so lists of articles vanish where the same in ``<ol>`` or ``<p>`` stays. It drops
each ``<time>`` as the date of a post, the one in a sentence too. Here a page's own text is changed before it
is parsed: lists that hold content are put deeper and diluted, so that neither rule applies to them. The rest
is left to the extractor, which goes by ancestors (nav, footer, aside), classes and ids as well.

A list is a menu if its links have more than 0.6 of its text, as resiliparse asks of a ``<div>``. In an
article or the main element, where lists of references are, it takes 0.85; elsewhere, with short items, 0.4.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

# The extractor's time grows with the square of how deep these are nested: half a second for 8,000, many
# minutes for 200,000. Chromium builds no more than 512 levels.
MAX_DEPTH = 512
_MENU_SHARE, _MENU_SHARE_IN_ARTICLE, _MENU_SHARE_IF_SHORT = 0.6, 0.85, 0.4
_LINKED_SHARE = 0.2  # the extractor's
_ITEM_CHARS = 25
_LEAST_DEPTH = 3  # elements between the body and a list that the extractor looks at
_ARTICLES = ("article", "main")
_LISTS = ("ul", "menu")  # equal in HTML, but the extractor loses count of levels behind the second
_DROPPED = ("nav", "aside")  # with all that is in them


def _any_case(*names: str) -> str:
    """Alternatives in any case; a class for each letter is twice as fast as IGNORECASE."""
    return "|".join("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in name) for name in names)


_RAW = ("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes")
_TAG = re.compile(
    rf"<(?:(/?)({_any_case(*_LISTS, 'time', *_ARTICLES, *_DROPPED)})(?=[\s>/])"
    rf"|(!--|(?:{_any_case(*_RAW)})(?=[\s>/])))"
)
_NESTED = re.compile(rf"<(/?)(?:{_any_case('div', 'article', 'section', 'blockquote', 'ul')})(?=[\s>/])")
_TELL_TALE = re.compile(rf"<(?:{_any_case(*_LISTS, 'time')})[\s>/]")
# Text, or where a link or an item begins or ends.
_TEXT = re.compile(r">\s*([^<\s][^<]*)|<(/?(?:[aA]|[lL][iI])(?=[\s>]))")
_LINK = re.compile(r"<[aA]\s")
_INLINE_END = re.compile(r"</time\s*>", re.IGNORECASE)
# Dates on lines of their own, which belong to a post and not to its text, stand between tags.
_BESIDE = re.compile(r"[^\s<>]")


class TooDeepError(Exception):
    """A page would take too long; the message is the reason."""


@dataclass
class _List:
    """A ``<ul>``, or ``<menu>``.

    Attributes:
        start: Where its tag starts.
        first, last: Segments of text that are in it.
        missing: How many elements deeper it would have to be; 0 of one in another.
        in_article: Whether it is in an article or in the main element.
        name: That of its tag.
        end: Where the tag that ends it starts; -1 if none does.
    """

    start: int
    first: int
    missing: int
    in_article: bool
    name: str
    end: int = -1
    last: int = -1


def keep_content(page: str) -> str:
    """``page`` with its lists of content, and dates in sentences, put so that the extractor keeps them.

    Raises:
        TooDeepError: its elements are nested deeper than browsers allow.
    """
    places, kinds, closes = _find_tags(page)
    _check_depth(page, int(np.count_nonzero((kinds & _NEST > 0) & ~closes)))
    if not _TELL_TALE.search(page):
        return page
    is_div = kinds & _DIV > 0
    depths = np.cumsum(is_div * np.where(closes, -1, 1))
    matters = kinds & np.where(closes, _ENDS, _MATTERS) > 0
    found = _Lists(page, places[matters].tolist(), depths[matters].tolist())
    return _edited(page, [*found.renamed, *found.edits()])


def _check_depth(page: str, opened: int) -> None:
    if opened <= MAX_DEPTH:
        return
    depth = 0
    for closes in _NESTED.findall(page):
        depth = max(0, depth - 1) if closes else depth + 1
        if depth > MAX_DEPTH:
            raise TooDeepError(f"HTML nested deeper than {MAX_DEPTH} elements")


_NEST, _DIV, _MATTERS, _ENDS = 1, 2, 4, 8  # the last: its end matters, too
_BITS = 16


@functools.cache
def _kinds() -> np.ndarray:
    """Bits for what a tag may be, by the first three letters of its name, folded; some that are not, too."""
    table = np.zeros(1 << _BITS, np.uint8)
    for bit, names in (
        (_NEST, ("menu", "div", "article", "section", "blockquote")),
        (_DIV, ("div",)),
        (_MATTERS, ("time", "menu", *_ARTICLES, *_DROPPED, *_RAW, "!--")),
        (_ENDS, ("menu", *_ARTICLES, *_DROPPED)),
    ):
        for name in names:
            table[_key(*(np.uint32(ord(c) | 0x20) for c in name[:3]))] |= bit
    for after in " >/\t\n\r\f":
        table[_key(*(np.uint32(ord(c) | 0x20) for c in f"ul{after}"))] |= _MATTERS | _NEST | _ENDS
    return table


def _key(first: Any, second: Any, third: Any) -> Any:
    return (first * 961 + second * 31 + third) & ((1 << _BITS) - 1)


def _find_tags(page: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of ``<`` that may begin a tag of some kind; its bits; and whether it closes.

    Twenty times as fast as an expression that looks at each tag.
    """
    padded = page + "   "
    if page.isascii():
        codes = np.frombuffer(padded.encode("ascii"), np.uint8)
    else:
        codes = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), np.uint32)
    places = np.flatnonzero(codes[:-3] == ord("<"))
    closes = codes[places + 1] == ord("/")
    names = places + 1 + closes
    last = len(codes) - 1
    letters = (codes[np.minimum(names + i, last)].astype(np.uint32) | 0x20 for i in range(3))
    kinds = _kinds()[_key(*letters)]
    found = kinds > 0
    return places[found], kinds[found], closes[found]


class _Lists:
    """The lists of a page outside of scripts, comments, nav and aside, and what gets another name."""

    def __init__(self, page: str, places: list[int], depths: list[int]) -> None:
        self._page = page
        self.renamed: list[tuple[int, int, str]] = []
        self._groups: list[
            tuple[list[_List], list[int]]
        ] = []  # lists in each other, where each starts and ends
        self._open: list[_List] = []
        self._divs = 0
        self._inside = {"article": 0, "main": 0, "nav": 0, "aside": 0}
        for tag, self._divs in _tags(page, places, depths):
            self._take(tag, tag[2].lower(), closes=bool(tag[1]))
        if self._open:
            self._groups[-1][1].append(len(page))

    def _take(self, tag: re.Match[str], name: str, *, closes: bool) -> None:
        if name in self._inside:
            self._inside[name] = max(0, self._inside[name] - 1) if closes else self._inside[name] + 1
        elif self._inside["nav"] or self._inside["aside"]:
            return
        elif name == "time":
            self.renamed += _rename_time(self._page, tag.start(), tag.end())
        elif not closes:
            self._begin(tag.start(), name)
        elif self._open:
            edges = self._groups[-1][1]
            ended = self._open.pop()
            if name == ended.name == "menu":
                self.renamed.append((tag.start(), tag.end(), "</ul"))
            ended.end, ended.last = tag.start(), len(edges)
            edges.append(tag.start())

    def _begin(self, start: int, name: str) -> None:
        if name == "menu":
            self.renamed.append((start, start + len("<menu"), "<ul"))
        in_article, missing = bool(self._inside["article"] or self._inside["main"]), 0
        if not self._open:
            self._groups.append(([], []))
            missing = max(
                0, _LEAST_DEPTH - max(0, self._divs) - self._inside["article"] - self._inside["main"]
            )
        lists, edges = self._groups[-1]
        lists.append(_List(start, len(edges), missing, in_article, name))
        self._open.append(lists[-1])
        edges.append(start)

    def edits(self) -> Iterator[tuple[int, int, str]]:
        """Yield where, behind what is replaced, and by what."""
        for lists, edges in self._groups:
            if _LINK.search(self._page, edges[0], edges[-1]):
                yield from self._edits_of_linked(lists, edges)
            elif lists[0].missing:
                yield from self._deeper(lists[0])

    def _edits_of_linked(self, lists: list[_List], edges: list[int]) -> Iterator[tuple[int, int, str]]:
        # Text and linked text before each edge: each segment is looked at once, however lists are nested.
        measured = [_measure(self._page, start, end) for start, end in itertools.pairwise(edges)]
        sums = [
            (0, 0, 0),
            *itertools.accumulate(measured, lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] + b[2])),
        ]
        for found in lists:
            last = found.last if found.last >= 0 else len(measured)
            text, linked, items = (b - a for a, b in zip(sums[found.first], sums[last], strict=True))
            if not text or _is_menu(found, linked / text, text / max(1, items)):
                continue
            if (
                linked / text > _LINKED_SHARE / 2 and found.end >= 0
            ):  # the extractor counts a little otherwise
                yield found.end, found.end, f"<script>{'x' * int(linked / _LINKED_SHARE + 1)}</script>"
            if found.missing:
                yield from self._deeper(found)

    def _deeper(self, found: _List) -> Iterator[tuple[int, int, str]]:
        yield found.start, found.start, "<div>" * found.missing
        if found.end >= 0:
            close = self._page.find(">", found.end) + 1 or len(self._page)
            yield close, close, "</div>" * found.missing


def _tags(page: str, places: list[int], depths: list[int]) -> Iterator[tuple[re.Match[str], int]]:
    """The tags at ``places`` that matter here, outside of scripts and comments, and the divs open there."""
    behind = in_raw = 0
    for place, depth in zip(places, depths, strict=True):
        tag = _TAG.match(page, place) if place >= behind else None
        if tag and tag[3]:
            behind = _end_of_raw(page, tag.end(), tag[3].lower())
            in_raw += page.count("<div", place, behind) - page.count("</div", place, behind)
        elif tag:
            yield tag, depth - in_raw


def _end_of_raw(page: str, start: int, name: str) -> int:
    if name == "!--":
        end = page.find("-->", start)
    else:
        end = page.find(f"</{name}", start)
        if end < 0:
            found = _end_tag(name).search(page, start)
            end = found.start() if found else -1
    return end if end >= 0 else len(page)


@functools.cache
def _end_tag(name: str) -> re.Pattern[str]:
    return re.compile(f"</{name}", re.IGNORECASE)


def _rename_time(page: str, start: int, name_end: int) -> list[tuple[int, int, str]]:
    """Make a ``<time>`` beside text, as part of a sentence, a ``<data>``, which the extractor keeps."""
    end = _INLINE_END.search(page, name_end, name_end + 1_000)
    if not end:
        return []
    before = page[max(0, start - 80) : start].rstrip()[-1:]
    after = page[end.end() : end.end() + 80].lstrip()[:1]
    if not (_BESIDE.match(before) or _BESIDE.match(after)):
        return []
    return [(start, name_end, "<data"), (end.start(), end.end(), "</data>")]


def _is_menu(found: _List, share: float, item_chars: float) -> bool:
    if found.in_article:
        return share > _MENU_SHARE_IN_ARTICLE
    return share > (_MENU_SHARE if item_chars >= _ITEM_CHARS else _MENU_SHARE_IF_SHORT)


def _measure(page: str, start: int, end: int) -> tuple[int, int, int]:
    """Characters of text and of links in [start, end), and its items."""
    text = linked = items = 0
    in_link = False
    for run, tag in _TEXT.findall(page, start, end):
        if run:
            text += len(run)
            linked += len(run) if in_link else 0
        elif len(tag) == 1:
            in_link = True
        elif tag in ("/a", "/A"):
            in_link = False
        elif tag[0] != "/":
            items += 1
    return text, linked, items


def _edited(page: str, edits: list[tuple[int, int, str]]) -> str:
    parts, done = [], 0
    for start, end, text in sorted(edits, key=lambda edit: edit[:2]):
        parts += page[done:start], text
        done = max(done, end)
    return "".join((*parts, page[done:])) if parts else page
