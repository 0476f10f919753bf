"""Keep what an extractor of main text takes away by its tag alone: lists, and dates inside of sentences.

resiliparse drops each ``<ul>`` that is less than four elements below the body, and each one with more than a
fifth of its text in links; so lists of articles vanish where the same in ``<ol>`` or ``<p>`` stays. It drops
each ``<time>`` as the date of a post, the one in a sentence too. Here a page's own text is changed before it
is parsed: lists that hold content are put deeper and diluted, so that neither rule applies to them. The rest
is left to the extractor, which goes by ancestors (nav, footer, aside), classes and ids as well.

A list is a menu if its links have more than 0.6 of its text, as resiliparse asks of a ``<div>``. In an article
or the main element, where lists of references are, it takes 0.85; elsewhere, with short items, 0.4.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

# The extractor's time grows with the square of how deep these are nested: half a second for 8,000, many
# minutes for 200,000. Chromium builds no more than 512 levels.
MAX_DEPTH = 512
_MENU_SHARE, _MENU_SHARE_IN_ARTICLE, _MENU_SHARE_IF_SHORT = 0.6, 0.85, 0.4
_LINKED_SHARE = 0.2  # the extractor's
_ITEM_CHARS = 25
_LEAST_DEPTH = 3  # elements between the body and a list that the extractor looks at
_ARTICLES = ("article", "main")

_TAG = re.compile(
    r"<(?:(/?)(div|article|section|blockquote|ul|main|time)(?=[\s>/])"
    r"|(!--|(?:script|style|textarea|title|xmp|iframe|noembed|noframes)(?=[\s>/])))",
    re.IGNORECASE,
)
_TELL_TALE = re.compile(r"<(?:ul|time)[\s>/]", re.IGNORECASE)
_MARKUP = re.compile(r"<[^>]*>?")
_LINK = re.compile(r"<a\s[^>]*>(.*?)(?=</a\b|$)", re.IGNORECASE | re.DOTALL)
_ITEM = re.compile(r"<li[\s>]", re.IGNORECASE)
_INLINE_END = re.compile(r"</time\s*>", re.IGNORECASE)
# Dates on lines of their own, which belong to a post and not to its text, stand between tags.
_BLOCK_TEXT = re.compile(r"[^\s<>]")
_DEEPER = "<div>"


class TooDeepError(Exception):
    """A page would take too long; the message is the reason."""


@dataclass
class _List:
    """A ``<ul>``.

    Attributes:
        start: Where its tag starts.
        end: Where the tag that ends it starts; the page's end if none does.
        first, last: Segments of text that are in it.
        missing: How many elements deeper it would have to be.
        in_article: Whether it is in an article or in the main element.
        is_outer: Whether it is in no other list.
    """

    start: int
    first: int
    missing: int
    in_article: bool
    is_outer: bool
    end: int = -1
    last: int = -1


def keep_content(page: str) -> str:
    """``page`` with its lists of content, and dates in sentences, put so that the extractor keeps them.

    Raises:
        TooDeepError: its elements are nested deeper than browsers allow.
    """
    if not _TELL_TALE.search(page):
        if page.count("<") > MAX_DEPTH:
            for _ in _tags(page):
                pass
        return page
    edits: list[tuple[int, int, str]] = []  # where, behind what is replaced, by what
    lists: list[_List] = []
    edges: list[int] = []  # where lists start and end
    open_lists: list[_List] = []
    articles = 0
    for tag, closes, name, depth in _tags(page):
        if name in _ARTICLES:
            articles = max(0, articles - 1) if closes else articles + 1
        elif name == "time":
            edits += _rename_time(page, tag.start(), tag.end()) if not closes else ()
        elif name == "ul" and not closes:
            missing = max(0, _LEAST_DEPTH - (depth - 1))
            open_lists.append(_List(tag.start(), len(edges), missing, articles > 0, not open_lists))
            lists.append(open_lists[-1])
            edges.append(tag.start())
        elif name == "ul" and open_lists:
            ended = open_lists.pop()
            ended.end, ended.last = tag.start(), len(edges)
            edges.append(tag.start())
    edges.append(len(page))
    edits += _of_lists(page, lists, edges)
    return _edited(page, edits)


def _tags(page: str) -> Iterator[tuple[re.Match[str], bool, str, int]]:
    """The tags that matter here, outside of scripts and comments: match, whether it closes, name, depth."""
    depth = behind = 0
    for tag in _TAG.finditer(page):
        if tag.start() < behind:
            continue
        closes, name, raw = tag.groups()
        if raw:
            behind = _end_of_raw(page, tag.end(), raw.lower())
            continue
        name = name.lower()
        if name != "time":
            depth = max(0, depth - 1) if closes else depth + 1
            if depth > MAX_DEPTH:
                raise TooDeepError(f"HTML nested deeper than {MAX_DEPTH} elements")
        yield tag, bool(closes), name, depth


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
    if not (_BLOCK_TEXT.match(before) or _BLOCK_TEXT.match(after)):
        return []
    return [(start, name_end, "<data"), (end.start(), end.end(), "</data>")]


def _of_lists(page: str, lists: list[_List], edges: list[int]) -> Iterator[tuple[int, int, str]]:
    if not lists:
        return
    # Text and linked text before each edge: each segment is looked at once, however lists are nested.
    measured = [_measure(page[start:end]) for start, end in itertools.pairwise(edges)]
    sums = [(0, 0, 0), *itertools.accumulate(measured, lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] + b[2]))]
    for found in lists:
        last = found.last if found.last >= 0 else len(measured)
        text, linked, items = (b - a for a, b in zip(sums[found.first], sums[last], strict=True))
        if not text or _is_menu(found, linked / text, text / max(1, items)):
            continue
        if found.is_outer and found.missing:
            yield found.start, found.start, _DEEPER * found.missing
        if found.end >= 0:
            if linked / text > _LINKED_SHARE / 2:  # the extractor counts a little otherwise
                yield found.end, found.end, f"<script>{'x' * int(linked / _LINKED_SHARE + 1)}</script>"
            if found.is_outer and found.missing:
                close = page.find(">", found.end) + 1 or len(page)
                yield close, close, "</div>" * found.missing


def _is_menu(found: _List, share: float, item_chars: float) -> bool:
    if found.in_article:
        return share > _MENU_SHARE_IN_ARTICLE
    return share > (_MENU_SHARE if item_chars >= _ITEM_CHARS else _MENU_SHARE_IF_SHORT)


def _measure(segment: str) -> tuple[int, int, int]:
    """Characters of text and of links in ``segment``, and its items."""
    linked = sum(_chars(link) for link in _LINK.findall(segment)) if "<a" in segment or "<A" in segment else 0
    return _chars(segment), linked, len(_ITEM.findall(segment))


def _chars(markup: str) -> int:
    return len(" ".join(_MARKUP.sub("", markup).split()))


def _edited(page: str, edits: list[tuple[int, int, str]]) -> str:
    parts, done = [], 0
    for start, end, text in sorted(edits, key=lambda edit: edit[0]):
        parts += page[done:start], text
        done = max(done, end)
    return "".join((*parts, page[done:])) if parts else page
